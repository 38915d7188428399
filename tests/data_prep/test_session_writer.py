"""SessionWriter: layout of the files, exact statistics, no incomplete session."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_prep.session_writer import SessionWriter
from ssl_vivit.data.sessions.files import Session
from ssl_vivit.errors import DataError

ROOT = Path(__file__).parents[2]

UNITS = [7, 3, 11]


def trial(seed, frames=6):
    draw = np.random.default_rng(seed)
    responses = draw.poisson(2.0, (frames, 3)).astype(np.float32)
    responses[-1, 1] = np.nan
    return {
        "video": draw.integers(0, 256, (frames, 4, 5), dtype=np.uint8),
        "responses": responses,
        "behaviour": draw.normal(1e4, 1.0, (frames, 2)).astype(np.float32),
        "pupil_centre": draw.normal(size=(frames, 2)).astype(np.float32),
    }


def writer(out, **options):
    defaults = {"frames_per_second": 30, "kind": "spikes", "unit_ids": UNITS}
    return SessionWriter(out, **{**defaults, **options})


def write(out, trials):
    with writer(out) as session:
        for given in trials:
            session.add(**{"tier": "train", **given})


@pytest.fixture
def session(tmp_path):
    out = tmp_path / "session"
    with writer(out, facts={"source": "a test"}) as session:
        for seed, tier in enumerate(["train", "oracle", "train"]):
            assert session.add(tier, **trial(seed, 6 + seed)) == seed
    return out


def test_every_file_has_its_place_in_the_sensorium_layout(session):
    names = sorted(str(p.relative_to(session)) for p in session.rglob("*.npy"))
    kinds = ("behavior", "pupil_center", "responses", "videos")
    expected = [f"data/{kind}/{n}.npy" for kind in kinds for n in range(3)]
    expected += ["meta/neurons/cell_motor_coordinates.npy", "meta/neurons/unit_ids.npy"]
    expected += [
        f"meta/statistics/{kind}/all/{number}.npy"
        for kind in kinds
        for number in ("max", "mean", "min", "std")
    ]
    assert names == [*expected, "meta/trials/tiers.npy"]
    assert json.loads((session / "meta/session.json").read_text()) == {
        "frames_per_second": 30.0,
        "responses": "spikes",
        "source": "a test",
    }
    assert np.load(session / "meta/trials/tiers.npy").tolist() == ["train", "oracle", "train"]
    assert np.load(session / "meta/neurons/unit_ids.npy").tolist() == UNITS
    assert not list(session.parent.glob("*.partial"))


def test_time_is_the_last_axis_on_disk(session):
    given = trial(1, 7)
    video = np.load(session / "data/videos/1.npy")
    assert video.dtype == np.uint8
    np.testing.assert_array_equal(video, np.moveaxis(given["video"], 0, -1))
    np.testing.assert_array_equal(np.load(session / "data/responses/1.npy"), given["responses"].T)
    np.testing.assert_array_equal(np.load(session / "data/behavior/1.npy"), given["behaviour"].T)


@pytest.mark.parametrize(
    ("kind", "key"),
    [("responses", "responses"), ("behavior", "behaviour"), ("pupil_center", "pupil_centre")],
)
def test_statistics_are_computed_only_from_training_trials(session, kind, key):
    pooled = np.concatenate([trial(0, 6)[key], trial(2, 8)[key]]).astype(np.float64)
    for name, slow in [
        ("mean", np.nanmean),
        ("std", np.nanstd),
        ("min", np.nanmin),
        ("max", np.nanmax),
    ]:
        found = np.load(session / "meta/statistics" / kind / "all" / f"{name}.npy")
        np.testing.assert_allclose(found, slow(pooled, axis=0), rtol=1e-6)


def test_statistics_of_videos_are_single_numbers(session):
    pooled = np.concatenate([trial(0, 6)["video"].ravel(), trial(2, 8)["video"].ravel()])
    folder = session / "meta/statistics/videos/all"
    np.testing.assert_allclose(np.load(folder / "mean.npy"), pooled.mean(), rtol=1e-6)
    np.testing.assert_allclose(np.load(folder / "std.npy"), pooled.std(), rtol=1e-6)
    assert np.load(folder / "std.npy").shape == ()


def test_a_session_that_fails_leaves_nothing(tmp_path):
    def stopped():
        yield trial(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a", stopped())
    with pytest.raises(DataError, match="no trials"):
        write(tmp_path / "a", [])
    assert not list(tmp_path.iterdir())


def test_a_writer_without_a_with_block_warns_that_nothing_was_written(tmp_path):
    session = writer(tmp_path / "a")
    session.add("train", **trial(0))
    with pytest.warns(UserWarning, match=r"a was not written; use `with SessionWriter"):
        del session
    assert not list(tmp_path.iterdir())


def test_a_session_without_training_trials_is_not_written(tmp_path):
    with pytest.raises(DataError, match="has no trial of tier 'train'"):
        write(tmp_path / "a", [{"tier": tier, **trial(0)} for tier in ("oracle", "none")])
    assert not list(tmp_path.iterdir())


def test_calcium_signals_may_be_negative_and_fractional(tmp_path):
    signal = trial(0)["responses"] - 0.25
    with writer(tmp_path / "a", kind="calcium") as session:
        session.add("train", trial(0)["video"], signal)
    np.testing.assert_array_equal(np.load(tmp_path / "a/data/responses/0.npy"), signal.T)


def test_what_a_killed_run_left_is_removed(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = tmp_path / f".a.{platform.node()}-{gone.pid}-00000000.part/data/videos"
    left.mkdir(parents=True)
    (left / "5.npy").write_bytes(b"half")
    write(tmp_path / "a", [trial(0)])
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert [p.name for p in (tmp_path / "a/data/videos").iterdir()] == ["0.npy"]


def test_two_writers_of_a_session_do_not_meet(tmp_path):
    late = writer(tmp_path / "a")
    late.add("train", **trial(0))
    write(tmp_path / "a", [trial(1), trial(2)])
    late.add("train", **trial(3))
    with pytest.raises(DataError, match="already exists"):
        late.__exit__(None, None, None)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    stored = np.load(tmp_path / "a/data/videos/0.npy")
    np.testing.assert_array_equal(np.moveaxis(stored, -1, 0), trial(1)["video"])


def test_folders_of_other_programs_are_unchanged(tmp_path, session):
    with pytest.raises(DataError, match="already exists; give another out, or remove it"):
        writer(session)
    for name in ("b.partial", ".b.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("mine")
    write(tmp_path / "b", [trial(0)])
    for name in ("b.partial", ".b.part"):
        assert (tmp_path / name / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"responses": np.zeros((6, 4))},
            "trial 1: responses has 4 neurons, but there are 3 unit_ids",
        ),
        ({"responses": np.zeros((5, 3))}, "trial 1: responses has 5 frames, but the video has 6"),
        (
            {"behaviour": np.zeros((6, 3))},
            "trial 1: behaviour has 3 numbers per frame, but has 2 numbers per frame in earlier trials",
        ),
        (
            {"behaviour": None},
            "trial 1: behaviour is missing, but has 2 numbers per frame in earlier trials",
        ),
        ({"behaviour": np.full((6, 2), np.nan)}, "trial 1: behaviour has numbers that are not"),
        ({"responses": np.full((6, 3), np.inf)}, "not finite; give NaN for unknown responses"),
        ({"pupil_centre": np.zeros((6, 3))}, "trial 1: pupil_centre has 3 columns"),
        (
            {"video": np.zeros((6, 4), np.uint8)},
            r"trial 1: video has shape \(6, 4\); give \(T, H, W\)",
        ),
        (
            {"responses": np.full((6, 3), -1)},
            "trial 1: responses has -1, which is not a spike count",
        ),
        ({"responses": np.full((6, 3), 0.5)}, "trial 1: responses has 0.5, .* kind='calcium'"),
        ({"tier": "trian"}, "trial 1: tier 'trian' is unknown; use train, oracle"),
        ({"tier": np.zeros(3)}, "trial 1: tier 'ndarray' is unknown; use train, oracle"),
        (
            {"responses": "train"},
            r"trial 1: responses is not an array of numbers; give \(T, N\)",
        ),
    ],
)
def test_a_trial_that_does_not_fit_is_named(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        write(tmp_path / "a", [trial(0), {**trial(1), **change}])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unit_ids": [1, 1, 2]}, "unit_ids must be unique"),
        ({"unit_ids": ["n0", "n1", "n2"]}, "unit_ids must be one integer for each neuron"),
        ({"unit_ids": []}, "unit_ids must be one integer for each neuron"),
        ({"coordinates": np.zeros((3, 2))}, r"coordinates have shape \(3, 2\); give \(3, 3\)"),
        ({"frames_per_second": 0}, "frames_per_second is 0; it must be a number above 0"),
        ({"frames_per_second": "30"}, "frames_per_second is '30'; it must be a number above 0"),
        ({"kind": "spike"}, "kind 'spike' is unknown; give 'spikes' or 'calcium'"),
    ],
)
def test_settings_of_a_session_that_do_not_fit(tmp_path, options, message):
    with pytest.raises(DataError, match=message):
        writer(tmp_path / "a", **options)
    assert not list(tmp_path.iterdir())


def test_the_example_of_the_docs_writes_a_session_that_reads_back(tmp_path):
    page = (ROOT / "docs" / "how_to" / "recordings_in_arrays.md").read_text()
    (example,) = (part.split("```")[0] for part in page.split("```python\n")[1:])
    assert len([line for line in example.splitlines() if line]) == 10
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    session = Session(tmp_path / "sessions" / "mine")
    assert (session.frames_per_second, session.kind) == (30.0, "spikes")
    assert {tier: len(trials) for tier, trials in session.tiers.items()} == {
        "train": 16,
        "validation": 4,
        "test": 4,
    }
    draw = np.random.default_rng(0)
    for trial in range(24):
        video = draw.integers(0, 256, (120, 36, 64), dtype=np.uint8)
        spikes, running = draw.poisson(0.2, (120, 12)), draw.normal(size=(120, 1))
        np.testing.assert_array_equal(session.video(trial), video)
        np.testing.assert_array_equal(session.responses(trial), spikes)
        np.testing.assert_array_equal(session.behaviour(trial), running.astype(np.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda video: video / 255, "trial 1: video has values up to 1, .* give video \\* 255"),
        (lambda video: video * 2.0, "trial 1: video has values from 0 to 510; give pixels from 0"),
        (lambda video: video - 1.0, "trial 1: video has values from -1 to 254"),
    ],
)
def test_pixels_of_another_range_than_before_are_refused(tmp_path, change, message):
    given = [trial(0), trial(1)]
    given[1]["video"] = np.linspace(0, 255, 120).reshape(6, 4, 5)
    given[1]["video"] = change(given[1]["video"])
    with pytest.raises(DataError, match=message) as caught:
        write(tmp_path / "a", given)
    assert "\n" not in str(caught.value)
    given[1]["video"] = np.zeros((6, 4, 5))  # black in any range
    write(tmp_path / "a", given)


def test_an_existing_session_is_refused_and_the_argument_named(tmp_path):
    with pytest.raises(
        DataError, match=r"session \S+ already exists; give another out, or"
    ) as caught:
        writer(tmp_path)
    assert "--out" not in str(caught.value)
