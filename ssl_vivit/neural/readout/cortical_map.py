"""Prediction of receptive field positions from cortical coordinates."""

from __future__ import annotations

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from ssl_vivit.errors import NeuralModelError


class CorticalMap(nn.Module):
    """Retinotopic map from a neuron's place in the cortex to the place of its receptive field.

    This is the ``grid_mean_predictor`` of Sensorium's baselines (Willeke et al. 2022, Sec. 4).
    Coordinates are centred and divided by the largest absolute value.

    Args:
        coordinates: cortical coordinates of each neuron, in any unit.
        hidden: width of each hidden layer (ELU). () gives an affine map.
        zero: whether all predicted positions start at 0. This suits a readout that adds them to
            learned positions.

    Raises:
        NeuralModelError: if coordinates are not finite, or are equal for all neurons.
    """

    coordinates: Tensor

    def __init__(
        self, coordinates: Float[Tensor, "n k"], hidden: tuple[int, ...] = (), *, zero: bool = False
    ) -> None:
        super().__init__()
        centred = coordinates.detach().float()
        centred = centred - centred.mean(0)
        largest = centred.abs().max()
        # On the meta device the coordinates have no values yet, so they cannot be checked.
        if not (largest.is_meta or (largest > 0 and largest.isfinite())):
            raise NeuralModelError(
                "coordinates must be finite and differ between neurons; if they were not "
                "measured, set readout.cortex to off"
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
        """Return the predicted position (x, y) of each neuron on the feature map."""
        return self.layers(self.coordinates)
