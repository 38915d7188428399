"""The SimCLR recipe: presets, learning, and mistakes on its command line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file
from small_runs import options

from data_prep.clevrer.packing import pack
from recipes.pretraining import clips_for, introduce
from recipes.simclr_clevrer import SAMPLE_PRESET, SimCLRRecipe
from ssl_vivit import create_encoder, load_encoder
from ssl_vivit.data.video.loader import DataConfig
from ssl_vivit.encoders import ViViT
from ssl_vivit.evaluation.monitors.pretraining_figures import learning_curves
from ssl_vivit.training import parse, to_plain
from ssl_vivit.training.metrics.tracking import read_metrics
from ssl_vivit.training.run_directory import without_names

ROOT = Path(__file__).parents[2]
PRESETS = sorted((ROOT / "recipes" / "configs").glob("simclr_*.yaml"))
COLLISIONS = ROOT / "tests" / "assets" / "collision_clips"

# A model and a run small enough for seconds.
SMALL = {
    "encoder.name": "vivit_tiny",
    "encoder.overrides": {
        "num_frames": 4, "image_size": [16, 24], "tubelet_size": [2, 8, 8], "embed_dim": 24,
        "num_heads": 2, "spatial_depth": 1, "temporal_depth": 1, "drop_path": 0.2,
    },
    "data.clip.frame_stride": 4,
    "data.held_out": 0.3,
    "data.workers": 0,
    "objective.hidden_dim": 16,
    "objective.output_dim": 8,
    "training.steps": 6,
    "training.total_batch_size": 4,
    "training.checkpoint_every": 2,
    "training.log_every": 1,
    "training.optimizer.warmup_steps": 2,
    "training.tracker": "none",
    "evaluation.every": 3,
}  # fmt: skip


def command(shards: str | None, run_dir: Path, **changes) -> list[str]:
    settings = SMALL | {"training.run_dir": str(run_dir)}
    if shards is not None:
        settings["data.shards"] = shards
    settings |= {name.replace("__", "."): value for name, value in changes.items()}
    return [sys.executable, str(ROOT / "recipes" / "simclr_clevrer.py"), *options(settings)]


def launch(*args, cwd: Path, **changes) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(*args, **changes), cwd=cwd, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_every_preset_builds_an_encoder_that_fits_its_clips(preset):
    config = parse(SimCLRRecipe, ["--config", str(preset)])
    architecture = config.encoder.config()
    with torch.device("meta"):
        ViViT(architecture)
    clip = config.data.clip.for_encoder(architecture.num_frames)
    steps = 128 if clip.fps is None else int(128 / 25 * clip.fps)
    assert steps - clip.span + 1 >= clip.views
    config.training.check()
    given = yaml.safe_load(preset.read_text())
    assert config.training.steps == given["training"]["steps"]


def test_the_sample_preset_is_used_without_a_config():
    bare = parse(SimCLRRecipe, [], preset=SAMPLE_PRESET)
    assert bare == parse(SimCLRRecipe, ["--config", str(SAMPLE_PRESET)])
    named = parse(SimCLRRecipe, [f"--config={PRESETS[-1]}"], preset=SAMPLE_PRESET)
    assert named == parse(SimCLRRecipe, ["--config", str(PRESETS[-1])])


def test_the_variant_can_be_set_by_dotted_keys():
    words = ["--encoder.name", "vivit_small",
             "--encoder.overrides.variant", "factorized_self_attention"]  # fmt: skip
    architecture = parse(SimCLRRecipe, words).encoder.config()
    assert (architecture.variant, architecture.depth) == ("factorized_self_attention", 12)


@pytest.mark.parametrize(
    ("size", "frame_size", "told"),
    [
        ((64, 64), None, "clips of 64×64 without augmentation show 67% of frames of 24×36"),
        ((64, 96), None, None),
        ((64, 80), None, None),
        ((64, 64), (32, 32), None),
        ((64, 96), (32, 32), "show 67% of frames of 32×32"),
    ],
)
def test_clips_that_show_part_of_the_frames_are_reported(shards, size, frame_size, told):
    data = DataConfig(shards=shards, frame_size=frame_size, held_out=0.0)
    overrides = {"num_frames": 4, "tubelet_size": (2, 8, 8), "depth": 1, "variant": "joint"}
    printed: list[str] = []
    processes = SimpleNamespace(print=lambda text, file: printed.append(text))

    def start(image_size):
        encoder = create_encoder("vivit_tiny", image_size=image_size, **overrides)
        introduce(processes, "x", encoder, data, clips_for(encoder.config, data, 0))
        return [line for line in printed.pop().splitlines() if "aspect ratio" in line]

    lines = start(size)
    assert len(lines) == (told is not None)
    if told:
        assert told in lines[0]
        fitting = lines[0].partition(" --encoder.overrides.image_size ")[2].split()
        assert start(tuple(map(int, fitting))) == []


def test_a_run_leaves_encoder_curves_and_figures(shards, tmp_path):
    done = launch(shards, tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    assert "retrieval top-1 of the positive view" in done.stdout
    assert f'load_encoder("{run / "encoder"}")' in done.stdout
    figures = {path.name for path in (run / "figures").iterdir()}
    assert figures == {"augmented_views.png", "curves.png"} | {
        f"nearest_neighbours_step_{step:08d}.png" for step in (0, 3, 6)
    }
    # The curves of the last step hold the last step's own retrieval.
    learning_curves(read_metrics(run / "metrics.jsonl"), tmp_path / "curves.png")
    drawn = (run / "figures" / "curves.png").read_bytes()
    assert drawn == (tmp_path / "curves.png").read_bytes()
    encoder = load_encoder(run / "encoder")
    assert encoder.preprocessing == {
        "pixel_range": [0.0, 1.0], "channels": "rgb", "mean": [0.5] * 3, "std": [0.1] * 3,
        "fps": 25.0, "frame_stride": 4, "resize": [16, 24],
    }  # fmt: skip
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2, 3, 4, 5, 6]
    measured = [line for line in lines if "val/retrieval_top1" in line]
    assert [line["step"] for line in measured] == [0, 3, 6]
    assert all(0 < line["val/retrieval_chance"] < 1 for line in measured)
    kinds = {path.suffix for path in run.rglob("*") if path.is_file()}
    assert kinds == {".safetensors", ".json", ".jsonl", ".yaml", ".md", ".png"}

    # Its config repeats the run, bit for bit, elsewhere.
    again = subprocess.run(
        [sys.executable, str(ROOT / "recipes" / "simclr_clevrer.py"),
         "--config", str(run / "config.yaml"), "--training.run_dir", str(tmp_path / "again")],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    first, second = (
        load_file(path / "encoder" / "model.safetensors") for path in (run, tmp_path / "again")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_pretraining_on_real_footage(tmp_path):
    """Real videos of collisions (512×512, yuv444p, no annotations) are packed and trained on."""
    clips = tmp_path / "clips"
    report = pack(COLLISIONS, clips, size=(32, 48), workers=1, progress=False)
    assert not report.skipped
    done = launch(str(clips / "*.tar"), tmp_path / "run", cwd=tmp_path, training__steps=2,
                  data__held_out=0.0)  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert len(losses) == 2
    assert all(loss > 0 for loss in losses)
    assert load_encoder(tmp_path / "run" / "encoder").config.image_size == (16, 24)


MISTAKES = {
    "no shards there": ({"data__shards": "nowhere/*.tar"}, "nowhere/*.tar"),
    "unknown size": ({"encoder__name": "vivit_tini"}, "did you mean 'vivit_tiny'"),
    "unknown variant": ({"encoder__overrides": {"variant": "factorized"}}, "choose one of joint, fact"),
    "not divisible": (
        {"encoder__overrides": {"num_frames": 4, "image_size": [20, 24], "tubelet_size": [2, 8, 8]}},
        "image_size height 20 is not filled by tubelets of 8",
    ),
    "unknown key": ({"trainin__steps": 5}, "training"),
    "unknown nested key": ({"training__step": 5}, "did you mean training.steps"),
    "clip too long": ({"data__clip__frame_stride": 11}, "has 32 frames"),
    "share held out": ({"data__held_out": 2}, "--data.held_out is 2"),
    "workers": ({"data__workers": -1}, "--data.workers is -1"),
    "three views": ({"data__clip__views": 3}, "--data.clip.views is 3"),
    "batch too large": ({"training__total_batch_size": 64}, "fewer than one batch"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_get_one_line(shards, tmp_path, monkeypatch, capsys, name):
    from recipes import simclr_clevrer
    from ssl_vivit.training import run

    changes, message = MISTAKES[name]
    words = command(shards, tmp_path / "run", **changes)[1:]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        run(simclr_clevrer.main)
    assert end.value.code in (1, 2)
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(errors) == 1
    assert message in errors[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("config.yaml", "already holds a run; continue it with --training.resume auto"),
        ("clips-000000.tar", "holds other files; choose another --training.run_dir"),
    ],
)
def test_a_directory_with_another_run_or_other_files_is_unchanged(name, told, shards, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("{}\n")
    done = launch(shards, tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in (tmp_path / "run").iterdir()] == [name]


def test_two_processes_make_one_run(shards, tmp_path):
    """The processes join before the loop starts, so only one of them renders the sample."""
    changes = {
        "objective__batch_norm": False, "training__steps": 2,
        "encoder__overrides": SMALL["encoder.overrides"] | {"drop_path": 0.0},
    }  # fmt: skip
    words = command(shards, tmp_path / "run", **changes)[1:]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    two = subprocess.run(
        [sys.executable, *launcher, *words], cwd=tmp_path, capture_output=True, text=True,
        timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("retrieval top-1 of the positive view") == 1
    one = launch(shards, tmp_path / "one", cwd=tmp_path, **changes)
    assert one.returncode == 0, one.stderr
    of_two, of_one = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("run", "one"))
    measured = 0
    for two, one in zip(of_two, of_one, strict=True):
        assert two.keys() == one.keys()
        names = one.keys() & {"train/loss", "val/retrieval_top1", "val/feature_std"}
        measured += len(names)
        assert {n: two[n] for n in names} == pytest.approx({n: one[n] for n in names}, rel=1e-3)
    assert measured >= 6


def test_recipes_load_before_torch():
    """Recipes are imported before torch, since OpenMP reads its wait policy once; see recipes/__init__.py."""
    script = (
        "import os, sys, runpy\n"
        "class Watch:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'torch':\n"
        "            sys.exit(os.environ.get('OMP_WAIT_POLICY', 'unset'))\n"
        "sys.meta_path.insert(0, Watch())\n"
        f"runpy.run_path({str(ROOT / 'recipes' / 'simclr_clevrer.py')!r})\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment
    )
    assert done.stderr.strip() == "PASSIVE"


@pytest.mark.slow
def test_the_sample_preset_learns(tmp_path):
    """Retrieval on held-out videos is far above chance, and the training loss halves."""
    words = ["--run_dir", "run", "--tracker", "none", "--steps", "100"]
    recipe = str(ROOT / "recipes" / "simclr_clevrer.py")
    subprocess.run([sys.executable, recipe, *words], cwd=tmp_path, check=True)
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    retrieval = [line["val/retrieval_top1"] for line in lines if "val/retrieval_top1" in line]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    chance = 1 / (2 * 55 - 1)
    assert retrieval[0] < 5 * chance
    assert retrieval[-1] > 10 * chance
    assert sum(losses[-5:]) / 5 < losses[0] / 2


@pytest.mark.parametrize(
    "words",
    [
        ["--steps", "-5"], ["--data.held_out", "2"], ["--data.workers", "-1"],
        ["--data.clip.views", "3"], ["--objective.temperature", "0"], ["--encoder.name", "vivit"],
        ["--evaluation.every", "0"], ["--total_batch_size", "4", "--accumulation", "4"],
        ["--total_batch_size", "4", "--accumulation", "3"], ["--tracker", "wandb"],
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_settings_are_checked_before_the_sample_is_rendered(tmp_path, monkeypatch, capsys, words):
    from recipes import simclr_clevrer
    from ssl_vivit.training import run

    if "--tracker" in words:
        monkeypatch.setenv("WANDB_MODE", "of")
    monkeypatch.setattr(sys, "argv", ["simclr_clevrer.py", *words])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        run(simclr_clevrer.main)
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
    assert list(tmp_path.iterdir()) == []


def test_other_settings_than_the_runs_are_refused_before_the_sample_is_rendered(
    tmp_path, monkeypatch, capsys
):
    from recipes import simclr_clevrer
    from ssl_vivit.training import run

    words = ["--run_dir", "run", "--resume", "auto", "--tracker", "none"]
    recipe = parse(SimCLRRecipe, words, preset=SAMPLE_PRESET)
    saved = to_plain(recipe)
    saved["data"]["shards"] = "elsewhere/*.tar"  # where data lie is no setting of the run
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(without_names(saved)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["simclr_clevrer.py", *words, "--training.seed", "7"])
    with pytest.raises(SystemExit):
        run(simclr_clevrer.main)
    line = capsys.readouterr().err.splitlines()[-1]
    told = "error: the run in run had other settings: training.seed (0 → 7); restore them"
    assert line.startswith(told)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
