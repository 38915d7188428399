"""Scenic's flax parameters under this project's names, for the parity tests."""

import json
from pathlib import Path

import numpy as np
import torch

from ssl_vivit.encoders import ViViT, ViViTConfig

PARITY = Path(__file__).parent / "parity"


class ScenicCase:
    """A reference case: parameters, input and outputs of google-research/scenic's ViViT."""

    def __init__(self, name: str) -> None:
        self.arrays = np.load(PARITY / f"scenic_{name}.npz")
        self.facts = json.loads((PARITY / f"scenic_{name}.json").read_text())

    def parameter(self, name: str, kind: str = "param") -> torch.Tensor:
        return torch.from_numpy(self.arrays[f"{kind}/{name}"]).double()

    @property
    def video(self) -> torch.Tensor:
        return torch.from_numpy(self.arrays["input"]).double().permute(0, 4, 1, 2, 3).contiguous()

    def logits(self, pooled: torch.Tensor) -> torch.Tensor:
        kernel = self.parameter("output_projection/kernel")
        return pooled @ kernel + self.parameter("output_projection/bias")

    def config(self) -> ViViTConfig:
        given = self.facts["config"]
        model2 = given["attention_config"]["type"] == "factorized_encoder"
        token = given["classifier"] == "token"
        height, width, frames = given["patches"]["size"]
        trunk = given["spatial_transformer"] if model2 else given
        shape = {
            "variant": "factorized_encoder" if model2 else "factorized_self_attention",
            "num_frames": self.facts["input_shape"][1],
            "image_size": tuple(self.facts["input_shape"][2:4]),
            "tubelet_size": (frames, height, width),
            "embed_dim": given["hidden_size"],
            "num_heads": trunk["num_heads"],
            "mlp_ratio": trunk["mlp_dim"] / given["hidden_size"],
            "activation": "gelu_tanh",
            "pooling": "temporal_cls" if token else "mean",
        }
        if model2:
            shape |= {
                "spatial_depth": trunk["num_layers"],
                "temporal_depth": given["temporal_transformer"]["num_layers"],
                "frame_pooling": "none" if token else "mean",
            }
        else:
            shape |= {
                "depth": trunk["num_layers"],
                "attention_order": given["attention_config"]["attention_order"],
                "spatial_positions": "none",
                "temporal_positions": "none",
                "joint_positions": "learned",
            }
        return ViViTConfig(**shape)

    def encoder(self) -> ViViT:
        encoder = ViViT(self.config()).double().eval()
        encoder.load_state_dict(self.state("param"))
        return encoder

    def state(self, kind: str) -> dict[str, torch.Tensor]:
        """Parameters (``param``) or their gradients (``grad``) as a state dict of ViViT."""

        def get(name: str) -> torch.Tensor:
            return self.parameter(name, kind)

        def norm(ours: str, theirs: str) -> dict[str, torch.Tensor]:
            return {f"{ours}.weight": get(f"{theirs}/scale"), f"{ours}.bias": get(f"{theirs}/bias")}

        def attention(ours: str, theirs: str) -> dict[str, torch.Tensor]:
            width = get(f"{theirs}/query/kernel").shape[0]
            qkv = ("query", "key", "value")
            return {
                f"{ours}.qkv.weight": torch.cat(
                    [get(f"{theirs}/{x}/kernel").reshape(width, -1).T for x in qkv]
                ),
                f"{ours}.qkv.bias": torch.cat([get(f"{theirs}/{x}/bias").flatten() for x in qkv]),
                f"{ours}.proj.weight": get(f"{theirs}/out/kernel").reshape(-1, width).T,
                f"{ours}.proj.bias": get(f"{theirs}/out/bias"),
            }

        def mlp(ours: str, theirs: str) -> dict[str, torch.Tensor]:
            return {
                f"{ours}.fc{i + 1}.{part}": get(f"{theirs}/Dense_{i}/{flax}").t()
                for i in range(2)
                for part, flax in (("weight", "kernel"), ("bias", "bias"))
            }

        state = {
            "tubelets.weight": get("embedding/kernel").permute(4, 3, 0, 1, 2),
            "tubelets.bias": get("embedding/bias"),
        }
        names = {name.split("/", 1)[1] for name in self.arrays.files if name.startswith("param/")}
        for ours, theirs in (
            ("spatial", "SpatialTransformer"),
            ("temporal", "TemporalTransformer"),
        ):
            if f"{theirs}/encoder_norm/scale" not in names:
                continue
            state[f"positions.{ours}"] = get(f"{theirs}/posembed_input/pos_embedding")[0]
            state |= norm(f"trunk.{ours}_norm", f"{theirs}/encoder_norm")
            if f"cls_{theirs}" in names:
                token = "trunk.class_token" if ours == "spatial" else "trunk.temporal_class_token"
                state[token] = get(f"cls_{theirs}")[0, 0]
            for i in range(self.facts["config"][f"{ours}_transformer"]["num_layers"]):
                a, b = f"trunk.{ours}_blocks.{i}", f"{theirs}/encoderblock_{i}"
                state |= norm(f"{a}.attention_norm", f"{b}/LayerNorm_0")
                state |= attention(f"{a}.attention", f"{b}/MultiHeadDotProductAttention_0")
                state |= norm(f"{a}.mlp_norm", f"{b}/LayerNorm_1")
                state |= mlp(f"{a}.mlp", f"{b}/MlpBlock_0")
        if "Transformer/encoder_norm/scale" in names:
            state["positions.joint"] = get("Transformer/posembed_input/pos_embedding")[0]
            state |= norm("trunk.norm", "Transformer/encoder_norm")
            for i in range(self.facts["config"]["num_layers"]):
                a, b = f"trunk.blocks.{i}", f"Transformer/encoderblock_{i}"
                for axis in ("space", "time"):
                    state |= norm(f"{a}.{axis}_norm", f"{b}/LayerNorm_{axis}")
                    state |= attention(f"{a}.{axis}", f"{b}/MultiHeadDotProductAttention_{axis}")
                state |= norm(f"{a}.mlp_norm", f"{b}/LayerNorm_mlp")
                state |= mlp(f"{a}.mlp", f"{b}/MlpBlock")
        return state
