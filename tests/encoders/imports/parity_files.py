"""Files of reference numbers for the tests of imports."""

import json
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from ssl_vivit.encoders.classifier import VideoClassifier
from ssl_vivit.encoders.imports import from_scenic

PARITY = Path(__file__).parents[1] / "parity"


class ScenicCase:
    """Parameters, input and outputs of a ViViT of google-research/scenic."""

    def __init__(self, name: str) -> None:
        self.arrays = np.load(PARITY / f"scenic_{name}.npz")
        facts = json.loads((PARITY / f"scenic_{name}.json").read_text())
        self.model_config = facts["config"]
        self.video_shape = tuple(facts["input_shape"][1:])

    def tree(self, kind: str = "param") -> dict[str, np.ndarray]:
        """Return parameters (``param``) or their gradients (``grad``) by flax name."""
        return {
            name.removeprefix(f"{kind}/"): self.arrays[name]
            for name in self.arrays.files
            if name.startswith(f"{kind}/")
        }

    def model(self, kind: str = "param") -> VideoClassifier:
        return from_scenic(self.tree(kind), self.model_config, self.video_shape).double()

    @cached_property
    def video(self) -> torch.Tensor:
        return channels_first(self.arrays["input"].astype(np.float64))

    def expected(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.arrays[name])


def channels_first(video: np.ndarray) -> torch.Tensor:
    """Convert (B, T, H, W, C) to (B, C, T, H, W)."""
    return torch.from_numpy(video).permute(0, 4, 1, 2, 3).contiguous()
