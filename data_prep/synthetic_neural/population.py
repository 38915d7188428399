"""Compute rates of model neurons with known receptive fields from movies and behaviour.

- Space: an even and an odd Gabor function with one envelope, both without response to grey.
- Time: a fast and a slow causal kernel about a quarter of a cycle apart.
- Direction: sums of products of spatial and temporal filters that prefer one direction of motion
  (Adelson & Bergen 1985, figures 9 and 10). Complex units add the squares of a quadrature pair;
  simple units square one rectified sum.
- Divisive normalisation by the unit's drive and by the contrast around it (Heeger 1992).
- Exponent, behaviour and baseline: the normalised response is raised to a power and multiplied by a
  gain of behaviour (Niell & Stryker 2010). A constant baseline is added.

Before a trial's first frame the screen is grey.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from ssl_vivit.data.randomness import named_generator

GREY = 127.5
KERNEL_SECONDS = 0.5
_SURROUND_SECONDS = 0.1
# Orders of the two temporal kernels. At their best frequency these kernels are a quarter of a cycle
# apart; kernels of orders 3 and 5, as in the paper, are an eighth apart.
_ORDERS = (3, 7)
# Standard deviation in pixels of the blur that defines local contrast; width of the surround in
# widths of the receptive field.
_CONTRAST_BLUR = 3.0
_SURROUND_WIDTH = 3.0


@dataclass(frozen=True)
class Population:
    """Parameters of the neurons, one row for each neuron.

    Attributes:
        size: (H, W) of the movies in pixels.
        frames_per_second: frame rate of the movies.
        center: (N, 2), x and y in [−1, 1], where −1 and 1 are the outer edges of the frame.
        sigma: (N, 2), standard deviations of the envelope in pixels, along and across the
            preferred motion.
        direction: (N,), preferred direction of motion in radians: 0 is to the right, π/2 downwards.
            The preferred orientation of bars and gratings is perpendicular to it.
        spatial_frequency: (N,), cycles per pixel.
        phase: (N,), phase of the even Gabor function at the centre, in radians.
        speed: (N,), rate of the temporal kernels in 1/s.
        transience: (N,), 1 responds only to change, 0 also to constant stimuli.
        selectivity: (N,), 1 responds to one direction of motion, 0 equally to both.
        complex: (N,), 1 for complex units, 0 for simple ones.
        surround: (N,), weight of the surrounding contrast.
        exponent: (N,), exponent of the output.
        baseline: (N,), fraction of the mean rate that does not depend on the stimulus.
        behaviour: (N, 2), log gain for one standard deviation of pupil size and running speed.
        mean_rate: (N,), expected responses per frame on the movies used for calibration.
        drive_scale, surround_scale, output_scale: (N,), scales set by :func:`calibrated`.
    """

    size: tuple[int, int]
    frames_per_second: float
    center: Float[Tensor, "n 2"]
    sigma: Float[Tensor, "n 2"]
    direction: Float[Tensor, " n"]
    spatial_frequency: Float[Tensor, " n"]
    phase: Float[Tensor, " n"]
    speed: Float[Tensor, " n"]
    transience: Float[Tensor, " n"]
    selectivity: Float[Tensor, " n"]
    complex: Float[Tensor, " n"]
    surround: Float[Tensor, " n"]
    exponent: Float[Tensor, " n"]
    baseline: Float[Tensor, " n"]
    behaviour: Float[Tensor, "n 2"]
    mean_rate: Float[Tensor, " n"]
    drive_scale: Float[Tensor, " n"]
    surround_scale: Float[Tensor, " n"]
    output_scale: Float[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.center)

    def tensors(self) -> dict[str, Tensor]:
        """Return the parameters of each neuron by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def draw_population(
    neurons: int,
    size: tuple[int, int],
    frames_per_second: float,
    *,
    mean_rate: tuple[float, float] = (2.0, 10.0),
    seed: int = 0,
) -> Population:
    """Draw neurons, half of them complex; their scales must then be set by :func:`calibrated`.

    Widths of receptive fields are for frames of 36×64 pixels and scale with the frame size.

    Args:
        neurons: number of neurons.
        size: (H, W) of the movies in pixels.
        frames_per_second: frame rate of the movies.
        mean_rate: lowest and highest mean rate in spikes per second; rates are log-uniform.
        seed: random seed.
    """
    draw = named_generator(seed, "population", neurons)
    unit = min(size[0] / 36, size[1] / 64)
    sigma = np.exp(draw.uniform(math.log(2.2), math.log(4.0), neurons))
    # About one cycle within the envelope gives bandwidths of 1 to 2 octaves, as in cortical cells.
    frequency = draw.uniform(0.32, 0.5, neurons) / sigma
    low, high = (math.log(rate / frames_per_second) for rate in mean_rate)
    ones = np.ones(neurons)
    drawn = {
        "center": draw.uniform(-0.85, 0.85, (neurons, 2)),
        "sigma": unit * np.stack([sigma, sigma * draw.uniform(1.0, 1.6, neurons)], 1),
        "direction": draw.uniform(0, 2 * math.pi, neurons),
        "spatial_frequency": frequency / unit,
        "phase": draw.uniform(0, 2 * math.pi, neurons),
        "speed": draw.uniform(45.0, 80.0, neurons),
        "transience": draw.uniform(0.7, 1.0, neurons),
        "selectivity": draw.beta(1.2, 0.8, neurons),
        "complex": (draw.permutation(neurons) < round(neurons / 2)).astype(float),
        "surround": draw.uniform(0.2, 1.0, neurons),
        "exponent": draw.uniform(1.0, 1.4, neurons),
        "baseline": draw.uniform(0.05, 0.25, neurons),
        "behaviour": draw.normal([0.15, 0.25], 0.12, (neurons, 2)),
        "mean_rate": np.exp(draw.uniform(low, high, neurons)),
        "drive_scale": ones,
        "surround_scale": ones,
        "output_scale": ones,
    }
    tensors = {name: torch.tensor(value, dtype=torch.float32) for name, value in drawn.items()}
    return Population(
        size=(size[0], size[1]), frames_per_second=float(frames_per_second), **tensors
    )


