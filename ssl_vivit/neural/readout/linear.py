"""Readout with one causal linear filter of stimulus and behaviour for each neuron.

The model is that of Chichilnisky 2001 (Network 12:199), fitted by maximum likelihood (Paninski
2004). The filter of behaviour has as many lags as the filter of the stimulus.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ssl_vivit.neural.cores.past import Past, after_past
from ssl_vivit.settings import check_least, check_type

FilterKind = Literal["full", "separable"]


@dataclass(frozen=True)
class LinearNonlinearConfig:
    """Settings of :func:`linear_nonlinear`.

    Args:
        filters: ``full`` has a weight for every pixel and lag. ``separable`` is a sum of ``rank``
            products of an image and a time course.
        lags: number of frames that a filter spans, including the current frame.
        pool: side in pixels of the squares over which stimuli are averaged.
        rank: number of products of a separable filter.
    """

    filters: FilterKind = "separable"
    lags: int = 10
    pool: int = 2
    rank: int = 1

    def __post_init__(self) -> None:
        check_type("filters", self.filters, FilterKind)
        check_least(self, "baseline.ln.", lags=1, pool=1, rank=1)


class LinearReadout(nn.Module):
    """Linear filters of one session's neurons; lag 0 is the current frame.

    Args:
        neurons: number of neurons.
        pooled: (c, h, w) of the pooled stimulus.
        behaviour_channels: number of behaviour channels, which follow the pixels in the map.
        config: settings of the filters.
    """

    # In a stream, NeuralModel passes the state of earlier frames to readouts with this attribute.
    looks_back = True

    def __init__(
        self,
        neurons: int,
        pooled: tuple[int, int, int],
        behaviour_channels: int,
        config: LinearNonlinearConfig,
    ) -> None:
        super().__init__()
        self.pooled, self.behaviour_channels, self.config = pooled, behaviour_channels, config
        pixels = pooled[0] * pooled[1] * pooled[2]
        if config.filters == "full":
            self.filters = nn.Parameter(torch.zeros(neurons, config.lags, *pooled))
        else:
            shape = (neurons, config.rank, *pooled)
            self.images = nn.Parameter(torch.randn(shape) / pixels**0.5)
            self.courses = nn.Parameter(torch.zeros(neurons, config.rank, config.lags))
        # Without behaviour there is no parameter: an empty parameter would never get a gradient.
        self.behaviour: nn.Parameter | None = None
        if behaviour_channels:
            self.behaviour = nn.Parameter(torch.zeros(neurons, config.lags, behaviour_channels))
        self.bias = nn.Parameter(torch.zeros(neurons))

    def forward(
        self,
        map: Float[Tensor, "b d t 1 1"],
        pupil_centre: Float[Tensor, "b t 2"] | None = None,
        past: Past | None = None,
    ) -> Float[Tensor, "b t neurons"]:
        """Return the drive of each neuron: filtered signals plus bias.

        Signals are padded with zeros before the first frame.

        Args:
            map: pooled pixels, then behaviour, as channels.
            pupil_centre: ignored; filters do not move with the pupil.
            past: state of a stream after the previous frames.
        """
        lags, signals = self.config.lags, map[..., 0, 0]
        pixels = signals.shape[1] - self.behaviour_channels
        stimulus, behaviour = signals.split([pixels, self.behaviour_channels], dim=1)
        if self.config.filters == "full":
            kernel = rearrange(self.filters.flip(1), "n lag c h w -> n (c h w) lag")
            drive = F.conv1d(after_past(stimulus, lags - 1, (self, "stimulus"), past), kernel)
        else:
            images = rearrange(self.images, "n rank c h w -> (n rank) (c h w)")
            courses = rearrange(self.courses.flip(-1), "n rank lag -> (n rank) 1 lag")
            seen = einsum(images, stimulus, "m p, b p t -> b m t")
            seen = after_past(seen, lags - 1, (self, "stimulus"), past)
            each = F.conv1d(seen, courses, groups=len(courses))
            drive = rearrange(each, "b (n rank) t -> b n t rank", rank=self.config.rank).sum(-1)
        if self.behaviour is not None:
            kernel = rearrange(self.behaviour.flip(1), "n lag k -> n k lag")
            signals = after_past(behaviour, lags - 1, (self, "behaviour"), past)
            drive = drive + F.conv1d(signals, kernel)
        return rearrange(drive, "b n t -> b t n") + self.bias

    def to_config(self) -> dict[str, Any]:
        """Return kind and settings as a JSON-serialisable dictionary."""
        return {
            "kind": "linear",
            "neurons": len(self.bias),
            "pooled": list(self.pooled),
            "behaviour_channels": self.behaviour_channels,
            **asdict(self.config),
        }

    def spacetime(self) -> Float[Tensor, "neurons lags c h w"]:
        """Return the filter of each neuron over lags and pooled pixels; lag 0 is first."""
        if self.config.filters == "full":
            return self.filters
        return einsum(self.images, self.courses, "n r c h w, n r lag -> n lag c h w")

    def regularisation(self) -> dict[str, Tensor]:
        """Return unweighted penalties for the loss, each a mean over neurons.

        Returns:
            The penalties by name.

            - ``filter_l2``: sum of squared weights, including those of behaviour
            - ``smoothness``: sum of squared second differences over time, height and width, where
              the filter is zero beyond its edges in space
        """
        if self.config.filters == "full":
            weights = self.filters.square().flatten(1).sum(1)
            rough = _roughness(self.filters, (1,)) + _roughness(self.filters, (3, 4), edges=True)
        else:
            images, courses = self.images, self.courses
            weights = images.square().flatten(1).sum(1) + courses.square().flatten(1).sum(1)
            rough = _roughness(images, (3, 4), edges=True) + _roughness(courses, (2,))
        if self.behaviour is not None:
            weights = weights + self.behaviour.square().flatten(1).sum(1)
        return {"filter_l2": weights.mean(), "smoothness": rough.mean()}


def _roughness(
    filters: Float[Tensor, "neurons ..."], axes: Sequence[int], *, edges: bool = False
) -> Float[Tensor, " neurons"]:
    """Square the second differences of filters along each axis; return their sum per neuron.

    Args:
        filters: filters of each neuron.
        axes: axes of ``filters`` along which differences are taken.
        edges: whether filters are padded with one zero at both ends of each axis.
    """
    total = filters.new_zeros(len(filters))
    for axis in axes:
        moved = filters.movedim(axis, -1)
        second = (F.pad(moved, (1, 1)) if edges else moved).diff(n=2, dim=-1)
        total = total + second.square().flatten(1).sum(1)
    return total
