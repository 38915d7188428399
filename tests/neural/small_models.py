"""Small models of neurons and their inputs."""

from __future__ import annotations

import torch
from einops import einsum
from torch import Tensor, nn

from ssl_vivit import create_encoder
from ssl_vivit.neural.model import NeuralModel

SMALL = {"embed_dim": 24, "num_heads": 2, "image_size": (8, 12), "num_frames": 8}
VARIANTS = {
    "joint": {"depth": 2},
    "factorized_encoder": {"spatial_depth": 1, "temporal_depth": 1},
    "factorized_self_attention": {"depth": 1},
    "factorized_dot_product": {"depth": 1},
}
VIDEO = (8, 12)


class WholeMapReadout(nn.Module):
    """A readout in which every neuron has a weight for every place of the map."""

    def __init__(self, neurons: int, channels: int, places: int = 6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(neurons, channels, places) / channels**0.5)

    def forward(self, map: Tensor, pupil_centre: Tensor | None = None) -> Tensor:
        if map.ndim == 4:
            return self(map[:, :, None])[:, 0]
        return einsum(map.flatten(3), self.weight, "b d t p, n d p -> b t n")


def encoder(variant="factorized_encoder", **settings):
    settings = SMALL | VARIANTS[variant] | {"tubelet_size": (4, 4, 4)} | settings
    return create_encoder("vivit_neural_small", variant=variant, **settings)


def model(core=None, *, neurons=5, randomised=True, **parts) -> NeuralModel:
    """Make a model with random values in zero-initialised parts, so that all parts have an effect."""
    torch.manual_seed(0)
    core = core or encoder()
    places = VIDEO[0] // 4 * (VIDEO[1] // 4)
    channels = core.config.embed_dim if hasattr(core, "config") else core.channels
    parts.setdefault("readouts", {"a": WholeMapReadout(neurons, channels, places)})
    whole = NeuralModel(core, **parts).double().eval()
    if randomised:
        with torch.no_grad():
            for name, parameter in whole.named_parameters():
                if "norm" not in name and not name.startswith("adapter"):
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    return whole


def clip(batch=1, frames=10, channels=1, size=VIDEO) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, channels, frames, *size, generator=generator, dtype=torch.float64)


def walk(batch=1, frames=10, channels=2) -> Tensor:
    """Return behaviour that varies smoothly over time."""
    generator = torch.Generator().manual_seed(2)
    return torch.randn(batch, frames, channels, generator=generator, dtype=torch.float64)
