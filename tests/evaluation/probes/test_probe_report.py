"""The probes' table, stars and files."""

import json
import math

import numpy as np
import pytest
from readable_figures import faults

from ssl_vivit.evaluation.probes import report
from ssl_vivit.evaluation.probes.report import ProbeScores, Row, distinct
from ssl_vivit.evaluation.probes.uncertainty import Estimate
from ssl_vivit.objectives.targets import Target

TARGETS = (Target("mean_speed", "number"), Target("has_collision", "event"))
OURS = Row("demo/encoder", "", "linear")
BASE = Row("untrained", "", "linear", baseline=True)
PIXELS = Row("raw pixels", "", "linear", baseline=True)


def filled(ours, untrained, pixels, own=0.0, shared=0.0) -> ProbeScores:
    """Return scores whose resamples vary by ``own`` in each row and by ``shared`` in all rows together."""
    found = ProbeScores(TARGETS, facts={"train_videos": 8, "test_videos": 4, "seeds": 3})
    together = np.random.default_rng(0).standard_normal(4000)
    for place, (row, values) in enumerate(((OURS, ours), (BASE, untrained), (PIXELS, pixels)), 1):
        alone = np.random.default_rng(place).standard_normal(4000)
        for value in values:
            moved = value + shared * together + own * alone
            found.add(
                row,
                {"mean_speed": value, "has_collision": math.nan},
                {"mean_speed": moved, "has_collision": np.full(4000, math.nan)},
            )
            found.add_chance({"mean_speed": 0.0, "has_collision": 0.5})
    return found


def test_the_standard_error_is_over_seeds_and_videos():
    moved = np.array([-1.0, 1.0, math.nan])
    got = Estimate.of([1.0, 2.0, 4.0, math.nan], [moved, 2 * moved, 3 * moved, moved * math.nan])
    assert got.mean == pytest.approx(7 / 3)
    seeds = (((4 / 3) ** 2 + (1 / 3) ** 2 + (5 / 3) ** 2) / 2 / 3) ** 0.5
    assert got.over_seeds == pytest.approx(seeds)
    assert got.over_videos == pytest.approx(2 * 2**0.5)  # of -2 and 2, the means over seeds
    assert got.error == pytest.approx((seeds**2 + 8) ** 0.5)
    assert str(Estimate.of([0.5], [moved])) == "0.500"
    assert str(Estimate.of([math.nan], [moved])) == "–"


@pytest.mark.parametrize(
    ("untrained", "pixels", "beats"),
    [
        ([0.1, 0.3, 0.2], [0.0, 0.2, 0.1], True),
        ([0.1, 0.3, 0.2], [0.5, 0.4, 0.6], False),  # one of both is not beaten
        ([0.6, 0.7, 0.8], [0.0, 0.1, 0.2], False),
    ],
)
def test_a_star_needs_two_standard_errors_above_each_baseline(untrained, pixels, beats):
    """Seeds deviate by 0.1, 0.1 and -0.2, which gives a standard error of 0.173 / √3 = 0.1."""
    found = filled([0.5, 0.6, 0.7], untrained, pixels)
    assert found.beats_baselines(OURS, "mean_speed") == beats
    assert ("0.600 ± 0.058 *" in found.table()) == beats
    assert not found.beats_baselines(BASE, "mean_speed")


def test_a_star_needs_more_where_test_videos_could_have_been_others():
    """Over seeds, 0.4 has no error; over test videos, two standard errors are 2 · 0.15 · √2 = 0.42."""
    same = [0.2, 0.3, 0.4]
    assert filled([0.6, 0.7, 0.8], same, same, own=0.12).beats_baselines(OURS, "mean_speed")
    found = filled([0.6, 0.7, 0.8], same, same, own=0.15)
    assert not found.beats_baselines(OURS, "mean_speed")
    assert found.difference(OURS, BASE, "mean_speed").error == pytest.approx(0.212, rel=0.05)


def test_videos_that_are_hard_for_all_rows_cancel_out():
    same = [0.2, 0.3, 0.4]
    found = filled([0.6, 0.7, 0.8], same, same, own=0.01, shared=0.2)
    assert found.estimate(OURS, "mean_speed").over_videos == pytest.approx(0.2, rel=0.1)
    assert found.difference(OURS, BASE, "mean_speed").over_videos == pytest.approx(0.014, rel=0.1)
    assert found.beats_baselines(OURS, "mean_speed")


def test_one_seed_beats_nobody():
    found = filled([0.9], [0.0], [0.0])
    assert not found.beats_baselines(OURS, "mean_speed")


def test_files_contain_the_numbers_and_null_for_none(tmp_path):
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
    assert entry["standard_error"] == pytest.approx(entry["standard_error_over_seeds"])
    assert entry["standard_error_over_videos"] == pytest.approx(0, abs=1e-9)
    assert [(one["subject"], one["difference"]) for one in entry["above"]] == [
        ("untrained", pytest.approx(0.4)),
        ("raw pixels", pytest.approx(0.5)),
    ]
    assert saved["results"][1]["mean"] is None
    assert saved["chance"] == {"mean_speed": 0.0, "has_collision": 0.5}
    assert (tmp_path / "probes.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.iterdir()} == {"probes.json", "probes.png"}


def test_encoders_have_their_shortest_distinct_names():
    assert distinct(["runs/demo/encoder"]) == {"runs/demo/encoder": "demo/encoder"}
    two = distinct(["a/demo/encoder", "b/demo/encoder"])
    assert list(two.values()) == ["a/demo/encoder", "b/demo/encoder"]
    assert distinct(["org/vivit"]) == {"org/vivit": "vivit"}


def test_clipped_bars_have_their_value_and_missing_errors_are_explained(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(report, "save", lambda figure, path: drawn.append(figure))
    filled([0.9, 0.8], [-2.5, -2.5], [0.1, 0.3], own=0.1).chart(tmp_path / "probes.png")
    (figure,) = drawn
    speed, collision = (axis for axis in figure.axes if axis.get_title())
    (value,) = speed.texts
    # Turned to the left, it points down.
    assert (value.get_text(), value.get_rotation()) == (" ◀ -2.5", 90)
    assert speed.get_ylim()[0] == -0.5
    assert speed.get_ylim()[1] <= 1.05
    assert not collision.texts
    told = " ".join(figure.get_suptitle().split())
    assert "without an error bar" in told  # of has_collision, which is unknown
    assert "without a cap" in told  # of the bar at -2.5
    assert speed.lines[-1].get_label() == "chance"
    assert speed.lines[-1].get_ydata()[0] == 0
    assert collision.lines[-1].get_ydata()[0] == 0.5
    assert faults(figure) == []


def test_charts_with_long_names_fit_the_page(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(report, "save", lambda figure, path: drawn.append(figure))
    found = ProbeScores(TARGETS)
    names = [f"simclr_vivit_small_pretrained_for_long_{n}/encoder" for n in range(3)]
    for name in names:
        for kind in ("knn", "linear", "attentive", "fine-tuned"):
            scores = {"mean_speed": 0.2, "has_collision": 0.6}
            moved = dict.fromkeys(scores, np.random.default_rng(0).normal(0.2, 0.1, 100))
            found.add(Row(name, "", kind), scores, moved)
    found.add_chance({"mean_speed": 0.0, "has_collision": 0.5})
    found.chart(tmp_path / "probes.png")
    assert faults(drawn[0]) == []
    assert drawn[0].axes[0].get_ylim()[0] < 0  # the chance level, which the border would hide
