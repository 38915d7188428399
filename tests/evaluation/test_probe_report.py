"""The probes' table, stars and files."""

import json
import math

import pytest

from ssl_vivit.evaluation.probe_report import Mean, ProbeScores, Row, distinct
from ssl_vivit.objectives.targets import Target

TARGETS = (Target("mean_speed", "number"), Target("has_collision", "event"))
OURS = Row("demo/encoder", "", "linear")
BASE = Row("untrained", "", "linear", baseline=True)
PIXELS = Row("raw pixels", "", "linear", baseline=True)


def filled(ours, untrained, pixels) -> ProbeScores:
    found = ProbeScores(TARGETS, facts={"train_videos": 8, "test_videos": 4, "seeds": 3})
    for row, values in ((OURS, ours), (BASE, untrained), (PIXELS, pixels)):
        for value in values:
            found.add(row, {"mean_speed": value, "has_collision": math.nan})
            found.add_chance({"mean_speed": 0.0, "has_collision": 0.5})
    return found


def test_mean_and_standard_error():
    got = Mean.of([1.0, 2.0, 4.0, math.nan])
    assert got.mean == pytest.approx(7 / 3)
    assert got.error == pytest.approx((((4 / 3) ** 2 + (1 / 3) ** 2 + (5 / 3) ** 2) / 2 / 3) ** 0.5)
    assert str(Mean.of([0.5])) == "0.500"
    assert str(Mean.of([math.nan])) == "–"


@pytest.mark.parametrize(
    ("untrained", "pixels", "beats"),
    [
        ([0.1, 0.2, 0.3], [0.0, 0.1, 0.2], True),
        ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6], False),  # one of both is not beaten
        ([0.6, 0.7, 0.8], [0.0, 0.1, 0.2], False),
    ],
)
def test_a_star_needs_two_standard_errors_above_each_baseline(untrained, pixels, beats):
    """Each error is 0.1 / √3, so two of the difference are 2 · √2 · 0.058 = 0.163."""
    found = filled([0.5, 0.6, 0.7], untrained, pixels)
    assert found.beats_baselines(OURS, "mean_speed") == beats
    assert ("0.600 ± 0.058 *" in found.table()) == beats
    assert not found.beats_baselines(BASE, "mean_speed")


def test_one_seed_beats_nobody():
    found = filled([0.9], [0.0], [0.0])
    assert not found.beats_baselines(OURS, "mean_speed")


def test_files_hold_the_numbers_and_null_for_none(tmp_path):
    found = filled([0.5, 0.6, 0.7], [0.1, 0.2, 0.3], [0.0, 0.1, 0.2])
    found.write(tmp_path)
    saved = json.loads((tmp_path / "probes.json").read_text())
    entry = saved["results"][0]
    assert (entry["subject"], entry["target"], entry["metric"]) == (
        "demo/encoder",
        "mean_speed",
        "R²",
    )
    assert entry["mean"] == pytest.approx(0.6)
    assert entry["scores"] == [0.5, 0.6, 0.7]
    assert entry["beats_baselines"] is True
    assert saved["results"][1]["mean"] is None
    assert saved["chance"] == {"mean_speed": 0.0, "has_collision": 0.5}
    assert (tmp_path / "probes.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.iterdir()} == {"probes.json", "probes.png"}


def test_encoders_are_called_by_what_tells_them_apart():
    assert distinct(["runs/demo/encoder"]) == {"runs/demo/encoder": "demo/encoder"}
    two = distinct(["a/demo/encoder", "b/demo/encoder"])
    assert list(two.values()) == ["a/demo/encoder", "b/demo/encoder"]
    assert distinct(["org/vivit"]) == {"org/vivit": "vivit"}
