"""The figure of `make demo`, drawn from small made-up runs."""

import importlib.util
from pathlib import Path

import torch
from readable_figures import faults
from small_encoders import MODEL2, make

from ssl_vivit.evaluation.monitors.retrieval import ViewFeatures

PATH = Path(__file__).parents[1] / "examples" / "demo_report.py"


def test_the_figure_is_readable_and_names_videos_and_frames(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("demo_report", PATH)
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    drawn = []
    monkeypatch.setattr(demo, "save", lambda figure, path: drawn.append(figure))
    monkeypatch.setattr(demo, "draw_fields", lambda panel, run: None)
    torch.manual_seed(0)
    keys = [f"video_{i:05d}" for i in range(5)]
    frames, numbers = torch.rand(5, 2, 3, 16, 24), torch.arange(10).view(5, 2) + 30
    found = ViewFeatures(torch.rand(5, 2, 8), keys, frames, numbers)
    held_out = demo.HeldOut(found, torch.rand(1, 3, 8, 16, 24), (0.0,) * 3, (1.0,) * 3)
    demo.draw(make(**MODEL2).float(), held_out, tmp_path, tmp_path / "demo.png")
    (figure,) = drawn
    assert faults(figure) == []
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[0] == "query\nvideo_00000, 30"
    assert titles[4] == "video_00001, 32"
    numbered = [axis.get_ylabel() for axis in figure.axes if axis.get_ylabel()]
    assert numbered == ["frame 1", "frame 3", "frame 5", "frame 7"]
