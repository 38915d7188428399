"""Adapt an encoder to another geometry: tubelet kernels, learned positions and channels.

- tubelet kernels are resampled in space and time by the pseudo-inverse of the resizing (FlexiViT)
- learned positions are interpolated, except those of class tokens; for shorter causal clips the
  table in time is cropped
- colour ↔ grey: the channels' mean and std are folded into kernel and bias
"""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, Self, TypeVar

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from ssl_vivit.encoders.config import ViViTConfig, unknown_name
from ssl_vivit.encoders.positions import resample_spatial, resample_temporal
from ssl_vivit.preprocessing import Preprocessing

GEOMETRY = (
    "image_size",
    "num_frames",
    "in_channels",
    "tubelet_size",
    "tubelet_stride",
    "temporal_padding",
    "temporal_causal",
    "remainder",
)
LITTLE_ENERGY = 0.9

logger = logging.getLogger(__name__)


class _Adaptable(Protocol):
    def adapted(self, **geometry: Any) -> Self: ...


Encoder = TypeVar("Encoder", bound=_Adaptable)


def adapt(encoder: Encoder, **geometry: Any) -> Encoder:
    """Return a copy of an encoder for clips of another geometry; the given encoder is unchanged.

    An unchanged geometry leaves the weights bit-identical. A larger tubelet samples its content
    more finely: ``tubelet_size`` (8, 32, 32) instead of (4, 16, 16) suits video of twice the frame
    rate and resolution, and ``preprocessing`` of the copy has the new rate and size.

    Rotary and sinusoidal positions are not rescaled: neighbouring tokens still differ by 1. A
    learned table of temporal positions is resampled to the new number of time steps. With
    ``temporal_causal``, a shorter table is instead the start of the old table.

    If ``in_channels`` changes between colour and grey, a clip with three equal channels gives equal
    tokens in both encoders. Each encoder gets the clip normalised by its own ``preprocessing``; an
    encoder without ``preprocessing`` is taken to have equal mean and std in all channels. Tokens
    that cover causal padding can differ, since the padding is the mean colour in one encoder and
    the mean grey in the other.

    Args:
        encoder: the encoder.
        geometry: settings of :class:`ViViTConfig` to change: any of ``image_size``, ``num_frames``,
            ``in_channels`` (1 or 3), ``tubelet_size``, ``tubelet_stride``, ``temporal_padding``,
            ``temporal_causal`` and ``remainder``. By default ``tubelet_stride`` keeps its ratio to
            ``tubelet_size``.

    Raises:
        ValueError: if ``geometry`` has another setting, or if settings do not fit each other.

    Warns:
        UserWarning: if ``temporal_causal`` changes for an encoder with attention over time.
    """
    return encoder.adapted(**geometry)


def adapted_weights(
    weights: Mapping[str, Tensor],
    preprocessing: Preprocessing | None,
    old: ViViTConfig,
    new: ViViTConfig,
) -> tuple[dict[str, Tensor], Preprocessing | None]:
    """Return the weights and preprocessing of an encoder at another geometry; see :func:`adapt`.

    Args:
        weights: state dict of the encoder.
        preprocessing: preprocessing of the encoder.
        old: config of the encoder.
        new: config of the adapted encoder, from :func:`adapted_config`.
    """
    state = {name: value.detach().clone() for name, value in weights.items()}
    state |= _adapted_positions(state, old, new)
    kernel, bias = state["tubelets.weight"], state["tubelets.bias"]
    if kernel.shape[2:] != new.kernel_size:
        kernel, kept = resample_kernel(kernel, new.kernel_size)
        level = logging.WARNING if kept < LITTLE_ENERGY else logging.INFO
        sizes = ["×".join(map(str, size)) for size in (old.kernel_size, new.kernel_size)]
        logger.log(
            level,
            "resampling the tubelet kernel from %s to %s keeps %.1f %% of its energy "
            "(sum of squares)",
            *sizes,
            100 * kept,
        )
    if new.in_channels != old.in_channels:
        before, after = _channel_statistics(preprocessing, old.in_channels)
        kernel, bias = _recoloured(kernel, bias, before, after)
        if preprocessing is not None:
            preprocessing |= {"mean": after.mean.tolist(), "std": after.std.tolist()}
            if preprocessing.channels is not None:
                preprocessing |= {"channels": "luma" if new.in_channels == 1 else "rgb"}
    state |= {"tubelets.weight": kernel.clone(), "tubelets.bias": bias.clone()}
    return state, _at_new_sampling(preprocessing, old, new)


