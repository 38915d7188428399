"""GaussianReadout: computes the drive of each neuron from the feature map at the neuron's place."""

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
        sampling: ``point`` reads the map at one place, which is drawn from the neuron's Gaussian
            for each clip in training, and is the Gaussian's mean in evaluation. ``mask`` averages
            the map under the Gaussian.
        gaussian: ``full`` learns widths and orientation, ``uncorrelated`` one width for x and one
            for y, ``isotropic`` one width for both.
        bias: whether to learn a constant for each neuron.
        align_corners: whether positions −1 and 1 are the centres of the outermost pixels, as in old
            models, instead of the map's edges.
        mean_range: initial positions are uniform in [−mean_range, mean_range]; from 0 to 1.
        spread: initial standard deviation of the Gaussians, above 0. The map is 2 wide and 2 high.
        cortex: use of cortical coordinates in sessions that have them. ``off`` ignores them.
            ``add`` adds the position that is predicted from them to each neuron's learned position.
            ``replace`` uses only the predicted position.
        cortex_hidden: widths of the hidden layers that map cortical coordinates to positions.
        shifter: shift all positions by the pupil's centre, in sessions that have it.
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
                f"readout.cortex_hidden {list(self.cortex_hidden)} must contain only widths above 0"
            )

    def build(
        self,
        neurons: int,
        channels: int,
        *,
        coordinates: Float[Tensor, "n k"] | None = None,
        pupil: bool = False,
    ) -> GaussianReadout:
        """Build the readout of one session.

        The cortical map and the pupil shifter are left out if the session has no data for them.

        Args:
            neurons: number of neurons of the session.
            channels: channels of the map.
            coordinates: cortical coordinates of the neurons. None if unknown.
            pupil: whether the session has the pupil's centre.
        """
        settings = asdict(self) | {"shifter": self.shifter and pupil}
        if coordinates is None:
            settings["cortex"] = "off"
        return GaussianReadout(neurons, channels, coordinates=coordinates, **settings)


