"""Pooling of tokens to one vector per clip."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_vivit.encoders.config import ViViTConfig


def reduce_tokens(x: Float[Tensor, "b n d"], how: str) -> Float[Tensor, "b d"]:
    """Reduce the tokens of each sequence by ``mean``, ``max``, ``sum`` or ``first``."""
    if how == "mean":
        return x.mean(1)
    if how == "max":
        return x.amax(1)
    if how == "sum":
        return x.sum(1)
    return x[:, 0]


class AttentionPooling(nn.Module):
    """Pooling by one learned query that attends to all tokens (Bardes et al. 2024, Sec. 4.2)."""

    def __init__(self, config: ViViTConfig) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(1, 1, config.embed_dim))
        self.attention = nn.MultiheadAttention(
            config.embed_dim, _heads(config), bias=config.qkv_bias, batch_first=True
        )
        nn.init.trunc_normal_(self.query, std=0.02)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        query = self.query.expand(x.shape[0], -1, -1)
        return self.attention(query, x, x, need_weights=False)[0][:, 0]


def _heads(config: ViViTConfig) -> int:
    """Return the largest number of heads, each at least head_dim wide, that divides embed_dim."""
    assert config.head_dim is not None
    most = max(config.embed_dim // config.head_dim, 1)
    return max(h for h in range(1, most + 1) if config.embed_dim % h == 0)
