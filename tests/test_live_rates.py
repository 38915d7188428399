"""The example that draws rates frame by frame, on a small model and a short video."""

import importlib.util
import sys
from pathlib import Path

import av
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image
from readable_figures import faults
from test_checkpoint import FACTS, randomised, vivit

from ssl_vivit.neural import load_neural_model, save_neural_model
from ssl_vivit.preprocessing import LUMA

PATH = Path(__file__).parents[1] / "examples" / "live_rates.py"


@pytest.fixture
def example(monkeypatch):
    monkeypatch.setattr(plt, "pause", lambda seconds: plt.gcf().canvas.draw())
    plt.switch_backend("agg")
    spec = importlib.util.spec_from_file_location("live_rates", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    plt.close("all")


@pytest.fixture
def film(tmp_path):
    """Write a video of two seconds at 15 frames per second; each frame has one grey level."""
    with av.open(str(tmp_path / "film.mp4"), "w") as container:
        stream = container.add_stream("h264", rate=15)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for number in range(30):
            grey = np.full((32, 48, 3), 40 + 5 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode(None))
    return str(tmp_path / "film.mp4")


def test_pictures_show_the_rates_of_a_film(example, film, tmp_path, monkeypatch):
    save_neural_model(randomised(vivit), tmp_path / "model", FACTS)
    drawn, picture = [], example.picture

    def kept(figure, frame, times, rates, units):
        drawn.append((np.array(frame), np.array(times), np.array(rates), units))
        return picture(figure, frame, times, rates, units)

    monkeypatch.setattr(example, "picture", kept)
    told = [str(tmp_path / "model"), film, "--session", "mouse.1", "--units", "9", "7"]
    for name in ("rates.gif", "rates.png"):
        drawn.clear()
        monkeypatch.setattr(sys, "argv", ["live_rates.py", *told, "--out", str(tmp_path / name)])
        example.main()
        assert faults(plt.gcf()) == []
        with Image.open(tmp_path / name) as written:
            assert written.size == (900, 300)
            assert getattr(written, "n_frames", 1) == (len(drawn) if name == "rates.gif" else 1)
    assert len(drawn) == 15
    # The session has 30 frames a second: each frame of the film is shown twice.
    frame, times, rates, units = drawn[-1]
    assert units == (9, 7)
    np.testing.assert_allclose(times, np.arange(58) / 30)
    film_frames = [
        frame.reformat(12, 8, "rgb24").to_ndarray() @ np.array(LUMA)
        for frame in av.open(film).decode(video=0)
    ]
    np.testing.assert_array_equal(frame, film_frames[28])
    video = np.repeat(np.stack(film_frames[:29]), 2, axis=0)
    model = load_neural_model(tmp_path / "model")
    expected = model.predict(video[None], session="mouse.1", context=2.0)[0][:, [2, 0]]
    torch.testing.assert_close(torch.tensor(rates), expected.double(), rtol=0, atol=1e-5)
