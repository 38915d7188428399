"""Collapse of features: measures of their spread over videos, and a warning."""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ssl_vivit.evaluation.run_summary import first_and_last
from ssl_vivit.objectives.embedding_geometry import alignment, effective_rank, uniformity
from ssl_vivit.training import Moment

STD, RANK = "val/feature_std", "val/effective_rank"

# Below both, and below half of where the run began, features say next to nothing of a video.
_LITTLE_STD = 0.02
_LITTLE_RANK = 2.0


def feature_geometry(features: Float[Tensor, "n views d"]) -> dict[str, float]:
    """Measure the spread of features of length 1.

    Args:
        features: of n ≥ 2 videos, (n, views, d) with any number of views.

    Returns:
        ``val/feature_std``, the standard deviation over videos times √d: 1 where features spread
        evenly over all directions, 0 where they are all the same (Chen & He 2021, Sec. 4.1);
        ``val/effective_rank``, of how many directions their differences make use;
        ``val/uniformity`` of the first two views, or of the one, and with two or more
        ``val/alignment`` of the first two (Wang & Isola 2020).
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
    """Print a line above the progress bar where features collapse.

    While the learning rate rises, features of different videos come close and part again; nothing
    is said then.

    Args:
        numbers: of :func:`feature_geometry`, now.
        moment: the state of the run.
    """
    if moment.warming_up:
        return
    warning = collapse_warning(numbers, moment.run_dir, moment.step)
    if warning and moment.accelerator.is_main_process:
        moment.progress.write(warning)


def collapse_warning(numbers: dict[str, float], run_dir: Path, step: int) -> str | None:
    """One line where features collapse, or None.

    Args:
        numbers: of :func:`feature_geometry`, now.
        run_dir: the run, whose first measurement is what features began with.
        step: optimisation steps done.
    """
    for name, little, what in (
        (STD, _LITTLE_STD, "features of all videos are nearly the same"),
        (RANK, _LITTLE_RANK, "features of different videos differ along one direction alone"),
    ):
        logged = first_and_last(run_dir, name)
        if logged is not None and numbers[name] < min(little, logged[0] / 2):
            return (
                f"collapse at step {step}: {what} ({name} {numbers[name]:.3g}, {logged[0]:.3g} at "
                "the start); lower the learning rate, lengthen the warm-up or change the "
                "augmentation, and begin again"
            )
    return None
