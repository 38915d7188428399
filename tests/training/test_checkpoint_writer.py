"""Checkpoints are written one at a time during training, and all errors of writing are raised."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_cuda import FakeDevice
from toy_objective import toy, toy_batches

from ssl_vivit.errors import RunError
from ssl_vivit.training import Periodic, fit
from ssl_vivit.training.checkpoints import run_checkpoints
from ssl_vivit.training.checkpoints.files import fault, write_checkpoint
from ssl_vivit.training.checkpoints.state import copies_on_host, gather_state
from ssl_vivit.training.checkpoints.writer import CheckpointWriter

PATIENCE = 30.0


class Batches:
    """The toy batches, with a function that is called before each step with the number of steps done."""

    def __init__(self, before_step: Any) -> None:
        self.before_step = before_step

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for step, batch in enumerate(toy_batches(count=12)):
            self.before_step(step)
            yield batch


@pytest.fixture
def release(monkeypatch) -> Iterator[threading.Event]:
    """Return an event that all writes of checkpoints wait for."""
    event = threading.Event()

    def write(*given, **named) -> Path:
        assert event.wait(PATIENCE)
        return write_checkpoint(*given, **named)

    monkeypatch.setattr(run_checkpoints, "write_checkpoint", write)
    yield event
    event.set()


def _files(checkpoint: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(checkpoint)): path.read_bytes()
        for path in checkpoint.rglob("*")
        if path.is_file()
    }


def test_training_continues_while_a_checkpoint_is_written(config, release) -> None:
    """The checkpoint of step 4 is written until after step 7 and has the weights of step 4."""
    settings = config("blocked", steps=8)
    saved = Path(settings.run_dir) / "checkpoints" / "step_00000004"
    seen: list[int] = []

    def before_step(step: int) -> None:
        if step > 4:
            assert not saved.exists()
            seen.append(step)
        if step == 7:
            release.set()

    fit(toy(), Batches(before_step), settings)
    assert seen == [5, 6, 7]
    whole = fit(toy(), Batches(lambda step: None), config("whole", steps=8))
    assert _files(saved) == _files(whole.run_dir / "checkpoints" / "step_00000004")


def test_the_next_checkpoint_waits_for_the_one_before(config, release) -> None:
    steps: list[int] = []
    timer = threading.Timer(1.0, release.set)

    def before_step(step: int) -> None:
        steps.append(step)
        if step == 8:  # the checkpoint of step 8 has begun, so that of step 4 is whole
            assert release.is_set()
        if step == 7:
            assert not release.is_set()
            timer.start()

    result = fit(toy(), Batches(before_step), config())
    assert steps == list(range(12))
    found = sorted(path.name for path in (result.run_dir / "checkpoints").iterdir())
    assert found == ["step_00000004", "step_00000008", "step_00000012"]


def test_jobs_wait_for_the_checkpoint_before(config, release) -> None:
    """Jobs export with the objective that the writer uses, so they must wait."""
    whole: list[bool] = []
    threading.Timer(0.5, release.set).start()

    def look(moment) -> None:
        path = moment.run_dir / "checkpoints" / "step_00000004"
        whole.append(moment.step < 5 or fault(path) is None)
        moment.export(moment.run_dir / f"at_{moment.step}")

    result = fit(toy(), toy_batches(), config(steps=6), periodic=[Periodic(3, look)])
    assert whole == [True, True]
    last, saved = (
        (folder / "model.safetensors").read_bytes()
        for folder in (result.run_dir / "at_6", result.checkpoint / "encoder")
    )
    assert last == saved
    assert last != (result.run_dir / "at_3" / "model.safetensors").read_bytes()


def test_a_signal_waits_for_a_whole_checkpoint(config, release) -> None:
    def before_step(step: int) -> None:
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Timer(0.5, release.set).start()

    result = fit(toy(), Batches(before_step), config())
    assert result.interrupted == "SIGTERM"
    assert result.checkpoint is not None
    assert result.checkpoint.name == f"step_{result.step:08d}"
    assert fault(result.checkpoint) is None


@pytest.mark.parametrize(("failing", "last"), [(4, 4), (12, 11)])
def test_an_error_of_the_writer_ends_the_run(config, monkeypatch, failing, last, capfd) -> None:
    """The error ends the run at the next step, or at the end of the run."""
    writers: list[CheckpointWriter] = []
    steps: list[int] = []

    class Seen(CheckpointWriter):
        def __init__(self) -> None:
            super().__init__()
            writers.append(self)

    def write(parent: Path, step: int, *rest: Any) -> Path:
        if step == failing:
            raise RunError("no space left")
        return write_checkpoint(parent, step, *rest)

    def before_step(step: int) -> None:
        steps.append(step)
        if step == failing:
            wait([writers[0]._write], PATIENCE)

    monkeypatch.setattr(run_checkpoints, "write_checkpoint", write)
    monkeypatch.setattr(run_checkpoints, "CheckpointWriter", Seen)
    with pytest.raises(RunError, match=r"^no space left$"):
        fit(toy(), Batches(before_step), config())
    assert steps[-1] == last
    assert "no space left" not in capfd.readouterr().err  # it is raised, and told once


def test_an_error_of_the_writer_is_reported_with_another_error(
    config, monkeypatch, release, capfd
) -> None:
    def write(*given: Any) -> Path:
        assert release.wait(PATIENCE)
        raise RunError("no space left")

    def before_step(step: int) -> None:
        if step == 5:
            release.set()
            raise KeyError("a fault of the program")

    monkeypatch.setattr(run_checkpoints, "write_checkpoint", write)
    with pytest.raises(KeyError, match="a fault of the program"):
        fit(toy(), Batches(before_step), config())
    assert "error: no space left" in capfd.readouterr().err


def test_a_loss_that_is_not_finite_names_a_checkpoint_that_is_whole(config, release) -> None:
    batches = toy_batches(count=12)
    batches[5]["target"] = batches[5]["target"] * float("nan")
    threading.Timer(0.5, release.set).start()
    settings = config()
    with pytest.raises(RunError, match=r"last good checkpoint: \S+step_00000004\."):
        fit(toy(), batches, settings)
    assert fault(Path(settings.run_dir) / "checkpoints" / "step_00000004") is None


def test_an_objective_that_cannot_be_copied_is_refused(config) -> None:
    objective = toy()
    objective.lock = threading.Lock()
    with pytest.raises(RunError, match=r"ToyObjective cannot be copied .*lock.*: keep locks, open"):
        fit(objective, toy_batches(), config())


def test_the_writer_refuses_a_second_write() -> None:
    writer = CheckpointWriter()
    writer.start(lambda: "first")
    with pytest.raises(RuntimeError, match=r"call join\(\) before start"):
        writer.start(lambda: "second")
    assert writer.join() == "first"
    assert writer.join() is None
    writer.close()


def test_a_state_shares_no_memory_with_training() -> None:
    objective = toy()
    first, second = objective.encoder.blocks
    second.linear.weight = first.linear.weight
    optimizer = torch.optim.AdamW(objective.parameters(), lr=0.1)
    objective(toy_batches()[0]).loss.backward()
    optimizer.step()
    state = gather_state(objective, optimizer)
    own = [*objective.parameters(), *objective.buffers()]
    own += [value for entries in optimizer.state.values() for value in entries.values()]
    memory = [tensor.data_ptr() for tensor in (*state.model.values(), *state.optimizer.values())]
    assert len(set(memory)) == len(memory)
    assert not set(memory) & {tensor.data_ptr() for tensor in own}


def test_copies_from_a_gpu_go_to_pinned_memory_without_blocking(monkeypatch) -> None:
    pinned: list[bool] = []
    waited: list[bool] = []
    empty = torch.empty

    def spied(*shape: Any, pin_memory: bool, **named: Any) -> torch.Tensor:
        pinned.append(pin_memory)
        return empty(*shape, **named)

    device = FakeDevice("cuda")
    tensors = device.fake({"a": torch.ones(2, 3).T, "b": torch.ones(())})
    monkeypatch.setattr(torch, "empty", spied)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(True))
    with device.watched() as waits:
        copies = copies_on_host(tensors)
    assert waits.found == []
    assert (pinned, waited) == ([True, True], [True])
    assert {name: (copy.device.type, copy.shape) for name, copy in copies.items()} == {
        "a": ("cpu", (3, 2)),
        "b": ("cpu", ()),
    }
