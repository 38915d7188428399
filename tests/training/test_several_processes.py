"""Two gloo processes by `accelerate launch`, with DDP and FSDP2, compared with one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy_objective import TIMED, ToyLoader, toy

from ssl_vivit.errors import RunError
from ssl_vivit.training import OptimConfig, TrainingConfig, fit

CONFIGS = Path(__file__).parents[2] / "recipes" / "configs" / "accelerate"


@pytest.fixture(scope="module", params=["ddp", "fsdp2"])
def launched(request, tmp_path_factory) -> Path:
    """Launch once per way of wrapping, and run everything that the tests below check."""
    folder = tmp_path_factory.mktemp(request.param)
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--config_file", str(CONFIGS / f"{request.param}.yaml")),
        *("--num_processes", "2", "--main_process_port", "0"),
        *(str(Path(__file__).with_name("several_processes.py")), str(folder)),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def _reports(folder: Path) -> list[dict]:
    return [json.loads((folder / f"report_{rank}.json").read_text()) for rank in (0, 1)]


def _rows(run_dir: Path) -> list[dict]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [{k: v for k, v in r.items() if k not in TIMED} for r in rows]


def _one_process(run_dir: Path, **changes) -> TrainingConfig:
    settings = {"steps": 6, "accumulation": 4, "checkpoint_every": 3, **changes}
    return TrainingConfig(
        run_dir=str(run_dir),
        total_batch_size=8,
        log_every=1,
        tracker="none",
        optimizer=OptimConfig(learning_rate=0.5, warmup_steps=2),
        **settings,
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """Train on equal global batches in one process, with four micro-batches per step."""
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    fit(toy(0, dropout=0.0, dtype=torch.float64), ToyLoader(), _one_process(run_dir))
    return run_dir


def _close(a: Path, b: Path) -> None:
    ours, theirs = load_file(a), load_file(b)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-10, atol=1e-12)


def test_weights_optimiser_and_encoder_equal_one_process(launched: Path, alone: Path) -> None:
    for step in ("step_00000003", "step_00000006"):
        for name in ("model.safetensors", "optimizer.safetensors", "encoder/model.safetensors"):
            _close(
                launched / "whole" / "checkpoints" / step / name,
                alone / "checkpoints" / step / name,
            )
    _close(launched / "whole/encoder/model.safetensors", alone / "encoder/model.safetensors")
    assert [report["world"] for report in _reports(launched)] == [2, 2]


def test_half_precision_is_that_of_one_process(launched: Path, tmp_path: Path) -> None:
    """If FSDP2 gathered weights in half precision, residuals and positions would be in half precision."""
    one = _one_process(tmp_path / "run", precision="bf16")
    fit(toy(0, dropout=0.0), ToyLoader(torch.float32), one)
    ours, theirs = (
        load_file(folder / "encoder/model.safetensors")
        for folder in (launched / "half", tmp_path / "run")
    )
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_gradient_norm_and_loss_equal_one_process(launched: Path, alone: Path) -> None:
    ours = [row for row in _rows(launched / "whole") if "train/loss" in row]
    for row, reference in zip(ours, _rows(alone), strict=True):
        for key in ("step", "train/loss", "train/grad_norm", "train/lr"):
            assert row[key] == pytest.approx(reference[key], rel=1e-10)


def test_probes_call_the_wrapped_objective(launched: Path) -> None:
    first, second = _reports(launched)
    assert first["embedded"] == second["embedded"]
    assert len(first["embedded"]) == 2
    encoder = toy(dropout=0.0, dtype=torch.float64).encoder
    encoder.load_state_dict(load_file(launched / "whole" / "encoder" / "model.safetensors"))
    expected = encoder(torch.ones(1, 6, dtype=torch.float64)).sum().item()
    assert first["embedded"][-1] == pytest.approx(expected, rel=1e-10)


def test_a_method_called_repeatedly_is_wrapped_once(launched: Path) -> None:
    expected = [1, 1] if "fsdp2" in launched.name else [0, 0]
    assert [report["layers"] for report in _reports(launched)] == [expected] * 2


def test_the_encoders_blocks_are_sharded_one_by_one(launched: Path) -> None:
    expected = ["FSDPBlock", "FSDPToyObjective"] if "fsdp2" in launched.name else []
    assert [report["sharded"] for report in _reports(launched)] == [expected] * 2


def test_processes_share_the_cores(launched: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    assert [report["threads"] for report in _reports(launched)] == [max(1, cores // 2)] * 2


def test_a_signal_to_one_process_stops_all_at_one_step(launched: Path) -> None:
    assert [report["stopped"] for report in _reports(launched)] == [[4, "SIGTERM"]] * 2
    assert [report["continued"] for report in _reports(launched)] == [6, 6]


def test_only_the_main_process_opens_checkpoints(launched: Path) -> None:
    """The other process continues and saves in an empty folder instead of the run's directory."""
    first, second = (report["directory"] for report in _reports(launched))
    assert {"checkpoints", "config.yaml", "encoder", "metrics.jsonl"} <= set(first)
    assert second == []


