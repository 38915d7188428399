"""Motion energy as the core of a model of neurons: a fixed bank of spatiotemporal Gabor filters.

The energy of a quadrature pair of filters is the square root of the summed squares of its two
outputs (Adelson & Bergen 1985, J Opt Soc Am A 2:284). Nishimoto & Gallant 2011 (J Neurosci
31:14551) use such energies as features of encoding models. The filters are not trained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ssl_vivit.errors import NeuralModelError
from ssl_vivit.neural.cores.past import Past, after_past
from ssl_vivit.settings import check_least

# Standard deviation of the spatial envelope in periods, for a bandwidth of one octave.
_WIDTH = 0.56
# Extent of the spatial envelope in standard deviations, and of the temporal envelope in latencies.
_REACH, _SPAN = 2.5, 5.0
# Energies are compressed nearly linearly below this value and logarithmically above it. A grating
# whose amplitude is one standard deviation of the pixels has energy 1.
_WEAK = 0.1
# Mean and standard deviation of compressed energies on moving textures. Standardising by constants
# gives readouts the scale they expect; a norm over channels would remove local contrast.
_MEAN, _STD = 0.55, 0.4
# Keeps the gradient of the square root finite for a uniform screen.
_LEAST_POWER = 1e-6


@dataclass(frozen=True)
class MotionEnergyConfig:
    """Settings of :class:`MotionEnergy`.

    Args:
        spatial_frequencies: in cycles per pixel of the video; must be between 0 and 0.5.
        temporal_frequencies: in Hz. For 0 Hz there is one filter for each orientation. For other
            frequencies there are two, which prefer opposite directions of motion.
        orientations: number of evenly spaced orientations.
        latency: time in seconds at which the temporal envelope peaks.
        memory: time constant in seconds of the running means of the energies.
        stride: distance in pixels of the video between neighbouring pixels of the map.
    """

    spatial_frequencies: tuple[float, ...] = (0.0625, 0.125, 0.25)
    temporal_frequencies: tuple[float, ...] = (0.0, 3.0, 6.0)
    orientations: int = 4
    latency: float = 0.06
    memory: float = 0.5
    stride: int = 4

    def __post_init__(self) -> None:
        group = "baseline.energy."
        check_least(self, group, orientations=1, stride=1)
        for name in ("latency", "memory"):
            if not getattr(self, name) > 0:
                raise NeuralModelError(
                    f"--{group}{name} is {getattr(self, name)}; it must be above 0"
                )
        if not self.spatial_frequencies or not all(0 < f < 0.5 for f in self.spatial_frequencies):
            raise NeuralModelError(
                f"--{group}spatial_frequencies is {[*self.spatial_frequencies]}; give one or more "
                "frequencies between 0 and 0.5 cycles per pixel"
            )
        if not self.temporal_frequencies or not all(f >= 0 for f in self.temporal_frequencies):
            raise NeuralModelError(
                f"--{group}temporal_frequencies is {[*self.temporal_frequencies]}; give one or "
                "more frequencies of at least 0 Hz"
            )


class MotionEnergy(nn.Module):
    """Core that computes motion energies of each frame, from this frame and earlier ones.

    A filter is a complex Gabor function of space times a complex kernel of time. Both have gain 1
    at the preferred frequency. Images whose amplitude falls as 1 / frequency then have equal
    energies at all spatial frequencies (Field 1987, J Opt Soc Am A 4:2379). The temporal envelope
    is a gamma function, t² · exp(−2 t / latency). For motion at ν Hz opposite to the preferred
    direction, the gain of a filter is (1 + (2π·ν·latency)²)^-3/2. With the default latency it is
    0.29 at 3 Hz and 0.07 at 6 Hz.

    Args:
        config: the filters. None means the defaults.
        frames_per_second: frame rate of the video.

    Raises:
        NeuralModelError: if a temporal frequency is not below half the frame rate.
    """

    temporal_stride = 1
    temporal: Tensor
    decay: Tensor

    def __init__(
        self, config: MotionEnergyConfig | None = None, *, frames_per_second: float
    ) -> None:
        super().__init__()
        self.config = config = config or MotionEnergyConfig()
        self.frames_per_second = frames_per_second
        fastest = max(config.temporal_frequencies)
        if not fastest < frames_per_second / 2:
            raise NeuralModelError(
                f"--baseline.energy.temporal_frequencies has {fastest:g} Hz, but the videos have "
                f"{frames_per_second:g} frames per second; give frequencies below "
                f"{frames_per_second / 2:g} Hz"
            )
        frequencies = config.temporal_frequencies
        self.moving = [number for number, f in enumerate(frequencies) if f]
        for number, frequency in enumerate(config.spatial_frequencies):
            pairs = spatial_pairs(frequency, config.orientations, config.stride)
            self.register_buffer(f"spatial_{number}", pairs[:, None].float())
        pairs = temporal_pairs(frequencies, config.latency, frames_per_second)
        self.register_buffer("temporal", pairs.float())
        self.register_buffer("decay", running_mean(config.memory, frames_per_second).float())
        tuned = config.orientations * (len(frequencies) + len(self.moving))
        self.channels = 2 * len(config.spatial_frequencies) * tuned

    def dense(
        self, video: Float[Tensor, "b c T H W"], past: Past | None = None
    ) -> Float[Tensor, "b d T h w"]:
        """Return the map of each frame: log-compressed energies, then their running means.

        Channels of the video are averaged first. The video is padded with zeros, the mean grey,
        before the first frame and around the edges. Height and width of the map are those of the
        video divided by the stride, rounded up.

        Args:
            video: standardised.
            past: state of a stream after the previous frames.
        """
        compressed = (torch.log1p(self.energies(video, past) / _WEAK) - _MEAN) / _STD
        lags = self.decay.shape[1] - 1
        means = causal(after_past(compressed, lags, (self, "energies"), past), self.decay)
        return torch.cat((compressed, means[:, :, 0]), dim=1)

    def step(self, frame: Float[Tensor, "b c 1 H W"], past: Past) -> Float[Tensor, "b d 1 h w"]:
        """Return the map of the next frame of a stream."""
        return self.dense(frame, past)

    forward = dense

    def energies(
        self, video: Float[Tensor, "b c T H W"], past: Past | None = None
    ) -> Float[Tensor, "b d T h w"]:
        """Return the energies of each frame, (b, channels / 2, T, h, w).

        Channels are ordered by spatial frequency, then by orientation. Within an orientation,
        motion along its angle comes first, with one channel for each temporal frequency. Motion in
        the opposite direction follows, with one channel for each temporal frequency above 0 Hz. For
        the arguments see :meth:`dense`.
        """
        grey = rearrange(video.mean(1), "b t h w -> (b t) 1 h w")
        count, stride = len(self.config.spatial_frequencies), self.config.stride
        pairs = [self.get_buffer(f"spatial_{number}") for number in range(count)]
        seen = torch.cat([centred(grey, each, stride) for each in pairs], dim=1)
        seen = rearrange(seen, "(b t) d h w -> b d t h w", b=len(video))
        seen = after_past(seen, self.temporal.shape[1] - 1, (self, "filtered"), past)
        parts = rearrange(
            causal(seen, self.temporal),
            "b (pair space) (time f) t h w -> space time b pair f t h w",
            space=2, time=2,
        )  # fmt: skip
        (even_cos, even_sin), (odd_cos, odd_sin) = parts
        forth = (even_cos - odd_sin).square() + (odd_cos + even_sin).square()
        back = (even_cos + odd_sin).square() + (odd_cos - even_sin).square()
        # Use slices, since indexing by a list would make the host wait for a copy to the device.
        moving = [back[:, :, number : number + 1] for number in self.moving]
        powers = torch.cat((forth, *moving), dim=2)
        return rearrange((powers + _LEAST_POWER).sqrt(), "b pair f t h w -> b (pair f) t h w")

    def to_config(self) -> dict[str, Any]:
        """Return kind and settings as a JSON-serialisable dictionary."""
        return {
            "kind": "energy",
            **asdict(self.config),
            "frames_per_second": self.frames_per_second,
        }


def spatial_pairs(frequency: float, orientations: int, stride: int) -> Float[Tensor, "filters y x"]:
    """Return an even and an odd Gabor function for each orientation, in float64.

    The filters do not respond to uniform grey. Orientation k of n prefers gratings that vary along
    the angle π·k/n, where 0 is to the right and π/2 downwards. The side of a filter is ``stride``
    plus an even number of pixels, so that the filter can be centred on a square of ``stride`` ×
    ``stride`` pixels.

    Args:
        frequency: spatial frequency in cycles per pixel.
        orientations: number of orientations.
        stride: stride of the map in pixels.
    """
    sigma = _WIDTH / frequency
    padding = math.ceil(_REACH * sigma - stride / 2)
    size = stride + 2 * max(padding, 0)
    x = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    y = x[:, None]
    envelope = torch.exp(-(x**2 + y**2) / (2 * sigma**2))
    envelope = 2 * envelope / envelope.sum()  # The gain for the preferred grating is 1.
    pairs = []
    for angle in torch.arange(orientations, dtype=torch.float64) * math.pi / orientations:
        phase = 2 * math.pi * frequency * (x * angle.cos() + y * angle.sin())
        even = envelope * phase.cos()
        pairs += [even - envelope * even.sum() / envelope.sum(), envelope * phase.sin()]
    return torch.stack(pairs)


def temporal_pairs(
    frequencies: Sequence[float], latency: float, frames_per_second: float
) -> Float[Tensor, "filters lag"]:
    """Return temporal kernels: cosines of all frequencies, then sines, under a gamma envelope.

    The kernels are float64, (2 · frequencies, lags). The last lag is 0, the current frame.

    Args:
        frequencies: temporal frequencies in Hz.
        latency: time to the envelope's peak in seconds.
        frames_per_second: frame rate of the video.
    """
    lags = torch.arange(math.ceil(_SPAN * latency * frames_per_second), dtype=torch.float64)
    # The envelope is sampled at the middle of each frame.
    time = (lags + 0.5) / frames_per_second / latency
    envelope = time**2 * torch.exp(-2 * time)
    envelope = envelope / envelope.sum()
    hertz = torch.tensor(frequencies, dtype=torch.float64)
    phase = 2 * math.pi * hertz[:, None] * lags / frames_per_second
    return torch.cat((envelope * phase.cos(), envelope * phase.sin())).flip(1)


def running_mean(memory: float, frames_per_second: float) -> Float[Tensor, "1 lag"]:
    """Return exponentially decaying weights of a running mean over past frames, in float64.

    The weights have the shape (1, lags). The last lag is 0, the current frame.

    Args:
        memory: time constant in seconds.
        frames_per_second: frame rate of the averaged signal.
    """
    frames = memory * frames_per_second
    lags = torch.arange(math.ceil(_SPAN * frames), dtype=torch.float64)
    weights = torch.exp(-lags / frames)
    return (weights / weights.sum()).flip(0)[None]


def centred(
    images: Float[Tensor, "n 1 H W"], filters: Float[Tensor, "filters 1 y x"], stride: int
) -> Float[Tensor, "n filters h w"]:
    """Cross-correlate images with filters, at one position for each square of the image.

    The squares measure ``stride`` × ``stride`` pixels and tile the image. Filters are centred on
    them. Images are padded with zeros at their edges.
    """
    height, width = images.shape[2:]
    padding = (filters.shape[-1] - stride) // 2
    right, below = padding + -width % stride, padding + -height % stride
    return F.conv2d(F.pad(images, (padding, right, padding, below)), filters, stride=stride)


def causal(
    signals: Float[Tensor, "b d lag_t h w"], kernels: Float[Tensor, "k lag"]
) -> Float[Tensor, "b d k t h w"]:
    """Convolve each signal over time with each kernel, whose last weight is for the current frame.

    The signals must begin ``lag`` − 1 frames before the first output, where ``lag`` is the length
    of a kernel in frames.
    """
    b, _, _, h, w = signals.shape
    rows = rearrange(signals, "b d t h w -> (b d) 1 t (h w)")
    filtered = F.conv2d(rows, rearrange(kernels, "k lag -> k 1 lag 1"))
    return rearrange(filtered, "(b d) k t (h w) -> b d k t h w", b=b, h=h, w=w)
