"""NWB files with templates, tables of presentations, calcium signals and unusual clocks."""

from __future__ import annotations

import re

import numpy as np
import pytest

pytest.importorskip("pynwb")

from nwb_recording import new_file, write
from test_nwb import line

from data_prep.nwb import convert
from data_prep.nwb.__main__ import main
from ssl_vivit.data.sessions.files import Session
from ssl_vivit.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore:The linked table for DynamicTableRegion")

SIZE = (8, 10)
SETTINGS = {"size": SIZE, "progress": False}
FILM = np.random.default_rng(0).integers(0, 256, (60, *SIZE), dtype=np.uint8)


def movie(name="movie", data=FILM, **clock):
    from pynwb.image import ImageSeries

    clock = clock or {"rate": 30.0, "starting_time": 0.0}
    return ImageSeries(name=name, data=data, unit="n.a.", format="raw", **clock)


def table(name, rows, **columns):
    """Return intervals of (start, stop), with further columns."""
    from pynwb.epoch import TimeIntervals

    made = TimeIntervals(name=name, description="presentations")
    for column in columns:
        made.add_column(column, column)
    for k, (start, stop) in enumerate(rows):
        made.add_interval(start_time=start, stop_time=stop, **{c: v[k] for c, v in columns.items()})
    return made


def with_units(nwb, stop=200.0, **columns):
    rng = np.random.default_rng(1)
    spikes = [np.sort(rng.uniform(0, stop, 2000)) for _ in range(3)]
    for column in columns:
        nwb.add_unit_column(column, column)
    for k, times in enumerate(spikes):
        nwb.add_unit(spike_times=times, **{c: v[k] for c, v in columns.items()})
    return spikes


def saved(nwb, folder):
    write(nwb, folder / "f.nwb")
    return folder / "f.nwb"


def whole(session, what):
    return np.concatenate([getattr(session, what)(t) for t in range(len(session.lengths))])


def movie_rows(start, repeats):
    onsets = start + np.arange(60 * repeats) / 30
    return np.stack([onsets, np.append(onsets[1:], onsets[-1] + 1 / 30)], axis=1)


def test_a_template_is_shown_at_the_times_of_its_table(tmp_path):
    """The template's times start at 0 s; the rows of the table, from 100 s, give the presentations."""
    rows = movie_rows(100.0, 2)
    nwb = new_file()
    spikes = with_units(nwb)
    nwb.add_stimulus_template(movie("movie_one"))
    nwb.add_time_intervals(
        table("movie_one_presentations", rows, frame=np.tile(np.arange(60.0), 2))
    )
    convert(saved(nwb, tmp_path), tmp_path / "s", trial_seconds=0.5, **SETTINGS)
    session = Session(tmp_path / "s")
    np.testing.assert_array_equal(whole(session, "video"), np.tile(FILM, (2, 1, 1)))
    edges = np.append(rows[:, 0], rows[-1, 1])
    for unit, times in enumerate(spikes):
        expected = np.histogram(times, edges)[0]
        np.testing.assert_array_equal(whole(session, "responses")[:, unit], expected)
    assert session.contents.tolist() == [0, 1, 2, 3] * 2


def test_a_template_without_presentations_is_not_a_stimulus(tmp_path, capsys):
    nwb = new_file()
    with_units(nwb)
    nwb.add_stimulus_template(movie("movie_one"))
    nwb.add_acquisition(movie("eye_camera"))
    path = str(saved(nwb, tmp_path))
    text = line([path, "--out", str(tmp_path / "s")], capsys)
    assert "has no stimulus with times of presentation; if one of these was" in text
    assert "name it by --stimulus: acquisition/eye_camera" in text
    text = line([path, "--out", str(tmp_path / "s"), "--stimulus", "movie_one"], capsys)
    assert "--stimulus movie_one is a template, which has no times" in text
    assert not (tmp_path / "s").exists()


