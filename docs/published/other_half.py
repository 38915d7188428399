"""Print how often the other half of a real clip is the most similar one, trained and untrained.

python docs/published/other_half.py weights/mae_model2 weights/mae_model3 weights/simclr_model2
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_vivit import load_encoder
from ssl_vivit.encoders import ViViT
from ssl_vivit.evaluation import encode_video

CLIPS = Path(__file__).parents[2] / "tests" / "assets" / "collision_clips"
FPS = 25.0
# Sixteen frames at this stride fit into half of a clip.
STRIDE = 4
UNTRAINED = 5


def frames(path: Path) -> np.ndarray:
    """Read a video: uint8 (T, H, W, 3)."""
    with av.open(str(path)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def features(encoder: ViViT, films: Sequence[np.ndarray]) -> dict[str, Tensor]:
    """Encode both halves of each film: name of the vector → (2 · films, d)."""
    encoder.preprocessing = {**dict(encoder.preprocessing or {}), "frame_stride": STRIDE}
    halves = [part for film in films for part in np.split(film[: len(film) // 2 * 2], 2)]
    found = [encode_video(part, encoder, fps=FPS) for part in halves]
    return {
        "pooled": torch.cat([each.pooled for each in found]),
        "mean of tokens": torch.cat([each.tokens.mean((1, 2)) for each in found]),
    }


def retrieved(vectors: Tensor) -> tuple[float, float]:
    """Return how often the other half comes first, and its mean rank."""
    unit = F.normalize(vectors - vectors.mean(0), dim=-1)
    similar = (unit @ unit.T).fill_diagonal_(-2)
    other = torch.arange(len(unit)) ^ 1
    better = (similar > similar[torch.arange(len(unit)), other][:, None]).sum(1)
    return (better == 0).float().mean().item(), better.float().mean().item() + 1


def main(paths: Sequence[str]) -> None:
    """Print a line for each encoder and vector."""
    films = [frames(path) for path in sorted(CLIPS.glob("*.mp4"))]
    for path in paths:
        encoder = load_encoder(path)
        fresh = []
        for seed in range(UNTRAINED):
            torch.manual_seed(seed)
            untrained = ViViT(encoder.config).eval()
            untrained.preprocessing = encoder.preprocessing
            fresh.append(features(untrained, films))
        for name, vectors in features(encoder, films).items():
            right, rank = retrieved(vectors)
            guesses = np.mean([retrieved(each[name]) for each in fresh], axis=0)
            print(
                f"{path}, {name}: right {right:.2f}, rank {rank:.1f}; "
                f"untrained {guesses[0]:.2f}, {guesses[1]:.1f}"
            )


if __name__ == "__main__":
    main(sys.argv[1:])