def calibrated(population: Population, movies: Sequence[UInt8[np.ndarray, "t h w"]]) -> Population:
    """Return the population with scales that give each neuron its ``mean_rate`` on these movies.

    Drive and surround are scaled to a root mean square of 1, so that normalisation acts equally on
    all neurons and does not depend on the movies' contrast. Behaviour is at its mean.
    """
    ones = torch.ones(len(population))
    plain = replace(population, drive_scale=ones, surround_scale=ones, output_scale=ones)
    filters = Filters(plain)
    parts = [filters.parts(filters.contrast(movie)) for movie in movies]
    drive = torch.cat([part[0] for part in parts]).square().mean(0).sqrt()
    surround = torch.cat([part[1] for part in parts]).square().mean(0).sqrt()
    # A neuron without drive on these movies keeps its baseline; its scale must not divide by 0.
    scaled = replace(
        plain, drive_scale=drive.clamp(min=1e-6), surround_scale=surround.clamp(min=1e-6)
    )
    outputs = [normalised(scaled, *part) for part in parts]
    return replace(scaled, output_scale=torch.cat(outputs).mean(0).clamp(min=1e-6))


class Filters:
    """Filters of a population, which compute rates from movies.

    Attributes:
        even, odd: (N, H, W), the Gabor pair.
        around: (N, H, W), weights of the surround, with sum 1.
        fast, slow: (N, L), temporal kernels; entry j is the weight of the frame j frames earlier.
    """

    def __init__(self, population: Population) -> None:
        self.population = population
        self.even, self.odd, self.around = spatial_filters(population)
        self.fast, self.slow = temporal_kernels(population)
        self._flat = rearrange([self.even, self.odd], "pair n h w -> (h w) (pair n)").contiguous()
        self._around = rearrange(self.around, "n h w -> (h w) n").contiguous()
        lags = torch.arange(self.fast.shape[1]) / population.frames_per_second
        decay = torch.exp(-lags / _SURROUND_SECONDS)
        self._decay = (decay / decay.sum()).expand(len(population), -1)

    def rates(
        self,
        movie: UInt8[np.ndarray, "t h w"],
        behaviour: Float[np.ndarray, "t 2"] | None = None,
        shift: Float[np.ndarray, "t 2"] | None = None,
    ) -> Float[Tensor, "t n"]:
        """Return expected responses per frame, (T, N), from earlier and current frames only.

        Args:
            movie: (T, H, W), grey levels, 0 to 255.
            behaviour: (T, 2), pupil size and running speed in standard deviations from their means;
                None is the means.
            shift: (T, 2), shift (x, y) of all receptive fields by gaze, in pixels; None if gaze
                does not move.
        """
        population = self.population
        drive, surround = self.parts(self.contrast(movie, shift))
        output = normalised(population, drive, surround) / population.output_scale
        if behaviour is not None:
            z = torch.as_tensor(behaviour, dtype=torch.float32)
            output = output * torch.exp(z @ population.behaviour.T)
        baseline = population.baseline
        return population.mean_rate * (baseline + (1 - baseline) * output)

    def contrast(
        self, movie: UInt8[np.ndarray, "t h w"], shift: Float[np.ndarray, "t 2"] | None = None
    ) -> Float[Tensor, "t h w"]:
        """Return the contrast on the retina, (T, H, W), from about −1 to 1; 0 is grey.

        Args:
            movie: (T, H, W), grey levels, 0 to 255.
            shift: (T, 2), shift (x, y) of the gaze in pixels, which moves the picture on the retina
                in the opposite direction; None is no shift.
        """
        contrast = (torch.as_tensor(movie).float() - GREY) / GREY
        if shift is None:
            return contrast
        height, width = contrast.shape[1:]
        pixels = torch.as_tensor(shift, dtype=torch.float32)
        moved = 2 * pixels / torch.tensor([width, height])
        x, y = (pixel_centres(length) for length in (width, height))
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1) + moved[:, None, None]
        return functional.grid_sample(
            contrast[:, None], grid, padding_mode="border", align_corners=False
        )[:, 0]

    def parts(
        self, contrast: Float[Tensor, "t h w"]
    ) -> tuple[Float[Tensor, "t n"], Float[Tensor, "t n"]]:
        """Return the receptive fields' drive and the surrounds' contrast, before scaling.

        Args:
            contrast: (T, H, W), see :meth:`contrast`.

        Returns:
            Drive and surrounding contrast, each (T, N).
        """
        population = self.population
        seen = rearrange(contrast, "t h w -> t (h w)") @ self._flat
        even, odd = rearrange(seen, "t (pair n) -> pair t n", pair=2)
        even_fast, even_slow = causal(even, self.fast), causal(even, self.slow)
        odd_fast, odd_slow = causal(odd, self.fast), causal(odd, self.slow)
        other = 1 - population.selectivity
        energy = (even_slow + odd_fast) ** 2 + (odd_slow - even_fast) ** 2
        energy = energy + other * ((even_slow - odd_fast) ** 2 + (odd_slow + even_fast) ** 2)
        linear = (even_slow + odd_fast) + other * (even_slow - odd_fast)
        drive = torch.where(population.complex > 0, energy.sqrt(), linear.clamp(min=0))
        local = contrast - _blurred(contrast, _CONTRAST_BLUR)
        power = rearrange(local**2, "t h w -> t (h w)") @ self._around
        return drive, causal(power, self._decay).clamp(min=0).sqrt()


