"""Values of direction, frequency, contrast and size at which tuning is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ssl_vivit.errors import NeuralModelError


@dataclass(frozen=True)
class Stimuli:
    """Values of each property of a grating, which must be in ascending order and above 0.

    Args:
        directions: number of directions, evenly spaced from 0 degrees. Must be at least 8, and a
            multiple of 4 so that opposite and orthogonal directions are included.
        spatial_frequencies: spatial frequencies in cycles per pixel.
        temporal_frequencies: temporal frequencies in cycles per second.
        contrasts: contrasts of the contrast curve, at most 1; empty for no curve. See
            :class:`~ssl_vivit.evaluation.tuning.gratings.Grating`.
        sizes: diameters of the patch in pixels; empty for no curve.
        contrast: contrast of gratings in all other curves; must be above 0 and at most 1.

    Raises:
        NeuralModelError: if a value is out of range or values are not in ascending order.
    """

    directions: int
    spatial_frequencies: tuple[float, ...]
    temporal_frequencies: tuple[float, ...]
    contrasts: tuple[float, ...]
    sizes: tuple[float, ...]
    contrast: float = 0.8

    def __post_init__(self) -> None:
        if self.directions < 8 or self.directions % 4:
            raise NeuralModelError(
                f"directions {self.directions} must be a multiple of 4 and at least 8"
            )
        for name in ("spatial_frequencies", "temporal_frequencies", "contrasts", "sizes"):
            values = getattr(self, name)
            optional = name in ("contrasts", "sizes")
            if not (values or optional) or any(not value > 0 for value in values):
                raise NeuralModelError(f"{name} {[*values]} must be numbers above 0")
            if list(values) != sorted(set(values)):
                raise NeuralModelError(f"{name} {[*values]} must be in ascending order")
        if not 0 < self.contrast <= 1 or any(each > 1 for each in self.contrasts):
            raise NeuralModelError(
                f"contrast {self.contrast:g} and contrasts {[*self.contrasts]} must be above 0 and "
                "at most 1"
            )

    @property
    def degrees(self) -> tuple[float, ...]:
        """The directions in degrees."""
        return tuple(360 * step / self.directions for step in range(self.directions))


def default_stimuli(
    frame_size: tuple[int, int],
    frames_per_second: float,
    *,
    directions: int = 12,
    spatial_frequencies: Sequence[float] | None = None,
    temporal_frequencies: Sequence[float] | None = None,
    contrasts: Sequence[float] | None = None,
    sizes: Sequence[float] | None = None,
    contrast: float = 0.8,
) -> Stimuli:
    """Return stimuli for a model's frame size and frame rate.

    Values that are None are chosen in steps of half an octave: spatial frequencies from 2 to 16
    cycles per frame width, and at most 0.5 cycles per pixel; temporal frequencies from 1 to 8 Hz,
    and at most a third of the frame rate; sizes from 1/8 to 1.4 frame heights. Contrasts that are
    None are seven values from 0.05 to 1.

    Args:
        frame_size: (H, W) in pixels.
        frames_per_second: frame rate of the model.
        directions: number of directions. For this and the following arguments see
            :class:`Stimuli`.
    """
    height, width = frame_size
    if spatial_frequencies is None:
        cycles = [2 ** (1 + step / 2) / width for step in range(7)]
        spatial_frequencies = [each for each in cycles if each <= 0.5]
    if temporal_frequencies is None:
        octaves = [2 ** (step / 2) for step in range(7)]
        temporal_frequencies = [each for each in octaves if each <= frames_per_second / 3]
    if contrasts is None:
        contrasts = (0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0)
    if sizes is None:
        sizes = [height * 2 ** (step / 2 - 3) for step in range(8)]
    return Stimuli(
        directions,
        tuple(spatial_frequencies),
        tuple(temporal_frequencies),
        tuple(contrasts),
        tuple(sizes),
        contrast,
    )
