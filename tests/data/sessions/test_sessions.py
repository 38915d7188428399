"""Batches of sessions do not depend on the number of processes, and equal the files."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from session_folders import change, folder

from ssl_vivit.data.batch_split import BatchSplit
from ssl_vivit.data.randomness import named_generator
from ssl_vivit.data.sessions.files import Session
from ssl_vivit.data.sessions.loader import NeuralDataConfig, SessionError, Sessions, build_sessions
from ssl_vivit.data.sessions.reading import Piece, read_part
from ssl_vivit.data.sessions.split import shared_movies

TIERS = ("train",) * 7 + ("oracle",) * 2 + ("live_test_main",) * 3


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Write two sessions that differ in neurons, lengths, rates, trials and movies; one is padded."""
    root = tmp_path_factory.mktemp("sessions")
    first = folder(root, "a", tiers=TIERS, lengths=(20, 31, 26), movies=range(12))
    second = folder(
        root,
        "b",
        tiers=TIERS[3:],
        lengths=(60, 75),
        padded=80,
        neurons=4,
        calcium=True,
        pupil=False,
        movies=range(20, 29),
        settings={"frames_per_second": 16},
        seed=1,
    )
    return [str(first), str(second)]


def build(paths: list[str], *, seed: int = 3, **settings: Any) -> Sessions:
    return build_sessions(NeuralDataConfig(paths, **{"window": 10, **settings}), seed=seed)