def images_shown(tmp_path, template=None, **columns):
    """Write six rows of 0.25 s with pauses of 0.5 s."""
    from pynwb.base import Images
    from pynwb.image import GrayscaleImage

    names = ["im065", "im012", "im099"]
    images = [GrayscaleImage(name=n, data=FILM[k]) for k, n in enumerate(names)]
    nwb = new_file()
    with_units(nwb)
    nwb.add_stimulus_template(Images(name="natural_set", images=images))
    starts = 5 + 0.75 * np.arange(6)
    nwb.add_time_intervals(
        table("stimulus_presentations", np.stack([starts, starts + 0.25], 1), **columns)
    )
    return saved(nwb, tmp_path)


SHOWN = ["im099", "im065", "im012", "omitted", "im012", "im099"]


def test_images_by_name_with_grey_between_them(tmp_path):
    path = images_shown(tmp_path, image_name=SHOWN, stimulus_name=["natural_set"] * 6)
    report = convert(path, tmp_path / "s", rate=20.0, trial_seconds=0.75, **SETTINGS)
    session = Session(tmp_path / "s")
    grey = np.full((1, *SIZE), 128, np.uint8)
    pictures = {"im065": FILM[:1], "im012": FILM[1:2], "im099": FILM[2:3], "omitted": grey}
    expected = [
        np.concatenate([np.repeat(pictures[name], 5, 0), np.repeat(grey, 10, 0)]) for name in SHOWN
    ]
    expected[-1] = expected[-1][:5]
    np.testing.assert_array_equal(whole(session, "video"), np.concatenate(expected))
    assert session.frames_per_second == 20.0
    assert any(
        "% of the frames are a grey screen (pixel value 128)" in note for note in report.notes
    )


def test_rows_of_another_stimulus_are_left_out_and_counted(tmp_path):
    """Their frame numbers refer to other pictures, and the screen was not grey at these times."""
    onsets = 5 + np.arange(140) / 30
    nwb = new_file()
    with_units(nwb)
    nwb.add_stimulus_template(movie("one"))
    frames = np.concatenate([np.arange(60), np.arange(20), np.arange(60)])
    names = np.repeat(["one", "two", "one"], [60, 20, 60])
    rows = np.stack([onsets, onsets + 1 / 30], axis=1)
    nwb.add_time_intervals(table("all_rows", rows, frame=frames, stimulus_name=names))
    report = convert(saved(nwb, tmp_path), tmp_path / "s", trial_seconds=0.5, **SETTINGS)
    video = whole(Session(tmp_path / "s"), "video")
    np.testing.assert_array_equal(video, np.tile(FILM, (2, 1, 1)))
    assert any(
        note.startswith("left out: 20 rows of ") and note.endswith("no picture of its template")
        for note in report.notes
    )


@pytest.mark.parametrize(
    ("columns", "settings", "expected"),
    [
        ({"image_name": SHOWN}, {}, "choose by --template: stimulus/templates/natural_set"),
        (
            {"image_name": SHOWN, "image_index": range(6)},
            {"template": "natural_set"},
            "choose one by --frame-column: image_index, image_name",
        ),
        ({"frame": range(6)}, {"template": "natural_set"}, "no order_of_images"),
        (
            {"image_name": ["x"] * 6},
            {"template": "natural_set"},
            r"no row of .* shows a picture \(6 rows",
        ),
        ({"contrast": range(6)}, {}, "has no stimulus with times"),
        (
            {"contrast": range(6)},
            {"template": "natural_set", "frame_column": "contrast"},
            "no order_of_images",
        ),
        ({"image_name": SHOWN}, {"template": "none"}, "--template none is not in "),
        (
            {"image_name": SHOWN, "stimulus_name": ["one", "two"] * 3},
            {"template": "natural_set"},
            r"show 2 stimuli \(one, two\), but none with the name of the template, natural_set; set ",
        ),
    ],
)
def test_tables_that_leave_something_open(columns, settings, expected, tmp_path):
    path = images_shown(tmp_path, **columns)
    with pytest.raises(DataError, match=expected):
        convert(path, tmp_path / "s", **settings, **SETTINGS)
    assert not (tmp_path / "s").exists()


