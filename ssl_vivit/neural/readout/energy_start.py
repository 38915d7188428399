"""Initial readout positions at receptive fields that are estimated from responses.

The estimate is a reverse correlation with local energy instead of grey level, since complex cells
have no linear receptive field (Adelson & Bergen 1985). For each place of a coarse grid, a neuron's
responses are regressed on three features (:mod:`ssl_vivit.neural.readout.oriented_energy`). So few
features can be fitted from a few trials. The evidence of each place
(:mod:`ssl_vivit.neural.readout.place_evidence`) is compared with the evidence of two alternatives:
the energy of the whole screen, and no dependence on energy. Three properties are estimated from all
neurons together: the delay of responses, their autocorrelation without a stimulus, and the prior
of the weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from ssl_vivit.data.sessions.facts import SessionFacts
from ssl_vivit.data.sessions.files import Session
from ssl_vivit.neural.cores.vivit_core import screen_span
from ssl_vivit.neural.model import NeuralModel
from ssl_vivit.neural.readout.gaussian import GaussianReadout
from ssl_vivit.neural.readout.oriented_energy import oriented_energy
from ssl_vivit.neural.readout.place_evidence import PlaceSums

# Candidate intervals of the delay from a frame to its responses, in seconds. The likeliest is used.
_DELAYS = ((0.0, 0.1), (0.0, 0.2), (0.0, 0.4), (0.1, 0.3), (0.1, 0.6))
# Number of trials from which the delay and the autocorrelation of responses are estimated.
_FIRST_TRIALS = 16
# Longest lag in seconds of the autocorrelation of residual responses.
_COURSE = 0.5
# Radius in grid cells around a peak within which the centre of mass is taken.
_REACH = 1.33


class FoundPlaces(NamedTuple):
    """Estimated centres of receptive fields.

    Attributes:
        centres: (neurons, 2) position (x, y) on the screen, whose edges are −1 and 1. NaN for a
            neuron without an estimate.
        known: (neurons,) whether the neuron has an estimate.
    """

    centres: Float[Tensor, "n 2"]
    known: Bool[Tensor, " n"]


def start_at_energy(
    model: NeuralModel, sessions: Sequence[Session], facts: Sequence[SessionFacts]
) -> list[str]:
    """Place the readouts of a new model at receptive fields estimated from local energy.

    Positions are unchanged for neurons without an estimate, and for readouts with cortical
    coordinates. Only training trials are read. Held-out neurons do not influence the estimates of
    other neurons.

    Args:
        model: the model, whose readouts are modified. Its adapter must still be the identity.
        sessions: sessions of the model.
        facts: ``SessionFacts`` of each session, with the split.

    Returns:
        Notes, one line for each session with estimates.
    """
    notes = []
    for session, fact in zip(sessions, facts, strict=True):
        readout = model.readouts[fact.name]
        if not isinstance(readout, GaussianReadout) or readout.config.cortex != "off":
            continue
        found = energy_centres(
            ((session.video(trial), session.responses(trial)) for trial in fact.split["train"]),
            frames_per_second=fact.frames_per_second,
            pooled=torch.tensor([unit not in fact.held_out_units for unit in fact.unit_ids]),
        )
        span = screen_span(
            model.encoder, fact.frame_size, align_corners=readout.config.align_corners
        )
        _place(readout, found, span)
        notes.append(
            f"{fact.name}: readouts of {int(found.known.sum())} of {len(found.known)} neurons "
            "start where local contrast predicts responses, the others near the middle"
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
    pooled: Bool[Tensor, " n"] | None = None,
) -> FoundPlaces:
    """Estimate centres of receptive fields from the dependence of responses on local energy.

    Args:
        trials: at least one pair of a video, with grey levels from 0 to 255, and the responses in
            its frames (NaN if unknown). The iterable is read once.
        frames_per_second: frame rate of videos and responses.
        pooled: mask of the neurons from which the delay, the autocorrelation and the prior are
            estimated. None means all neurons.

    Returns:
        The centres. A neuron has an estimate if local energy explains its responses with a
        probability above 0.5. The alternatives are the energy of the whole screen, and no
        dependence on energy.
    """
    stream = (
        (oriented_energy(torch.as_tensor(video)), torch.as_tensor(responses).float())
        for video, responses in trials
    )
    first = list(islice(stream, _FIRST_TRIALS))
    if pooled is None:
        pooled = torch.ones(first[0][1].shape[1], dtype=torch.bool)
    course = _Course.of(
        [responses for _, responses in first], pooled, round(_COURSE * frames_per_second)
    )
    delays = sorted({
        (round(start * frames_per_second), round(stop * frames_per_second))
        for start, stop in _DELAYS
    })  # fmt: skip
    sums = [_sums(first, course, delay) for delay in delays]
    likely = [own.explained(pooled, inflation=course.inflation).log_evidence for own in sums]
    best = max(range(len(delays)), key=likely.__getitem__)
    whole = sums[best]
    for trial in stream:
        _add(whole, trial, course, delays[best])
    height, width = first[0][0].shape[1:3]
    places = whole.explained(pooled, inflation=course.inflation).places
    known = places.sum(0) > 0.5
    centres = peak_centres(rearrange(places, "(h w) n -> n h w", h=height, w=width))
    return FoundPlaces(centres.where(known[:, None], torch.nan).float(), known)


def peak_centres(maps: Float[Tensor, "n h w"]) -> Float[Tensor, "n 2"]:
    """Return the centre of mass around the peak of each map, (x, y) in [−1, 1] from edge to edge.

    The centre is NaN if a map is 0 everywhere.
    """
    height, width = maps.shape[1:]
    cells = torch.cartesian_prod(torch.arange(height), torch.arange(width)).to(maps)
    near = (torch.cdist(cells, cells) <= _REACH).to(maps)
    mass = maps.flatten(1)
    peak = (mass @ near).argmax(1)
    around = mass * near[peak]
    y, x = ((around @ cells) / around.sum(1, keepdim=True)).unbind(1)
    return torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=1)


class _Course(NamedTuple):
    """Model of the time course of responses without a stimulus.

    Attributes:
        mean: mean response of each neuron.
        deviation: standard deviation of each neuron's responses; 1 for constant responses.
        persistence: correlation of responses in successive frames, over all neurons.
        inflation: number of successive, correlated frames that carry as much information as one
            independent frame. It is computed from the results of :meth:`changes`.
    """

    mean: Float[Tensor, " n"]
    deviation: Float[Tensor, " n"]
    persistence: float
    inflation: float

    @classmethod
    def of(
        cls, trials: Sequence[Float[Tensor, "T n"]], pooled: Bool[Tensor, " n"], frames: int
    ) -> _Course:
        """Estimate all attributes from trials.

        Args:
            trials: responses, NaN if unknown.
            pooled: neurons from which correlations are estimated.
            frames: longest lag of the correlations, in frames.
        """
        together = torch.cat([*trials])
        mean = together.nanmean(0).nan_to_num()
        deviation = (together - mean).square().nanmean(0).sqrt().nan_to_num()
        deviation = deviation.where(deviation > 1e-6 * mean.abs(), 1)
        course = cls(mean, deviation, 0.0, 1.0)
        standard = [course.standard(trial)[:, pooled] for trial in trials]
        (persistence,) = _correlations(standard, 1)
        course = course._replace(persistence=persistence)
        left = _correlations([course.changes(trial)[1:, pooled] for trial in trials], frames)
        return course._replace(inflation=max(1.0, 1 + 2 * sum(left)))

    def standard(self, responses: Float[Tensor, "T n"]) -> Float[Tensor, "T n"]:
        """Return responses standardised to mean 0 and variance 1."""
        return (responses - self.mean) / self.deviation

    def changes(self, responses: Float[Tensor, "T n"]) -> Float[Tensor, "T n"]:
        """Return standardised responses minus ``persistence`` times those one frame earlier."""
        standard = self.standard(responses)
        return standard - self.persistence * F.pad(standard[:-1], (0, 0, 1, 0))


def _correlations(trials: Sequence[Float[Tensor, "T n"]], frames: int) -> list[float]:
    """Return autocorrelations of responses at lags of 1 to ``frames``, averaged over neurons.

    Frames with unknown responses (NaN) are ignored.
    """
    mean = torch.cat([*trials]).nanmean(0)
    centred = [trial - mean for trial in trials]
    power = float(torch.cat(centred).square().nanmean().nan_to_num())
    if power == 0:
        return [0.0] * frames
    found = []
    for lag in range(1, frames + 1):
        products = torch.cat([trial[lag:] * trial[:-lag] for trial in centred])
        found.append(float(products.nanmean().nan_to_num()) / power)
    return found


_Trial = tuple[Float[Tensor, "T h w k"], Float[Tensor, "T n"]]


def _sums(trials: Sequence[_Trial], course: _Course, delay: tuple[int, int]) -> PlaceSums:
    sums = PlaceSums()
    for trial in trials:
        _add(sums, trial, course, delay)
    return sums


def _add(sums: PlaceSums, trial: _Trial, course: _Course, delay: tuple[int, int]) -> None:
    energy, responses = trial
    past = _past(rearrange(energy, "T h w k -> T (h w k)"), *delay)
    # Skip the first frames, for which the earlier stimulus is unknown.
    start = max(1, delay[1])
    features = rearrange(past, "T (p k) -> T p k", k=energy.shape[-1])
    sums.add(features[start:], course.changes(responses)[start:])


def _past(energy: Float[Tensor, "T p"], first: int, last: int) -> Float[Tensor, "T p"]:
    """Return, for each frame, the mean energy at lags of ``first`` to ``last`` frames before it.

    The energy before the first frame is 0.
    """
    total = F.pad(energy.double(), (0, 0, last + 1, 0)).cumsum(0)
    past = total[last + 1 - first : len(total) - first] - total[: len(energy)]
    return past / (last + 1 - first)
