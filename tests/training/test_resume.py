"""A continued run equals the uninterrupted run bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from toy_objective import toy, toy_batches

from ssl_vivit import command
from ssl_vivit.errors import RunError
from ssl_vivit.training import Periodic, fit, random_state
from ssl_vivit.training.checkpoints import files
from ssl_vivit.training.checkpoints.files import newest_whole
from ssl_vivit.training.metrics.tracking import cut_off

BYTES = ("model.safetensors", "optimizer.safetensors", "rng_0.safetensors", "rng_0.json")


class Kill(Exception):
    pass


def _stop_at(step: int) -> Periodic:
    def stop(moment) -> None:
        if moment.step == step:
            raise Kill

    return Periodic(1, stop)


def _same_end(a: Path, b: Path) -> None:
    for name in BYTES:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


@pytest.mark.parametrize("name", ["adamw", "lars"])
def test_continued_equals_uninterrupted(config, metrics, name: str) -> None:
    optimizer = {"name": name}
    whole = fit(toy(), toy_batches(), config("whole", optimizer=optimizer))
    settings = config("killed", optimizer=optimizer)
    with pytest.raises(Kill):
        fit(toy(), toy_batches(), settings, periodic=[_stop_at(7)])
    assert [row["step"] for row in metrics(settings.run_dir)] == list(range(1, 8))
    settings.resume = "auto"
    continued = fit(toy(seed=5), toy_batches(), settings)
    assert whole.checkpoint is not None
    assert continued.checkpoint is not None
    _same_end(whole.checkpoint, continued.checkpoint)
    assert metrics(continued.run_dir) == metrics(whole.run_dir)
    assert not list((continued.run_dir / "checkpoints").glob(".*"))


@pytest.mark.parametrize("regional", ["false", "true"])
def test_continued_equals_uninterrupted_in_a_compiled_model(
    config, metrics, monkeypatch, regional: str
) -> None:
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    monkeypatch.setenv("ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION", regional)
    whole = fit(toy(), toy_batches(), config("whole"))
    settings = config("killed", resume="auto")
    with pytest.raises(Kill):
        fit(toy(), toy_batches(), settings, periodic=[_stop_at(7)])
    continued = fit(toy(seed=5), toy_batches(), settings)
    _same_end(whole.checkpoint, continued.checkpoint)
    assert metrics(continued.run_dir) == metrics(whole.run_dir)
    # Names are the objective's own, so that the run goes on uncompiled as well.
    named = load_file(whole.checkpoint / "optimizer.safetensors")
    assert {name.rsplit("/", 1)[0] for name in named} == {
        name for name, parameter in toy().named_parameters() if parameter.requires_grad
    }


def test_an_optimiser_state_that_finds_no_parameter_is_refused(config, monkeypatch) -> None:
    from torch.distributed.checkpoint import state_dict

    fit(toy(), toy_batches(), config(steps=4))
    monkeypatch.setattr(state_dict, "set_optimizer_state_dict", lambda *given, **options: None)
    monkeypatch.setattr(state_dict, "get_optimizer_state_dict", _names_alone)
    with pytest.raises(RunError, match=r"optimiser state of encoder\.\S+ could not be loaded"):
        fit(toy(), toy_batches(), config(steps=8, resume="auto"))


def test_a_continued_run_seeds_by_its_step(config, monkeypatch) -> None:
    """A run that continues with another number of processes does not repeat its first random draws."""
    seeded = []
    seed = random_state.seed_process
    monkeypatch.setattr(
        random_state, "seed_process", lambda *names: (seeded.append(names), seed(*names))
    )
    for steps in (4, 8):
        fit(toy(), toy_batches(), config(steps=steps, seed=3, resume="auto"))
    assert seeded == [(3, 0, 0), (3, 4, 0)]


def test_a_state_of_parameters_that_are_frozen_now_is_refused(config) -> None:
    fit(toy(), toy_batches(), config(steps=4))
    frozen = toy()
    frozen.encoder.stem.requires_grad_(False)
    with pytest.raises(
        RunError, match=r"of 2 parameters that are not .* such as encoder\.stem\.bias"
    ):
        fit(frozen, toy_batches(), config(steps=8, resume="auto"))


def _names_alone(model, optimizer, options) -> dict:
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = [[names[p] for p in group["params"]] for group in optimizer.param_groups]
    return {"param_groups": [{"params": group} for group in groups]}


class Moved:
    """A loader that has digests of its contents."""

    def __init__(self, contents: str, setting: str = "data.shards") -> None:
        self.known = {setting: contents}

    def contents(self) -> dict[str, str]:
        return self.known

    def __iter__(self):
        return iter(toy_batches())


def test_data_that_moved_are_recognised_by_their_contents(config) -> None:
    def run(shards: str, contents: str, steps: int, name: str = "run", **changes):
        given = {"data": {"shards": shards, "frames": 8}}
        settings = config(name, steps=steps, resume="auto", **changes)
        return fit(toy(), Moved(contents), settings, run_config=given)

    run("a/*.tar", "abc", 4)
    moved = run("/scratch/7/{0..3}.tar", "abc", 6)
    assert moved.step == 6
    saved = yaml.safe_load((moved.run_dir / "config.yaml").read_text())
    assert saved["data"]["shards"] == "/scratch/7/{0..3}.tar"
    with pytest.raises(RunError, match=r"data\.shards \(the contents have changed\)"):
        run("/scratch/7/{0..3}.tar", "abd", 8)
    with pytest.raises(RunError, match=r"data\.shards \(/scr\S+ → b, the contents have changed\)"):
        run("b", "abd", 8)
    # A run of an older version has no digests: the names are compared.
    os.remove(moved.run_dir / "contents.json")
    with pytest.raises(RunError, match=r"data\.shards \(/scratch/7/\{0\.\.3\}\.tar → b\);"):
        run("b", "abc", 8)
    assert run("/scratch/7/{0..3}.tar", "abc", 8).step == 8
    assert run("b", "abc", 9).step == 9
    path = moved.run_dir / "checkpoints" / "step_00000008"
    branch = config("branch", steps=9, resume=str(path))
    fit(toy(), Moved("abc"), branch, run_config={"data": {"shards": "c", "frames": 8}})


def test_an_encoder_that_moved_is_recognised_by_its_weights(config, tmp_path: Path) -> None:
    def encoder(name: str, weights: bytes, card: str = "{}") -> str:
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(weights)
        (tmp_path / name / "config.json").write_text(card)
        return str(tmp_path / name)

    def run(path: str, steps: int):
        given = {"encoder": {"path": path}}
        return fit(toy(), toy_batches(), config(steps=steps, resume="auto"), run_config=given)

    run(encoder("first", b"weights"), 4)
    shutil.rmtree(tmp_path / "first")
    assert run(encoder("second", b"weights"), 6).step == 6
    for name, weights, card in (("third", b"Weights", "{}"), ("fourth", b"weights", "{ }")):
        with pytest.raises(RunError, match=r"encoder\.path \(\S+ → \S+, the contents have changed"):
            run(encoder(name, weights, card), 8)


def test_another_precision_on_resume_is_named(config, capfd) -> None:
    fit(toy(), toy_batches(), config(steps=4), run_config={})
    again = config(steps=6, resume="auto", precision="bf16")
    fit(toy(), toy_batches(), again, run_config={})
    assert "step_00000004 was trained in fp32, training continues in bf16" in capfd.readouterr().err


def test_encoder_is_exported_with_every_checkpoint(config) -> None:
    result = fit(toy(), toy_batches(), config(), card={"objective": "toy"})
    assert result.encoder == result.run_dir / "encoder"
    for directory in (result.run_dir / "checkpoints").iterdir():
        card = json.loads((directory / "encoder" / "config.json").read_text())
        assert (card["objective"], card["steps"]) == ("toy", int(directory.name[-8:]))
    assert result.checkpoint is not None
    exported = (result.encoder / "model.safetensors").read_bytes()
    assert exported == (result.checkpoint / "encoder" / "model.safetensors").read_bytes()
    kinds = {path.suffix for path in result.run_dir.rglob("*") if path.is_file()}
    assert kinds <= {".safetensors", ".json", ".jsonl", ".yaml"}


def test_cut_off_checkpoint_is_skipped_and_named(config, metrics, capfd) -> None:
    settings = config(steps=8, optimizer={"schedule": "constant"})
    first = fit(toy(), toy_batches(), settings)
    whole_bytes = {name: (first.checkpoint / name).read_bytes() for name in BYTES}
    with (first.checkpoint / "model.safetensors").open("r+b") as file:
        file.truncate(100)
    settings.resume = "auto"
    settings.keep_checkpoints = 1
    again = fit(toy(seed=3), toy_batches(), settings)
    assert "step_00000008 is skipped: model.safetensors has 100 of" in capfd.readouterr().err
    assert {name: (again.checkpoint / name).read_bytes() for name in BYTES} == whole_bytes
    assert [row["step"] for row in metrics(again.run_dir)] == list(range(1, 9))


def test_one_flipped_byte_is_detected(config, capfd) -> None:
    settings = config(steps=8)
    result = fit(toy(), toy_batches(), settings)
    path = result.checkpoint / "optimizer.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-5] ^= 1
    path.write_bytes(damaged)
    settings.resume = "auto"
    fit(toy(), toy_batches(), settings)
    assert "optimizer.safetensors is damaged" in capfd.readouterr().err


def test_a_later_truncated_checkpoint_does_not_replace_complete_ones(config) -> None:
    settings = config(steps=8, keep_checkpoints=0)
    result = fit(toy(), toy_batches(), settings)
    os.remove(result.checkpoint / "manifest.json")
    settings.resume, settings.keep_checkpoints, settings.checkpoint_every = "auto", 1, 2
    with pytest.raises(Kill):
        fit(toy(), toy_batches(), settings, periodic=[_stop_at(7)])
    left = sorted(path.name for path in (result.run_dir / "checkpoints").iterdir())
    assert left == ["step_00000006", "step_00000008"]


def test_only_the_newest_checkpoints_stay(config) -> None:
    result = fit(toy(), toy_batches(), config(checkpoint_every=2, keep_checkpoints=2))
    left = sorted(path.name for path in (result.run_dir / "checkpoints").iterdir())
    assert left == ["step_00000010", "step_00000012"]


def test_the_newest_checkpoint_is_that_of_the_highest_step(tmp_path: Path, monkeypatch) -> None:
    # Their order is what is tested here, and empty folders count as whole.
    monkeypatch.setattr(files, "fault", lambda path: None)
    for step in (99_999_999, 100_000_000):
        (tmp_path / f"step_{step:08d}").mkdir()
    assert newest_whole(tmp_path, pytest.fail) == tmp_path / "step_100000000"


def test_a_run_directory_with_another_run_is_refused(config, monkeypatch) -> None:
    settings = config()
    result = fit(toy(), toy_batches(), settings)
    before = {p: p.read_bytes() for p in result.run_dir.rglob("*") if p.is_file()}
    with pytest.raises(RunError, match=r"already holds a run.*--training\.resume auto.*run_dir"):
        fit(toy(), toy_batches(), settings)
    monkeypatch.setattr(command, "script", "recipes/other.py")
    (result.run_dir / "config.yaml").write_text("# written by recipes/job.py\n")
    with pytest.raises(
        RunError, match=r"holds a run of recipes/job\.py; choose another --training"
    ):
        fit(toy(), toy_batches(), settings)
    (result.run_dir / "config.yaml").write_text("# written by recipes/job.py\nsize: 3\n")
    with pytest.raises(RunError, match=r"holds a run of recipes/job\.py; choose another"):
        fit(toy(), toy_batches(), config(resume="auto"))
    before[result.run_dir / "config.yaml"] = b"# written by recipes/job.py\nsize: 3\n"
    assert {p: p.read_bytes() for p in result.run_dir.rglob("*") if p.is_file()} == before


def test_a_damaged_config_of_another_run_is_refused_in_one_line(config) -> None:
    settings = config()
    result = fit(toy(), toy_batches(), settings)
    (result.run_dir / "config.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RunError, match="already holds a run; continue it with"):
        fit(toy(), toy_batches(), settings)


def test_other_settings_are_refused_by_name_and_free_ones_are_not(config) -> None:
    fit(toy(), toy_batches(), config(steps=4))
    changed = config(steps=8, log_every=2, checkpoint_every=3, resume="auto", seed=7)
    changed.optimizer.weight_decay = 0.3
    with pytest.raises(RunError) as caught:
        fit(toy(), toy_batches(), changed)
    named = "training.optimizer.weight_decay (0.05 → 0.3), training.seed (0 → 7); restore them"
    assert named in str(caught.value)
    longer = config(steps=8, log_every=2, checkpoint_every=3, resume="auto")
    assert fit(toy(), toy_batches(), longer).step == 8


def test_workers_are_free_on_resume(config) -> None:
    settings = config(steps=4)
    fit(toy(), toy_batches(), settings, run_config={"data": {"workers": 2, "frames": 8}})
    settings.resume = "auto"
    fit(toy(), toy_batches(), settings, run_config={"data": {"workers": 0, "frames": 8}})
    with pytest.raises(RunError, match=r"data\.frames \(8 → 16\)"):
        fit(toy(), toy_batches(), settings, run_config={"data": {"workers": 0, "frames": 16}})


def test_a_run_from_before_a_setting_existed_continues(config) -> None:
    settings = config(steps=4)
    fit(toy(), toy_batches(), settings, run_config={"data": {"frames": 8}})
    settings.resume = "auto"
    newer = {"data": {"frames": 8, "short_videos": "skip"}}
    assert fit(toy(), toy_batches(), settings, run_config=newer).step == 4


def test_config_file_has_no_name_of_the_run(config) -> None:
    settings = config(steps=4)
    run_config = {
        "name": "mine",
        "training": {"run_dir": settings.run_dir, "resume": "never", "seed": 3},
    }
    result = fit(toy(), toy_batches(), settings, run_config=run_config)
    saved = yaml.safe_load((result.run_dir / "config.yaml").read_text())
    assert saved == {"training": {"seed": 3}}


def test_resume_from_a_path_branches_off(config) -> None:
    first = fit(toy(), toy_batches(), config("first"))
    path = first.run_dir / "checkpoints" / "step_00000004"
    branch = fit(toy(seed=9), toy_batches(), config("branch", resume=str(path)))
    _same_end(first.checkpoint, branch.checkpoint)
    with pytest.raises(RunError, match=r"has checkpoints after step_00000004.*another"):
        fit(toy(), toy_batches(), config("first", resume=str(path)))
    with pytest.raises(RunError, match="no such directory"):
        fit(toy(), toy_batches(), config("third", resume=str(path) + "x"))


def test_checkpoint_of_another_model_is_refused(config) -> None:
    from toy_objective import ToyObjective

    settings = config(steps=4)
    fit(toy(), toy_batches(), settings)
    settings.resume, settings.steps = "auto", 8
    with pytest.raises(RunError, match="checkpoint is of another model") as caught:
        fit(ToyObjective(width=10), toy_batches(), settings)
    assert "\n" not in str(caught.value)


def test_metric_lines_after_the_checkpoint_are_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 2, "a": 1}\n{"step": 3}\n{"step": 4, "tr')
    cut_off(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 2, "a": 1}\n'
    cut_off(path, 0)
    assert path.read_text() == ""


WORKER = """
import os, sys, time
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from toy_objective import toy, toy_batches
from ssl_vivit.training import OptimConfig, Periodic, TrainingConfig, fit, run
config = TrainingConfig(run_dir={run!r}, steps=12, total_batch_size=4, checkpoint_every=4,
    log_every=1, tracker="none", resume="auto",
    optimizer=OptimConfig(learning_rate=0.5, warmup_steps=2))