def normalised(
    population: Population, drive: Float[Tensor, "t n"], surround: Float[Tensor, "t n"]
) -> Float[Tensor, "t n"]:
    """Return the normalised drive (Heeger 1992, equation 8), raised to each neuron's exponent.

    Args:
        population: parameters of the neurons.
        drive: (T, N), drive of the receptive fields.
        surround: (T, N), contrast of the surrounds.

    Returns:
        (T, N), in [0, 1).
    """
    power = (drive / population.drive_scale) ** 2
    around = (population.surround * surround / population.surround_scale) ** 2
    return (power / (1 + power + around)) ** population.exponent


def spatial_filters(
    population: Population,
) -> tuple[Float[Tensor, "n h w"], Float[Tensor, "n h w"], Float[Tensor, "n h w"]]:
    """Return even and odd Gabor functions and surround weights, each (N, H, W).

    Gabor functions have unit norm and zero mean; surround weights have sum 1.
    """
    height, width = population.size
    column, row = torch.arange(width) + 0.5, torch.arange(height) + 0.5
    place = (population.center + 1) / 2 * torch.tensor([width, height])
    x = (column - place[:, :1])[:, None, :]
    y = (row - place[:, 1:])[:, :, None]
    cosine, sine = (f(population.direction)[:, None, None] for f in (torch.cos, torch.sin))
    along, across = x * cosine + y * sine, y * cosine - x * sine
    wide, high = (s[:, None, None] for s in population.sigma.unbind(1))
    envelope = torch.exp(-0.5 * ((along / wide) ** 2 + (across / high) ** 2))
    angle = 2 * math.pi * population.spatial_frequency[:, None, None] * along
    angle = angle + population.phase[:, None, None]
    pair = []
    for wave in (angle.cos(), angle.sin()):
        grey = (envelope * wave).sum((1, 2), keepdim=True) / envelope.sum((1, 2), keepdim=True)
        gabor = envelope * (wave - grey)
        pair.append(gabor / gabor.square().sum((1, 2), keepdim=True).sqrt())
    spread = _SURROUND_WIDTH * population.sigma.mean(1)[:, None, None]
    around = torch.exp(-0.5 * (x**2 + y**2) / spread**2) * (1 - envelope)
    return pair[0], pair[1], around / around.sum((1, 2), keepdim=True)


