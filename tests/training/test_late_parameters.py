"""Parameters that are trained from a later step, and learning-rate factors of an objective."""

from __future__ import annotations

import os
import signal
from contextlib import nullcontext

import pytest
import torch
from toy_objective import ToyObjective, toy_batches

from ssl_vivit.errors import RunError
from ssl_vivit.training import FitResult, Periodic, fit
from ssl_vivit.training.optim import parameter_groups, set_learning_rate
from ssl_vivit.training.run_directory import reached_step


class Late(ToyObjective):
    """An objective whose encoder is trained from step 5, with a tenth of the learning rate."""

    export_name = "model"

    def first_steps(self) -> dict[str, int]:
        return {f"encoder.{name}": 5 for name, _ in self.encoder.named_parameters()}

    def learning_rate_shares(self) -> dict[str, float]:
        return {f"encoder.{name}": 0.1 for name, _ in self.encoder.named_parameters()}


def late(seed: int = 0) -> Late:
    torch.manual_seed(seed)
    return Late(dropout=0.2)


def test_groups_have_share_and_first_step() -> None:
    model = late()
    groups = parameter_groups(model, 0.1, layer_decay=0.5)
    encoder = {id(p) for p in model.encoder.parameters()}
    for group in groups:
        inside = {id(p) in encoder for p in group["params"]}
        assert inside == {group["first_step"] == 5}
    shares = {group["lr_scale"] for group in groups if group["first_step"]}
    assert shares == {0.1 * 0.25, 0.1 * 0.5, 0.1}


def test_late_groups_warm_up_when_they_start() -> None:
    optimizer = torch.optim.SGD(parameter_groups(late(), 0.0), lr=1.0)
    rates = []
    for step in range(9):
        set_learning_rate(optimizer, 2.0, step=step, warmup_steps=3)
        rates.append(next(g["lr"] for g in optimizer.param_groups if g["first_step"]))
        assert {g["lr"] for g in optimizer.param_groups if not g["first_step"]} == {2.0}
    assert rates == pytest.approx([0, 0, 0, 0, 0, 0.2 / 3, 0.4 / 3, 0.2, 0.2])


def test_two_calls_train_the_rest_and_then_all_to_equal_bits_after_any_stops(
    config, metrics
) -> None:
    class Kill(Exception):
        pass

    def run(name: str, stops: tuple[int, ...] = ()) -> FitResult:
        """Train with a frozen encoder for five steps, then everything; continue after each stop."""
        for stop in (*stops, None):
            settings = config(name, steps=9, checkpoint_every=3, resume="auto")

            def look(moment, stop=stop) -> None:
                seen[moment.step] = moment.model.encoder.stem.weight.clone()
                if moment.step == stop:
                    raise Kill

            jobs = [Periodic(1, look, at_start=True)]
            with nullcontext() if stop is None else pytest.raises(Kill):
                if reached_step(settings) < 5:
                    resting = late()
                    resting.encoder.requires_grad_(False)
                    fitted = fit(resting, toy_batches(), settings, until=5, periodic=jobs)
                    assert (fitted.step, fitted.encoder, fitted.interrupted) == (5, None, None)
                    assert not (fitted.run_dir / "model").exists()
                fitted = fit(late(3 if stops else 0), toy_batches(), settings, periodic=jobs)
        return fitted

    seen: dict[int, torch.Tensor] = {}
    whole = run("whole")
    assert all(torch.equal(seen[step], seen[0]) for step in range(6))
    assert not torch.equal(seen[6], seen[5])
    again = run("again", stops=(4, 7))
    for name in ("model.safetensors", "optimizer.safetensors"):
        ends = [(result.checkpoint / name).read_bytes() for result in (whole, again)]
        assert ends[0] == ends[1]
    assert metrics(again.run_dir) == metrics(whole.run_dir)
    assert [row["step"] for row in metrics(whole.run_dir)] == list(range(1, 10))


def test_a_signal_in_the_last_step_of_a_first_call_is_not_lost(config) -> None:
    def strike(moment) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    jobs = [Periodic(5, strike, at_end=False)]
    first = fit(late(), toy_batches(), config(steps=9), until=5, periodic=jobs)
    assert (first.step, first.interrupted) == (5, "SIGTERM")


def test_a_checkpoint_of_more_trained_parameters_is_refused(config) -> None:
    fit(late(), toy_batches(), config(steps=6))
    resting = late()
    resting.encoder.requires_grad_(False)
    with pytest.raises(RunError, match="parameters that are not trained now"):
        fit(resting, toy_batches(), config(steps=8, resume="auto"))


def test_a_module_that_is_not_an_objective_is_refused(config) -> None:
    with pytest.raises(RunError, match=r"Linear is not an objective; derive it from .*Objective"):
        fit(torch.nn.Linear(2, 2), toy_batches(), config())


def test_the_export_has_the_objectives_name_and_can_be_made_during_training(config) -> None:
    def keep(moment) -> None:
        moment.export(moment.run_dir / "kept" / f"step_{moment.step}")

    result = fit(late(), toy_batches(), config(steps=8), periodic=[Periodic(4, keep)])
    assert result.encoder == result.run_dir / "model"
    for step in (4, 8):
        exported = result.run_dir / "checkpoints" / f"step_{step:08d}" / "model"
        beside = result.run_dir / "kept" / f"step_{step}"
        for name in ("model.safetensors", "config.json"):
            assert (exported / name).read_bytes() == (beside / name).read_bytes()
    assert not (result.run_dir / "encoder").exists()
