"""Script of tests/training/test_failing_rank.py: a run in which one process fails."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from toy_objective import ToyLoader, toy

from ssl_vivit import training
from ssl_vivit.errors import DecodingError, NeuralModelError
from ssl_vivit.training import Moment, Periodic, TrainingConfig, fit

FOLDER, PLACE, FAILING = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
fails = int(os.environ["RANK"]) == FAILING


class Loader(ToyLoader):
    def stream(self, split, *, start_step, device):
        for micro, batch in enumerate(super().stream(split, start_step=start_step, device=device)):
            if fails and micro == 3 and PLACE == "data":
                raise DecodingError("video 17 of clevrer.tar cannot be decoded")
            if fails and micro == 3 and PLACE == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if fails and micro == 3 and PLACE == "fault":
                raise KeyError("a fault of the program")
            yield batch


def evaluate(moment: Moment) -> None:
    if fails and PLACE == "evaluation":
        raise NeuralModelError("session a has no test trials")
    if fails and PLACE == "export":
        (FOLDER / "encoder").write_text("a file is in the way")
    if fails and PLACE == "checkpoint" and moment.step == 2:
        (FOLDER / "checkpoints").rmdir()
        (FOLDER / "checkpoints").write_text("a file is in the way")


def main() -> None:
    config = TrainingConfig(
        run_dir=str(FOLDER), steps=6, total_batch_size=8, checkpoint_every=4, tracker="none"
    )
    fit(toy(0, dtype=torch.float64), Loader(), config, periodic=[Periodic(2, evaluate)])


training.run(main)