def adapted_config(old: ViViTConfig, geometry: dict[str, Any]) -> ViViTConfig:
    """Return an encoder's config at another geometry; arguments and errors as in :func:`adapt`."""
    names = [field.name for field in dataclasses.fields(ViViTConfig)]
    for name in geometry:
        if name not in names:
            raise ValueError(unknown_name("encoder setting", name, names))
        if name not in GEOMETRY:
            raise ValueError(
                f"{name} cannot be adapted; adapt changes only {', '.join(GEOMETRY)}. For another "
                f"{name}, make a new encoder with create_encoder"
            )
    settings = old.to_dict() | geometry
    if "tubelet_size" in geometry and geometry.get("tubelet_stride") is None:
        settings["tubelet_stride"] = _scaled_stride(old, settings["tubelet_size"])
    new = ViViTConfig.from_dict(settings)
    if old.in_channels != new.in_channels and {old.in_channels, new.in_channels} != {1, 3}:
        raise ValueError(
            f"in_channels {old.in_channels} cannot become {new.in_channels}: only colour (3) and "
            "grey (1) can be converted; prepare the video with "
            f"{old.in_channels} channels"
        )
    return new


def _scaled_stride(old: ViViTConfig, size: Any) -> list[int] | None:
    """Return the stride of tubelets of another size, at the old ratio of stride to size.

    None is returned if the old tubelets do not overlap. ValueError is raised if the new stride
    would not be whole numbers.
    """
    if old.tubelet_stride == old.tubelet_size or not isinstance(size, tuple | list):
        return None
    assert old.tubelet_stride is not None
    scaled = [
        divmod(new * stride, kernel)
        for new, stride, kernel in zip(size, old.tubelet_stride, old.tubelet_size, strict=False)
    ]
    if any(rest or not stride for stride, rest in scaled):
        raise ValueError(
            f"tubelet_stride {old.tubelet_stride} of tubelets {old.tubelet_size} does not scale to "
            f"whole numbers for tubelet_size {tuple(size)}; give tubelet_stride too"
        )
    return [stride for stride, _ in scaled]


def resample_kernel(
    kernel: Float[Tensor, "d c t h w"], size: tuple[int, int, int]
) -> tuple[Float[Tensor, "d c t2 h2 w2"], float]:
    """Resample a tubelet kernel for another number of pixels or frames per tubelet.

    Let B be the resizing of a tubelet (bicubic in space, linear in time, antialiased). The product
    of the new kernel with B·x is as close as possible to the product of the old kernel with x, for
    white noise x. This is the pseudo-inverse of B on every axis (FlexiViT, Beyer et al. 2023, arXiv
    2212.08013, Sec. 3.4, there for images). For finer tubelets the products are equal.

    Args:
        kernel: weights (d, c, t, h, w). The result is computed in float64 and has their dtype.
        size: (t, h, w) of the new tubelet.

    Returns:
        The new kernel, and the fraction of the old kernel's energy (sum of squares) that tubelets
        of the new size can represent: 1 for finer tubelets, less for coarser ones. Video with
        little fine detail loses less.
    """
    resampled = projected = kernel.double()
    for axis, (new, mode) in enumerate(zip(size, ("bilinear", "bicubic", "bicubic"), strict=True)):
        if kernel.shape[2 + axis] == new:
            continue
        resize = _resize_matrix(kernel.shape[2 + axis], new, mode).to(kernel.device)
        inverse = torch.linalg.pinv(resize)
        resampled = _along(resampled, 2 + axis, inverse)
        projected = _along(projected, 2 + axis, inverse @ resize)
    energy = kernel.double().square().sum()
    share = float(projected.square().sum() / energy) if energy else 1.0
    return resampled.to(kernel.dtype), share


def _along(kernel: Tensor, axis: int, matrix: Float[Tensor, "old new"]) -> Tensor:
    moved = einsum(kernel.movedim(axis, -1), matrix, "... old, old new -> ... new")
    return moved.movedim(-1, axis)


def _resize_matrix(old: int, new: int, mode: str) -> Float[Tensor, "new old"]:
    """Return the matrix (new, old) that interpolates one axis from ``old`` to ``new`` samples."""
    # torch's antialiased interpolation is wrong for images of width 1, so use height 1.
    basis = rearrange(torch.eye(old, dtype=torch.float64), "i j -> i 1 1 j")
    resized = F.interpolate(basis, size=(1, new), mode=mode, antialias=True)
    return rearrange(resized, "i 1 1 j -> j i")


def _adapted_positions(
    state: Mapping[str, Tensor], old_config: ViViTConfig, config: ViViTConfig
) -> dict[str, Tensor]:
    """Return learned position tables for the new token grid; rows of class tokens stay unchanged."""
    old, new = old_config.grid, config.grid
    spatial, temporal, joint = (
        state.get(f"positions.{axis}") for axis in ("spatial", "temporal", "joint")
    )
    adapted: dict[str, Tensor] = {}
    if spatial is not None and old[1:] != new[1:]:
        slots, table = _split(spatial, old.n)
        table = resample_spatial(table, old[1:], new[1:])
        adapted["positions.spatial"] = torch.cat([slots, table])
    if temporal is not None and old.t != new.t:
        slots, table = _split(temporal, old.t)
        adapted["positions.temporal"] = torch.cat([slots, _in_time(table, config)])
    if joint is not None and old != new:
        slots, table = _split(joint, old.t * old.n)
        table = _in_time(rearrange(table, "(t n) d -> t (n d)", n=old.n), config)
        table = rearrange(table, "t (n d) -> n (t d)", n=old.n)
        table = resample_spatial(table, old[1:], new[1:])
        table = rearrange(table, "n (t d) -> (t n) d", t=new.t)
        adapted["positions.joint"] = torch.cat([slots, table])
    if config.joint_positions == "sinusoidal" and old[1:] != new[1:]:
        warnings.warn(
            "sinusoidal joint_positions depend on the flattened token index: with "
            f"{new.h}×{new.w} tokens instead of {old.h}×{old.w}, an index belongs to another "
            "location; expect worse features until the encoder is fine-tuned",
            stacklevel=5,
        )
    dtype = state["tubelets.weight"].dtype
    return {name: table.to(dtype) for name, table in adapted.items()}