def test_frame_numbers_that_count_from_one(tmp_path):
    nwb = new_file()
    with_units(nwb)
    nwb.add_stimulus_template(movie("m"))
    nwb.add_time_intervals(table("m_presentations", movie_rows(5, 1), frame=np.arange(1, 61)))
    with pytest.raises(
        DataError, match=r"frame of m_presentations is 60 in row 59, but there are 60"
    ):
        convert(saved(nwb, tmp_path), tmp_path / "s", **SETTINGS)


def imaging(nwb, signal, **clock):
    from pynwb.ophys import DfOverF, ImageSegmentation, OpticalChannel, RoiResponseSeries

    device = nwb.create_device("microscope")
    channel = OpticalChannel(name="c", description="d", emission_lambda=500.0)
    plane = nwb.create_imaging_plane(
        name="p", optical_channel=channel, description="d", device=device,
        excitation_lambda=600.0, indicator="GCaMP", location="V1",
    )  # fmt: skip
    segmentation = ImageSegmentation()
    cells = segmentation.create_plane_segmentation(
        name="cells", description="d", imaging_plane=plane
    )
    cells.add_column("valid", "whether it is a cell")
    for k in range(4):
        cells.add_roi(image_mask=np.eye(4), id=100 + k, valid=k != 1)
    module = nwb.create_processing_module("ophys", "d")
    module.add(segmentation)
    region = cells.create_roi_table_region(region=[3, 1, 0], description="d")
    series = RoiResponseSeries(
        name="traces", data=signal, rois=region, unit="n.a.", conversion=2.0, **clock
    )
    module.add(DfOverF(roi_response_series=series))


def test_calcium_on_its_own_clock(tmp_path):
    rng = np.random.default_rng(2)
    times = 0.01 + np.arange(300) / 50 + rng.uniform(0, 0.005, 300)
    signal = rng.random((300, 3))
    signal[120, 0] = np.nan
    nwb = new_file()
    nwb.add_stimulus(movie(data=np.tile(FILM, (3, 1, 1)), rate=20.0, starting_time=1.0))
    imaging(nwb, signal, timestamps=times)
    path = saved(nwb, tmp_path)
    with pytest.raises(
        DataError, match="no units; for calcium imaging give --responses, one of proc"
    ):
        convert(path, tmp_path / "s", **SETTINGS)
    report = convert(path, tmp_path / "s", responses="traces", trial_seconds=0.5, **SETTINGS)
    session = Session(tmp_path / "s")
    assert session.kind == "calcium"
    assert session.unit_ids.tolist() == [103, 101, 100]
    responses = whole(session, "responses")
    # The film lasts from 1 to 10 s, the imaging to 6 s: trials from then on are left out.
    assert len(responses) == 100
    for k in range(98):
        inside = (times >= 1 + k / 20) & (times < 1 + (k + 1) / 20)
        expected = 2 * np.nanmean(signal[inside], axis=0)
        np.testing.assert_allclose(responses[k], expected, rtol=1e-5)
    assert any(
        "trials contain no sample of processing/ophys/DfOverF/traces" in n for n in report.notes
    )


def test_calcium_slower_than_the_frames_and_regions_chosen(tmp_path):
    times = np.arange(40) / 10
    signal = np.arange(120.0).reshape(40, 3) - 60
    signal[21:24] = np.nan
    nwb = new_file()
    nwb.add_stimulus(movie(data=np.tile(FILM, (2, 1, 1))))
    imaging(nwb, signal, rate=10.0, starting_time=0.0)
    report = convert(
        saved(nwb, tmp_path),
        tmp_path / "s",
        responses="processing/ophys/DfOverF/traces",
        units="valid == True",
        trial_seconds=0.5,
        **SETTINGS,
    )
    session = Session(tmp_path / "s")
    assert session.unit_ids.tolist() == [103, 100]
    responses = whole(session, "responses")
    for k in (0, 1, 2, 3, 30, 59, 60, 64, 70, 72, 119):
        latest = np.flatnonzero(times <= k / 30 + 1e-9)[-1]
        np.testing.assert_allclose(responses[k], 2 * signal[latest, [0, 2]])
    told = " ".join(report.notes)
    assert "--rate 10 gives one bin per sample" in told
    assert "of the responses are below 0" in told


