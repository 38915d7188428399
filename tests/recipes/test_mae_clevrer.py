"""The masked-tubelets recipe: presets, files of a run, exact resume, errors."""

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from small_runs import options

from recipes.mae_clevrer import SAMPLE_PRESET, MaskedTubeletsRecipe, main
from ssl_vivit import ViViT, load_encoder
from ssl_vivit.data.provenance import trained_on
from ssl_vivit.data.video.loader import split_keys
from ssl_vivit.data.video.shards import ShardSet
from ssl_vivit.objectives import MaskedTubelets
from ssl_vivit.training import parse, run

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "mae_clevrer.py"
PRESETS = sorted((ROOT / "recipes" / "configs").glob("mae_*.yaml"))
SMALL = {
    "encoder.name": "vivit_tiny",
    "encoder.overrides": {
        "num_frames": 4, "image_size": [16, 24], "tubelet_size": [2, 8, 8], "embed_dim": 24,
        "num_heads": 2, "spatial_depth": 1, "temporal_depth": 1,
    },
    "data.clip.frame_stride": 4,
    "data.clip.views": 1,
    "data.held_out": 0.3,
    "data.workers": 0,
    "objective.mask_ratio": 0.5,
    "objective.decoder_depth": 1,
    "training.steps": 6,
    "training.total_batch_size": 4,
    "training.checkpoint_every": 2,
    "training.log_every": 1,
    "training.optimizer.warmup_steps": 2,
    "training.tracker": "none",
    "evaluation.every": 3,
    "probe.every": 3,
}  # fmt: skip


def launch(shards: str, run_dir: Path, **changes) -> subprocess.CompletedProcess:
    settings = SMALL | {"training.run_dir": str(run_dir), "data.shards": shards}
    settings |= {name.replace("__", "."): value for name, value in changes.items()}
    return subprocess.run(
        [sys.executable, str(RECIPE), *options(settings)],
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_every_preset_builds_an_objective_that_fits_its_clips(preset):
    config = parse(MaskedTubeletsRecipe, ["--config", str(preset)])
    architecture = config.encoder.config()
    with torch.device("meta"):
        MaskedTubelets(ViViT(architecture), config.objective)
    clip = config.data.clip.for_encoder(architecture.num_frames)
    steps = 128 if clip.fps is None else int(128 / 25 * clip.fps)
    assert steps - clip.span + 1 >= clip.views == 1
    config.training.check()
    assert config.training.steps == yaml.safe_load(preset.read_text())["training"]["steps"]


def test_the_sample_preset_is_used_without_a_config():
    bare = parse(MaskedTubeletsRecipe, [], preset=SAMPLE_PRESET)
    assert bare == parse(MaskedTubeletsRecipe, ["--config", str(SAMPLE_PRESET)])


def test_a_run_leaves_encoder_curves_and_reconstructions_and_continues_to_the_same_bits(
    shards, tmp_path, monkeypatch
):
    done = launch(shards, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    made = tmp_path / "run"
    assert "error on hidden tubelets" in done.stdout
    assert {path.name for path in (made / "figures").iterdir()} == {"curves.png"} | {
        f"reconstructions_step_{step:08d}.png" for step in (0, 3, 6)
    }
    lines = [json.loads(line) for line in (made / "metrics.jsonl").read_text().splitlines()]
    measured = [line for line in lines if "val/error" in line]
    assert [line["step"] for line in measured] == [0, 3, 6]
    # Masks and clips are the same at every evaluation, so copying is off by the same.
    for guess in ("copy", "interpolation", "mean"):
        assert len({line[f"val/{guess}_error"] for line in measured}) == 1
    assert measured[-1]["val/error"] < measured[0]["val/error"]
    # Probes of five targets by two methods, where the few test videos differ in them at all.
    probed = [line for line in lines if any(name.startswith("probe/") for name in line)]
    assert [line["step"] for line in probed] == [0, 3, 6]
    assert {"probe/knn_presence", "probe/linear_presence"} <= probed[0].keys()
    assert 0 < probed[0]["probe/linear_presence"] <= 1
    assert probed[0]["probe/chance_mean_speed"] == 0.0
    assert "step 6, linear probe: presence" in done.stderr + done.stdout
    last = f"linear_presence={probed[-1]['probe/linear_presence']:.3f}"
    assert "knn_presence=" in done.stderr
    assert last in done.stderr
    encoder = load_encoder(made / "encoder")
    record = encoder.provenance["data"]
    assert (record["shards"], record["held_out"]) == (shards, 0.3)
    videos = ShardSet(shards)
    assert trained_on(record, videos, range(14)) == record["videos"] < 14
    assert trained_on(record, videos, split_keys(videos.keys, 0.3)[1]) == 0
    assert "random masks of 0.5" in (made / "encoder" / "README.md").read_text()
    assert encoder(torch.rand(1, 3, 4, 16, 24)).tokens.shape == (1, 2, 6, 24)

    # The program of the docs rebuilds the decoder, too, and draws a clip of another frame size.
    program = runpy.run_path(str(ROOT / "docs" / "published" / "real_clips.py"))
    stored = load_file(made / "checkpoints" / "step_00000006" / "model.safetensors")
    rebuilt = program["trained"](made).state_dict()
    assert all(torch.equal(rebuilt[name], value) for name, value in stored.items())
    clip = ROOT / "tests" / "assets" / "collision_clips" / "example_0_new.mp4"
    sheet = tmp_path / "sheet.png"
    monkeypatch.setattr(sys, "argv", ["real_clips.py", str(made), str(clip), "--out", str(sheet)])
    program["main"]()
    assert sheet.stat().st_size > 5_000

    # As if it had been killed after its second checkpoint.
    half = tmp_path / "half"
    shutil.copytree(made, half)
    shutil.rmtree(half / "checkpoints" / "step_00000006")
    shutil.rmtree(half / "encoder")
    again = launch(shards, half, training__resume="auto")
    assert again.returncode == 0, again.stderr
    assert "4/6 [00:00" in again.stderr
    first, second = (load_file(r / "encoder" / "model.safetensors") for r in (made, half))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective.mask_ratio": 1.0}, "mask_ratio 1.0 hides 6 of 6 positions"),
        ({"objective.mask_ratio": 0.1}, "mask_ratio 0.1 hides 0 of 6 positions"),
        ({"objective.mask_rato": 0.5}, "mask_rato"),
        ({"evaluation.every": 0}, "evaluation.every"),
        ({"data.held_out": 0.0}, "probe.every needs held-out videos; set --data.held_out"),
        ({"probe.train_videos": 1}, "--probe.train_videos is 1; it must be at least 5"),
    ],
)
def test_mistakes_are_reported_in_one_line(shards, tmp_path, changes, message, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = SMALL | {"training.run_dir": str(tmp_path / "run"), "data.shards": shards} | changes
    monkeypatch.setattr(sys, "argv", ["mae_clevrer.py", *options(settings)])
    with pytest.raises(SystemExit) as ended:
        run(main)
    assert ended.value.code
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told
    assert not (tmp_path / "run").exists()