def test_a_job_ends_the_run_on_all_processes(launched: Path) -> None:
    assert [report["ended"] for report in _reports(launched)] == [[2, True]] * 2
    saved = [path.name for path in (launched / "ended" / "checkpoints").iterdir()]
    assert saved == ["step_00000002"]


def test_continued_with_dropout_equals_uninterrupted(launched: Path) -> None:
    a, b = (launched / name / "checkpoints" / "step_00000006" for name in ("stopped", "dropped"))
    names = ["model", "optimizer", "rng_0", "rng_1"]
    for name in names:
        ours, theirs = load_file(a / f"{name}.safetensors"), load_file(b / f"{name}.safetensors")
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), name
    assert (a / "rng_0.safetensors").read_bytes() != (a / "rng_1.safetensors").read_bytes()
    assert _rows(launched / "stopped") == _rows(launched / "dropped")


def test_a_loss_that_is_not_finite_on_one_process_stops_all(launched: Path) -> None:
    first, second = (report["poisoned"] for report in _reports(launched))
    assert first == second
    assert "loss is not finite at step 5" in first
    assert "sample_34, sample_35, sample_38, sample_39" in first
    assert "sample_33" not in first
    saved = [path.name for path in (launched / "poisoned" / "checkpoints").iterdir()]
    assert saved == ["step_00000003"]


def test_a_data_fault_on_one_process_is_the_line_of_all(launched: Path) -> None:
    said = "data.shards: clevrer-train-000001.tar is cut off"
    assert [report["broken"] for report in _reports(launched)] == [said, said]
    assert [row["step"] for row in _rows(launched / "broken")] == [1, 2]


def test_continued_by_one_process(launched: Path, alone: Path, tmp_path: Path, capfd) -> None:
    path = launched / "whole" / "checkpoints" / "step_00000003"
    settings = _one_process(tmp_path / "run", resume=str(path))
    result = fit(toy(7, dropout=0.0, dtype=torch.float64), ToyLoader(), settings)
    said = capfd.readouterr().err
    assert "saved by 2 processes, now there are 1: samples keep their order" in said
    assert result.checkpoint is not None
    for name in ("model.safetensors", "optimizer.safetensors"):
        _close(result.checkpoint / name, alone / "checkpoints" / "step_00000006" / name)


def test_a_batch_that_does_not_divide_gets_the_numbers_of_processes_that_do(tmp_path: Path) -> None:
    from ssl_vivit.training.batches import split_batch
    from ssl_vivit.training.processes import Host

    host = Host()
    host.world_size = 4
    settings = _one_process(tmp_path, accumulation=1)
    settings.total_batch_size = 6
    with pytest.raises(RunError, match=r"does not divide over 4.*or use 1, 2, 3, 6 processes"):
        split_batch(settings, host)