class GaussianReadout(nn.Module):
    """Readout in which each neuron reads the map at one place, with its own feature weights.

    With ``sampling="point"`` this is the readout of Lurz et al. 2021 (Sec. 3.2; FullGaussian2d of
    neuralpredictors): bilinear interpolation of the map at one position. In training, the position
    is drawn from the neuron's Gaussian, once for each clip. In evaluation it is the mean. Only the
    four pixels around a position are multiplied, so 8,000 neurons cost no more than a few large
    matrix products. With ``sampling="mask"`` the map is averaged under a normalised Gaussian, which
    costs a product with every pixel under the mask.

    For one frame (b, d, h, w) and positions (b, n, 2), reading points is equivalent to

        grid = rearrange(positions, "b n axis -> b n 1 axis")
        seen = F.grid_sample(frame, grid, align_corners=False)  # (b, d, n, 1)
        drive = einsum(seen, features, "b d n 1, n d -> b n") + bias

    Args:
        neurons: number of neurons.
        channels: channels of the map.
        coordinates: (neurons, k) cortical coordinates.
        settings: fields of :class:`ReadoutConfig`. ``cortex`` is ``add`` by default if coordinates
            are given.

    Attributes:
        mean: (neurons, 2) learned positions (x, y) in [−1, 1]; None with ``cortex="replace"``. See
            :meth:`centres`.
        spread: (neurons, 2, 2) matrix square roots of the covariances, which are spread · spreadᵀ.
        features: (neurons, channels) feature weights.
        bias: (neurons,) constants, or None.
        spread_scale: factor of ``spread``. Lower it in training to anneal the widths. It is saved
            in checkpoints, as masks need it in evaluation.

    Raises:
        NeuralModelError: if settings are invalid, or coordinates of the right shape are missing.
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
                f"a readout has {neurons} neurons and {channels} channels; both must be at least 1"
            )
        self.neurons, self.channels = neurons, channels
        self.cortical_map: CorticalMap | None = None
        if config.cortex != "off":
            if coordinates is None or coordinates.shape[0] != neurons or coordinates.ndim != 2:
                shape = None if coordinates is None else tuple(coordinates.shape)
                raise NeuralModelError(
                    f"readout.cortex {config.cortex} needs coordinates of shape ({neurons}, k), "
                    f"not {shape}"
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
        # Random weights with the scale of the constant 1/d of neuralpredictors. A constant would
        # read 0 from normalised tokens, whose channels sum to 0.
        self.features = nn.Parameter(torch.randn(neurons, channels) / channels)
        self.bias = nn.Parameter(torch.zeros(neurons)) if config.bias else None
        self.register_buffer("_spread_scale", torch.ones(()))

    @property
    def spread_scale(self) -> Tensor:
        """Factor of ``spread``, as a scalar tensor."""
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
        """Return the drive of each neuron, before the nonlinearity.

        Args:
            map: feature map of clips or of single frames.
            pupil_centre: standardised. It shifts positions if there is a shifter. None, or NaN in a
                frame, does not shift them.
            noise: standard normal numbers from which positions are drawn if :attr:`draws_positions`
                is true. None draws them from torch's generator.

        Raises:
            NeuralModelError: if the map has another number of channels, or ``pupil_centre`` or
                ``noise`` has the wrong shape.
        """
        if pupil_centre is not None and pupil_centre.shape[:-1] != self._times(map):
            raise NeuralModelError(
                f"pupil_centre has shape {tuple(pupil_centre.shape)}; a map of shape "
                f"{tuple(map.shape)} needs {(*self._times(map), 2)}"
            )
        return self.read(map, self.positions(len(map), noise), self.shifts(pupil_centre))

    @property
    def draws_positions(self) -> bool:
        """Whether a forward pass draws positions: in training mode with ``sampling="point"``."""
        return self.training and self.config.sampling == "point"

    def centres(self) -> Float[Tensor, "n 2"]:
        """Return the centres of the neurons' Gaussians, (x, y) in [−1, 1], without shifts."""
        if self.mean is not None and self.training:
            # Clamp, since a neuron would need several steps to return from beyond the edge.
            with torch.no_grad():
                self.mean.clamp_(-1, 1)
        # Disable autocast, which would round positions to a hundredth of the map.
        with torch.autocast(self.features.device.type, enabled=False):
            parts = [] if self.mean is None else [self.mean]
            if self.cortical_map is not None:
                parts.append(self.cortical_map())
            return projected(sum(parts[1:], parts[0]))

    def widths(self) -> Float[Tensor, "n 2 2"]:
        """Return matrix square roots of the Gaussians' covariances, (neurons, 2, 2).

        They are ``spread`` times ``spread_scale``. Only ``full`` Gaussians use elements off the
        diagonal. The diagonal elements of ``isotropic`` Gaussians are averaged.
        """
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
        """Return the position that each neuron reads in each clip.

        Positions are drawn if :attr:`draws_positions` is true. If not, they are the centres.

        Args:
            count: number of clips. Each clip has one draw for all its frames.
            noise: see :meth:`forward`.

        Raises:
            NeuralModelError: if ``noise`` has the wrong shape.
        """
        places = self.centres()
        if not self.draws_positions:
            return places.expand(count, -1, -1)
        if noise is None:
            noise = torch.randn(count, *places.shape, dtype=places.dtype, device=places.device)
        elif noise.shape != (count, *places.shape):
            raise NeuralModelError(
                f"noise has shape {tuple(noise.shape)}; {count} clips of {self.neurons} neurons "
                f"need {(count, *places.shape)}"
            )
        return drawn(places, self.widths(), noise.to(places))

    def shifts(
        self, pupil_centre: Float[Tensor, "b t 2"] | Float[Tensor, "b 2"] | None
    ) -> Float[Tensor, "b t 2"] | Float[Tensor, "b 2"] | None:
        """Return the shift of all positions in each frame; None without a shifter or a pupil.

        Shifts are added after drawn positions were clamped to the map, so shifted positions may lie
        outside the map.

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
        """Return the drive at given positions.

        Args:
            map: see :meth:`forward`.
            positions: (x, y) of each neuron. They must be in [−1, 1] if ``shift`` varies over
                frames.
            shift: shift of all positions.

        Raises:
            NeuralModelError: if the map has another number of channels.
        """
        clip = map.ndim == 5
        if map.ndim not in (4, 5) or map.shape[1] != self.channels:
            raise NeuralModelError(
                f"the map has shape {tuple(map.shape)}; this readout needs (b, {self.channels}, t, "
                f"h, w) or (b, {self.channels}, h, w)"
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
        """Return unweighted penalties for the loss, each a mean over neurons.

        Returns:
            The penalties by name.

            - ``feature_l1``: sum of the absolute values of a neuron's feature weights
            - ``spread``: trace of the covariance of a neuron's Gaussian, without ``spread_scale``
            - ``mean_offset``, only with ``cortex="add"``: squared distance of a neuron's position
              from the position that the cortical map predicts
        """
        terms = {
            "feature_l1": self.features.abs().sum(1).mean(),
            "spread": self.spread.square().sum((1, 2)).mean(),
        }
        if self.config.cortex == "add" and self.mean is not None:
            terms["mean_offset"] = self.mean.square().sum(1).mean()
        return terms

    def to_config(self) -> dict[str, Any]:
        """Return kind and settings as a JSON-serialisable dictionary, without the coordinates."""
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
        """Return the batch and time axes of a map: (b, t) for clips, (b,) for single frames."""
        return (map.shape[0], map.shape[2]) if map.ndim == 5 else (map.shape[0],)


# Do not compile this function, since the number of entries depends on values.
@torch.compiler.disable
def _entries_of_masks(
    positions: Tensor, widths: Tensor, size: tuple[int, int], align_corners: bool
) -> tuple[Tensor, Tensor, Tensor]:
    mask = gaussian_mask(positions, widths, size, align_corners=align_corners)
    return of_masks(mask)