def take(sessions: Sessions, count: int, start: int = 0, **split: int) -> list[dict[str, Any]]:
    split = {"total_batch_size": 6, **split}
    stream = sessions.train.stream(BatchSplit(**split), start_step=start, device="cpu")
    taken = list(itertools.islice(stream, count))
    stream.close()
    return taken


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(torch.nan_to_num(a, nan=-9e9), torch.nan_to_num(b, nan=-9e9))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def rows(batch: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return key → row of every array, for the windows of a batch."""
    windows = [
        {
            name: value[i] if isinstance(value, torch.Tensor) or name == "draw" else value
            for name, value in part.items()
            if name != "shows"  # counted from the start of a micro-batch
        }
        for part in batch["parts"]
        for i in range(len(part["video"]))
    ]
    return dict(zip(batch["key"], windows, strict=True))


BATCHING = pytest.mark.parametrize("batching", ["mix", "alternate"])


@BATCHING
@pytest.mark.parametrize("start", [1, 9])
def test_a_stream_that_begins_later_continues_the_first(
    paths: list[str], batching: str, start: int
) -> None:
    whole = take(build(paths, batching=batching), 11)
    assert whole[0]["key"] != whole[1]["key"]
    assert same(whole[start:], take(build(paths, batching=batching), 11 - start, start))


@BATCHING
@pytest.mark.parametrize(("world_size", "accumulation"), [(2, 1), (1, 3), (3, 2)])
def test_the_global_batch_does_not_depend_on_its_split(
    paths: list[str], batching: str, world_size: int, accumulation: int
) -> None:
    whole = take(build(paths, batching=batching), 8)
    parts = [
        take(
            build(paths, batching=batching, in_memory=True),
            8 * accumulation,
            world_size=world_size,
            rank=rank,
            accumulation=accumulation,
        )
        for rank in range(world_size)
    ]
    for step, batch in enumerate(whole):
        micro_steps = range(step * accumulation, (step + 1) * accumulation)
        pieces = [parts[rank][a] for a in micro_steps for rank in range(world_size)]
        assert {len(piece["key"]) for piece in pieces} == {6 // world_size // accumulation}
        assert sorted(k for piece in pieces for k in piece["key"]) == sorted(batch["key"])
        found = {key: row for piece in pieces for key, row in rows(piece).items()}
        assert same(found, rows(batch))


def test_batches_mix_sessions_in_proportion_to_their_frames(paths: list[str]) -> None:
    sessions = build(paths)
    windows = sessions.train.windows_per_epoch()
    assert windows == [round((20 + 31 + 26 + 20 + 31 + 26 + 20) / 10), round((60 + 75) * 2 / 10)]
    steps = sessions.train.steps_per_epoch(6)
    assert steps == sum(windows) // 6
    for batch in take(sessions, 2 * steps):
        shares = [len(part["video"]) for part in batch["parts"]]
        expected = [6 * count / sum(windows) for count in windows]
        assert np.abs(np.array(shares) - expected).max() < 1
        assert [key.split("/")[0] for key in batch["key"]] == ["a"] * shares[0] + ["b"] * shares[1]


def test_alternating_sessions_take_whole_steps_in_proportion(paths: list[str]) -> None:
    sessions = build(paths, batching="alternate")
    steps = sessions.train.steps_per_epoch(4)
    assert steps == 17 // 4 + 27 // 4
    turns = []
    for batch in take(sessions, steps, total_batch_size=4):
        assert len(batch["parts"]) == 1
        turns.append(batch["parts"][0]["session"])
    assert (turns.count("a"), turns.count("b")) == (4, 6)
    assert turns != sorted(turns)


@BATCHING
@pytest.mark.parametrize("size", [4, 6])
def test_shares_of_sessions_are_those_of_an_epoch(
    paths: list[str], batching: str, size: int
) -> None:
    train = build(paths, batching=batching).train
    order = train._order(0, size)
    expected = {n: sum(i == place for i, *_ in order) / len(order) for place, n in enumerate("ab")}
    assert train.session_shares(size) == pytest.approx(expected)
    assert sum(train.session_shares(size).values()) == pytest.approx(1)


def test_every_frame_of_the_training_trials_counts_the_same(paths: list[str]) -> None:
    """The number of windows of a trial in an epoch is its fraction of the frames, rounded up or down."""
    sessions = build(paths)
    counts: dict[str, list[int]] = {}
    starts: dict[str, set[int]] = {}
    epochs = 60
    for epoch in range(epochs):
        seen: dict[str, int] = {}
        for i, trial, number in sessions.train._order(epoch, 1):
            piece = sessions.train._piece(epoch, i, trial, number)
            key = f"{sessions.facts[i].name}/{trial}"
            seen[key] = seen.get(key, 0) + 1
            starts.setdefault(key, set()).add(piece.start)
        for key, number in seen.items():
            counts.setdefault(key, []).append(number)
    lengths = {"a": (20, 31, 26), "b": (60, 75)}
    assert set(counts) == {f"a/{i}" for i in range(7)} | {f"b/{i}" for i in range(4)}
    for key, numbers in counts.items():
        name, trial = key.split("/")
        length = lengths[name][int(trial) % len(lengths[name])]
        expected = length / 10 * (17 / 17.4 if name == "a" else 1)
        assert {*numbers} <= {int(expected), int(expected) + 1}
        assert np.mean(numbers) == pytest.approx(expected, abs=0.2)
        assert starts[key] == {*range(length - 9)}, "every start comes up"


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_window_equals_the_frames_that_its_key_names(paths: list[str], name: str) -> None:
    """The expected window is read from the files by hand."""
    path = Path(paths["ab".index(name)])
    trained = range(7) if name == "a" else range(4)

    def stored(part: str, trial: int) -> np.ndarray:
        return np.moveaxis(np.load(path / "data" / part / f"{trial}.npy"), -1, 0).astype(float)

    def moments(part: str) -> tuple[np.ndarray, np.ndarray]:
        values = np.concatenate([stored(part, trial) for trial in trained])
        values = values[~np.isnan(values).any(axis=tuple(range(1, values.ndim)))]
        return values.mean(axis=0), values.std(axis=0)

    pixels = np.concatenate(
        [
            np.load(Path(p) / "data" / "videos" / f"{trial}.npy").reshape(-1).astype(float)
            for p, trials in zip(paths, (range(7), range(4)), strict=True)
            for trial in trials
        ]
    )
    mean, std = np.nanmean(pixels), np.nanstd(pixels)
    checked = 0
    for batch in take(build(paths, drop_first=2), 12):
        for key, window in rows(batch).items():
            if window["session"] != name:
                continue
            trial, start = map(int, key.removeprefix(f"{name}/").split("@"))
            span = slice(start, start + 10)
            assert window["trial"] == trial
            seed, _, *names = window["draw"]
            assert (seed, *names[:2]) == (3, name, trial)
            frames = int((~np.isnan(stored("videos", trial))).all((1, 2)).sum())
            assert start == named_generator(*window["draw"], "start").integers(frames - 9)
            assert window["frames"].tolist() == list(range(start, start + 10))
            video = (stored("videos", trial)[span] - mean) / std
            assert window["video"].shape == (1, 10, 3, 4)
            assert np.allclose(window["video"][0], video, atol=1e-5)
            responses = stored("responses", trial)[span].astype(np.float32)
            responses[:2] = np.nan
            assert np.array_equal(window["responses"], responses, equal_nan=True)
            for part, standard in (("behavior", "behaviour"), ("pupil_center", "pupil_centre")):
                if name == "b" and part == "pupil_center":
                    assert window[standard] is None
                    continue
                average, spread = moments(part)
                expected = (stored(part, trial)[span] - average) / spread
                assert np.allclose(window[standard], expected, atol=1e-4)
            checked += 1
    assert checked > 10


def test_a_window_longer_than_the_trial_is_padded(paths: list[str]) -> None:
    for batch in take(build(paths[:1], window=28), 3):
        for key, window in rows(batch).items():
            trial, start = map(int, key.removeprefix("a/").split("@"))
            length = (20, 31, 26)[trial % 3]
            valid = min(28, length - start)
            assert window["frames"].tolist() == [*range(start, start + valid)] + [-1] * (28 - valid)
            assert window["responses"][:valid].isfinite().all()
            assert window["responses"][valid:].isnan().all()
            assert (window["video"][:, valid:] == window["video"][:, valid - 1 : valid]).all()
            assert (window["behaviour"][valid:] == 0).all()
            assert (window["pupil_centre"][valid:] == 0).all()
            assert (window["behaviour"][:valid] != 0).all()


def test_trials_shorter_than_a_window_take_part_once_an_epoch(paths: list[str]) -> None:
    train = build(paths[:1], window=40).train
    assert train.windows_per_epoch() == [7]
    for epoch in range(3):
        assert sorted(trial for _, trial, _ in train._order(epoch, 1)) == [*range(7)]


def test_windows_show_the_same_where_movie_and_frames_are_equal(tmp_path: Path) -> None:
    movies = (0, 0, 1, 0, 2, 3, 4, 5, 6)
    session = Session(folder(tmp_path, lengths=(15,), movies=movies))
    places = ((0, 0), (0, 3), (1, 3), (2, 3), (1, 0), (3, 0), (0, 9), (3, 9))
    pieces = [Piece(0, trial, start, 8) for trial, start in places]
    part = read_part(session, pieces, np.zeros(6, bool), 0)
    video = part["video"]
    expected = [
        next(j for j in range(i + 1) if torch.equal(video[j], video[i])) for i in range(len(places))
    ]
    assert part["shows"] == expected == [0, 1, 1, 3, 0, 0, 6, 6]


def test_fewer_windows_than_a_batch_are_taken_more_often(paths: list[str]) -> None:
    sessions = build(paths[:1], window=30, train_share=0.1)
    assert sessions.train.windows_per_epoch() == [1]
    batch = take(sessions, 1, total_batch_size=16)[0]
    assert len(batch["key"]) == 16
    assert len({key.split("@")[0] for key in batch["key"]}) == 1
    alternating = build(paths, window=30, batching="alternate")
    assert alternating.train.steps_per_epoch(64) == 2


def test_seeds_and_epochs_differ(paths: list[str]) -> None:
    sessions = build(paths)
    steps = sessions.train.steps_per_epoch(6)
    keys = [batch["key"] for batch in take(sessions, 2 * steps)]
    assert keys[:steps] != keys[steps:]
    trials = [key.split("@")[0] for batch in keys[:steps] for key in batch if key[0] == "a"]
    assert trials != sorted(trials), "windows come in another order than their trials"
    assert keys[:steps] != [batch["key"] for batch in take(build(paths, seed=4), steps)]


def test_evaluation_gives_every_trial_once_and_whole(paths: list[str]) -> None:
    sessions = build(paths)
    assert sessions.test is not None
    expected = sorted([f"a/{i}@0" for i in (9, 10, 11)] + [f"b/{i}@0" for i in (6, 7, 8)])
    for batch_size, world_size in ((1, 1), (2, 1), (9, 1), (2, 2), (1, 4)):
        keys = []
        for rank in range(world_size):
            for batch in sessions.test.of_process(rank, world_size).once(batch_size, "cpu"):
                assert len(batch["parts"]) == 1
                assert len(batch["key"]) <= batch_size
                part = batch["parts"][0]
                session = sessions.sessions["ab".index(part["session"])]
                for i, trial in enumerate(part["trial"].tolist()):
                    assert np.array_equal(part["responses"][i], session.responses(trial))
                    assert part["content"][i] == session.contents[trial]
                    first = part["shows"][i]
                    assert first <= i
                    assert part["content"][first] == part["content"][i]
                    assert torch.equal(part["video"][first], part["video"][i])
                keys += batch["key"]
        assert sorted(keys) == expected


def test_held_out_neurons_are_hidden_only_from_training(paths: list[str]) -> None:
    sessions = build(paths, held_out_neurons=0.34)
    assert [len(fact.held_out_units) for fact in sessions.facts] == [2, 1]
    held = {
        fact.name: np.isin(fact.unit_ids, fact.held_out_units).tolist() for fact in sessions.facts
    }
    later = sessions._replace(train=sessions.train.for_held_out_units())
    for batch, other in zip(take(sessions, 4), take(later, 4), strict=True):
        assert batch["key"] == other["key"]
        for part, rest in zip(batch["parts"], other["parts"], strict=True):
            assert part["responses"].isnan().all(1)[0].tolist() == held[part["session"]]
            assert rest["responses"].isfinite().all(1)[0].tolist() == held[part["session"]]
    assert sessions.validation is not None
    for batch in sessions.validation.once(1, "cpu"):
        assert batch["parts"][0]["responses"].isfinite().all()
    more = build(paths, held_out_neurons=0.5).facts
    for fact, larger in zip(sessions.facts, more, strict=True):
        assert {*fact.held_out_units} < {*larger.held_out_units}


def test_held_out_neurons_are_chosen_by_their_names(tmp_path: Path) -> None:
    paths = [folder(tmp_path, name, neurons=40) for name in ("a", "b")]
    before = [fact.held_out_units for fact in build([*map(str, paths)], held_out_neurons=0.5).facts]
    assert [len(units) for units in before] == [20, 20]
    assert before[0] != before[1], "sessions hold out others, so neither the first ones"
    np.save(paths[0] / "meta" / "neurons" / "unit_ids.npy", 139 - np.arange(40))
    (fact, _) = build([*map(str, paths)], held_out_neurons=0.5).facts
    assert {*fact.held_out_units} == {*before[0]}


def test_shares_of_training_are_nested_and_determine_the_statistics(paths: list[str]) -> None:
    shares = [build(paths, train_share=share) for share in (0.1, 0.25, 0.5, 1.0)]
    for i, sizes in ((0, [1, 2, 4, 7]), (1, [1, 1, 2, 4])):
        chosen = [set(sessions.facts[i].split["train"]) for sessions in shares]
        assert [len(trials) for trials in chosen] == sizes
        assert all(smaller <= larger for smaller, larger in itertools.pairwise(chosen))
    one = shares[0].facts[0].split["train"][0]
    expected = Session(paths[0]).responses(one).mean(axis=0)
    assert np.allclose(shares[0].facts[0].mean_response, expected, rtol=1e-6)
    assert shares[0].facts[0].split["test"] == shares[3].facts[0].split["test"]


def chosen(sessions: Sessions, tier: str = "train") -> list[set[int]]:
    return [set(fact.split[tier]) for fact in sessions.facts]


def test_each_seed_draws_other_trials_and_larger_shares_include_smaller_ones(
    tmp_path: Path,
) -> None:
    tiers = ("train",) * 12 + ("oracle",) * 6 + ("live_test_main",)
    paths = [str(folder(tmp_path, name, tiers=tiers)) for name in ("a", "b")]
    drawn = {
        seed: [chosen(build(paths, train_share=share, share_seed=seed)) for share in (0.25, 0.5, 1)]
        for seed in (None, 0, 1, 2)
    }
    for few, half, whole in drawn.values():
        for i in range(2):
            assert [len(few[i]), len(half[i]), len(whole[i])] == [3, 6, 12]
            assert few[i] < half[i] < whole[i]
    quarters = [few[i] for few, *_ in drawn.values() for i in range(2)]
    assert len({frozenset(trials) for trials in quarters}) == len(quarters)
    again = [chosen(build(paths, train_share=share, share_seed=1)) for share in (0.25, 0.5, 1)]
    assert again == drawn[1]
    # Batches have another seed, which draws no trials.
    assert chosen(build(paths, train_share=0.25, share_seed=1, seed=9)) == drawn[1][0]


def test_validation_trials_are_reduced_like_training_trials(tmp_path: Path) -> None:
    tiers = ("train",) * 12 + ("oracle",) * 6 + ("live_test_main",)
    own = str(folder(tmp_path, "a", tiers=tiers))
    tiers = ("train",) * 20 + ("live_test_main",)
    split_off = str(folder(tmp_path, "b", tiers=tiers, movies=range(30, 51)))
    whole = build([own, split_off], validation_share=0.2)
    assert [len(trials) for trials in chosen(whole, "validation")] == [6, 4]
    before: list[set[int]] = [set(), set()]
    for share, sizes in ((0.1, (1, 1)), (0.5, (3, 2)), (0.6, (4, 3))):
        some = build([own, split_off], validation_share=0.2, train_share=share, share_seed=4)
        found = chosen(some, "validation")
        assert tuple(map(len, found)) == sizes
        for i in range(2):
            assert before[i] <= found[i] <= chosen(whole, "validation")[i]
            assert not found[i] & chosen(some)[i]
        assert some.validation is not None
        assert len(some.validation) == sum(sizes)
        before = found


def test_windows_longer_than_all_trials_are_noted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = [str(folder(tmp_path, "a", lengths=(8, 12)))]
    for window, expected in ((12, False), (13, True)):
        caplog.clear()
        build_sessions(NeuralDataConfig(made, window=window))
        assert ("longest training trial (12)" in caplog.text) == expected


def test_trials_are_given_by_number_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = [
        str(folder(tmp_path, name, tiers=("train",) * count + ("oracle",) * 4 + ("test",)))
        for name, count in (("a", 12), ("b", 8))
    ]
    four = build(paths, train_trials=4)
    assert [len(trials) for trials in chosen(four)] == [4, 4]
    assert [len(trials) for trials in chosen(four, "validation")] == [2, 2]  # 4/3 is above 1
    assert (
        "train_trials 4 leaves these numbers of training + validation trials: a 4 + 2, b 4 + 2"
        in caplog.text
    )
    for i, (larger, smaller) in enumerate(
        zip(chosen(build(paths, train_trials=8)), chosen(four), strict=True)
    ):
        assert smaller < larger
        assert len(larger) == 8, i
    half = build(paths[1:], train_share=0.5)
    assert chosen(half)[0] == chosen(four)[1]
    with pytest.raises(
        SessionError, match="train_trials is 9, but session b has 8 training trials"
    ):
        build(paths, train_trials=9)


def test_without_test_trials_every_share_is_scored_on_all_validation_trials(tmp_path: Path) -> None:
    tiers = ("train",) * 8 + ("oracle",) * 4
    paths = [str(folder(tmp_path, name, tiers=tiers)) for name in ("a", "b")]
    some = build(paths, train_share=0.25)
    assert some.validation is not None
    assert len(some.validation) == 2
    expected = {(i, trial) for i in range(2) for trial in range(8, 12)}
    assert {*some.scored()["validation"].trials} == expected
    assert {*build(paths).scored()["validation"].trials} == expected
    assert [fact.split["validation"] for fact in some.facts] == [
        tuple(sorted(trials)) for trials in chosen(some, "validation")
    ]


def test_statistics_use_only_training_trials(tmp_path: Path) -> None:
    path = folder(tmp_path)
    before = build([str(path)]).facts
    for trial in (5, 6, 7):
        change(path, "videos", trial, lambda x: 255 - x // 2)
        change(path, "responses", trial, lambda x: x + 5)
        change(path, "behavior", trial, lambda x: x + 5)
        change(path, "pupil_center", trial, lambda x: x + 5)
    assert build([str(path)]).facts == before
    change(path, "behavior", 0, lambda x: x + 5)
    assert build([str(path)]).facts != before


def test_channels_without_variance_are_dropped_where_no_session_has_any(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = [folder(tmp_path, name, behaviour=4) for name in ("a", "b")]
    for path, constant in zip(paths, ([1, 2], [2, 3]), strict=True):
        for trial in range(9):

            def edit(x: np.ndarray, constant: list[int] = constant) -> np.ndarray:
                x[constant] = 0.1
                return x

            change(path, "behavior", trial, edit)
    with caplog.at_level(logging.WARNING):
        sessions = build([str(path) for path in paths])
    assert (
        "behaviour channels without variance in training trials are dropped: 2 of 4" in caplog.text
    )
    assert [fact.behaviour_channels for fact in sessions.facts] == [(0, 1, 3)] * 2
    assert sessions.facts[0].behaviour_std[1] == 1
    for part in take(sessions, 1)[0]["parts"]:
        assert part["behaviour"].shape[-1] == 3
        still = 1 if part["session"] == "a" else 2
        assert part["behaviour"][..., still].abs().max() < 1e-5


def test_a_core_gets_the_channels_that_it_was_fitted_to(tmp_path: Path) -> None:
    """A channel that is constant in the new session is kept, and unknown channels are left out."""
    first = folder(tmp_path, "a", behaviour=4)
    for trial in range(9):
        change(first, "behavior", trial, lambda x: np.concatenate([x[:2], 0 * x[2:3], x[3:]]))
    new = folder(tmp_path, "b", behaviour=4)
    for trial in range(9):
        change(new, "behavior", trial, lambda x: np.concatenate([0 * x[:1] + 3, x[1:]]))
    (fitted,) = build([str(first)]).facts
    assert fitted.behaviour_channels == (0, 1, 3)
    assert build([str(new)]).facts[0].behaviour_channels == (1, 2, 3)
    config = NeuralDataConfig(str(new), window=10)
    sessions = build_sessions(config, core=fitted)
    (fact,) = sessions.facts
    assert fact.behaviour_channels == (0, 1, 3)
    assert (fact.behaviour_mean[0], fact.behaviour_std[0]) == pytest.approx((3, 1))
    behaviour = take(sessions, 1)[0]["parts"][0]["behaviour"]
    assert behaviour.shape[-1] == 3
    assert behaviour[..., 0].abs().max() < 1e-5
    # A core that takes no behaviour is given none, whatever was recorded.
    none = dataclasses.replace(fitted, behaviour_channels=(), recorded_channels=None)
    assert build_sessions(config, core=none).facts[0].behaviour_channels == ()


def test_sessions_that_do_not_fit_a_core_are_refused(tmp_path: Path) -> None:
    (fitted,) = build([str(folder(tmp_path, "a", behaviour=3))]).facts
    for number, (settings, says) in enumerate(
        (
            ({"behaviour": 3, "size": (4, 4)}, "its videos are 4×4 .H×W., .*fitted to 3×4; resize"),
            (
                {"behaviour": 2},
                "session has 2 behaviour channels, but the core was fitted to 3; write",
            ),
            (
                {"behaviour": 0},
                "session has 0 behaviour channels, but the core was fitted to 3; write",
            ),
        )
    ):
        path = folder(tmp_path, f"new{number}", **settings)
        with pytest.raises(SessionError, match=f"session new{number} does not fit .*{says}"):
            build_sessions(NeuralDataConfig(str(path)), core=fitted)


def test_a_missing_validation_tier_is_split_off_by_movie(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Session a has its own tiers and trains on movies 0 to 4; b shows movies 0 to 9 in turn, and
    # tests on 9, which it also trains on. That leaves 5 to 8.
    own = ("train",) * 5 + ("oracle",)
    a = folder(tmp_path, "a", tiers=own, lengths=(12,), movies=(0, 1, 2, 3, 4, 50))
    tiers = ("train",) * 30 + ("test",) * 2
    movies = [i % 10 for i in range(30)] + [9, 60]
    b = folder(tmp_path, "b", tiers=tiers, lengths=(12,), movies=movies)
    with caplog.at_level(logging.WARNING):
        sessions = build([str(a), str(b)], validation_share=0.5)
    split = sessions.facts[1].split
    shown = {tier: {movies[trial] for trial in trials} for tier, trials in split.items()}
    assert len(shown["validation"]) == 2
    assert shown["validation"] < {5, 6, 7, 8}
    assert not shown["validation"] & shown["train"]
    assert sorted(split["train"] + split["validation"]) == list(range(30))
    assert sessions.facts[0].split == {
        "train": (0, 1, 2, 3, 4),
        "validation": (5,),
        "test": (),
    }
    assert "b: no validation tier; 6 of 30 training trials are moved to validation" in caplog.text
    assert "tiers have movies in common: 1 of 2 test movies are also in train" in caplog.text
    none = build([str(b)], validation_share=0.0)
    assert none.validation is None
    assert build([str(a)]).test is None


def test_sessions_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    a = folder(tmp_path, "a")
    other = folder(tmp_path / "elsewhere", "a")
    small = folder(tmp_path, "small")
    for trial in range(9):
        change(small, "videos", trial, lambda x: x[:, :2])
    still = folder(tmp_path, "still", behaviour=0)
    for second, says in (
        (other, "2 sessions have the name a; rename"),
        (small, r"different sizes \(H×W\): a 3×4, small 3×2; resize"),
        (still, "different numbers of behaviour channels: a 2, still 0; write"),
    ):
        with pytest.raises(SessionError, match=says):
            build([str(a), str(second)])


def test_wrong_settings_are_named(paths: list[str]) -> None:
    for settings, says in (
        ({"window": 0}, "data.window is 0"),
        ({"drop_first": 10}, "data.drop_first is 10; .* below data.window 10"),
        ({"window": 40, "drop_first": 20}, "data.drop_first 20 drops all 20 frames of trial 0 of"),
        ({"train_trials": 0}, "--data.train_trials is 0"),
        ({"train_trials": 3, "train_share": 0.5}, "both set the number of trials"),
        ({"train_share": 0.0}, r"data.train_share is 0.0; it must be in \(0, 1\]"),
        ({"session_weights": "same"}, "data.session_weights 'same' is unknown; choose one of resp"),
        ({"held_out_neurons": 1.0}, "data.held_out_neurons is 1.0"),
        ({"validation_share": -0.1}, "data.validation_share is -0.1"),
        ({"batching": "mixed"}, "data.batching 'mixed' is unknown; choose one of mix, alternate"),
        ({"sessions": []}, "data.sessions is not set"),
    ):
        with pytest.raises(ValueError, match=says):
            build_sessions(NeuralDataConfig(**{"sessions": paths, "window": 10, **settings}))


def test_facts_of_a_checkpoint_are_used_as_they_are(tmp_path: Path) -> None:
    paths = [str(folder(tmp_path, name, neurons=n)) for name, n in (("a", 6), ("b", 4))]
    facts = build(paths, train_share=0.5, held_out_neurons=0.3).facts
    for trial in range(9):
        change(Path(paths[0]), "videos", trial, lambda x: x // 2)
    config = NeuralDataConfig(paths, window=10)
    again = build_sessions(config, facts=facts)
    assert again.facts == facts
    assert build_sessions(config).facts != facts
    assert build_sessions(NeuralDataConfig(paths[1]), facts=facts).facts == facts[1:]
    assert take(again, 2)
    assert {*again.train.facts[0].split["train"]} == {*facts[0].split["train"]}


def test_other_sessions_than_the_checkpoints_are_named(tmp_path: Path) -> None:
    facts = build([str(folder(tmp_path, "a")), str(folder(tmp_path, "b", neurons=4))]).facts

    def refused(path: Path, says: str) -> None:
        with pytest.raises(SessionError, match=says):
            build_sessions(NeuralDataConfig(str(path)), facts=facts)

    refused(
        folder(tmp_path, "c", neurons=5),
        r"session c \(5 neurons\) is not in the checkpoint, which has a \(6 neurons\), b \(4 neu",
    )
    elsewhere = tmp_path / "elsewhere"
    refused(
        folder(elsewhere, "b", neurons=5),
        "session b differs from the session in the checkpoint: 5 neurons instead of 4, 4 of them "
        "with the",
    )
    same_size = folder(elsewhere, "a")
    ids = same_size / "meta" / "neurons" / "unit_ids.npy"
    np.save(ids, np.load(ids)[::-1])
    refused(same_size, "6 neurons instead of 6, 6 of them with the same ids, in another order")
    for name, settings, says in (
        ("d", {"settings": {"frames_per_second": 25}}, "frames per second is 25.0 instead of 30.0"),
        ("e", {"calcium": True}, "kind of responses is calcium instead of spikes"),
        ("f", {"pupil": False}, "measured pupil centre is False instead of True"),
        ("g", {"behaviour": 1}, "number of behaviour channels is 1 instead of 2"),
        ("h", {"tiers": ("train",) * 5 + ("oracle",) * 2 + ("none",)}, "trial 7 of its test split"),
    ):
        refused(folder(tmp_path / name, "a", **settings), says)


def test_a_stream_left_open_leaves_no_thread_busy(paths: list[str]) -> None:
    stream = build(paths).train.stream(BatchSplit(6), start_step=0, device="cpu")
    assert isinstance(next(stream), dict)
    stream.close()
    with pytest.raises(StopIteration):
        next(stream)


def test_settings_that_do_not_matter_do_not_change_facts(paths: list[str]) -> None:
    assert build(paths, window=10).facts == build(paths, window=20, in_memory=True).facts
    assert dataclasses.asdict(build(paths).facts[0])["split"]["train"] == tuple(range(7))


def test_shared_movies_are_counted():
    shown = {"train": {1, 2, 3}, "oracle": {3, 4}, "live_test_main": {5}}
    assert shared_movies(shown) == {"oracle": (1, 2)}
    assert shared_movies(shown, "oracle") == {"train": (1, 3)}


def test_test_tiers_are_scored_one_by_one(tmp_path: Path) -> None:
    others = ("final_test_bonus", "live_test_bonus", "final_test_bonus", "live_test_main", "test")
    one = folder(tmp_path, "a", tiers=("train",) * 3 + ("oracle", *others))
    two = folder(tmp_path, "b", tiers=("train",) * 3 + ("oracle", "live_test_main"))
    sessions = build([str(one), str(two)])
    assert {tier: trials.trials for tier, trials in sessions.scored().items()} == {
        "live_test_main": [(0, 7), (1, 4)],
        "live_test_bonus": [(0, 5)],
        "final_test_bonus": [(0, 4), (0, 6)],
        "test": [(0, 8)],
    }
    without = build([str(folder(tmp_path, "c", tiers=("train",) * 3 + ("oracle",)))])
    assert {tier: trials.trials for tier, trials in without.scored().items()} == {
        "validation": [(0, 3)]
    }
    config = NeuralDataConfig(
        [str(folder(tmp_path, "d", tiers=("train",) * 3))], window=10, validation_share=0
    )
    assert build_sessions(config).scored() == {}


def test_moved_sessions_have_their_earlier_digests(paths: list[str], tmp_path: Path) -> None:
    before = build(paths).train.contents()["data.sessions"]
    moved = [str(shutil.copytree(path, tmp_path / Path(path).name)) for path in paths]
    assert build(moved).train.for_held_out_units().contents()["data.sessions"] == before
    assert build(moved[::-1]).train.contents()["data.sessions"] != before

    def changed(file: str, edit) -> bool:
        path = tmp_path / "a" / file
        kept = path.read_bytes()
        array = np.load(path)
        edit(array)
        np.save(path, array)
        found = build(moved).train.contents()["data.sessions"]
        path.write_bytes(kept)
        return found != before

    def set_last(array: np.ndarray) -> None:
        array[-1] = array[0]

    assert changed("data/responses/3.npy", set_last)
    assert changed("data/behavior/3.npy", set_last)
    assert changed("meta/neurons/cell_motor_coordinates.npy", set_last)
    # What other readers write beside is no part of it.
    (tmp_path / "a" / "meta" / "statistics").mkdir()
    np.save(tmp_path / "a" / "meta" / "statistics" / "mean.npy", np.ones(3))
    assert build(moved).train.contents()["data.sessions"] == before
