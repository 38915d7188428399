"""The bytes that processes exchange in a training step equal the numbers on the docs page."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ssl_vivit import create_encoder
from ssl_vivit.evaluation.complexity import multiply_adds
from ssl_vivit.objectives import MaskedTubelets, SimCLR

ROOT = Path(__file__).parents[1]
VIDEOS = 3
SMALL = {"num_frames": 4, "image_size": (32, 48), "embed_dim": 24, "num_heads": 2,
         "spatial_depth": 1, "temporal_depth": 1, "tubelet_size": (2, 16, 16)}  # fmt: skip


def _program():
    path = ROOT / "docs" / "published" / "many_gpus.py"
    spec = importlib.util.spec_from_file_location("many_gpus", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MANY = _program()


PAGE = (ROOT / "docs" / "explanation" / "many_gpus.md").read_text()


def _simclr() -> SimCLR:
    # CPUs have no synchronised batch norm.
    settings = {"hidden_dim": 16, "output_dim": 8, "batch_norm": False}
    return SimCLR(create_encoder("tiny", **SMALL), **settings).double()


def _masked() -> MaskedTubelets:
    return MaskedTubelets(create_encoder("tiny", **SMALL), mask_ratio=0.5, decoder_depth=1).double()


# Name → how it is built, and the shape of a video in its batches.
OBJECTIVES = {"SimCLR": (_simclr, (2, 3, 4, 32, 48)), "masked": (_masked, (1, 3, 4, 32, 48))}


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_step_exchanges_the_computed_bytes(processes, tmp_path):
    script = Path(__file__).parent / "many_gpus_on_ranks.py"
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes),
         "--master_port", "0", "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0",
         script, tmp_path],
        check=True,
    )  # fmt: skip
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(processes)]
    assert all(rank == ranks[0] for rank in ranks)
    for name, (build, _) in OBJECTIVES.items():
        expected = dict.fromkeys(("all_reduce", "all_gather"), 0)
        for each in MANY.collectives(build(), VIDEOS, processes):
            expected[each.kind] += each.bytes
        found = ranks[0][f"{name}, not logged"]
        assert found.get("allreduce_", 0) == expected["all_reduce"]
        assert found.get("allgather_", 0) == expected["all_gather"]
        assert found.keys() <= {"allreduce_", "allgather_"}
        # Metrics of a logged step gather the embeddings once more.
        logged = ranks[0][f"{name}, logged"]
        assert logged.get("allreduce_", 0) == found.get("allreduce_", 0)
        assert logged.get("allgather_", 0) == 2 * found.get("allgather_", 0)


@pytest.mark.parametrize("preset", MANY.PRESETS)
def test_the_page_shows_what_the_script_prints(preset):
    assert "\n".join(MANY.table(preset)) in PAGE


@pytest.mark.parametrize("processes", [2, 5])
def test_rings_send_the_computed_bytes(processes):
    """A simulated ring algorithm sends the computed number of bytes."""
    parts = [{rank} for rank in range(processes)]
    rounds = 0
    while any(len(held) < processes for held in parts):
        parts = [parts[rank] | parts[rank - 1] for rank in range(processes)]
        rounds += 1
    gathered = MANY.Collective("", "all_gather", 60)
    assert gathered.sent(processes) == rounds * 60
    # A reduce-scatter and an all-gather of a part of the tensor for each process.
    reduced = MANY.Collective("", "all_reduce", 60)
    assert reduced.sent(processes) == 2 * rounds * 60 / processes


def test_the_work_of_a_video_is_three_forward_passes_of_the_encoder():
    load = MANY.load_of("simclr_vivit_small")
    config = load.objective.encoder.config
    clip = torch.empty(1, config.in_channels, config.num_frames, *config.image_size)
    forward = multiply_adds(load.objective.encoder, clip, tokens=False)
    # Pixels need no gradient, so the first layer has two products of a size and not three.
    first = clip.numel() * config.embed_dim
    assert load.flops == pytest.approx(2 * 2 * (3 * forward - first), rel=1e-3)
