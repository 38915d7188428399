"""Detection of collapsed features: measures of their spread over videos, and a warning."""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ssl_vivit.evaluation.run_summary import first_and_last
from ssl_vivit.objectives.embedding_geometry import alignment, effective_rank, uniformity
from ssl_vivit.training import Moment

STD, RANK = "val/feature_std", "val/effective_rank"

# Features have collapsed if a measure is below its limit and below half of its value at the start.
_LITTLE_STD = 0.02
_LITTLE_RANK = 2.0


def feature_geometry(features: Float[Tensor, "n views d"]) -> dict[str, float]:
    """Measure the spread of features over videos, after scaling each feature vector to length 1.

    Args:
        features: features of n ≥ 2 videos, (n, views, d).

    Returns:
        A dictionary of measures.

        - ``val/feature_std``: standard deviation over videos, averaged over dimensions, times √d; 1
          if features are spread evenly over all directions, 0 if they are equal (Chen & He 2021,
          Sec. 4.1)
        - ``val/effective_rank``: effective number of directions in which features differ
        - ``val/uniformity``: uniformity of the first two views, or of the only view (Wang & Isola
          2020)
        - ``val/alignment``: alignment of the first two views, if there are two or more
    """
    unit = F.normalize(features.double(), dim=-1)
    first = unit[:, 0]
    centred = first - first.mean(0)
    numbers = {
        STD: first.std(0).mean() * first.shape[1] ** 0.5,
        RANK: effective_rank(centred),
    }
    numbers["val/uniformity"] = uniformity(unit[:, :2].flatten(0, 1))
    if features.shape[1] > 1:
        numbers["val/alignment"] = alignment(first, unit[:, 1])
    return {name: float(value) for name, value in numbers.items()}


def warn_of_collapse(numbers: dict[str, float], moment: Moment) -> None:
    """Print a warning above the progress bar if features collapse.

    There is no warning during warm-up, when features may become similar for a while.

    Args:
        numbers: current result of :func:`feature_geometry`.
        moment: the state of the run.
    """
    if moment.warming_up:
        return
    warning = collapse_warning(numbers, moment.run_dir, moment.step)
    if warning and moment.accelerator.is_main_process:
        moment.progress.write(warning)


def collapse_warning(numbers: dict[str, float], run_dir: Path, step: int) -> str | None:
    """Return a warning if features of different videos become too similar (collapse), else None.

    Args:
        numbers: current result of :func:`feature_geometry`.
        run_dir: directory of the run, whose first measurement is the reference.
        step: number of optimisation steps so far.
    """
    for name, little, what in (
        (STD, _LITTLE_STD, "features of all videos are nearly equal"),
        (RANK, _LITTLE_RANK, "features of different videos differ only along one direction"),
    ):
        logged = first_and_last(run_dir, name)
        if logged is not None and numbers[name] < min(little, logged[0] / 2):
            return (
                f"collapse at step {step}: {what} ({name} {numbers[name]:.3g}, {logged[0]:.3g} at "
                "the start); lower the learning rate, lengthen the warm-up or change the "
                "augmentation, and restart"
            )
    return None
