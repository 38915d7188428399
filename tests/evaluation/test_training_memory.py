"""Memory computed from shapes, compared with steps that are run."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from ssl_vivit.encoders import ViViT, named_config
from ssl_vivit.evaluation.training_memory import TrainingMemory, peaks, training_memory
from ssl_vivit.objectives import MaskedTubelets, SimCLR


def objective(kind: type) -> nn.Module:
    encoder = ViViT(
        named_config(
            "vivit_tiny",
            num_frames=8,
            image_size=(48, 64),
            embed_dim=48,
            num_heads=3,
            spatial_depth=1,
            temporal_depth=1,
        )
    )
    return kind(encoder)


def batch(kind: type, samples: int) -> dict:
    return {"clips": torch.rand(samples, 2 if kind is SimCLR else 1, 3, 8, 48, 64),
            "key": [""] * samples}  # fmt: skip


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("kind", [SimCLR, MaskedTubelets])
def test_the_memory_of_a_real_step_follows_from_shapes(kind, bf16):
    with torch.device("meta"):
        made = objective(kind)
    found = training_memory(made, lambda samples: batch(kind, samples), bf16=bf16)
    for samples in (48, 96):
        passes, update = peaks(objective(kind), batch(kind, samples), bf16=bf16)
        assert found.of(samples) == pytest.approx(max(passes, update), rel=0.1)
    assert found.update == pytest.approx(update, rel=0.1)


# Grows the largest resident memory by a step of 48 samples over that of a step of 4.
REAL = """
import torch
from ssl_vivit.encoders import ViViT, named_config
from ssl_vivit.objectives import SimCLR
torch.set_num_threads(1)
model = SimCLR(ViViT(named_config("vivit_tiny", num_frames=8, image_size=(64, 96), spatial_depth=2, temporal_depth=1)))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
def step(samples):
    clips = torch.rand(samples, 2, 3, 8, 64, 96)
    model({"clips": clips, "key": [""] * samples}).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return int(line.split()[1])
few = [step(4), step(4)][1]
print(step(48) - few)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the largest resident memory is in /proc")
def test_a_real_run_takes_the_memory():
    done = subprocess.run(
        [sys.executable, "-c", REAL], capture_output=True, text=True, check=True, timeout=300
    )
    with torch.device("meta"):
        made = SimCLR(
            ViViT(
                named_config(
                    "vivit_tiny",
                    num_frames=8,
                    image_size=(64, 96),
                    spatial_depth=2,
                    temporal_depth=1,
                )
            )
        )
    found = training_memory(
        made, lambda n: {"clips": torch.rand(n, 2, 3, 8, 64, 96), "key": [""] * n}, bf16=False
    )
    assert int(done.stdout) * 1024 == pytest.approx(found.of(48) - found.of(4), rel=0.2)


def test_the_largest_micro_batch_is_a_power_of_two_that_fits():
    memory = TrainingMemory(fixed=10.0, per_sample=2.0, update=13.0)
    assert [memory.of(n) for n in (1, 2, 8)] == [13.0, 14.0, 26.0]
    assert [memory.largest(size) for size in (12.9, 13, 14, 25.9, 26)] == [0, 1, 2, 4, 8]
