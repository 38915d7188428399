"""Paired differences of two models: intervals, compared with formulas; counts; figure."""

import math
import re

import numpy as np
import pytest
from readable_figures import faults

from ssl_vivit.evaluation.neurons import figures, paired
from ssl_vivit.evaluation.neurons.bootstrap import student_t


def recorded(sizes=(40, 25, 60), seed=0):
    """Return session → difference of each neuron; sessions differ in mean and spread."""
    draw = np.random.default_rng(seed)
    return {f"s{i}": draw.normal(0.1 * i, 0.2 + 0.1 * i, size) for i, size in enumerate(sizes)}


def reach(ends):
    return (ends[1] - ends[0]) / 2


@pytest.mark.parametrize("sizes", [(40, 25, 60), (3, 2, 2)])
def test_intervals_have_the_variances_of_drawing_neurons_and_sessions(sizes):
    values = recorded(sizes)
    found = paired.difference(values, resamples=5_000, seed=0)
    means = np.array([each.mean() for each in values.values()])
    within = np.array([each.var() / len(each) for each in values.values()])
    assert found.mean == pytest.approx(means.mean())
    assert found.sessions == pytest.approx(dict(zip(values, means, strict=True)))
    free = sum(map(len, values.values())) - 3
    expected = student_t(free) * math.sqrt(within.sum() / 9 * (free + 1) / free)
    assert reach(found.over_neurons) == pytest.approx(expected, rel=0.06)
    # Var(E(mean | sessions)) + E(Var(mean | sessions)), for three draws.
    variance = means.var() / 3 + within.mean() / 3
    expected = student_t(2) * math.sqrt(variance * 3 / 2)
    assert reach(found.over_sessions) == pytest.approx(expected, rel=0.06)
    assert sum(found.over_neurons) / 2 == pytest.approx(found.mean)


def test_one_session_has_only_an_interval_over_its_neurons():
    found = paired.difference(recorded((30,)), resamples=200, seed=0)
    assert found.over_sessions is None
    assert found.over_neurons[0] < found.mean < found.over_neurons[1]


def test_wins_are_counted_where_both_models_have_a_score():
    values = {"a": np.array([0.1, -0.2, 0.0, math.nan, 0.3]), "b": np.array([math.nan])}
    found = paired.difference(values, resamples=0, seed=0)
    assert (found.wins, found.losses, found.ties) == (2, 1, 1)
    assert found.mean == pytest.approx(0.05)
    assert found.sessions == {"a": found.mean}
    assert (found.over_neurons, found.over_sessions) == (None, None)
    assert paired.difference({"b": np.array([math.nan])}, resamples=9, seed=0) is None


def columns(bps, correlation):
    return {
        "session": ["a", "a", "b", "a"], "tier": ["live", "live", "live", "oracle"],
        "unit": [3, 5, 3, 3], "held_out": [False] * 4, "bps": bps, "correlation": correlation,
    }  # fmt: skip


def test_a_table_of_pairs_and_its_figures(tmp_path, monkeypatch):
    first = columns([1.0, 0.5, math.nan, 0.2], [0.1, 0.4, 0.3, 0.2])
    second = columns([0.4, 0.7, 0.1, 0.2], [0.1, 0.2, 0.1, 0.3])
    table = paired.paired_columns(first, second)
    assert table["bps_difference"] == pytest.approx([0.6, -0.2, math.nan, 0.0], nan_ok=True)
    assert table["correlation_model"] == first["correlation"]
    found = paired.differences(table, resamples=100, seed=0)
    assert list(found) == ["live", "oracle"]
    assert found["live"]["bps"].mean == pytest.approx(0.2)
    assert found["live"]["correlation"].mean == pytest.approx((0.1 + 0.2) / 2)
    assert found["oracle"]["correlation"].losses == 1
    said = paired.difference_table(found, ("one", "two")).splitlines()
    assert said[1].split()[:5] == ["live", "bits", "per", "spike", "+0.200"]
    # Intervals over few neurons and sessions say so.
    assert re.search(r"to -?\d\.\d{3} \(3 neurons\) .* to -?\d\.\d{3} \(2 sessions\)", said[2])

    kept, save = [], figures.save
    monkeypatch.setattr(
        figures, "save", lambda figure, path: kept.append(figure) or save(figure, path)
    )
    paths = paired.draw_pairs(table, found, ("a/one", "b/two"), tmp_path)
    assert [path.name for path in paths] == ["comparison_live.png", "comparison_oracle.png"]
    assert all(path.is_file() for path in paths)
    axis = kept[0].axes[0]
    assert axis.get_title() == "bits per spike\na/one better for 1 of 2"
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("b/two", "a/one")
    assert np.allclose(axis.lines[1].get_xydata(), [[0.4, 1.0], [0.7, 0.5]])
    assert [faults(figure) for figure in kept] == [[], []]


def test_a_figure_of_many_sessions_can_be_read(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(figures, "save", lambda figure, path: kept.append(figure))
    draw = np.random.default_rng(0)
    name = "dynamic_session_with_a_long_name"
    panels = {
        f"{label}\n{name} better for 1000 of 8000": {
            f"{name}_{i}": (draw.random(20), draw.random(20)) for i in range(10)
        }
        for label in (
            "single-trial correlation",
            "fraction of explainable variance explained (FEVE)",
        )
    }
    figures.paired_scores(panels, tmp_path / "a.png", names=(name, f"{name}_2"), title="live")
    assert faults(kept[0]) == []
