"""Compiled encoders and decoders: no graph breaks, and a bounded number of graphs in a run."""

import pytest
import torch
from small_encoders import MODELS, ROTARY
from torch._dynamo.testing import CompileCounter

from ssl_vivit import ViViT, ViViTConfig
from ssl_vivit.objectives.masked_tubelets import MaskedTubelets

SHALLOW = {"joint": {"depth": 1}, "encoder": {"spatial_depth": 1, "temporal_depth": 1}}
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _no_older_graphs():
    torch.compiler.reset()


def objective_of(name, mask):
    shallow = SHALLOW.get(name, {"depth": 1})
    settings = {"pooling": "mean", "class_token": False, "joint_positions": None} | ROTARY
    torch.manual_seed(0)
    encoder = ViViT(ViViTConfig(**MODELS[name] | settings | shallow))
    return MaskedTubelets(encoder, mask=mask, mask_ratio=0.5, decoder_dim=32, decoder_depth=1)


@pytest.mark.parametrize("name", MODELS)
def test_masks_lengths_and_an_evaluation_in_between_take_few_graphs(name):
    objective, counter = objective_of(name, "random"), CompileCounter()
    # A graph break is an error.
    objective.compile(backend=counter, fullgraph=True)
    for round in range(3):
        objective.train()
        for frames in (8, 8, 4):
            clips = torch.randn(2, 1, 3, frames, 16, 24)
            objective({"clips": clips}).loss.backward()
        objective.eval()
        with torch.no_grad():
            objective({"clips": torch.randn(2, 1, 3, 8, 16, 24)})
            objective.features({"clips": torch.randn(2, 1, 3, 8, 16, 24)})
        if round == 0:
            warm = counter.frame_count
    # Encoder and decoder each have one for training, for another length, and for evaluation; the
    # encoder has a fourth for whole clips.
    assert counter.frame_count == warm == 7


def test_compiled_numbers_are_those_of_plain_code():
    plain, compiled = (objective_of("encoder", "tube") for _ in range(2))
    compiled.compile(backend="aot_eager")
    batch = {"clips": torch.randn(2, 1, 3, 8, 16, 24)}
    batch["mask"] = plain.draw_mask(batch["clips"][:, 0])
    losses = [objective(batch).loss for objective in (plain, compiled)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)
    for one, other in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)
