"""A small objective with dropout, unused and tied parameters, and its batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import Tensor, nn

from ssl_vivit.objectives.contract import Objective, Step

# Metrics that the clock measures.
TIMED = {"train/clips_per_second", "train/data_wait"}


class Block(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(torch.tanh(self.linear(x)))


class Encoder(nn.Module):
    _no_split_modules = ["Block", "AbsentBlock"]  # noqa: RUF012 -- as transformers declares it

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.stem = nn.Linear(6, width)
        self.position = nn.Parameter(torch.zeros(1, width))
        self.blocks = nn.Sequential(Block(width, dropout), Block(width, dropout))

    def no_weight_decay(self) -> set[str]:
        return {"position"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^stem|^position", "blocks": [(r"^blocks\.(\d+)", None)]}

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.stem(x) + self.position)


class ToyObjective(Objective):
    def __init__(self, width: int = 8, dropout: float = 0.2) -> None:
        super().__init__()
        self.encoder = Encoder(width, dropout)
        self.head = nn.Linear(width, 3)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.register_buffer("scale", torch.ones(()))

    def forward(self, batch: dict[str, Any]) -> Step:
        out = self.head(self.encoder(batch["clips"])) * self.scale
        loss = (out - batch["target"]).square().mean()
        return Step(loss, {"spread": out.detach().std()})

    def to_compile(self) -> nn.Module:
        return self.encoder

    def embed(self, x: Tensor) -> Tensor:
        return self.encoder(x)

    def export(self, directory: Path, *, training: dict[str, Any]) -> None:
        directory.mkdir(parents=True)
        save_model(self.encoder, str(directory / "model.safetensors"))
        (directory / "config.json").write_text(json.dumps(training))


def toy(seed: int = 0, dropout: float = 0.2, dtype: torch.dtype = torch.float32) -> ToyObjective:
    torch.manual_seed(seed)
    return ToyObjective(dropout=dropout).to(dtype)


def toy_batches(
    count: int = 5, size: int = 4, seed: int = 1, dtype: torch.dtype = torch.float32
) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "clips": torch.randn(size, 6, generator=generator, dtype=dtype),
            "target": torch.randn(size, 3, generator=generator, dtype=dtype),
            "key": [f"sample_{index * size + i}" for i in range(size)],
        }
        for index in range(count)
    ]


class ToyLoader:
    """A loader whose sample i is a function of i, whatever the split."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        self.dtype = dtype

    def steps_per_epoch(self, total_batch_size: int) -> int:
        return 100

    def stream(self, split: Any, *, start_step: int, device: torch.device) -> Any:
        step = start_step
        while True:
            for micro in range(split.accumulation):
                ids = [step * split.total_batch_size + at for at in split.positions(micro)]
                rows = [
                    torch.randn(9, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
                    for i in ids
                ]
                both = torch.stack(rows).to(self.dtype)
                yield {
                    "clips": both[:, :6].to(device),
                    "target": both[:, 6:].to(device),
                    "key": [f"sample_{i}" for i in ids],
                }
            step += 1
