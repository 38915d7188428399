"""GaussianReadout: a feature map → the linear drive of every neuron, read at its own place."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor, nn

from ssl_vivit.errors import NeuralModelError
from ssl_vivit.neural.readout.cortical_map import CorticalMap
from ssl_vivit.neural.readout.pixel_entries import of_masks, of_points
from ssl_vivit.neural.readout.pixel_products import read_pixels
from ssl_vivit.neural.readout.positions import (
    corners,
    drawn,
    gaussian_mask,
    moving_corners,
    projected,
)
from ssl_vivit.neural.readout.pupil_shift import PupilShift
from ssl_vivit.settings import check_type

Sampling = Literal["point", "mask"]
GaussianKind = Literal["full", "uncorrelated", "isotropic"]
CortexUse = Literal["off", "add", "replace"]


@dataclass(frozen=True)
class ReadoutConfig:
    """Settings of :class:`GaussianReadout`.

    Args:
        sampling: ``point`` reads one place, drawn from the neuron's Gaussian for each clip in
            training, at its mean in evaluation; ``mask`` averages the map under the Gaussian.
        gaussian: ``full`` learns width and orientation, ``uncorrelated`` a width for x and one for
            y, ``isotropic`` one for both.
        bias: learn a constant for each neuron.
        align_corners: positions of −1 and 1 are the centres of the outermost pixels, as in old
            models, instead of the map's edges.
        mean_range: positions start uniformly within ± this.
        spread: standard deviation of the Gaussians at the start; the map is 2 wide and 2 high.
        cortex: use cortical coordinates where a session has them: ``off``, ``add`` what is mapped
            from them to each neuron's own position, or ``replace`` that.
        cortex_hidden: widths of the hidden layers of the map from cortical coordinates.
        shifter: shift all positions by the pupil's centre where a session has it.
    """

    sampling: Sampling = "point"
    gaussian: GaussianKind = "full"
    bias: bool = True
    align_corners: bool = False
    mean_range: float = 0.1
    spread: float = 0.3
    cortex: CortexUse = "off"
    cortex_hidden: tuple[int, ...] = ()
    shifter: bool = False

    def __post_init__(self) -> None:
        check_type("readout.sampling", self.sampling, Sampling)
        check_type("readout.gaussian", self.gaussian, GaussianKind)
        check_type("readout.cortex", self.cortex, CortexUse)
        if not 0 <= self.mean_range <= 1:
            raise NeuralModelError(f"readout.mean_range {self.mean_range} must be between 0 and 1")
        if not self.spread > 0:
            raise NeuralModelError(f"readout.spread {self.spread} must be above 0")
        if any(width < 1 for width in self.cortex_hidden):
            raise NeuralModelError(
                f"readout.cortex_hidden {list(self.cortex_hidden)} must be widths above 0"
            )

    def build(
        self,
        neurons: int,
        channels: int,
        *,
        coordinates: Float[Tensor, "n k"] | None = None,
        pupil: bool = False,
    ) -> GaussianReadout:
        """The readout of one session; what the session lacks is left out.

        Args:
            neurons: of the session.
            channels: of the map.
            coordinates: where in the cortex they are; None where unknown.
            pupil: whether the session has the pupil's centre.
        """
        settings = asdict(self) | {"shifter": self.shifter and pupil}
        if coordinates is None:
            settings["cortex"] = "off"
        return GaussianReadout(neurons, channels, coordinates=coordinates, **settings)


class GaussianReadout(nn.Module):
    """Each neuron reads the map at one place, with its own features.

    With ``sampling="point"`` it is the readout of Lurz et al. 2021 (Sec. 3.2; neuralpredictors'
    FullGaussian2d): bilinear interpolation at a position that is drawn from the neuron's Gaussian
    in training, one for each clip of the batch and constant over its time, and at the mean in
    evaluation. Only the four pixels around a position are multiplied, so 8,000 neurons cost no more
    than a few large matrix products. With ``sampling="mask"`` the map is averaged under a
    normalised Gaussian; it costs a product with every pixel that the mask reaches.

    For one frame (b, d, h, w) and positions (b, n, 2), points are read as by

        grid = rearrange(positions, "b n axis -> b n 1 axis")
        seen = F.grid_sample(frame, grid, align_corners=False)  # (b, d, n, 1)
        drive = einsum(seen, features, "b d n 1, n d -> b n") + bias

    Args:
        neurons: how many.
        channels: of the map.
        coordinates: (neurons, k), where in the cortex they are.
        settings: fields of :class:`ReadoutConfig`; ``cortex`` is ``add`` by default where
            coordinates are given.

    Attributes:
        mean: (neurons, 2) as (x, y) in [−1, 1]; None with ``cortex="replace"``. See :meth:`centres`.
        spread: (neurons, 2, 2), a square root of the covariance: spread · spreadᵀ.
        features: (neurons, channels).
        bias: (neurons,), or None.
        spread_scale: multiplies ``spread``; lower it in training to anneal the widths. Kept in
            checkpoints, as masks need it in evaluation.

    Raises:
        NeuralModelError: for settings that do not fit.
    """

    _spread_scale: Tensor

    def __init__(
        self,
        neurons: int,
        channels: int,
        *,
        coordinates: Float[Tensor, "n k"] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        if coordinates is not None:
            settings.setdefault("cortex", "add")
        self.config = config = ReadoutConfig(**settings)
        if neurons < 1 or channels < 1:
            raise NeuralModelError(
                f"a readout of {neurons} neurons from {channels} channels reads nothing; both "
                "must be at least 1"
            )
        self.neurons, self.channels = neurons, channels
        self.cortical_map: CorticalMap | None = None
        if config.cortex != "off":
            if coordinates is None or coordinates.shape[0] != neurons or coordinates.ndim != 2:
                shape = None if coordinates is None else tuple(coordinates.shape)
                raise NeuralModelError(
                    f"readout.cortex {config.cortex} needs coordinates of shape ({neurons}, k), not {shape}"
                )
            self.cortical_map = CorticalMap(
                coordinates, config.cortex_hidden, zero=config.cortex == "add"
            )
        self.shifter = PupilShift() if config.shifter else None
        self.mean: nn.Parameter | None = None
        if config.cortex != "replace":
            reach = config.mean_range
            self.mean = nn.Parameter(torch.empty(neurons, 2).uniform_(-reach, reach))
        self.spread = nn.Parameter(
            repeat(torch.eye(2) * config.spread, "i j -> n i j", n=neurons).clone()
        )
        # As small as neuralpredictors' constant 1/d, which would read nothing of normalised tokens,
        # whose channels add up to 0.
        self.features = nn.Parameter(torch.randn(neurons, channels) / channels)
        self.bias = nn.Parameter(torch.zeros(neurons)) if config.bias else None
        self.register_buffer("_spread_scale", torch.ones(()))

    @property
    def spread_scale(self) -> Tensor:
        """Factor of ``spread``, a tensor of one number."""
        return self._spread_scale

    @spread_scale.setter
    def spread_scale(self, value: float | Tensor) -> None:
        self._spread_scale.fill_(value)

    def forward(
        self,
        map: Float[Tensor, "b d t h w"] | Float[Tensor, "b d h w"],
        pupil_centre: Float[Tensor, "b t 2"] | Float[Tensor, "b 2"] | None = None,
        noise: Float[Tensor, "b n 2"] | None = None,
    ) -> Float[Tensor, "b t n"] | Float[Tensor, "b n"]:
        """The drive of each neuron, before any nonlinearity.

        Args:
            map: the core's features, of clips or of single frames.
            pupil_centre: standardised; moves positions where there is a shifter. None, or NaN in a
                frame, leaves them.
            noise: standard normal numbers that positions are drawn by, where :attr:`draws_positions`.
                None draws them from torch's generator.

        Raises:
            NeuralModelError: for a map of other channels, or a pupil or noise of other shape.
        """
        if pupil_centre is not None and pupil_centre.shape[:-1] != self._times(map):
            raise NeuralModelError(
                f"pupil_centre is {tuple(pupil_centre.shape)}; a map {tuple(map.shape)} needs "
                f"{(*self._times(map), 2)}"
            )
        return self.read(map, self.positions(len(map), noise), self.shifts(pupil_centre))

    @property
    def draws_positions(self) -> bool:
        """True if a forward pass now draws positions: in training with ``sampling="point"``."""
        return self.training and self.config.sampling == "point"

    def centres(self) -> Float[Tensor, "n 2"]:
        """Centres of the neurons' Gaussians, (x, y) in [−1, 1], without any shift."""
        if self.mean is not None and self.training:
            # Gradient steps beyond the edge would have to be walked back.
            with torch.no_grad():
                self.mean.clamp_(-1, 1)
        # Autocast would round positions to a hundredth of the map.
        with torch.autocast(self.features.device.type, enabled=False):
            parts = [] if self.mean is None else [self.mean]
            if self.cortical_map is not None:
                parts.append(self.cortical_map())
            return projected(sum(parts[1:], parts[0]))

    def widths(self) -> Float[Tensor, "n 2 2"]:
        """The square roots of the covariances in use: ``spread`` as annealed."""
        spread = self.spread * self.spread_scale
        if self.config.gaussian == "full":
            return spread
        own = spread.diagonal(dim1=1, dim2=2)
        if self.config.gaussian == "isotropic":
            own = own.mean(1, keepdim=True).expand(-1, 2)
        return own.diag_embed()

    def positions(
        self, count: int, noise: Float[Tensor, "b n 2"] | None = None
    ) -> Float[Tensor, "b n 2"]:
        """Positions that the neurons read: draws in training with ``sampling="point"``, else centres.

        Args:
            count: clips; each has its own draw, for all of its time.
            noise: see :meth:`forward`.
        """
        places = self.centres()
        if not self.draws_positions:
            return places.expand(count, -1, -1)
        if noise is None:
            noise = torch.randn(count, *places.shape, dtype=places.dtype, device=places.device)
        elif noise.shape != (count, *places.shape):
            raise NeuralModelError(
                f"noise is {tuple(noise.shape)}; {count} clips of {self.neurons} neurons need "
                f"{(count, *places.shape)}"
            )
        return drawn(places, self.widths(), noise.to(places))

    def shifts(
        self, pupil_centre: Float[Tensor, "b t 2"] | Float[Tensor, "b 2"] | None
    ) -> Float[Tensor, "b t 2"] | Float[Tensor, "b 2"] | None:
        """Shift of all positions in each frame; None without a shifter, or a pupil to shift by.

        Shifts are added after draws were moved onto the map, so that shifted positions may be
        outside.

        Args:
            pupil_centre: see :meth:`forward`.
        """
        if self.shifter is None or pupil_centre is None:
            return None
        with torch.autocast(self.features.device.type, enabled=False):
            return self.shifter(pupil_centre.to(self.features.dtype))

    def read(
        self,
        map: Float[Tensor, "b d t h w"] | Float[Tensor, "b d h w"],
        positions: Float[Tensor, "b n 2"],
        shift: Float[Tensor, "b t 2"] | Float[Tensor, "b 2"] | None = None,
    ) -> Float[Tensor, "b t n"] | Float[Tensor, "b n"]:
        """The drive at given positions; arguments and errors as of :meth:`forward`.

        Args:
            map: as of :meth:`forward`.
            positions: (x, y); with a shift that moves from frame to frame, in [−1, 1].
            shift: of all positions.
        """
        clip = map.ndim == 5
        if map.ndim not in (4, 5) or map.shape[1] != self.channels:
            raise NeuralModelError(
                f"the map is {tuple(map.shape)}; this readout needs (b, {self.channels}, t, h, w) "
                f"or (b, {self.channels}, h, w)"
            )
        map = map if clip else map[:, :, None]
        size, align = (map.shape[3], map.shape[4]), self.config.align_corners
        with torch.autocast(map.device.type, enabled=False):
            if shift is not None and shift.ndim == 2:
                positions, shift = positions + shift[:, None], None
            if self.config.sampling == "mask":
                places = positions[:, None]
                if shift is not None:
                    places = places + shift[:, :, None]
                entries = _entries_of_masks(places, self.widths(), size, align)
            elif shift is None:
                pixel, weight = corners(positions, size, align_corners=align)
                entries = of_points(pixel, weight[:, None], size[0] * size[1])
            else:
                map, pixel, weight = moving_corners(map, positions, shift, align_corners=align)
                entries = of_points(pixel, weight, map.shape[3] * map.shape[4])
        drive = read_pixels(map, self.features, *entries)
        drive = drive if self.bias is None else drive + self.bias
        return drive if clip else drive[:, 0]

    def regularisation(self) -> dict[str, Float[Tensor, ""]]:
        """Terms that a loss may add, unweighted, each a mean over neurons.

        ``feature_l1``: sum of a neuron's absolute features. ``spread``: the trace of its
        covariance, without annealing. ``mean_offset``, with ``cortex="add"``: squared distance of
        its position from the one that the cortical map gives.
        """
        terms = {
            "feature_l1": self.features.abs().sum(1).mean(),
            "spread": self.spread.square().sum((1, 2)).mean(),
        }
        if self.config.cortex == "add" and self.mean is not None:
            terms["mean_offset"] = self.mean.square().sum(1).mean()
        return terms

    def to_config(self) -> dict[str, Any]:
        """Kind and settings, JSON-serialisable; coordinates come with the weights."""
        cortex = self.cortical_map
        return {
            "kind": "gaussian",
            "neurons": self.neurons,
            "channels": self.channels,
            "cortical_axes": None if cortex is None else cortex.coordinates.shape[1],
            **asdict(self.config),
        }

    @staticmethod
    def _times(map: Tensor) -> tuple[int, ...]:
        """(b, t) of clips, (b,) of frames."""
        return (map.shape[0], map.shape[2]) if map.ndim == 5 else (map.shape[0],)


# How many entries there are depends on numbers, which a compiled graph cannot know.
@torch.compiler.disable
def _entries_of_masks(
    positions: Tensor, widths: Tensor, size: tuple[int, int], align_corners: bool
) -> tuple[Tensor, Tensor, Tensor]:
    mask = gaussian_mask(positions, widths, size, align_corners=align_corners)
    return of_masks(mask)
