"""Receptive fields of a model's neurons by gradients and by readouts, and true receptive fields."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from einops import einsum, rearrange
from jaxtyping import Float
from safetensors.numpy import load_file
from torch import Tensor

from ssl_vivit.data.sessions.files import Session
from ssl_vivit.neural.adapters import StimulusAdapter
from ssl_vivit.neural.cores.vivit_core import screen_span
from ssl_vivit.neural.model import NeuralModel
from ssl_vivit.neural.readout.gaussian import GaussianReadout
from ssl_vivit.neural.readout.linear import LinearReadout

Rates = Callable[[Tensor], Tensor]

# A readout is near the true centre if their distance in pixels is at most this value. The value is
# about the standard deviation of a receptive field.
NEAR_PIXELS = 4.0
# Pixels below this fraction of a map's maximum are ignored. Their noise would pull the centre of
# mass to the middle of the frame.
_FIELD = 0.3


class ReceptiveFields(NamedTuple):
    """Gradients of rates with respect to the video, over many stimuli.

    Attributes:
        filters: (n, lags, H, W), first right singular vector of the gradients (stimuli × pixels),
            times the root mean square, over stimuli, of their projections onto it. The last lag is
            the current frame. For a linear unit this is the filter, and for an energy unit one
            phase of the filter.
        energy: (n, H, W), squared gradients, averaged over stimuli and then summed over lags.
        centres: (n, 2), (x, y) of the energy's centre of mass; −1 and 1 are the frame's edges.
    """

    filters: Float[Tensor, "n lags H W"]
    energy: Float[Tensor, "n H W"]
    centres: Float[Tensor, "n 2"]


def receptive_fields(
    rates: Rates,
    videos: Float[Tensor, "b c T H W"],
    units: Sequence[int],
    *,
    lags: int = 12,
    batch_size: int = 16,
) -> ReceptiveFields:
    """Compute receptive fields from gradients of rates at a set of stimuli.

    Stimuli must not be blank: units that respond to the energy of a pattern, independent of its
    phase, have a gradient of zero at a blank stimulus.

    Args:
        rates: differentiable function from standardised videos (b, c, T, H, W) to rates
            (b, T, neurons). Clips of a batch must not influence each other.
        videos: clips; the rate at the last frame of each clip is differentiated.
        units: indices of the neurons.
        lags: number of frames at the end of a clip for which gradients are returned.
        batch_size: number of clips in a batch.

    Raises:
        ValueError: if the clips are shorter than ``lags``.
    """
    if videos.shape[2] < lags:
        raise ValueError(
            f"clips of {videos.shape[2]} frames are shorter than lags {lags}; set lags to at most "
            f"{videos.shape[2]}"
        )
    found: list[list[Tensor]] = [[] for _ in units]
    for clips in videos.split(batch_size):
        with torch.enable_grad():
            seen = clips.detach().requires_grad_(True)
            last = rates(seen)[:, -1]
            for index, unit in enumerate(units):
                # The rate of a clip does not depend on other clips. The gradient of the summed rates
                # therefore contains the gradient of each clip's rate.
                (gradient,) = torch.autograd.grad(
                    last[:, unit].sum(), seen, retain_graph=index + 1 < len(units)
                )
                found[index].append(gradient[:, :, -lags:].mean(1).cpu())
    gradients = torch.stack([torch.cat(parts) for parts in found]).double()
    energy = gradients.square().mean(1).sum(1)
    return ReceptiveFields(_main_direction(gradients).float(), energy.float(), centres_of(energy))


def _main_direction(gradients: Float[Tensor, "n b lags H W"]) -> Float[Tensor, "n lags H W"]:
    flat = rearrange(gradients, "n b t h w -> n b (t h w)")
    _, strength, directions = torch.linalg.svd(flat, full_matrices=False)
    main = directions[:, 0] * strength[:, :1] / flat.shape[1] ** 0.5
    # The sign of a singular vector is arbitrary. It is chosen to agree with the mean gradient, so
    # that excitation is positive.
    sign = torch.where(einsum(main, flat.mean(1), "n p, n p -> n") < 0, -1.0, 1.0)
    shape = gradients.shape[2:]
    return (main * sign[:, None]).reshape(len(main), *shape)


def centres_of(energy: Float[Tensor, "n H W"]) -> Float[Tensor, "n 2"]:
    """Return centres of mass (x, y) of non-negative maps; −1 and 1 are the frame's outer edges.

    Pixels below 30 % of the map's maximum are ignored. NaN for maps that are zero everywhere.
    """
    energy = energy.double()
    peak = energy.amax((1, 2), keepdim=True)
    weights = torch.where(energy >= _FIELD * peak, energy, 0.0)
    total = weights.sum((1, 2))
    places = [(2 * torch.arange(size).double() + 1) / size - 1 for size in energy.shape[1:]]
    y = einsum(weights, places[0].to(energy.device), "n h w, h -> n") / total
    x = einsum(weights, places[1].to(energy.device), "n h w, w -> n") / total
    return torch.stack([x, y], 1).float()


def found_centres(
    model: NeuralModel, session: str, frame_size: tuple[int, int]
) -> Float[np.ndarray, "n 2"] | None:
    """Return receptive-field centres of a session's readout, (x, y) in [−1, 1].

    −1 and 1 are the edges of the frame. A Gaussian readout gives its positions, converted from the
    feature map to the recorded frame, before the stimulus adapter. A linear readout gives the
    centres of mass of its filters. Other readouts give None.

    Args:
        model: the model.
        session: session of the neurons.
        frame_size: (H, W) of the session's video.
    """
    readout = model.readouts[session]
    with torch.no_grad():
        if isinstance(readout, LinearReadout):
            return centres_of(readout.spacetime().square().sum((1, 2))).cpu().numpy()
        if not isinstance(readout, GaussianReadout):
            return None
        return _on_screen(model, readout, readout.centres(), frame_size).numpy()


def readout_spreads(
    model: NeuralModel, session: str, frame_size: tuple[int, int]
) -> Float[np.ndarray, "n 2 2"] | None:
    """Return the covariance matrices (n, 2, 2) of the positions of a Gaussian readout, in pixels².

    Other readouts give None.

    Args:
        model: the model.
        session: session of the neurons.
        frame_size: (H, W) of the session's video.
    """
    readout = model.readouts[session]
    if not isinstance(readout, GaussianReadout):
        return None
    with torch.no_grad():
        centres, widths = readout.centres(), readout.widths()
        # The mapping from the feature map to the screen is affine. It therefore maps a square root
        # of the covariance, column by column, to a square root of the transformed covariance.
        middle, *ends = (
            _on_screen(model, readout, places, frame_size)
            for places in (centres, centres + widths[..., 0], centres + widths[..., 1])
        )
        pixels = torch.tensor(frame_size[::-1]) / 2
        root = torch.stack([(end - middle) * pixels for end in ends], -1).double()
        return (root @ root.mT).numpy()


def _on_screen(
    model: NeuralModel,
    readout: GaussianReadout,
    places: Float[Tensor, "n 2"],
    frame_size: tuple[int, int],
) -> Float[Tensor, "n 2"]:
    """Convert positions on the encoder's feature map to positions on the screen.

    Positions on the screen refer to the recorded frame, before the stimulus adapter transforms it.
    All positions are (x, y), where −1 and 1 are the edges of the feature map or of the frame.
    """
    low, high = screen_span(model.encoder, frame_size, align_corners=readout.config.align_corners)
    seen = low + (places.cpu() + 1) / 2 * (high - low)
    adapter = model.adapter
    if isinstance(adapter, StimulusAdapter) and adapter.kind == "scale":
        return seen * adapter.log_scale.exp().cpu()
    if isinstance(adapter, StimulusAdapter):
        # The adapter's matrix applies to pixels relative to the centre.
        half = torch.tensor(frame_size[::-1]) / 2
        pixels = (seen * half) @ adapter.matrix.T.cpu() + adapter.shift.cpu() * 2 * half
        return pixels / half
    return seen


def true_fields(session: Session) -> dict[str, np.ndarray] | None:
    """Return the true parameters of a simulated session's neurons; None for a recorded session."""
    file = session.path / "meta" / "ground_truth.safetensors"
    return load_file(file) if file.is_file() else None


