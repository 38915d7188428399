"""Small encoders of every variant, and clips for them."""

import torch

from ssl_vivit import ViViT, ViViTConfig

SMALL = {
    "num_frames": 8,
    "image_size": (16, 24),
    "tubelet_size": (2, 8, 8),
    "embed_dim": 24,
    "num_heads": 2,
}
MODEL1 = SMALL | {"variant": "joint", "depth": 2}
MODEL2 = SMALL | {"spatial_depth": 2, "temporal_depth": 2}
MODEL3 = SMALL | {"variant": "factorized_self_attention", "depth": 2}
MODEL4 = SMALL | {"variant": "factorized_dot_product", "depth": 2}
MODELS = {"joint": MODEL1, "encoder": MODEL2, "self_attention": MODEL3, "dot_product": MODEL4}
ROTARY = {"spatial_positions": "rotary", "temporal_positions": "rotary"}
PARALLEL = {"block": "parallel"}

# Every variant with every option that changes how tokens meet.
CASES = {
    "joint": MODEL1,
    "joint, mean": MODEL1 | {"class_token": False, "pooling": "mean"},
    "joint, parallel, registers, rotary": MODEL1 | PARALLEL | ROTARY | {"register_tokens": 2},
    "joint, one table": MODEL1 | {"joint_positions": "learned", "qkv_bias": False},
    "joint, sinusoidal": MODEL1 | {"joint_positions": "sinusoidal", "pooling": "max"},
    "encoder": MODEL2,
    "encoder, parallel, registers, rotary": MODEL2 | PARALLEL | ROTARY | {"register_tokens": 2},
    "encoder, sinusoidal": MODEL2 | {"class_token": False, "spatial_positions": "sinusoidal"},
    "encoder, frame pooling": MODEL2 | {"frame_pooling": "mean", "pooling": "max"},
    "encoder, temporal class": MODEL2
    | {"pooling": "temporal_cls", "qk_norm": True, "layer_scale": 0.5, "register_tokens": 1},
    "encoder, spatial alone": MODEL2 | {"temporal_depth": 0, "activation": "swiglu"},
    "self_attention": MODEL3,
    "self_attention, registers, rotary": MODEL3
    | ROTARY
    | {"register_tokens": 2, "pooling": "attention"},
    "self_attention, parallel": MODEL3
    | PARALLEL
    | {"register_tokens": 1, "final_norm": "pooled", "activation": "swiglu"},
    "self_attention, overlapping": MODEL3
    | {"tubelet_size": (4, 8, 8), "tubelet_stride": (2, 4, 8)},
    "self_attention, one table": MODEL3 | {"joint_positions": "sinusoidal"},
    "dot_product": MODEL4,
    "dot_product, registers, rotary": MODEL4
    | ROTARY
    | {"register_tokens": 2, "qk_norm": True, "head_dim": 8, "pooling": "sum"},
    "dot_product, parallel": MODEL4 | PARALLEL | {"register_tokens": 1, "layer_scale": 0.5},
    "dot_product, one table": MODEL4 | {"joint_positions": "learned", "final_norm": "none"},
}


def make(**settings) -> ViViT:
    """Make an encoder with random values in zero-initialised parts, so that all parts have an effect."""
    torch.manual_seed(0)
    encoder = ViViT(ViViTConfig(**settings)).double().eval()
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "norm" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return encoder


def clip(batch=2, channels=3, frames=8, height=16, width=24) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (batch, channels, frames, height, width)
    return torch.randn(shape, generator=generator, dtype=torch.float64)
