"""ViViT encoders of this and other packages, of equal width, depth, heads and tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ssl_vivit.encoders import create_encoder


@dataclass(frozen=True)
class Sizes:
    """Sizes of all encoders; Model 2 splits the depth between two transformers."""

    width: int = 384
    heads: int = 6
    depth: int = 8
    temporal_depth: int = 2
    frames: int = 16
    side: int = 112
    tubelet: tuple[int, int, int] = (2, 16, 16)


class Contestant(nn.Module):
    """A model and the call that returns its output: video (b, 3, T, H, W) → tensor."""

    def __init__(self, model: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.call = call

    def forward(self, video: Tensor) -> Tensor:
        return self.call(self.model, video)


def ours(sizes: Sizes, variant: str, tokens: bool, **settings: Any) -> Contestant:
    """Return an encoder of this package; with ``tokens`` it returns all tokens."""
    if variant == "factorized_encoder":
        settings["spatial_depth"] = sizes.depth - sizes.temporal_depth
        settings["temporal_depth"] = sizes.temporal_depth
    else:
        settings["depth"] = sizes.depth
    encoder = create_encoder(
        "small",
        variant=variant,
        embed_dim=sizes.width,
        num_heads=sizes.heads,
        num_frames=sizes.frames,
        image_size=(sizes.side, sizes.side),
        tubelet_size=sizes.tubelet,
        **settings,
    )

    def call(model: nn.Module, video: Tensor) -> Tensor:
        out = model(video, tokens=tokens)
        return out.tokens if tokens else out.pooled

    return Contestant(encoder, call)


def vit_pytorch(sizes: Sizes, variant: str, pool: str) -> Contestant:
    """Return vit_pytorch.vivit.ViViT without its head, which returns one vector per clip."""
    from vit_pytorch.vivit import ViViT

    model2 = variant == "factorized_encoder"
    model = ViViT(
        image_size=sizes.side,
        image_patch_size=sizes.tubelet[1],
        frames=sizes.frames,
        frame_patch_size=sizes.tubelet[0],
        num_classes=1,
        dim=sizes.width,
        spatial_depth=sizes.depth - sizes.temporal_depth if model2 else sizes.depth,
        temporal_depth=sizes.temporal_depth if model2 else sizes.depth,
        heads=sizes.heads,
        dim_head=sizes.width // sizes.heads,
        mlp_dim=4 * sizes.width,
        pool=pool,
        variant=variant,
    )
    model.mlp_head = nn.Identity()
    return Contestant(model, lambda model, video: model(video))


def vivit_of_transformers(sizes: Sizes) -> Contestant:
    """Return transformers.VivitModel: Model 1 with a class token."""
    from transformers import VivitConfig, VivitModel

    config = VivitConfig(
        image_size=sizes.side,
        num_frames=sizes.frames,
        tubelet_size=list(sizes.tubelet),
        hidden_size=sizes.width,
        num_hidden_layers=sizes.depth,
        num_attention_heads=sizes.heads,
        intermediate_size=4 * sizes.width,
        attn_implementation="sdpa",
    )
    model = VivitModel(config, add_pooling_layer=False)
    return Contestant(model, _last_hidden_state)


def videomae_of_transformers(sizes: Sizes) -> Contestant:
    """Return transformers.VideoMAEModel: Model 1 without a class token, with fixed sinusoids."""
    from transformers import VideoMAEConfig, VideoMAEModel

    config = VideoMAEConfig(
        image_size=sizes.side,
        patch_size=sizes.tubelet[1],
        num_frames=sizes.frames,
        tubelet_size=sizes.tubelet[0],
        hidden_size=sizes.width,
        num_hidden_layers=sizes.depth,
        num_attention_heads=sizes.heads,
        intermediate_size=4 * sizes.width,
        use_mean_pooling=False,
        attn_implementation="sdpa",
    )
    return Contestant(VideoMAEModel(config), _last_hidden_state)


def _last_hidden_state(model: nn.Module, video: Tensor) -> Tensor:
    return model(rearrange(video, "b c t h w -> b t c h w")).last_hidden_state


# Model → ours, and the peer that computes the same.
OURS: dict[str, Callable[[Sizes], Contestant]] = {
    "Model 1": partial(
        ours, variant="joint", tokens=True, joint_positions="learned", activation="gelu_tanh"
    ),
    "Model 1, no class token": partial(
        ours, variant="joint", tokens=True, joint_positions="sinusoidal", class_token=False
    ),
    "Model 2": partial(ours, variant="factorized_encoder", tokens=False, pooling="temporal_cls"),
    "Model 3": partial(ours, variant="factorized_self_attention", tokens=False),
    "Model 4": partial(ours, variant="factorized_dot_product", tokens=False),
}
PEERS: dict[str, tuple[str, Callable[[Sizes], Contestant]]] = {
    "Model 1": ("transformers VivitModel", vivit_of_transformers),
    "Model 1, no class token": ("transformers VideoMAEModel", videomae_of_transformers),
    "Model 2": (
        "vit-pytorch ViViT",
        partial(vit_pytorch, variant="factorized_encoder", pool="cls"),
    ),
    "Model 3": (
        "vit-pytorch ViViT",
        partial(vit_pytorch, variant="factorized_self_attention", pool="mean"),
    ),
}


def contestant(sizes: Sizes, model: str, ours: bool) -> Contestant:
    """Return one of OURS or of PEERS.

    Raises:
        ImportError: if the peer's package is missing.
    """
    torch.manual_seed(0)
    return OURS[model](sizes) if ours else PEERS[model][1](sizes)