def _split(table: Tensor, places: int) -> tuple[Tensor, Tensor]:
    """Split a position table into the rows of class tokens and the rows of patches, in float64.

    The rows of patches are the last ``places`` rows.
    """
    table = table.detach().double()
    return table[:-places], table[-places:]


def _in_time(table: Float[Tensor, "t d"], config: ViViTConfig) -> Float[Tensor, "t2 d"]:
    steps = config.grid.t
    # In a causal encoder a shorter clip is the start of a longer one.
    if config.temporal_causal and steps <= len(table):
        return table[:steps]
    return resample_temporal(table, steps)


class _Statistics(NamedTuple):
    """Mean and standard deviation of each channel."""

    mean: Float[Tensor, " c"]
    std: Float[Tensor, " c"]


def _channel_statistics(
    preprocessing: Preprocessing | None, channels: int
) -> tuple[_Statistics, _Statistics]:
    """Return mean and std of each channel before and after a change between colour and grey.

    ``channels`` is the number of channels before the change. Every new channel has the average
    of the old means and the average of the old stds. Without preprocessing the old mean is 0 and
    the old std is 1.
    """
    given: Mapping[str, Any] = preprocessing or {}
    old = []
    for name, neutral in (("mean", 0.0), ("std", 1.0)):
        value = torch.tensor(given.get(name, neutral), dtype=torch.float64).flatten()
        if len(value) not in (1, channels):
            raise ValueError(
                f"preprocessing {name} {given[name]} does not fit in_channels {channels}; give one "
                "number per channel"
            )
        old.append(value.expand(channels))
    # In this form the mean of equal values is exact to the last bit.
    means = [value[:1] + (value - value[0]).mean() for value in old]
    new = [value.expand(1 if channels == 3 else 3) for value in means]
    return _Statistics(*old), _Statistics(*new)


def _recoloured(
    kernel: Float[Tensor, "d c t h w"],
    bias: Float[Tensor, " d"],
    old: _Statistics,
    new: _Statistics,
) -> tuple[Float[Tensor, "d c2 t h w"], Float[Tensor, " d"]]:
    """Convert tubelet kernel and bias between colour and grey.

    Clips with equal channels keep their tokens. Let g be a pixel before normalisation. The old
    kernel w computes Σ_c w_c (g − mean_c) / std_c. The new encoder gets x = (g − mean') / std', so
    g = std' · x + mean'. The sum is then a kernel on x plus a constant, which is added to the bias.
    If the new clips have three channels, each gets a third of this kernel.
    """
    old, new = (_Statistics(*(part.to(kernel.device) for part in each)) for each in (old, new))
    weights = kernel.double()
    scaled = einsum(weights, new.std[0] / old.std, "d c t h w, c -> d t h w")
    offset = einsum(weights, (new.mean[0] - old.mean) / old.std, "d c t h w, c -> d")
    channels = len(new.mean)
    spread = (scaled / channels)[:, None].repeat(1, channels, 1, 1, 1)
    return spread.to(kernel.dtype), (bias.double() + offset).to(bias.dtype)


def _at_new_sampling(
    preprocessing: Preprocessing | None, old: ViViTConfig, new: ViViTConfig
) -> Preprocessing | None:
    """Return the preprocessing with the frame rate and size that the adapted encoder expects."""
    if preprocessing is None:
        return None
    finer = new.kernel_size[0] / old.kernel_size[0]
    if finer != 1 and preprocessing.fps is not None:
        preprocessing |= {"fps": preprocessing.fps * finer}
    if new.image_size != old.image_size and preprocessing.resize is not None:
        preprocessing |= {"resize": new.image_size}
    return preprocessing


def warn_of_causality(old: ViViTConfig, new: ViViTConfig) -> None:
    """Warn if ``temporal_causal`` changes for an encoder with attention over time."""
    if old.temporal_causal == new.temporal_causal or new.temporal_depth == 0:
        return
    if new.temporal_causal:
        message = (
            "temporal_causal=True on weights trained without it: attention over time learned to "
            "use later frames and now sees none; expect worse features until the encoder is "
            "fine-tuned"
        )
    else:
        message = (
            "temporal_causal=False on weights trained with it: attention over time now sees later "
            "frames, which it never learned to use; expect worse features until the encoder is "
            "fine-tuned"
        )
    warnings.warn(message, stacklevel=4)
