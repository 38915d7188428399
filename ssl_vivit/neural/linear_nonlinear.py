"""Linear–nonlinear models: a causal linear filter for each neuron, then a static nonlinearity."""

from __future__ import annotations

from collections.abc import Mapping

from ssl_vivit.neural.cores.pooled_pixels import AppendedBehaviour, PooledPixels
from ssl_vivit.neural.model import NeuralModel
from ssl_vivit.neural.nonlinearity import Nonlinearity
from ssl_vivit.neural.readout.linear import LinearNonlinearConfig, LinearReadout


def linear_nonlinear(
    neurons: Mapping[str, int],
    image_size: tuple[int, int],
    *,
    in_channels: int = 1,
    behaviour_channels: int = 0,
    config: LinearNonlinearConfig | None = None,
    nonlinearity: Nonlinearity = "softplus",
) -> NeuralModel:
    """Build a model of neurons that is linear up to its final nonlinearity.

    Args:
        neurons: session → number of neurons.
        image_size: (H, W) of the video in pixels.
        in_channels: number of channels of the video.
        behaviour_channels: number of channels of behaviour; 0 for none.
        config: settings of the filters. None means the defaults.
        nonlinearity: function from drive to rate.

    Raises:
        NeuralModelError: if ``config.pool`` does not divide the image size.
    """
    config = config or LinearNonlinearConfig()
    core = PooledPixels(image_size, pool=config.pool, in_channels=in_channels)
    readouts = {
        name: LinearReadout(count, core.pooled, behaviour_channels, config)
        for name, count in neurons.items()
    }
    appended = AppendedBehaviour(behaviour_channels) if behaviour_channels else None
    return NeuralModel(core, None, appended, readouts, nonlinearity=nonlinearity)
