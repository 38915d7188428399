"""Figures of models of neurons, checked by the data of their axes or by the file."""

from __future__ import annotations

import matplotlib.image
import numpy as np
import pytest
from readable_figures import faults

from ssl_vivit.evaluation import figures
from ssl_vivit.evaluation.neurons import figures as neural_figures
from ssl_vivit.evaluation.neurons.figures import (
    fields,
    histogram,
    positions,
    session_curves,
    traces,
)


@pytest.fixture
def drawn(monkeypatch):
    """Return the figures at saving; they are also written."""
    kept = []
    save = neural_figures.save

    def keep(figure, path):
        kept.append(figure)
        save(figure, path)
        assert matplotlib.image.imread(path).std() > 0.01

    monkeypatch.setattr(neural_figures, "save", keep)
    monkeypatch.setattr(figures, "save", keep)
    return kept


def test_positions_show_both_axes_with_their_correlation(drawn, tmp_path):
    rng = np.random.default_rng(0)
    true = rng.uniform(-1, 1, (40, 2))
    found = true + rng.normal(0, 0.2, true.shape)
    positions(found, true, tmp_path / "a.png", title="t")
    for column, axis in enumerate(drawn[0].axes):
        r = np.corrcoef(found[:, column], true[:, column])[0, 1]
        assert f"r = {r:.3f}, 40 neurons" in axis.get_title()
        points = axis.lines[-1].get_xydata()
        assert np.array_equal(points, np.stack([true[:, column], found[:, column]], 1))
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["equal", "a neuron"]
    assert faults(drawn[0]) == []


def test_fields_and_centres_are_drawn_in_frame_coordinates(drawn, tmp_path):
    image = np.zeros((6, 10))
    image[0, 9] = -2.0  # the upper right corner
    images, centres = np.stack([image, image]), np.array([(0.9, -5 / 6), (0, 0)])
    true = np.array([(0.8, -0.8), (0.1, 0)])
    fields(["u", "v"], images, centres, tmp_path / "a.png", true=images, true_centres=true)
    axis = drawn[0].axes[0]
    assert axis.get_xlim() == (-1, 1)
    assert axis.get_ylim() == (1, -1)
    assert axis.images[0].get_extent() == [-1, 1, 1, -1]
    assert axis.images[0].get_clim() == (-2, 2)
    assert axis.lines[0].get_xydata().tolist() == [[0.9, -5 / 6]]
    assert axis.lines[1].get_xydata().tolist() == [[0.8, -0.8]]


def test_fields_of_many_neurons_fit_the_page(drawn, tmp_path):
    images, centres = np.random.default_rng(0).normal(size=(5, 36, 64)), np.zeros((5, 2))
    names = [f"unit {10 + n}, bits per spike 1.95\n{n} frames back" for n in range(5)]
    fields(names, images, centres, tmp_path / "a.png", true=images, true_centres=centres)
    assert faults(drawn[0]) == []
    axes = drawn[0].axes
    # Rows: found and true fields of neurons 0 to 2, then of 3 and 4.
    assert [axis.get_title() for axis in axes] == [*names[:3], *[""] * 3, *names[3:], *[""] * 4]
    assert [axis.axison for axis in axes[6:]] == [True, True, False] * 2
    assert axes[10].get_ylabel() == ""
    assert axes[9].get_ylabel() == "true filter"


def test_traces_are_in_seconds(drawn, tmp_path):
    recorded = np.array([[0.0], [1], [np.nan], [2]])
    for kind in ("spikes", "calcium"):
        traces(["n"], recorded, recorded + 1, tmp_path / "a.png", true=recorded / 2,
               frames_per_second=10.0, kind=kind)  # fmt: skip
        axis = drawn[-1].axes[0]
        assert np.allclose(axis.lines[-1].get_xdata(), [0, 0.1, 0.2, 0.3])
        assert np.array_equal(axis.lines[-1].get_ydata(), recorded[:, 0] + 1, equal_nan=True)
        assert faults(drawn[-1]) == []


def test_histograms_name_means_and_zero_and_count_whole_neurons(drawn, tmp_path):
    long = "dynamic29515-10-12-Video-9b4f6a1a067fe51e15306b9628efea20, live_test_bonus"
    scores = {long: np.array([0.1, 0.3, np.nan]), "b": np.array([np.nan])}
    ceiling = {long: np.array([0.5, 0.7, 0.9])}
    histogram(scores, tmp_path / "a.png", label="bits", zero="mean rate", ceiling=ceiling)
    axis = drawn[0].axes[0]
    texts = [text.get_text() for text in axis.get_legend().get_texts()]
    assert texts == ["model, mean 0.200", "true rates, mean 0.700", "0: mean rate"]
    for line, name, place in zip(axis.lines, texts, (0.2, 0.7, 0), strict=True):
        assert line.get_label() == name
        assert line.get_xdata()[0] == pytest.approx(place)
    assert sum(patch.get_height() for patch in axis.containers[0]) == 2
    assert all(float(tick).is_integer() for tick in axis.get_yticks())
    assert "outermost bars" in drawn[0].get_suptitle()
    assert faults(drawn[0]) == []


def test_curves_of_every_session_with_gaps_where_a_score_was_not_finite(drawn, tmp_path):
    lines = [
        {"step": 0, "val/bps_a": None, "val/bps_b": 0.1},
        {"step": 5, "train/poisson": 1.0},
        {"step": 10, "val/bps_a": 0.3, "val/bps_b": 0.2},
    ]
    session_curves(lines, ["a", "b"], tmp_path / "a.png", ceiling={"b": 0.5})
    loss, bits = drawn[0].axes
    assert loss.lines[0].get_xydata().tolist() == [[5, 1]]
    assert np.array_equal(bits.lines[0].get_ydata(), [np.nan, 0.3], equal_nan=True)
    assert bits.lines[2].get_ydata() == [0.5, 0.5]
    names = [text.get_text() for text in bits.get_legend().get_texts()]
    assert names == ["a", "b", "true rates (dotted)"]
    assert faults(drawn[0]) == []
    long = [f"dynamic{n}-10-12-Video-9b4f6a1a067fe51e15306b9628efea20" for n in (29515, 29623)]
    names = [f"val/{score}_{name}" for score in ("bps", "correlation") for name in long]
    session_curves([{"step": 0, **dict.fromkeys(names, 0.1)}], long, tmp_path / "long.png")
    assert faults(drawn[1]) == []
    assert all(float(tick).is_integer() for axis in drawn[1].axes for tick in axis.get_xticks())
    session_curves([{"step": 1}], ["a"], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
