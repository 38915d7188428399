"""Parameters that start later, and shares of the learning rate that a module declares."""

from __future__ import annotations

import pytest
import torch
from toy_objective import ToyObjective, toy_batches

from ssl_vivit.training import Periodic, fit
from ssl_vivit.training.optim import parameter_groups, set_learning_rate


class Late(ToyObjective):
    """The encoder starts after five steps, with a tenth of the learning rate."""

    export_name = "model"

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__(dropout=dropout)
        self.begun: list[int] = []

    def first_steps(self) -> dict[str, int]:
        return {f"encoder.{name}": 5 for name, _ in self.encoder.named_parameters()}

    def learning_rate_shares(self) -> dict[str, float]:
        return {f"encoder.{name}": 0.1 for name, _ in self.encoder.named_parameters()}

    def begin_step(self, step: int) -> None:
        self.begun.append(step)


def late(seed: int = 0) -> Late:
    torch.manual_seed(seed)
    return Late()


def test_groups_know_share_and_first_step() -> None:
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


def test_late_parameters_take_no_step_before_theirs_and_continue_to_the_same_bits(config) -> None:
    seen = {}

    def look(moment) -> None:
        seen[moment.step] = moment.model.encoder.stem.weight.clone()

    whole = fit(late(), toy_batches(), config("whole", steps=9), periodic=[Periodic(1, look, True)])
    # Weight decay would have moved it, too.
    assert all(torch.equal(seen[step], seen[0]) for step in range(6))
    assert not torch.equal(seen[6], seen[5])

    for stop in (4, 6):  # before and after the encoder has moments
        settings = config(f"stop{stop}", steps=9, checkpoint_every=stop)

        class Kill(Exception):
            pass

        def end(moment, stop=stop, kill=Kill) -> None:
            if moment.step == stop + 1:
                raise kill

        with pytest.raises(Kill):
            fit(late(), toy_batches(), settings, periodic=[Periodic(1, end)])
        settings.resume = "auto"
        again = fit(model := late(3), toy_batches(), settings)
        assert model.begun == list(range(stop, 9))
        for name in ("model.safetensors", "optimizer.safetensors"):
            ends = [(result.checkpoint / name).read_bytes() for result in (whole, again)]
            assert ends[0] == ends[1]


def test_the_export_has_the_objectives_name_and_can_be_made_beside_training(config) -> None:
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
