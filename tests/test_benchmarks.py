"""Tests of the benchmarks: page of results, numbers computed from times, figures."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import readable_figures

BENCHMARKS = Path(__file__).parent / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def test_the_page_contains_the_stored_results(load):
    results = load("results")
    assert results.PAGE.read_text() == results.page()
    figures = [json.loads(path.read_text())["figure"] for path in results.RESULTS.glob("*.json")]
    assert {*results.RESULTS.glob("*.png")} == {results.RESULTS / name for name in figures if name}


@pytest.mark.parametrize("power", [-0.5, 0.0, 1.1, 2.0])
def test_exponents_of_power_laws_are_found(load, power):
    growth = load("bench_growth")
    for values in growth.AXES.values():
        costs = [0.3 * value**power for value in values]
        assert growth.exponent(values, costs) == pytest.approx(power, abs=1e-12)


def test_an_exponent_is_the_slope_of_least_squares(load):
    """The exponent equals the solution of the normal equations for costs that follow no power law."""
    growth = load("bench_growth")
    values, costs = [8, 16, 32, 64], [1.0, 1.5, 2.4, 9.0]
    x, y = np.log2(values), np.log2(costs)
    slope = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
    assert growth.exponent(values, costs) == pytest.approx(slope, abs=1e-12)


def _power_laws(growth):
    curves = {}
    for axis, values in growth.AXES.items():
        for n, model in enumerate([growth.READOUT] if axis == "neurons" else growth.MODELS, 1):
            seconds = [0.01 * value**n for value in values]
            curves[model, axis] = growth.Curve(values, seconds, [7 * value for value in values])
    return curves


def test_tables_of_growth_contain_multiples_and_exponents(load):
    growth = load("bench_growth")
    frames, size, _, neurons = growth.tables(_power_laws(growth), gpu=False)
    assert frames.head == ["frames", "8", "16", "32", "64", "exponent", "of the last two"]
    assert frames.rows[2] == ["Model 2, time", "1", "4.00", "16.00", "64.00", "2.00", "2.00"]
    assert size.rows[1] == ["Model 1, memory", "1", "1.43", "2.00", "2.86", "1.00", "1.00"]
    assert neurons.rows[0][-3:] == ["16.00", "1.00", "1.00"]
    frames, *_ = growth.tables(_power_laws(growth), gpu=True)
    assert frames.rows[0][1] == "80.00 ms"


@pytest.mark.parametrize(("exponent", "status"), [(1.0, 0), (1.2, 1)])
def test_growth_of_model_2_with_frames_is_the_exit_status(
    load, monkeypatch, capsys, tmp_path, exponent, status
):
    growth = load("bench_growth")
    curves = _power_laws(growth)
    curve = curves["Model 2", "frames"]
    curve.seconds = [value**exponent for value in curve.values]
    monkeypatch.setattr(growth, "measure", lambda *_: curves)
    monkeypatch.setattr("sys.argv", ["bench_growth.py", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        growth.main()
    assert int(ended.value.code) == status
    assert f"time {exponent:.2f} and memory 1.00" in capsys.readouterr().out
    written = json.loads((tmp_path / "growth.json").read_text())
    assert (tmp_path / written["figure"]).stat().st_size > 1000
    assert written["command"] == "python tests/benchmarks/bench_growth.py"


def test_steps_along_axes_have_their_sizes(load):
    growth = load("bench_growth")
    sizes = growth.Sizes(width=8, heads=2, depth=2, temporal_depth=1, frames=4, side=32)
    shapes = {
        (model, axis, value): step.args[1].shape
        for (model, axis, value), step in growth.all_steps(sizes, "cpu").items()
        if model != growth.READOUT
    }
    assert len(shapes) == 4 * 12
    assert shapes["Model 3", "frames", 64] == (1, 3, 64, 32, 32)
    assert shapes["Model 1", "image size", 320] == (1, 3, 4, 320, 320)
    assert shapes["Model 4", "batch", 8] == (8, 3, 4, 32, 32)


def test_figures_are_readable(load):
    growth, storage = load("bench_growth"), load("bench_storage")
    assert readable_figures.faults(growth.figure(_power_laws(growth))) == []
    found = json.loads((load("results").RESULTS / "storage.json").read_text())
    rows = [row[0] for row in found["tables"][0]["rows"]]
    medians = {"PyAV": [*range(1, len(rows) + 1)], "torchcodec": [None] * len(rows)}
    assert readable_figures.faults(storage.figure(rows, medians)) == []


def test_ways_of_storage_give_the_same_frames(load, tmp_path):
    """Pillow's box filter and the decoder's area filter give nearly equal frames at half size."""
    storage = load("bench_storage")
    render = importlib.import_module("data_prep.synthetic_clevrer.videos").render
    render(tmp_path / "videos", 1, size=(64, 96), num_frames=40, workers=1, progress=False)
    storage.pack(
        tmp_path / "videos", tmp_path / "shards", storage="original", frames=40, workers=1,
        progress=False,
    )  # fmt: skip
    videos = storage.ShardSet(str(tmp_path / "shards"))
    wanted = [3, 9, 9, 0]
    own = storage.needed(videos, 0, wanted)
    np.testing.assert_array_equal(storage.all_frames(videos, 0, wanted), own)
    small = storage.needed(videos, 0, wanted, (32, 48)).astype(float)
    usual = storage.usual(videos, 0, wanted, (32, 48)).astype(float)
    assert usual.shape == (4, 32, 48, 3)
    assert np.abs(usual - small).mean() < 2
    seen = []
    sampling = storage.Sampling(videos, lambda _, i, frames: seen.append((i, frames)), 3)
    sampling()
    assert len(seen) == 3
    for i, frames in seen:
        assert i == 0
        clips = np.reshape(frames, (storage.VIEWS, storage.FRAMES))
        assert (np.diff(clips) == storage.STRIDE).all()
        assert 0 <= clips.min() <= clips.max() < 40