def test_calcium_that_is_stored_the_other_way_round(tmp_path):
    nwb = new_file()
    nwb.add_stimulus(movie())
    with pytest.warns(UserWarning, match="of data does not match"):
        imaging(nwb, np.zeros((3, 90)), rate=30.0)
    with pytest.raises(
        DataError,
        match=r"shape \(3, 90\) for 3 regions; the data must be numbers of shape \(samples, regions\)",
    ):
        convert(saved(nwb, tmp_path), tmp_path / "s", responses="traces", **SETTINGS)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_clock_needs_two_times(tmp_path):
    nwb = new_file()
    with_units(nwb)
    nwb.add_stimulus_template(movie("m"))
    nwb.add_time_intervals(table("m_presentations", movie_rows(5, 1)[:1], frame=[3]))
    imaging(nwb, np.ones((1, 3)), timestamps=np.array([5.0]))
    path = saved(nwb, tmp_path)
    with pytest.raises(DataError, match="m_presentations shows 1 frames; a stimulus needs two"):
        convert(path, tmp_path / "s", **SETTINGS)
    with pytest.raises(DataError, match="traces has one sample; responses need two or more"):
        convert(path, tmp_path / "s", responses="traces", **SETTINGS)


def test_units_are_chosen_by_their_columns(tmp_path, capsys):
    nwb = new_file()
    spikes = with_units(nwb, quality=["good", "noise", "good"], snr=[1.0, 5.0, 4.0])
    nwb.add_stimulus(movie())
    path = saved(nwb, tmp_path)
    argv = [str(path), "--out", str(tmp_path / "s"), "--trial-seconds", "0.5", "--size", "8x10"]
    assert main([*argv, "--units", 'quality == "good" and snr > 2']) == 0
    assert "--units selects 1 of 3 neurons" in capsys.readouterr().out
    session = Session(tmp_path / "s")
    assert session.unit_ids.tolist() == [2]
    edges = np.arange(61) / 30
    np.testing.assert_array_equal(
        whole(session, "responses")[:, 0], np.histogram(spikes[2], edges)[0]
    )
    argv[2] = str(tmp_path / "t")
    text = line([*argv, "--units", 'quality == "best"'], capsys)
    assert "selects none of the units: quality has the values good, noise" in text
    assert "has no column 'kind'; it has" in line([*argv, "--units", "kind == 1"], capsys)
    text = line([*argv, "--units", "spike_times > 1"], capsys)
    assert "spike_times of units does not have one number or text per row" in text


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({20: 19 / 30}, r"time 20 \(0.633333 s\) repeats time 19 \(0.633333 s\)"),
        ({20: 0.5}, r"time 20 \(0.500000 s\) is before time 19 \(0.633333 s\)"),
        ({7: np.nan, 9: np.nan}, "time 7 is nan, further wrong times: 1"),
        ({59: np.inf}, "time 59 is inf"),
    ],
)
def test_odd_times_are_named_with_their_place(change, expected, tmp_path, capsys):
    times = np.arange(60) / 30
    for at, value in change.items():
        times[at] = value
    nwb = new_file()
    with_units(nwb)
    nwb.add_stimulus(movie(timestamps=times))
    path = saved(nwb, tmp_path)
    with pytest.raises(DataError, match=f"stimulus/presentation/movie: {expected}"):
        convert(path, tmp_path / "s", **SETTINGS)
    assert main([str(path), "--list"]) == 0
    assert re.search(f"60×8×10, {expected}", capsys.readouterr().out)


