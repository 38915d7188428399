"""The examples run unchanged on small inputs and print what their docstrings state."""

from __future__ import annotations

import ast
import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from one_thread import one_thread  # noqa: F401
from PIL import Image

from ssl_vivit import load_encoder
from ssl_vivit.neural import load_neural_model

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
PAGE = ROOT / "docs" / "tutorials" / "examples.md"
CLIPS = ROOT / "tests" / "assets" / "collision_clips"
SHORT = (
    "arrays_to_fields", "encode_and_attend", "encoder_to_neurons", "new_animal", "own_objective",
    "pretrain_own_videos",
)  # fmt: skip


@pytest.fixture
def example(monkeypatch, capsys):
    """Return a function that runs an example with arguments and returns its output."""

    def ran(name: str, *words: object) -> str:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, words)])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return ran


@pytest.mark.parametrize("name", SHORT)
def test_an_example_is_short_and_documents_its_command(name):
    text = (EXAMPLES / f"{name}.py").read_text()
    assert len(text.splitlines()) <= 75
    told = ast.get_docstring(ast.parse(text))
    assert f"    python examples/{name}.py" in told
    assert re.search(r"\bprints\b", told)


@pytest.mark.parametrize("name", SHORT)
def test_the_docs_show_an_example(name):
    assert f"```{{literalinclude}} ../../examples/{name}.py" in PAGE.read_text()


def test_a_folder_of_videos_becomes_an_encoder_and_an_own_objective_trains(
    example, tmp_path, capsys
):
    """The first file in alphabetical order is broken."""
    videos = tmp_path / "videos"
    videos.mkdir()
    (videos / "broken.mp4").write_bytes((CLIPS / "example_0_new.mp4").read_bytes()[:2000])
    for clip in sorted(CLIPS.glob("example_1_*.mp4"))[:2]:
        (videos / clip.name).symlink_to(clip)
    said = example("pretrain_own_videos", videos, "--out", tmp_path / "mine", "--steps", 2)
    assert re.search(r"^loss +\d\.\d{4} after 2 steps$", said, re.MULTILINE)
    assert f"features  (1, 96) of {videos}/example_1_" in said
    encoder = load_encoder(tmp_path / "mine" / "run" / "encoder")
    assert encoder.config.image_size == (64, 64)
    assert encoder.preprocessing["frame_stride"] == 2

    with pytest.raises(SystemExit):
        example("pretrain_own_videos", videos, "--out", tmp_path / "mine")
    assert f"--out {tmp_path / 'mine'} contains a run; give a new folder" in capsys.readouterr().err

    shards = tmp_path / "mine" / "shards" / "*.tar"
    said = example("own_objective", shards, "--out", tmp_path / "arrow", "--steps", 2)
    assert re.search(r"^accuracy +[01]\.\d\d after 2 steps$", said, re.MULTILINE)
    assert "arrow of time" in (tmp_path / "arrow" / "encoder" / "README.md").read_text()


def test_clips_to_reverse_are_chosen_by_their_names():
    """A clip and the reversed clip, with equal draws, get exchanged answers."""
    module = runpy.run_path(str(EXAMPLES / "own_objective.py"), run_name="example")
    encoder = load_encoder(ROOT / "weights" / "mae_model2")
    torch.manual_seed(0)
    objective = module["ArrowOfTime"](encoder, {}).eval()
    clips = torch.randn(6, 1, 3, 16, 64, 96)
    draw = [(0, 0, f"video_{i}") for i in range(6)]
    with torch.no_grad():
        one = objective({"clips": clips, "draw": draw})
        again = objective({"clips": clips, "draw": draw})
        # A video whose frames are all alike has no direction: its loss is that of its one logit.
        still = clips[:, :, :, :1].expand_as(clips)
        logit = objective.head(encoder(still[:, 0], tokens=False).pooled)[:, 0]
        found = objective({"clips": still, "draw": draw})
        turned = module["uniform"](
            module["names_of_views"]({"clips": clips, "draw": draw}, "arrow"), 1
        )
    assert torch.equal(one.loss, again.loss)
    answer = (turned[:, 0] < 0.5).float()
    assert 0 < answer.sum() < 6
    expected = torch.nn.functional.softplus(logit) - answer * logit
    torch.testing.assert_close(found.loss, expected.mean(), rtol=0, atol=1e-5)


def test_a_video_is_encoded_and_its_attention_drawn(example, tmp_path):
    figure = tmp_path / "attention.png"
    said = example("encode_and_attend", CLIPS / "example_0_new.mp4", "--out", figure)
    assert "pooled   (1, 128)" in said
    assert "tokens   (1, 8, 24, 128)" in said
    assert re.search(r"^clips +\d+, cosine .* to 1\.000$", said, re.MULTILINE)
    with Image.open(figure) as drawn:
        assert drawn.width > 600


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("encode_and_attend", ["nowhere.mp4"]),
        ("encode_and_attend", [CLIPS / "example_0_new.mp4", "--encoder", "nowhere"]),
        ("pretrain_own_videos", ["nowhere", "--out", "out"]),
        ("own_objective", ["nowhere/*.tar", "--out", "out"]),
        ("encoder_to_neurons", ["--session", "nowhere", "--out", "out"]),
        ("new_animal", ["--animal", "nowhere", "--new", "nowhere", "--out", "out"]),
    ],
)
def test_a_wrong_path_is_one_line(example, name, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        example(name, *words)
    said = ended.value.code if isinstance(ended.value.code, str) else capsys.readouterr().err
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "nowhere" in lines[0]
    assert not [*tmp_path.rglob("*.safetensors")]


def test_the_notebook_runs_cell_by_cell(tmp_path, monkeypatch):
    notebook = json.loads((EXAMPLES / "encode_and_attend.ipynb").read_text())
    assert notebook["nbformat"] == 4
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    # Kept without results, so that it does not change when it is run.
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    monkeypatch.chdir(EXAMPLES)
    names: dict = {}
    for number, cell in enumerate(cells):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
        names["FIGURE"] = tmp_path / "attention.png"
    assert tuple(names["output"].pooled.shape) == (1, 128)
    assert 0.1 < float(names["shares"].sum()) <= 1 + 1e-5
    assert names["FIGURE"].is_file()


@pytest.mark.slow
def test_arrays_become_receptive_fields(example, tmp_path):
    said = example("arrays_to_fields", "--out", tmp_path)
    distances = [float(x) for x in re.findall(r"^unit \d+ +([\d.]+) pixels", said, re.MULTILINE)]
    assert len(distances) == 10
    assert max(distances) < 0.5


@pytest.mark.slow
def test_an_encoder_becomes_a_model_of_neurons(example, tmp_path):
    said = example("encoder_to_neurons", "--out", tmp_path, "--steps", 2)
    found = re.findall(
        r"^(\w+) +live_test_main: single-trial correlation (-?[\d.]+)$", said, re.MULTILINE
    )
    assert [weights for weights, _ in found] == ["pretrained", "fresh"]
    assert found[0][1] != found[1][1]
    assert "rates       (60, 20)" in said


@pytest.mark.slow
def test_readouts_of_a_new_animal_leave_the_core_as_it_is(example, tmp_path):
    said = example("new_animal", "--out", tmp_path, "--steps", 2)
    assert len(re.findall(r" (-?\d\.\d{3})$", said, re.MULTILINE)) == 2
    core, new = (load_neural_model(tmp_path / run).model for run in ("core", "readouts"))
    shared = {k: v for k, v in core.state_dict().items() if not k.startswith("session_readouts")}
    assert len(shared) > 20
    assert all(torch.equal(new.state_dict()[name], value) for name, value in shared.items())
