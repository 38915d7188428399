"""Conversion of an NWB file written with pynwb, compared with the written numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("pynwb")

from nwb_recording import CLIP, RATE, SIZE, new_file, record, write

from data_prep.nwb import convert
from data_prep.nwb.__main__ import main
from data_prep.nwb.frame_clock import bin_means
from ssl_vivit.data.sessions.files import Session
from ssl_vivit.errors import DataError


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    return record(tmp_path_factory.mktemp("nwb") / "mouse.nwb")


@pytest.fixture(scope="module")
def session(recording):
    """Convert both movies with all measurements, the tiers of the table and the original frame size."""
    out = recording.path.with_name("session")
    argv = [
        str(recording.path), "--out", str(out), "--stimulus", "movie_a", "movie_b", "--running", "speed",
        "--pupil", "pupil", "--trials", "trials", "--tiers", "tier", "--size", f"{SIZE[0]}x{SIZE[1]}",
    ]  # fmt: skip
    assert main(argv) == 0
    return Session(out)


def edges_of(recording, trial):
    onsets = np.concatenate(list(recording.onsets.values()))[trial * CLIP : (trial + 1) * CLIP]
    name = "movie_a" if trial < 8 else "movie_b"
    usual = np.median(np.diff(recording.onsets[name]))
    return np.append(onsets, onsets[-1] + usual)


def line(argv, capsys):
    try:
        status = main(argv)
    except SystemExit as end:
        status = end.code
    text = capsys.readouterr().err
    lines = [piece for piece in text.splitlines() if piece.strip() and "trial/s" not in piece]
    lines = [piece for piece in lines if "?trial" not in piece]
    assert status != 0
    assert len(lines) == 1, text
    return lines[0]


def test_spikes_of_every_frame_against_a_loop(recording, session):
    assert session.unit_ids.tolist() == [7, 3, 12]
    assert session.kind == "spikes"
    on_edges = 0
    for trial in range(12):
        edges = edges_of(recording, trial)
        expected = np.zeros((CLIP, 3))
        for column, unit in enumerate((7, 3, 12)):
            for spike in recording.spikes[unit]:
                for k in range(CLIP):
                    if edges[k] <= spike < edges[k + 1]:
                        expected[k, column] += 1
                        on_edges += spike == edges[k]
        np.testing.assert_array_equal(session.responses(trial), expected)
    assert on_edges > 50


def test_frames_are_those_that_the_index_points_to(recording, session):
    for trial in range(12):
        name, first = ("movie_a", trial) if trial < 8 else ("movie_b", trial - 8)
        shown = recording.indices[name][first * CLIP : (first + 1) * CLIP]
        np.testing.assert_array_equal(session.video(trial), recording.templates[name][shown])


def test_behaviour_is_the_mean_over_each_frame_in_its_unit(recording, session):
    times, speed = recording.running
    for trial in (0, 7, 11):
        edges = edges_of(recording, trial)
        for k in range(CLIP):
            inside = (times >= edges[k]) & (times < edges[k + 1])
            expected = speed[inside].mean() if inside.any() else speed[times < edges[k]][-1]
            np.testing.assert_allclose(
                session.behaviour(trial, k, k + 1)[0, 0], expected * 0.01 + 1, rtol=1e-6
            )
        centre = bin_means(*recording.pupil, edges)
        np.testing.assert_allclose(session.pupil_centre(trial), centre, rtol=1e-5, atol=1e-6)
    assert session.behaviour_channels == 1
    assert session.has_pupil


def test_tiers_of_the_table_and_the_clock(recording, session):
    assert session.tier_names.tolist() == recording.tiers
    assert session.frames_per_second == pytest.approx(RATE, rel=0.01)
    facts = json.loads((session.path / "meta/session.json").read_text())
    assert facts["identifier"] == "mouse-1"
    assert facts["stimuli"] == ["stimulus/presentation/movie_a", "stimulus/presentation/movie_b"]


def test_repeats_are_held_out_whole(recording, tmp_path):
    """Clip 0 of movie_a was shown three times; no movie of train is in another tier."""
    report = convert(
        recording.path, tmp_path / "s", stimuli=["movie_a"], held_out=0.8, progress=False
    )
    session = Session(tmp_path / "s")
    assert len({session.tier_names[t] for t in (0, 6, 7)}) == 1
    assert session.tier_names[0] == "live_test_main"
    tiers = [set(session.contents[session.tiers[t]].tolist()) for t in session.tiers]
    assert not tiers[0] & tiers[1]
    assert not tiers[0] & tiers[2]
    assert not tiers[1] & tiers[2]
    assert report.tiers == {"live_test_main": 3, "oracle": 3, "train": 2}
    assert session.frame_size == (36, 64)


def test_rate_gives_even_bins_and_frames_that_have_begun(recording, tmp_path):
    report = convert(
        recording.path, tmp_path / "s", stimuli=["movie_a"], rate=100.0, size=SIZE, progress=False
    )
    assert report.frames_per_second == 100.0
    session = Session(tmp_path / "s")
    onsets = recording.onsets["movie_a"][:CLIP]
    for k in range(int(session.lengths[0])):
        now = onsets[0] + k / 100
        latest = max(i for i, onset in enumerate(onsets) if onset <= now)
        np.testing.assert_array_equal(
            session.video(0, k, k + 1)[0], recording.templates["movie_a"][latest]
        )
        spikes = recording.spikes[7]
        count = ((spikes >= now) & (spikes < onsets[0] + (k + 1) / 100)).sum()
        assert session.responses(0, k, k + 1)[0, 0] == count


def test_without_a_table_movies_are_cut_alike(recording, tmp_path):
    convert(
        recording.path,
        tmp_path / "s",
        stimuli=["movie_a"],
        trial_seconds=0.5,
        size=SIZE,
        progress=False,
    )
    session = Session(tmp_path / "s")
    # Pauses of half a second part the clips, each of which gives two trials of 15 frames.
    assert session.lengths.tolist() == [15] * 16
    assert session.contents.tolist() == [*range(12), 0, 1, 0, 1]


def test_unit_that_was_not_recorded_throughout(recording, tmp_path):
    from pynwb.image import ImageSeries

    nwb = new_file()
    frames = np.random.default_rng(0).random((90, 8, 8))
    nwb.add_stimulus(ImageSeries(name="film", data=frames, unit="n.a.", format="raw", rate=30.0))
    nwb.add_unit(spike_times=[0.5, 1.5, 2.5], obs_intervals=[[0.0, 1.0]], id=1)
    nwb.add_unit(spike_times=[0.5, 1.5, 2.5], obs_intervals=[[0.0, 3.0]], id=2)
    write(nwb, tmp_path / "f.nwb")
    report = convert(
        tmp_path / "f.nwb", tmp_path / "s", trial_seconds=1, size=(8, 8), progress=False
    )
    assert any(note.startswith("33.3% of the responses are NaN") for note in report.notes)
    session = Session(tmp_path / "s")
    responses = np.concatenate([session.responses(t) for t in range(3)])
    assert not np.isnan(responses[:30]).any()
    assert np.isnan(responses[30:, 0]).all()
    assert responses[:, 1].sum() == 3
    assert responses[15, 0] == 1
    # Pixels in [0, 1] were stretched to 255.
    video = np.concatenate([session.video(t) for t in range(3)])
    np.testing.assert_array_equal(video, np.round(frames.astype(np.float32) * 255))


def film_and_speed(path, times, speed, spikes=(0.5, 1.5, 2.5, 3.5)):
    """Write a movie of 4 s at 30 Hz in the acquisition group, one unit, and two running signals."""
    from pynwb import TimeSeries
    from pynwb.image import ImageSeries

    nwb = new_file()
    frames = np.random.default_rng(0).integers(0, 256, (120, 8, 8), dtype=np.uint8)
    nwb.add_acquisition(ImageSeries(name="film", data=frames, unit="n.a.", format="raw", rate=30.0))
    nwb.add_acquisition(TimeSeries(name="speed", data=speed, unit="m/s", timestamps=times))
    nwb.add_unit(spike_times=list(spikes), id=1)
    write(nwb, path)


def test_a_session_in_which_no_unit_responds_is_refused(tmp_path):
    """A likely reason is that spike times and stimulus have different clocks."""
    film_and_speed(tmp_path / "f.nwb", np.arange(0, 4, 0.01), np.ones((400, 2)), spikes=[100.5])
    with pytest.raises(
        DataError, match="no spike in any of the 4 trials, which are between 0 and 4 s"
    ):
        convert(tmp_path / "f.nwb", tmp_path / "s", stimuli=["film"], trial_seconds=1, size=(8, 8),
                progress=False)  # fmt: skip
    assert not (tmp_path / "s").exists()


def test_a_trial_before_a_signal_begins_is_left_out(tmp_path):
    times = np.arange(0.9, 4, 0.01)
    speed = np.stack([times, 2 * times], axis=1)
    speed[times > 3, 1] = np.nan
    film_and_speed(tmp_path / "f.nwb", times, speed)
    report = convert(
        tmp_path / "f.nwb",
        tmp_path / "s",
        stimuli=["film"],
        behaviour=["speed"],
        trial_seconds=1,
        size=(8, 8),
        progress=False,
    )
    assert "left out: 1 trials begin before the first sample of a signal" in report.notes
    session = Session(tmp_path / "s")
    assert session.lengths.tolist() == [30, 30, 30]
    behaviour = np.concatenate([session.behaviour(t) for t in range(3)])
    centres = 1 + (np.arange(90) + 0.5) / 30
    np.testing.assert_allclose(behaviour[:, 0], centres, atol=0.011)
    np.testing.assert_allclose(behaviour[:60, 1], 2 * centres[:60], atol=0.022)
    # The second wheel is not measured after 3 s: its last value stays.
    np.testing.assert_allclose(behaviour[61:, 1], 6.0, atol=0.021)
    assert np.ptp(behaviour[61:, 1]) == 0


def test_a_trial_before_the_pupil_is_measured_is_left_out(tmp_path):
    times = np.arange(0.9, 4, 0.01)
    film_and_speed(tmp_path / "f.nwb", times, np.stack([times, 2 * times], axis=1))
    report = convert(tmp_path / "f.nwb", tmp_path / "s", stimuli=["film"], pupil=["speed"],
                     trial_seconds=1, size=(8, 8), progress=False)  # fmt: skip
    assert "left out: 1 trials begin before the first sample of a signal" in report.notes
    session = Session(tmp_path / "s")
    centres = 1 + (np.arange(90) + 0.5) / 30
    pupil = np.concatenate([session.pupil_centre(t) for t in range(3)])
    np.testing.assert_allclose(pupil, np.stack([centres, 2 * centres], 1), atol=0.022)


def test_a_signal_that_stops_is_named(tmp_path):
    times = np.arange(0, 2.2, 0.01)
    film_and_speed(tmp_path / "f.nwb", times, times)
    settings = {
        "stimuli": ["film"],
        "running": "speed",
        "trial_seconds": 1,
        "size": (8, 8),
        "progress": False,
    }
    report = convert(tmp_path / "f.nwb", tmp_path / "s", **settings)
    assert (
        "acquisition/speed has no sample for more than 1 s in 1 trials; its last value is kept"
        in report.notes
    )


def test_listing(recording, capsys):
    assert main([str(recording.path), "--list"]) == 0
    text = capsys.readouterr().out
    assert "units     3" in text
    assert "stimulus/presentation/movie_a  240 of template movie_a_frames, 30 Hz, 5.00" in text
    assert "processing/behavior/running/speed" in text
    assert "trials  12 rows: start_time, stop_time, tier" in text


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "has 2 stimuli; choose by --stimulus: stimulus/presentation/movie_a"),
        (["--stimulus", "movie_c"], "--stimulus movie_c is not in "),
        (["--stimulus", "movie_a", "--running", "legs"], "--running legs is not in "),
        (["--stimulus", "movie_a", "--trials", "blocks"], "--trials blocks is not in "),
        (["--stimulus", "movie_a", "--tiers", "fold"], "no column 'fold'"),
        (["--stimulus", "movie_a", "--tiers", "start_time"], "use train, oracle"),
        (["--stimulus", "movie_a", "--rate", "0"], "--rate 0"),
        (
            ["--stimulus", "movie_a", "--size", "36"],
            "argument --size: '36' must be height and width",
        ),
        (["--stimulus", "movie_a", "--held-out", "1"], "--held-out 1"),
        (["--stimulus", "movie_a", "--trial-seconds", "2", "--trials", "trials"], "give one"),
    ],
)
def test_mistakes_are_one_line(options, expected, recording, tmp_path, capsys):
    text = line([str(recording.path), "--out", str(tmp_path / "s"), *options], capsys)
    assert text.startswith("error: ")
    assert expected in text
    assert not list(tmp_path.iterdir())


def test_files_that_lack_something(tmp_path, capsys):
    from pynwb.image import ImageSeries

    def film(name="film", **options):
        options.setdefault("data", np.random.default_rng(0).integers(0, 256, (60, 8, 8), np.uint8))
        return ImageSeries(name=name, unit="n.a.", **{"rate": 30.0, "format": "raw", **options})

    def refusal(**parts):
        nwb = new_file()
        for unit in parts.get("units", [[0.1, 0.2]]):
            nwb.add_unit(spike_times=unit)
        for stimulus in parts.get("stimuli", []):
            nwb.add_stimulus(stimulus)
        file = tmp_path / "f.nwb"
        file.unlink(missing_ok=True)
        write(nwb, file)
        return line([str(file), "--out", str(tmp_path / "s"), *parts.get("options", [])], capsys)

    assert "has no units" in refusal(units=[], stimuli=[film()])
    assert "has no stimulus with times of presentation" in refusal()
    assert "1 different movie," in refusal(stimuli=[film()])
    both = [film("a"), film("b", starting_time=0.01)]
    assert "overlap at" in refusal(stimuli=both, options=["--stimulus", "a", "b"])
    both = [film("a"), film("b", starting_time=9.0, rate=60.0)]
    assert "set the rate of bins by --rate" in refusal(
        stimuli=both, options=["--stimulus", "a", "b"]
    )
    elsewhere = film(
        data=None,
        rate=None,
        timestamps=np.arange(60) / 30,
        external_file=["x.avi"],
        format="external",
        starting_frame=[0],
    )
    text = refusal(stimuli=[elsewhere])
    assert "are in another file (x.avi); set --external-movies" in text
    wide = film(data=np.linspace(-9, 900, 60 * 64).reshape(60, 8, 8))
    assert "pixels from -9 to 900" in refusal(stimuli=[wide])
    assert not (tmp_path / "s").exists()
    assert not (tmp_path / "s.partial").exists()


def test_files_that_are_not_nwb_are_refused(tmp_path, capsys):
    (tmp_path / "a.nwb").write_text("text")
    for name, expected in (("none.nwb", "is not a file"), ("a.nwb", "is not an HDF5 file")):
        assert expected in line([str(tmp_path / name), "--out", str(tmp_path / "s")], capsys)


def test_without_the_extra_one_line_names_the_package_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(__import__("sys").modules, "pynwb", None)
    text = line([str(tmp_path / "a.nwb"), "--list"], capsys)
    assert text == "error: reading NWB files needs pynwb; run `pip install 'ssl_vivit[neural]'`"


def test_pynwb_keeps_no_pickle_in_the_users_cache(recording, tmp_path):
    code = f"from data_prep.nwb.file import NwbFile; NwbFile({str(recording.path)!r})"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    environment.pop("PYNWB_NO_CACHE_DIR", None)
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)
    assert list(tmp_path.rglob("*.pkl")) == []