slow = Periodic(1, lambda moment: print("step", moment.step, flush=True) or time.sleep({pause}))
run(lambda: fit(toy(), toy_batches(), config, periodic=[slow]))
"""


def _start(run_dir: Path, pause: float) -> subprocess.Popen:
    code = WORKER.format(tests=str(Path(__file__).parent), run=str(run_dir), pause=pause)
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _wait_for(process: subprocess.Popen, line: str) -> None:
    assert process.stdout is not None
    for text in process.stdout:
        if text.strip() == line:
            return
    raise AssertionError(process.communicate()[1])


def test_killed_between_checkpoints(config, metrics, tmp_path: Path) -> None:
    """A run continues after SIGKILL, also with an incomplete checkpoint."""
    whole = fit(toy(), toy_batches(), config("whole"))
    run_dir = tmp_path / "killed"
    process = _start(run_dir, pause=0.2)
    _wait_for(process, "step 6")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    shutil.copytree(
        run_dir / "checkpoints" / "step_00000004", run_dir / "checkpoints" / ".partial-x"
    )
    again = _start(run_dir, pause=0.0)
    _, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    _same_end(whole.checkpoint, run_dir / "checkpoints" / "step_00000012")
    assert metrics(run_dir) == metrics(whole.run_dir)
    assert not list((run_dir / "checkpoints").glob(".*"))


def test_second_signal_ends_at_once(tmp_path: Path) -> None:
    process = _start(tmp_path / "run", pause=60.0)
    _wait_for(process, "step 1")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == -signal.SIGTERM


def test_no_pickle_in_a_checkpoint(config) -> None:
    result = fit(toy(), toy_batches(), config(steps=4))
    for path in result.checkpoint.rglob("*"):
        if path.is_file():
            start = path.read_bytes()[:9]
            assert path.suffix in {".safetensors", ".json"}
            assert start[:1] == b"{" or start[8:9] == b"{", path


def test_tied_weights_are_saved(config) -> None:
    def tied(seed: int):
        objective = toy(seed)
        first, second = objective.encoder.blocks
        second.linear.weight = first.linear.weight
        return objective

    def untied_export(directory: Path, *, training: dict) -> None:
        directory.mkdir()

    settings = config("tied")
    objective = tied(0)
    objective.export = untied_export
    with pytest.raises(Kill):
        fit(objective, toy_batches(), settings, periodic=[_stop_at(5)])
    settings.resume = "auto"
    again = tied(4)
    again.export = untied_export
    fit(again, toy_batches(), settings)
    whole = tied(0)
    whole.export = untied_export
    fit(whole, toy_batches(), config("whole"))
    for a, b in zip(again.parameters(), whole.parameters(), strict=True):
        assert torch.equal(a, b)
