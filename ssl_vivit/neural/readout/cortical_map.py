"""Positions of receptive fields from cortical coordinates."""

from __future__ import annotations

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from ssl_vivit.errors import NeuralModelError


class CorticalMap(nn.Module):
    """A retinotopic map: where in the cortex a neuron is → where its receptive field is.

    The ``grid_mean_predictor`` of Sensorium's baselines (Willeke et al. 2022, Sec. 4). Coordinates
    are centred and divided by the largest.

    Args:
        coordinates: of each neuron, in any unit.
        hidden: width of each hidden layer (ELU); none is an affine map.
        zero: start with every position at 0, for positions that are added to learned ones.

    Raises:
        NeuralModelError: for coordinates that are not finite or all the same.
    """

    coordinates: Tensor

    def __init__(
        self, coordinates: Float[Tensor, "n k"], hidden: tuple[int, ...] = (), *, zero: bool = False
    ) -> None:
        super().__init__()
        centred = coordinates.detach().float()
        centred = centred - centred.mean(0)
        largest = centred.abs().max()
        # On the meta device a model is built before its saved coordinates are read.
        if not (largest.is_meta or (largest > 0 and largest.isfinite())):
            raise NeuralModelError(
                "coordinates must be finite and differ between neurons; leave them out of the "
                "readout where they were not measured"
            )
        self.register_buffer("coordinates", centred / largest)
        widths = (coordinates.shape[1], *hidden, 2)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.ELU()]
        self.layers = nn.Sequential(*layers[:-1])
        last = layers[-2]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.bias)
        if zero:
            nn.init.zeros_(last.weight)

    def forward(self) -> Float[Tensor, "n 2"]:
        """Positions (x, y)."""
        return self.layers(self.coordinates)
