"""Sessions on disk: arrays are read as they were written, and errors name the fault."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from session_folders import change, folder, save

from ssl_vivit.data.sessions.facts import SessionFacts
from ssl_vivit.data.sessions.files import Session
from ssl_vivit.data.sessions.layout import tier_of
from ssl_vivit.data.sessions.loader import NeuralDataConfig, SessionError, build_sessions
from ssl_vivit.data.sessions.scan import movie_name

REAL = Path(__file__).parents[2] / "assets" / "mouse_v1_gratings" / "session_fov4_cut"


def stored(path: Path, part: str, trial: int) -> np.ndarray:
    """Return an array with time as its first axis."""
    return np.moveaxis(np.load(path / "data" / part / f"{trial}.npy"), -1, 0)


@pytest.mark.parametrize("in_memory", [False, True])
def test_frames_are_those_of_the_files(tmp_path: Path, in_memory: bool) -> None:
    session = Session(folder(tmp_path), in_memory=in_memory)
    for _ in range(2):
        read = session.video(1, 3, 9)
        assert read.dtype == np.uint8
        assert np.array_equal(read, stored(session.path, "videos", 1)[3:9])
        for part, got in (
            ("responses", session.responses(1, 3, 9)),
            ("behavior", session.behaviour(1, 3, 9)),
            ("pupil_center", session.pupil_centre(1, 3, 9)),
        ):
            assert got.dtype == np.float32
            assert np.array_equal(got, stored(session.path, part, 1)[3:9].astype(np.float32))
            got[:] = -1  # what is given out is the reader's own
    assert session.video(0).shape == (12, 3, 4)
    assert session.true_rates(0) is None


def test_facts_of_a_session(tmp_path: Path) -> None:
    session = Session(folder(tmp_path, settings={"frames_per_second": 16.0}))
    assert (session.name, session.frames_per_second, session.kind) == ("a", 16.0, "spikes")
    assert session.unit_ids.tolist() == [100, 101, 102, 103, 104, 105]
    assert {tier: trials.tolist() for tier, trials in session.tiers.items()} == {
        "train": [0, 1, 2, 3, 4],
        "validation": [5, 6],
        "test": [7],
    }
    assert session.lengths.tolist() == [12, 15, 12, 15, 12, 15, 12, 15, 0]
    assert (session.frame_size, session.behaviour_channels, session.has_pupil) == ((3, 4), 2, True)
    assert session.coordinates is not None
    assert session.coordinates.shape == (6, 3)
    assert session.notes == []
    with pytest.raises(SessionError, match="trial 8 of session a is not used: its tier is 'none'"):
        session.video(8)


def test_padding_is_cut_and_makes_no_difference(tmp_path: Path) -> None:
    plain, padded = Session(folder(tmp_path, "p")), Session(folder(tmp_path, "q", padded=20))
    assert padded.lengths.tolist() == plain.lengths.tolist()
    assert padded.contents.tolist() == plain.contents.tolist()
    assert padded.trials[1].content == plain.trials[1].content
    for trial in range(8):
        assert np.array_equal(padded.video(trial), plain.video(trial))
        assert np.array_equal(padded.responses(trial), plain.responses(trial))
        assert np.array_equal(padded.behaviour(trial, 5), plain.behaviour(trial, 5))
    assert padded.video(0).dtype == np.float32


def test_unknown_responses_within_a_trial_stay_unknown_and_are_counted(tmp_path: Path) -> None:
    path = folder(tmp_path)

    def lose(responses: np.ndarray) -> np.ndarray:
        responses[2, 4:7] = np.nan
        responses[:, 9] = np.nan
        return responses

    change(path, "responses", 3, lose)
    session = Session(path)
    assert session.lengths[3] == 15
    assert np.isnan(session.responses(3)).sum() == 9
    assert session.kind == "spikes"
    assert len(session.notes) == 1
    assert session.notes[0].startswith("a: 9 responses of 1 trials are NaN within the trial")


def test_trials_whose_responses_are_withheld_are_left_out(tmp_path: Path) -> None:
    path = folder(tmp_path)
    for trial in (0, 7):
        change(path, "responses", trial, lambda x: x * np.nan)
    session = Session(path)
    assert {tier: len(trials) for tier, trials in session.tiers.items()} == {
        "train": 4,
        "validation": 2,
        "test": 0,
    }
    assert session.notes == [
        "a: all responses of 2 trials are NaN (first trial 0); they are not used"
    ]
    for trial in range(5):
        change(path, "responses", trial, lambda x: x * np.nan)
    with pytest.raises(
        SessionError, match=r"all responses of the training trials of session .* are"
    ):
        Session(path)


def zeros(responses: np.ndarray) -> np.ndarray:
    return responses * 0


def test_a_tier_of_zeros_is_withheld_and_a_silent_trial_is_not(tmp_path: Path) -> None:
    tiers = ("train",) * 4 + ("oracle", "oracle", "live_test_main", "live_test_main")
    path = folder(tmp_path, tiers=(*tiers, "final_test_main", "final_test_main"), padded=18)
    for trial in (0, 4, 6, 8, 9):
        change(path, "responses", trial, zeros)  # the padding stays NaN
    session = Session(path)
    assert {tier: trials.tolist() for tier, trials in session.tiers.items()} == {
        "train": [0, 1, 2, 3],
        "validation": [4, 5],
        "test": [6, 7],
    }
    assert session.withheld == {"final_test_main": [8, 9]}
    assert session.notes == [
        "a: all responses of tier final_test_main are 0 (2 trials), so they seem to be withheld "
        "and are not used"
    ]
    with pytest.raises(SessionError, match="trial 8 of session a is not used"):
        session.responses(8)
    # Zeros in one trial, NaN in the other: nothing of that tier is known.
    change(path, "responses", 7, lambda x: x * np.nan)
    assert Session(path).tiers["test"].tolist() == []
    change(path, "responses", 5, zeros)
    built = build_sessions(NeuralDataConfig([str(path)], window=10))
    assert built.test is None
    assert built.facts[0].split["validation"]
    assert {*built.facts[0].split["validation"]} < {0, 1, 2, 3}


def test_a_checkpoint_trained_on_withheld_zeros_continues_without_them(tmp_path: Path) -> None:
    path = folder(tmp_path)
    known = build_sessions(NeuralDataConfig([str(path)], window=10)).facts
    assert known[0].split["test"] == (7,)
    change(path, "responses", 7, zeros)
    built = build_sessions(NeuralDataConfig([str(path)], window=10), facts=known)
    assert built.test is None
    assert built.facts[0].split == {**known[0].split, "test": ()}


def test_training_responses_that_are_all_zero_are_refused(tmp_path: Path) -> None:
    path = folder(tmp_path)
    for trial in range(5):
        change(path, "responses", trial, zeros)
    with pytest.raises(
        SessionError, match=r"all responses of the training trials of session .* are 0"
    ):
        Session(path)


def test_frames_without_behaviour_at_the_end_are_padding_and_counted(tmp_path: Path) -> None:
    path = folder(tmp_path)

    def ends(frame: int):
        def edit(array: np.ndarray) -> np.ndarray:
            array = array.astype(np.float64)
            array[..., frame:] = np.nan
            return array

        return edit

    change(path, "behavior", 1, ends(11))
    change(path, "pupil_center", 2, ends(10))
    change(path, "videos", 3, ends(14))
    change(path, "responses", 5, ends(6))  # nothing that is known is cut
    session = Session(path)
    assert session.lengths.tolist() == [12, 11, 10, 14, 12, 6, 12, 15, 0]
    assert session.notes == [
        "a: video, behaviour or pupil centre of 3 trials end before the responses (first trial 1); "
        "7 frames are not used"
    ]


def test_absent_and_constant_parts(tmp_path: Path) -> None:
    path = folder(tmp_path, behaviour=0)
    for trial in range(9):
        change(path, "pupil_center", trial, lambda x: np.full_like(x, 0.3))
    shutil.rmtree(path / "meta" / "neurons" / "cell_motor_coordinates.npy", ignore_errors=True)
    save(path / "meta" / "neurons" / "cell_motor_coordinates.npy", np.zeros((6, 3)))
    session = Session(path)
    assert (session.has_pupil, session.behaviour_channels, session.coordinates) == (False, 0, None)
    assert session.behaviour(0, 2, 7).shape == (5, 0)
    assert session.notes == ["a: the pupil's centre is constant and treated as not measured"]
    with pytest.raises(SessionError, match="no measured pupil centre"):
        session.pupil_centre(0)


def test_silent_neurons_are_named(tmp_path: Path) -> None:
    path = folder(tmp_path)
    for trial in range(5):
        change(path, "responses", trial, lambda x: x * (np.arange(6) != 4)[:, None])
    session = Session(path)
    assert session.silent_units().tolist() == [False] * 4 + [True, False]
    assert session.notes == ["a: 1 of 6 neurons never respond in training trials (unit 104)"]


def test_the_kind_is_given_or_detected(tmp_path: Path) -> None:
    assert Session(folder(tmp_path, "s")).kind == "spikes"
    assert Session(folder(tmp_path, "c", calcium=True)).kind == "calcium"
    assert Session(folder(tmp_path, "t", settings={"responses": "calcium"})).kind == "calcium"
    with pytest.raises(SessionError, match="says that responses are spikes, but trial 0 has"):
        Session(folder(tmp_path, "w", calcium=True, settings={"responses": "spikes"}))


@pytest.mark.parametrize(
    ("name", "tier"),
    [
        ("train", "train"),
        ("oracle", "validation"),
        ("validation", "validation"),
        ("val", "validation"),
        ("test", "test"),
        ("live_test_main", "test"),
        ("final_test_bonus", "test"),
        ("none", None),
    ],
)
def test_tiers(name: str, tier: str | None) -> None:
    assert tier_of(name) == tier


def number_at(number: float, frame: int, row: int = 0):
    def edit(array: np.ndarray) -> np.ndarray:
        array = array.astype(np.float64)
        array[row, ..., frame] = number
        return array

    return edit


def nan_at(row: int, frame: int):
    return number_at(np.nan, frame, row)


@pytest.mark.parametrize(
    ("part", "edit", "says"),
    [
        ("responses", lambda x: x[:-1], "2.npy has 5 neurons, but meta/neurons/unit_ids.npy has 6"),
        ("responses", lambda x: x[:, :-1], "2.npy has 11 frames, but the video of trial 2 has 12"),
        ("behavior", lambda x: x[:, :-2], "behavior/2.npy has 10 frames, but the video of trial 2"),
        ("behavior", nan_at(1, 3), "behavior/2.npy is not finite at frame 3 of 12; interpolate"),
        ("behavior", lambda x: x[:1], r"different numbers of behaviour rows: 2 .*, 1 \(trial 2\)"),
        ("pupil_center", nan_at(0, 5), "pupil_center/2.npy is not finite at frame 5 of 12"),
        ("pupil_center", lambda x: x[:1], "has 1 rows; it must have 2 rows, x and y"),
        ("videos", nan_at(0, 4), "videos/2.npy is not finite at frame 4 of 12"),
        (
            "videos",
            lambda x: x / 1.0 - 300,
            "has values from -.* to .*; pixels must range from 0",
        ),
        (
            "videos",
            lambda x: x[0],
            "videos/2.npy contains uint8 of shape 4×12; it must contain a non-empty numeric array with 3",
        ),
        ("videos", lambda x: x[:, :2], r"different sizes: 3×4 \(trial 0\), 3×2 \(trial 2\)"),
        ("videos", lambda x: x * np.nan, "videos/2.npy contains only NaN"),
        ("behavior", lambda x: x * np.nan, "behavior/2.npy contains only NaN"),
        ("behavior", number_at(np.inf, 11), "behavior/2.npy is not finite at frame 11 of 12"),
        ("behavior", number_at(1e39, 2), "behavior/2.npy is not finite at frame 2 of 12"),
        (
            "responses",
            number_at(np.inf, 7),
            "responses/2.npy is not finite at frame 7 of 12; write",
        ),
        ("responses", number_at(-np.inf, 11), "responses/2.npy is not finite at frame 11 of 12"),
        ("videos", number_at(-np.inf, 6), "videos/2.npy is not finite at frame 6 of 12; write"),
        (
            "responses",
            lambda x: x.astype(str),
            "contains <U.*; it must contain a non-empty numeric",
        ),
        ("responses", lambda x: x.astype(object), "is not a readable .npy file of numbers"),
    ],
)
def test_bad_trials_are_named(tmp_path: Path, part: str, edit, says: str) -> None:
    path = folder(tmp_path)
    change(path, part, 2, edit)
    with pytest.raises(SessionError, match=says) as raised:
        Session(path)
    assert "\n" not in str(raised.value)


def test_trials_of_no_tier_are_not_looked_at(tmp_path: Path) -> None:
    path = folder(tmp_path)
    (path / "data" / "responses" / "8.npy").unlink()
    assert 8 not in Session(path).trials


def test_bad_folders_are_named(tmp_path: Path) -> None:
    path = folder(tmp_path)
    tiers = np.load(path / "meta" / "trials" / "tiers.npy")
    ids = path / "meta" / "neurons" / "unit_ids.npy"

    def refused(says: str, where: Path = path) -> None:
        with pytest.raises(SessionError, match=says):
            Session(where)

    refused("is not a folder; give a folder", tmp_path / "nothing")
    save(path / "meta" / "trials" / "tiers.npy", np.array([*tiers[:-1], "training"]))
    refused("tier 'training' is unknown; allowed are train, oracle")
    save(path / "meta" / "trials" / "tiers.npy", tiers[:-1])
    refused("has tiers of 8 trials, but data/videos contains trial 8")
    save(path / "meta" / "trials" / "tiers.npy", np.array([*tiers, "train"]))
    refused("videos/9.npy is missing; add the file")
    save(path / "meta" / "trials" / "tiers.npy", np.full(9, "oracle"))
    refused("has no trial with tier 'train'")
    save(path / "meta" / "trials" / "tiers.npy", tiers)

    save(ids, np.array([1, 1, 2, 3, 4, 5]))
    refused("contains an id more than once")
    ids.unlink()
    refused("unit_ids.npy is missing")
    save(ids, np.arange(6))
    for text, says in (
        ("[", "is not valid JSON"),
        ('{"frames_per_second": 0}', "frames_per_second is 0; it must be a number above 0"),
        ('{"responses": "lfp"}', "responses is 'lfp'; it must be 'spikes' or 'calcium'"),
    ):
        (path / "meta" / "session.json").write_text(text)
        refused(says)
    (path / "meta" / "session.json").unlink()
    Session(path)
    (path / "data" / "responses" / "0.npy").write_bytes(b"\x93NUMPY")
    refused("0.npy is not a readable .npy file of numbers")
    (path / "data" / "responses" / "0.npy").write_text("numbers")
    refused("of numbers: it contains objects or has another format$")
    shutil.rmtree(path / "data" / "responses")
    refused("has no data/responses")


def test_videos_of_another_range_are_refused(tmp_path: Path) -> None:
    path = folder(tmp_path)
    for trial in range(9):
        change(path, "videos", trial, lambda x: x / 255)
    with pytest.raises(SessionError, match=r"no pixel of session .* is above 1, .* multiply the"):
        Session(path)


def test_a_movie_is_identified_by_its_frames(tmp_path: Path) -> None:
    session = Session(folder(tmp_path, movies=[0, 1, 2, 1, 0, 3, 1, 2, 3]))
    assert session.contents.tolist() == [0, 1, 2, 1, 0, 3, 4, 5, -1]  # 6, 7: other lengths
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    assert movie_name(pixels) == movie_name(pixels.astype(np.float32))
    assert movie_name(pixels.astype(np.float64)) == movie_name(pixels.astype(np.float32))
    assert movie_name(pixels) != movie_name(pixels + 0.25)
    assert movie_name(pixels) != movie_name(pixels.reshape(3, 2, 4))


def test_facts_go_through_json(tmp_path: Path) -> None:
    config = NeuralDataConfig([str(folder(tmp_path))], held_out_neurons=0.3)
    fact = build_sessions(config).facts[0]
    text = json.dumps(fact.to_json())
    assert SessionFacts.from_json(json.loads(text)) == fact
    values = json.loads(text)
    assert values.pop("recorded_channels") == 2  # not in models that were saved earlier
    assert SessionFacts.from_json(values) == replace(fact, recorded_channels=None)
    for name, value in (
        ("video_std", float("nan")),
        ("video_std", 0.0),
        ("behaviour_mean", [0.0, float("inf")]),
        ("mean_response", [float("nan")] * 6),
    ):
        with pytest.raises(SessionError, match=f"facts of session 'a': {name} is "):
            SessionFacts.from_json(values | {name: value})
    del values["unit_ids"]
    with pytest.raises(SessionError, match="missing or unknown entries: unit_ids"):
        SessionFacts.from_json(values)


def test_recorded_neurons() -> None:
    session = Session(REAL)
    assert (session.frames_per_second, session.kind, session.frame_size) == (
        16,
        "calcium",
        (36, 64),
    )
    assert (session.coordinates, session.has_pupil, session.behaviour_channels) == (None, False, 2)
    assert session.lengths.tolist() == [49] * 6
    assert session.contents.tolist() == [0, 1, 2, 0, 1, 1]
    built = build_sessions(NeuralDataConfig(str(REAL), window=49))
    videos = np.stack([np.load(REAL / "data" / "videos" / f"{i}.npy") for i in range(3)])
    responses = np.stack([np.load(REAL / "data" / "responses" / f"{i}.npy") for i in range(3)])
    assert built.facts[0].video_mean == pytest.approx(videos.mean() / 255, rel=1e-12)
    assert built.facts[0].video_std == pytest.approx(videos.std() / 255, rel=1e-12)
    expected = responses.mean(axis=(0, 2), dtype=np.float64)
    assert np.allclose(built.facts[0].mean_response, expected, rtol=1e-12)
    assert built.test is not None
    batch = next(built.test.once(2, "cpu"))
    assert batch["key"] == ["session_fov4_cut/4@0", "session_fov4_cut/5@0"]
    part = batch["parts"][0]
    assert part["pupil_centre"] is None
    assert np.array_equal(part["responses"][1].T, np.load(REAL / "data" / "responses" / "5.npy"))
    video = (np.load(REAL / "data" / "videos" / "5.npy") - videos.mean()) / videos.std()
    assert np.allclose(part["video"][1, 0], np.moveaxis(video, -1, 0), atol=1e-6)


def test_signals_without_a_positive_mean_are_noted(tmp_path):
    path = folder(tmp_path, calcium=True, neurons=4)
    assert not [note for note in Session(path).notes if "mean training response" in note]
    for trial in range(9):
        change(path, "responses", trial, lambda signal: signal - [[9.0], [0], [9.0], [0]])
    (note,) = [note for note in Session(path).notes if "mean training response" in note]
    assert "2 of 4 neurons have a mean training response of 0 or less" in note
