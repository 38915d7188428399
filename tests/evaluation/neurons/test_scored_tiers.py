"""Selection of the trials on which a finished model is scored."""

from dataclasses import replace

import numpy as np
import pytest
from session_folders import folder

from ssl_vivit.data.sessions.loader import NeuralDataConfig, build_sessions
from ssl_vivit.errors import SessionError
from ssl_vivit.evaluation.neurons.scored_tiers import scored_tiers

TIERS = ("train",) * 6 + ("oracle", "oracle", "live_test_main", "final_test_main", "none")


def opened(path, facts=None):
    return build_sessions(NeuralDataConfig(sessions=[str(path)]), facts=facts)


def trials(tiers):
    return {name: sorted(trial for _, trial in own.trials) for name, own in tiers.items()}


def test_tiers_are_those_of_the_session_but_train(tmp_path):
    sessions = opened(folder(tmp_path, tiers=TIERS))
    found = trials(scored_tiers(sessions))
    assert found == {"oracle": [6, 7], "live_test_main": [8], "final_test_main": [9]}
    assert list(found) == ["oracle", "live_test_main", "final_test_main"]
    asked = ["final_test_main", "train"]
    assert trials(scored_tiers(sessions, asked)) == {"final_test_main": [9], "train": [*range(6)]}


def test_frames_that_training_dropped_are_not_scored(tmp_path):
    path = folder(tmp_path, tiers=TIERS)
    sessions = build_sessions(NeuralDataConfig(sessions=[str(path)], drop_first=3))
    batches = scored_tiers(sessions)["oracle"].once(1, "cpu")
    parts = [batch["parts"][0] for batch in batches]
    assert len(parts) == 2
    for part in parts:
        assert part["responses"][:, :3].isnan().all()
        assert part["responses"][:, 3:].isfinite().all()


def test_trials_split_off_for_validation_are_not_training_trials(tmp_path):
    path = folder(tmp_path, tiers=("train",) * 9 + ("live_test_main",))
    sessions = opened(path)
    moved = sorted(sessions.facts[0].split["validation"])
    assert moved
    found = trials(scored_tiers(sessions, ["validation", "train", "live_test_main"]))
    assert found["validation"] == moved
    assert found["train"] == sorted({*range(9)} - {*moved})
    assert "train" not in scored_tiers(sessions)


def test_a_trial_that_was_trained_on_is_in_no_other_tier(tmp_path):
    path = folder(tmp_path, tiers=TIERS)
    (fact,) = opened(path).facts
    split = {**fact.split, "train": (*fact.split["train"], 8), "test": (9,)}
    sessions = opened(path, [replace(fact, split=split)])
    assert trials(scored_tiers(sessions, ["oracle"])) == {"oracle": [6, 7]}
    assert 8 in trials(scored_tiers(sessions, ["train"]))["train"]
    with pytest.raises(SessionError, match="live_test_main"):
        scored_tiers(sessions, ["live_test_main"])


def test_responses_that_were_withheld_in_training_are_scored_later(tmp_path):
    path = folder(tmp_path, tiers=TIERS)
    file = path / "data" / "responses" / "9.npy"
    responses = np.load(file)
    np.save(file, np.zeros_like(responses))
    before = opened(path)
    with pytest.raises(SessionError) as error:
        scored_tiers(before, ["final_test_main"])
    assert "--tiers final_test_main: all responses of this tier in a are withheld" in str(
        error.value
    )
    np.save(file, responses)
    after = opened(path, before.facts)
    assert trials(scored_tiers(after))["final_test_main"] == [9]


def test_an_unknown_tier_is_refused_with_those_that_there_are(tmp_path):
    with pytest.raises(SessionError) as error:
        scored_tiers(opened(folder(tmp_path, tiers=TIERS)), ["live_main"])
    assert str(error.value) == (
        "--tiers live_main: no session has a tier of this name; choose from the tiers with "
        "responses: train, oracle, live_test_main, final_test_main"
    )
    alone = folder(tmp_path, "b", tiers=("train",) * 4)
    config = NeuralDataConfig(sessions=[str(alone)], validation_share=0.0)
    with pytest.raises(SessionError, match="--tiers train to score these"):
        scored_tiers(build_sessions(config))