def position_correlation(
    found: Float[np.ndarray, "n 2"], true: Float[np.ndarray, "n 2"]
) -> tuple[float, float]:
    """Return Pearson's r over neurons of receptive-field positions in a model and true positions.

    The two results are for x and for y. They are NaN with fewer than three neurons, or if the
    coordinate does not vary.
    """
    known = np.isfinite(found).all(1) & np.isfinite(true).all(1)
    rs = []
    for axis in (0, 1):
        a, b = found[known, axis], true[known, axis]
        varies = known.sum() > 2 and np.ptp(a) > 0 and np.ptp(b) > 0
        rs.append(float(np.corrcoef(a, b)[0, 1]) if varies else float("nan"))
    return rs[0], rs[1]


def share_near(
    found: Float[np.ndarray, "n 2"], true: Float[np.ndarray, "n 2"], frame_size: tuple[int, int]
) -> float:
    """Return the fraction of neurons that a model locates close to the true position.

    The distance of a close position is at most ``NEAR_PIXELS`` pixels.

    Args:
        found: receptive-field positions in the model, (x, y) in [−1, 1]; NaN counts as not close.
        true: true positions, (x, y) in [−1, 1].
        frame_size: (H, W) of the recorded video in pixels.
    """
    pixels = (found - true) * np.array(frame_size[::-1]) / 2
    return float((np.linalg.norm(pixels, axis=1) <= NEAR_PIXELS).mean())