def temporal_kernels(population: Population) -> tuple[Float[Tensor, "n l"], Float[Tensor, "n l"]]:
    """Return fast and slow kernels, (N, L), of unit norm (Adelson & Bergen 1985, equation 1)."""
    rate = population.frames_per_second
    # Lags are measured from the middle of each frame.
    lag = (torch.arange(math.ceil(KERNEL_SECONDS * rate)) + 0.5) / rate
    time = population.speed[:, None] * lag
    kernels = []
    for order in _ORDERS:
        rebound = population.transience[:, None] * time**2 / math.factorial(order + 2)
        kernel = time**order * torch.exp(-time) * (1 / math.factorial(order) - rebound)
        kernels.append(kernel / kernel.square().sum(1, keepdim=True).sqrt())
    return kernels[0], kernels[1]


def causal(signal: Float[Tensor, "t n"], kernels: Float[Tensor, "n l"]) -> Float[Tensor, "t n"]:
    """Convolve each column of a signal (T, N) with its causal kernel, a row of ``kernels`` (N, L).

    The signal is zero before the first frame.
    """
    taps = kernels.shape[1]
    padded = functional.pad(rearrange(signal, "t n -> 1 n t"), (taps - 1, 0))
    done = functional.conv1d(padded, kernels.flip(1)[:, None], groups=len(kernels))
    return rearrange(done, "1 n t -> t n")


def pixel_centres(length: int) -> Float[Tensor, " length"]:
    """Return the coordinates of pixel centres in [−1, 1], where −1 and 1 are the outer edges."""
    return (2 * torch.arange(length) + 1) / length - 1


def _blurred(movie: Float[Tensor, "t h w"], sigma: float) -> Float[Tensor, "t h w"]:
    radius = math.ceil(2 * sigma)
    offsets = torch.arange(-radius, radius + 1)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    padded = functional.pad(movie[:, None], (radius,) * 4, mode="replicate")
    rows = functional.conv2d(padded, kernel[None, None, :, None])
    return functional.conv2d(rows, kernel[None, None, None])[:, 0]
