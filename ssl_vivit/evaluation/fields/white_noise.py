"""White-noise reverse correlation of a model's rates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int8
from torch import Tensor
from tqdm import tqdm

from ssl_vivit.data.randomness import named_generator
from ssl_vivit.errors import NeuralModelError
from ssl_vivit.evaluation.fields.ellipses import Ellipses, ellipses_of

Predict = Callable[[Float[Tensor, "b T H W"]], Float[Tensor, "b T N"]]
"""Pixels from 0 to 255 → rates of all neurons in every frame."""

# Smallest significant correlation, in standard deviations of chance. Of 500 units without a field,
# each with several thousand correlations, one unit exceeds it.
_SIGNIFICANT = 5.0


@dataclass(frozen=True)
class WhiteNoise:
    """White noise of squares that are black, grey or white with equal probability.

    With three levels the squared contrast also varies, which drives complex cells.

    Args:
        frame_size: (H, W) in pixels.
        check: side of a square in pixels; at most half of the frame's shorter side.
        hold: number of frames for which a pattern is shown; at least 1.
        contrast: amplitude as a fraction of the largest that fits around the grey level; must be
            above 0 and at most 1.
        grey: grey level of the background.
        seed: seed of the patterns.

    Raises:
        NeuralModelError: if ``check``, ``hold`` or ``contrast`` is out of range.
    """

    frame_size: tuple[int, int]
    check: int = 4
    hold: int = 1
    contrast: float = 1.0
    grey: float = 127.5
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.check <= min(self.frame_size) // 2:
            raise NeuralModelError(
                f"--check {self.check} must be from 1 to {min(self.frame_size) // 2} pixels, half of "
                f"the shorter side of {self.frame_size[0]}×{self.frame_size[1]}"
            )
        if self.hold < 1 or not 0 < self.contrast <= 1:
            raise NeuralModelError(
                f"--hold {self.hold} must be at least 1 frame, and --contrast {self.contrast:g} "
                "must be above 0 and at most 1"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of squares; the last row and column may extend beyond the frame."""
        height, width = (-(-side // self.check) for side in self.frame_size)
        return height, width

    def draws(self, clip: int, frames: int) -> Int8[np.ndarray, "T rows columns"]:
        """Draw −1 (dark), 0 (grey) or 1 (bright) for each square in each frame of a clip.

        Args:
            clip: number of the clip; the same number gives the same patterns.
            frames: number of frames.
        """
        draw = named_generator(self.seed, "white noise", clip)
        fresh = draw.integers(-1, 2, (-(-frames // self.hold), *self.grid), dtype=np.int8)
        return np.repeat(fresh, self.hold, 0)[:frames]

    def pixels(self, draws: Int8[np.ndarray, "T rows columns"]) -> Float[Tensor, "T H W"]:
        """Convert patterns of −1, 0 and 1 to pixels from 0 to 255."""
        amplitude = self.contrast * min(self.grey, 255 - self.grey)
        fine = repeat(torch.from_numpy(draws), "t h w -> t (h i) (w j)", i=self.check, j=self.check)
        height, width = self.frame_size
        return self.grey + amplitude * fine[:, :height, :width].float()


@dataclass(frozen=True)
class NoiseFields:
    """Correlations of the rates of n units with white noise, for each square of the noise.

    Correlations are given in standard deviations of the correlations that arise by chance.
    Rates of a causal model do not depend on later frames. The correlations with later frames
    therefore measure chance.

    Attributes:
        linear: (n, lags, rows, columns), correlations of the rate with the contrast at each lag;
            lag 0 is the current frame. Proportional to the filter of a linear unit.
        squared: (n, lags, rows, columns), correlations of the rate with the squared contrast.
            Proportional to the envelope of a unit that responds to contrast of either sign.
        threshold: (n, 2), smallest significant correlation in ``linear`` and ``squared``: the
            largest correlation with later frames, but at least 5.
    """

    linear: Float[np.ndarray, "n lags rows columns"]
    squared: Float[np.ndarray, "n lags rows columns"]
    threshold: Float[np.ndarray, "n 2"]

    @property
    def above(self) -> Float[np.ndarray, "n 2"]:
        """Largest correlation of each unit divided by ``threshold``, (n, 2).

        The first column is that of the absolute values of ``linear``, the second that of
        ``squared``. A correlation is significant if its ratio is above 1.
        """
        peaks = [np.abs(self.linear).max((1, 2, 3)), self.squared.max((1, 2, 3))]
        return np.stack(peaks, 1) / self.threshold

    @property
    def significant(self) -> Bool[np.ndarray, " n"]:
        """Whether each unit has a significant correlation."""
        return np.asarray((self.above > 1).any(1))

    @property
    def is_linear(self) -> Bool[np.ndarray, " n"]:
        """Mask of units that correlate at least as strongly with contrast as with squared contrast.

        This compares the two columns of :attr:`above`.
        """
        return np.asarray(self.above[:, 0] >= self.above[:, 1])

    @property
    def power(self) -> Float[np.ndarray, "n rows columns"]:
        """Power of the receptive field in each square, minus the power expected by chance.

        The power is the square of ``linear`` for units with :attr:`is_linear`, and ``squared`` for
        other units. Both are proportional to the square of the unit's filter. The power is summed
        over lags with a significant correlation. If no lag has a significant correlation, only the
        lag with the largest correlation is used.
        """
        linear = self.is_linear[:, None, None, None]
        maps = np.where(linear, np.square(self.linear) - 1, self.squared)
        limits = np.where(self.is_linear, self.threshold[:, 0] ** 2 - 1, self.threshold[:, 1])
        peaks = maps.max((2, 3))
        counted = peaks >= np.minimum(limits, peaks.max(1))[:, None]
        return (maps * counted[..., None, None]).sum(1)

    @property
    def kernels(self) -> Float[np.ndarray, "n lags"]:
        """Time course of each unit where ``power`` peaks; NaN without significant correlations."""
        maps = np.where(self.is_linear[:, None, None, None], self.linear, self.squared)
        return np.where(self.significant[:, None], at_peak(maps, self.power), np.nan)

    def ellipses(self, noise: WhiteNoise) -> Ellipses:
        """Return the units' ellipses; NaN for a unit without significant correlations.

        Args:
            noise: the white noise with which the rates were correlated.
        """
        height, width = noise.frame_size
        # Upsampled to pixels of the frame, since a field may be narrower than a square.
        fine = self.power.repeat(noise.check, 1).repeat(noise.check, 2)[:, :height, :width]
        return ellipses_of(fine).masked(self.significant)


def at_peak(
    maps: Float[np.ndarray, "n lags h w"], power: Float[np.ndarray, "n h w"]
) -> Float[np.ndarray, "n lags"]:
    """Return the time course of each unit at the position of its largest power, (n, lags).

    Args:
        maps: maps of the n units at each lag, (n, lags, h, w).
        power: power of the units at each position, (n, h, w).
    """
    place = power.reshape(len(power), -1).argmax(1)
    return rearrange(maps, "n lags h w -> n (h w) lags")[np.arange(len(maps)), place]


@torch.no_grad()
def reverse_correlation(
    predict: Predict,
    noise: WhiteNoise,
    units: list[int],
    *,
    lags: int = 15,
    frames: int = 18000,
    clip: int = 120,
    batch_size: int = 8,
    progress: bool = False,
) -> NoiseFields:
    """Correlate rates with preceding white noise.

    This is the spike-triggered average (Chichilnisky 2001, Network 12:199) with rates in place of
    spikes, and thus without spiking noise.

    Args:
        predict: function from pixels (b, T, H, W) from 0 to 255 to rates (b, T, neurons).
        noise: the white noise.
        units: indices of the units among the neurons that ``predict`` returns.
        lags: number of lags; lag 0 is the current frame.
        frames: number of frames, rounded up to whole clips. Rates in the first and the last
            ``lags`` frames of a clip are not used.
        clip: number of frames of a clip; must be above twice ``lags``.
        batch_size: number of clips in a batch.
        progress: whether to show a progress bar.

    Raises:
        ValueError: if ``clip`` is not above twice ``lags``, or ``noise.hold`` not below ``lags``.
    """
    if clip <= 2 * lags or noise.hold >= lags:
        raise ValueError(
            f"clip {clip} must be above twice lags {lags}, and noise.hold {noise.hold} must be "
            "below lags"
        )
    count = -(-frames // clip)
    own = torch.as_tensor(units)
    sums = _Sums(len(own), lags, noise)
    with tqdm(total=count, desc="white noise", unit="clip", disable=not progress) as bar:
        for start in range(0, count, batch_size):
            numbers = range(start, min(start + batch_size, count))
            draws = [noise.draws(number, clip) for number in numbers]
            rates = predict(torch.stack([noise.pixels(each) for each in draws]))[..., own]
            for each, shown in zip(rates.double().cpu(), draws, strict=True):
                sums.add(each, torch.from_numpy(shown).double())
            bar.update(len(draws))
    return sums.fields()


class _Sums:
    """Sums of products of rates with preceding noise and, as a control, with later noise."""

    def __init__(self, units: int, lags: int, noise: WhiteNoise) -> None:
        self.lags, self.noise, self.frames = lags, noise, 0
        # First axis: contrast, squared contrast. Lag axis: −lags to lags − 1.
        places = noise.grid[0] * noise.grid[1]
        self.products = torch.zeros(2, units, 2 * lags, places, dtype=torch.float64)
        self.shown = torch.zeros(2, 2 * lags, places, dtype=torch.float64)
        self.rates = torch.zeros(units, dtype=torch.float64)

    def add(self, rates: Float[Tensor, "T n"], draws: Float[Tensor, "T rows columns"]) -> None:
        """Add the products of one clip."""
        first, last = self.lags, len(rates) - self.lags
        own = rates[first:last]
        self.frames += len(own)
        self.rates += own.sum(0)
        flat = rearrange(draws, "t h w -> t (h w)")
        for kind, signal in enumerate((flat, flat.square())):
            for place in range(2 * self.lags):
                back = place - self.lags
                seen = signal[first - back : last - back]
                self.products[kind, :, place] += own.T @ seen
                self.shown[kind, place] += seen.sum(0)

    def fields(self) -> NoiseFields:
        """Return the correlations of the rates with the noise, computed from the sums."""
        mean = self.rates[:, None, None] / self.frames
        covariance = (self.products - mean * self.shown[:, None]) / self.frames
        # While a pattern is held, the next frames equal the current one and are no control.
        later = covariance[:, :, : self.lags - self.noise.hold + 1]
        chance = later.square().mean((2, 3)).sqrt().clamp(min=1e-12)
        maps = rearrange(
            covariance[:, :, self.lags :] / chance[..., None, None],
            "k n l (h w) -> k n l h w",
            h=self.noise.grid[0],
        )
        threshold = (later.abs().amax((2, 3)) / chance).clamp(min=_SIGNIFICANT).T
        return NoiseFields(maps[0].numpy(), maps[1].numpy(), threshold.numpy())