def test_a_missing_clock_is_one_line(tmp_path, capsys):
    import h5py

    nwb = new_file()
    with_units(nwb)
    nwb.add_stimulus(movie(timestamps=np.arange(60) / 30))
    path = saved(nwb, tmp_path)
    with h5py.File(path, "r+") as file:
        del file["stimulus/presentation/movie/timestamps"]
    text = line([str(path), "--list"], capsys)
    assert "stimulus/presentation/movie: Could not construct ImageSeries" in text
    assert "either 'timestamps' or 'rate' must be specified" in text


def test_trial_rows_without_an_interval_are_left_out_and_counted(tmp_path):
    nwb = new_file()
    with_units(nwb)
    nwb.add_stimulus(movie())
    rows = [
        (0.0, 0.5),
        (np.nan, 1.0),
        (0.5, 1.0),
        (1.0, 1.0),
        (1.4, 1.2),
        (1.0, 1.5),
        (1.5, np.inf),
    ]
    for start, stop in rows:
        nwb.add_trial(start_time=start, stop_time=stop)
    report = convert(saved(nwb, tmp_path), tmp_path / "s", **SETTINGS)
    assert Session(tmp_path / "s").lengths.tolist() == [15, 15, 15]
    assert any(note.startswith("left out: 4 rows are not intervals") for note in report.notes)


def test_trials_without_any_spike_are_reported(tmp_path):
    nwb = new_file()
    with_units(nwb, stop=1.0)
    nwb.add_stimulus(movie())
    report = convert(saved(nwb, tmp_path), tmp_path / "s", trial_seconds=0.5, **SETTINGS)
    assert (
        "2 of 4 trials have no spike of any unit, the first is trial 2; check that the recording was on"
        in (report.notes)
    )


def test_images_share_one_range_of_pixels(tmp_path):
    """A nearly black image stays nearly black, because all images share the range [0, 255]."""
    from pynwb.base import ImageReferences, Images
    from pynwb.image import GrayscaleImage, IndexSeries

    data = [np.full(SIZE, value) for value in (1.0, 100.0, 250.0)]
    images = [GrayscaleImage(name=f"i{k}", data=array) for k, array in enumerate(data)]
    collection = Images(name="set", images=images)
    collection.order_of_images = ImageReferences(name="order_of_images", data=images)
    nwb = new_file()
    with_units(nwb)
    nwb.add_stimulus_template(collection)
    nwb.add_stimulus(
        IndexSeries(
            name="shown", data=np.repeat([0, 1, 2], 4).astype(np.uint32), unit="N/A",
            indexed_images=collection, timestamps=np.arange(12) / 4,
        )
    )  # fmt: skip
    convert(saved(nwb, tmp_path), tmp_path / "s", trial_seconds=1, **SETTINGS)
    video = whole(Session(tmp_path / "s"), "video")
    np.testing.assert_array_equal(video[:, 0, 0], np.repeat([1, 100, 250], 4))


def test_what_h5py_cannot_read_is_one_line(tmp_path, capsys):
    import h5py

    nwb = new_file()
    with_units(nwb)
    nwb.add_stimulus(movie())
    path = saved(nwb, tmp_path)
    with h5py.File(path, "r+") as file:
        series = file["stimulus/presentation/movie"]
        del series["data"]
        series.create_dataset("data", data=FILM, chunks=FILM.shape, compression="gzip")
        offset = series["data"].id.get_chunk_info(0).byte_offset
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(bytes(100))
    text = line([str(path), "--out", str(tmp_path / "s"), "--trial-seconds", "0.5"], capsys)
    assert text.startswith(f"error: {path} cannot be read to the end: ")


def test_links_to_other_files_are_refused(tmp_path, capsys):
    import h5py

    nwb = new_file()
    with_units(nwb)
    path = saved(nwb, tmp_path)
    with h5py.File(path, "r+") as file:
        file["acquisition/x"] = h5py.ExternalLink("elsewhere.nwb", "/acquisition/x")
    text = line([str(path), "--list"], capsys)
    assert "/acquisition/x is a link to another file" in text
