"""Start of readouts at receptive fields that are estimated from responses to local energy.

Reverse correlation with local energy. Motion and contrast in cells of a coarse grid, in the frames
shortly before, are regressed on each neuron's responses with a ridge, which takes out that natural
stimuli are correlated over space (Theunissen et al. 2001, Network 12:289-316); energy instead of
grey level, since complex cells have no linear receptive field (Adelson & Bergen 1985). A place is
taken where the map predicts responses better than the energy of the whole screen does, in halves
of the trials that the weights were not fitted to.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from ssl_vivit.data.sessions.facts import SessionFacts
from ssl_vivit.data.sessions.files import Session
from ssl_vivit.neural.cores.vivit_core import screen_span
from ssl_vivit.neural.model import NeuralModel
from ssl_vivit.neural.readout.gaussian import GaussianReadout

_CELLS = 144
# Seconds from a frame to the response that it is related to; a calcium signal goes on for longer.
_LAGS = {"spikes": (0.03, 0.2), "calcium": (0.03, 0.6)}
# Shares of a feature's variance.
_RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
# Cells around a peak that belong to it, if they reach this share of it.
_REACH, _SHARE = 2, 0.3


class FoundPlaces(NamedTuple):
    """Centres of receptive fields.

    Attributes:
        centres: (x, y) on the screen; −1 and 1 are its outer edges. NaN where none was found.
        known: where one was.
    """

    centres: Float[Tensor, "n 2"]
    known: Bool[Tensor, " n"]


def start_at_energy(
    model: NeuralModel, sessions: Sequence[Session], facts: Sequence[SessionFacts]
) -> list[str]:
    """Put the readouts of a fresh model where their neurons' energy maps are centred.

    Neurons without such a place, and readouts whose positions come from cortical coordinates, stay
    as they are. Training trials alone are read. No neuron's place depends on another's responses.

    Args:
        model: whose readouts are placed; its adapter is taken as the identity that it starts as.
        sessions: of the model.
        facts: of each of them, with the split.

    Returns:
        A line for each session that was placed.
    """
    notes = []
    for session, fact in zip(sessions, facts, strict=True):
        readout = model.readouts[fact.name]
        if not isinstance(readout, GaussianReadout) or readout.config.cortex != "off":
            continue
        found = energy_centres(
            ((session.video(trial), session.responses(trial)) for trial in fact.split["train"]),
            frames_per_second=fact.frames_per_second,
            kind=fact.kind,
        )
        span = screen_span(
            model.encoder, fact.frame_size, align_corners=readout.config.align_corners
        )
        _place(readout, found, span)
        notes.append(
            f"{fact.name}: {int(found.known.sum())} of {len(found.known)} readouts start where "
            "local motion and contrast predict responses, the others near the middle"
        )
    return notes


@torch.no_grad()
def _place(readout: GaussianReadout, found: FoundPlaces, span: Float[Tensor, "2 2"]) -> None:
    assert readout.mean is not None
    low, high = span
    places = 2 * (found.centres - low) / (high - low) - 1
    mean = torch.where(found.known[:, None], places.clamp(-1, 1), readout.mean.cpu())
    readout.mean.copy_(mean)


def energy_centres(
    trials: Iterable[tuple[Shaped[np.ndarray, "T H W"], Shaped[np.ndarray, "T n"]]],
    *,
    frames_per_second: float,
    kind: str = "spikes",
) -> FoundPlaces:
    """Centres of receptive fields by regression of responses on local energy.

    Args:
        trials: grey levels, 0 to 255, and responses (NaN where unknown) of the same frames; read
            once.
        frames_per_second: of both.
        kind: ``spikes`` or ``calcium``, which is slower.

    Returns:
        :class:`FoundPlaces`. A neuron has a place if the best of several ridges predicts better
        than the mean energy of the screen, and better than nothing, in the other half of the trials.
    """
    halves: list[_Sums] = [_Sums(), _Sums()]
    cells = (1, 1)
    first, last = (round(lag * frames_per_second) for lag in _LAGS[kind])
    for number, (video, responses) in enumerate(trials):
        energy = local_energy(torch.as_tensor(video))
        cells = (energy.shape[2], energy.shape[3])
        past = _past(rearrange(energy, "T k h w -> T (k h w)"), first, max(first, last))
        halves[number % 2].add(past.double(), torch.as_tensor(responses).double())
    if not halves[1].count:
        nothing = torch.full((halves[0].neurons, 2), torch.nan)
        return FoundPlaces(nothing, torch.zeros(len(nothing), dtype=torch.bool))
    best, known = _best_ridges(halves)
    both = _Sums.sum(halves)
    weights = torch.stack([both.regression(ridge) for ridge in _RIDGES])
    chosen = weights[best, :, torch.arange(len(best))]
    maps = rearrange(chosen, "n (k h w) -> n k h w", h=cells[0], w=cells[1]).sum(1)
    centres = peak_centres(maps)
    known = known & centres.isfinite().all(1)
    return FoundPlaces(centres.where(known[:, None], torch.nan).float(), known)


def local_energy(video: Shaped[Tensor, "T H W"]) -> Float[Tensor, "T 2 h w"]:
    """Mean absolute change since the frame before, and standard deviation of grey levels, of cells.

    The cells are about square, some 144 a frame.
    """
    grey = video.float() / 255
    height, width = grey.shape[1:]
    side = max(1.0, (height * width / _CELLS) ** 0.5)
    cells = (max(1, round(height / side)), max(1, round(width / side)))
    change = F.pad((grey[1:] - grey[:-1]).abs(), (0, 0, 0, 0, 1, 0))
    mean = F.adaptive_avg_pool2d(grey[:, None], cells)
    square = F.adaptive_avg_pool2d(grey[:, None].square(), cells)
    contrast = (square - mean.square()).clamp(min=0).sqrt()
    return torch.cat([F.adaptive_avg_pool2d(change[:, None], cells), contrast], dim=1)


def peak_centres(maps: Float[Tensor, "n h w"]) -> Float[Tensor, "n 2"]:
    """Centres of mass (x, y) of the highest peaks, in [−1, 1] from edge to edge.

    NaN for maps that are positive nowhere.
    """
    kernel = maps.new_tensor([0.25, 0.5, 0.25])
    smooth = F.conv2d(maps[:, None], kernel.outer(kernel)[None, None], padding=1)[:, 0]
    smooth = smooth.clamp(min=0)
    height, width = smooth.shape[1:]
    peak = smooth.flatten(1).argmax(1)
    rows, columns = torch.arange(height), torch.arange(width)
    near = (rows - (peak // width)[:, None]).abs()[:, :, None] <= _REACH
    near = near & ((columns - (peak % width)[:, None]).abs()[:, None, :] <= _REACH)
    high = smooth >= _SHARE * smooth.amax((1, 2), keepdim=True)
    mass = smooth.where(near & high, 0)
    total = mass.sum((1, 2))
    x = (mass.sum(1) * ((2 * columns + 1) / width - 1)).sum(1) / total
    y = (mass.sum(2) * ((2 * rows + 1) / height - 1)).sum(1) / total
    return torch.stack([x, y], dim=1)


def _past(energy: Float[Tensor, "T p"], first: int, last: int) -> Float[Tensor, "T p"]:
    """Sum over the frames that lie ``first`` to ``last`` frames back."""
    total = F.pad(energy, (0, 0, last + 1, 0)).cumsum(0)
    return total[last + 1 - first : len(total) - first] - total[: len(energy)]


class _Sums:
    """Sums of features, responses and their products, trial by trial.

    Plain sums and not :class:`ssl_vivit.moments.Moments`, since every neuron's products with the
    features are over other frames: those in which its response is known.
    """

    def __init__(self) -> None:
        self.count, self.neurons = 0, 0
        self.known = self.x = self.y = self.xx = self.xy = self.yy = self.x_known = torch.zeros(())

    def add(self, x: Float[Tensor, "T p"], y: Float[Tensor, "T n"]) -> None:
        known = ~y.isnan()
        y = y.where(known, 0)
        self.count, self.neurons = self.count + len(x), y.shape[1]
        self.known = self.known + known.sum(0)
        self.x, self.y = self.x + x.sum(0), self.y + y.sum(0)
        self.x_known = self.x_known + x.mT @ known.double()
        self.xx, self.xy = self.xx + x.mT @ x, self.xy + x.mT @ y
        self.yy = self.yy + y.square().sum(0)

    @staticmethod
    def sum(parts: Sequence[_Sums]) -> _Sums:
        both = _Sums()
        both.count, both.neurons = sum(part.count for part in parts), parts[0].neurons
        for name in ("known", "x", "y", "xx", "xy", "yy", "x_known"):
            total = torch.stack([getattr(part, name) for part in parts]).sum(0)
            setattr(both, name, total)
        return both

    def centred(self) -> tuple[Float[Tensor, "p p"], Float[Tensor, "p n"], Float[Tensor, " n"]]:
        """Covariances of features, and with responses where known; variance of responses."""
        known = self.known.clamp(min=1)
        mean, response = self.x / self.count, self.y / known
        xx = self.xx / self.count - mean.outer(mean)
        xy = self.xy / known - self.x_known / known * response
        return xx, xy, self.yy / known - response.square()

    def regression(self, ridge: float) -> Float[Tensor, "p n"]:
        """Weights of the features in units of their standard deviations."""
        xx, xy, _ = self.centred()
        scale = _deviations(xx)
        correlation = xx / scale.outer(scale)
        damped = correlation + ridge * torch.eye(len(xx), dtype=xx.dtype)
        return torch.linalg.solve(damped, xy / scale[:, None])


def _deviations(xx: Float[Tensor, "p p"]) -> Float[Tensor, " p"]:
    variance = xx.diagonal()
    return variance.clamp(min=1e-12 + 1e-6 * float(variance.max())).sqrt()


def _best_ridges(halves: Sequence[_Sums]) -> tuple[Int[Tensor, " n"], Bool[Tensor, " n"]]:
    """For each neuron the ridge that predicts the other half best, and whether it tells a place."""
    gains = torch.stack([_explained(halves, ridge) for ridge in _RIDGES])
    best = gains.mean(1).argmax(0)
    least = _explained(halves, None).clamp(min=0)
    reached = gains[best, :, torch.arange(len(best))].mT
    # In both directions, which chance alone seldom does.
    return best, (reached > least).all(0)


def _explained(halves: Sequence[_Sums], ridge: float | None) -> Float[Tensor, "2 n"]:
    """Explained variance of responses in each half by weights of the other; no ridge: by mean energy."""
    told = []
    for fitted, other in (halves, halves[::-1]):
        xx, xy, yy = other.centred()
        own, to_responses, _ = fitted.centred()
        scale = _deviations(own)[:, None]
        if ridge is None:
            whole = 1 / scale
            slope = (whole.mT @ to_responses) / (whole.mT @ own @ whole).clamp(min=1e-12)
            weights = whole * slope
        else:
            weights = fitted.regression(ridge) / scale
        left = 2 * (weights * xy).sum(0) - (weights * (xx @ weights)).sum(0)
        told.append(left / yy.clamp(min=1e-12))
    return torch.stack(told)
