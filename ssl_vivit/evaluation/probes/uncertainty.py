"""Bootstrap of scores over the choice of test videos.

This is a Poisson bootstrap (Chamandy et al. 2012, "Estimating uncertainty for massive data
streams"). In each resample, the count of a video is a Poisson number with mean 1, drawn by a
generator that is seeded with the video's name. All rows of the table of probes and all seeds thus
have equal resamples, and differences between rows are paired.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ssl_vivit.data.randomness import named_generator
from ssl_vivit.evaluation.probes.scores import weighted_score
from ssl_vivit.objectives.targets import Target

# The standard deviation of 400 resamples has a relative error of 1 / √(2 · 400) = 3.5 %.
RESAMPLES = 400


class Estimate(NamedTuple):
    """A score, or a difference of two scores, with its standard errors.

    Attributes:
        mean: mean over seeds.
        over_seeds: standard error of the mean from the variation over seeds; NaN for one seed.
        over_videos: standard deviation, over resamples of the test videos, of the mean over seeds.
    """

    mean: float
    over_seeds: float
    over_videos: float

    @classmethod
    def of(
        cls, scores: Sequence[float], resampled: Sequence[Float[np.ndarray, " resamples"]]
    ) -> Estimate:
        """Compute an estimate over seeds; seeds without a finite score are ignored.

        Args:
            scores: score of each seed.
            resampled: scores of each seed on resampled test videos.
        """
        known = [value for value in scores if math.isfinite(value)]
        if not known:
            return cls(math.nan, math.nan, math.nan)
        drawn = [
            each for value, each in zip(scores, resampled, strict=True) if math.isfinite(value)
        ]
        # A resample counts only if the scores of all seeds are finite.
        means = np.mean(drawn, axis=0)
        means = means[np.isfinite(means)]
        return cls(
            float(np.mean(known)),
            float(np.std(known, ddof=1)) / math.sqrt(len(known)) if len(known) > 1 else math.nan,
            float(np.std(means, ddof=1)) if len(means) > 1 else math.nan,
        )

    @property
    def error(self) -> float:
        """Standard error over seeds and test videos combined, by adding the two variances."""
        return math.hypot(self.over_seeds, self.over_videos)

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "–"
        return f"{self.mean:.3f}" + ("" if math.isnan(self.error) else f" ± {self.error:.3f}")


def video_weights(
    keys: Sequence[str], resamples: int = RESAMPLES
) -> Float[Tensor, "resamples videos"]:
    """Return the count of each video in each resample, float64 (resamples, videos).

    Args:
        keys: names of the videos.
        resamples: number of resamples.
    """
    drawn = [named_generator(key, "resamples").poisson(1.0, resamples) for key in keys]
    return torch.from_numpy(np.stack(drawn, 1)).double()


def resampled_scores(
    predicted: Mapping[str, Tensor],
    labels: Mapping[str, Tensor],
    train_labels: Mapping[str, Tensor],
    targets: tuple[Target, ...],
    weights: Float[Tensor, "resamples videos"],
) -> dict[str, Float[np.ndarray, " resamples"]]:
    """Return target → scores (resamples,) on resampled test videos; see :func:`weighted_score`."""
    return {
        t.name: weighted_score(
            predicted[t.name], labels[t.name], t, train_labels[t.name], weights
        ).numpy()
        for t in targets
    }
