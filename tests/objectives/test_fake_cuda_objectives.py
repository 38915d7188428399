"""Objectives on fake CUDA tensors: all tensors on one device, no operation makes the host wait."""

import pytest
import torch
from fake_cuda import FakeDevice
from small_encoders import MODELS, ROTARY
from small_models import encoder as neural_encoder

from ssl_vivit import ViViT, ViViTConfig
from ssl_vivit.neural.model import NeuralModel
from ssl_vivit.neural.modulators import ConvGRU
from ssl_vivit.neural.readout.gaussian import GaussianReadout
from ssl_vivit.objectives.masked_tubelets import MaskedTubelets
from ssl_vivit.objectives.neural_prediction import predict_parts
from ssl_vivit.objectives.simclr import SimCLR

by_device = pytest.mark.parametrize("device", ["cuda", "meta"])


def waits_of(objective, clips, device, draw=None):
    place = FakeDevice(device)
    # The host may wait for the metrics of steps that are logged.
    objective.logs_step = False
    place.fake(objective.train())
    batch = {"clips": place.fake(clips)}
    if draw is not None:
        batch["draw"] = draw
    with place.watched() as waits:
        loss = objective(batch).loss
        assert loss.device.type == device
        if device == "meta":
            loss.backward()
    return waits.found


@by_device
@pytest.mark.parametrize("mask", ["random", "tube", "block"])
@pytest.mark.parametrize("name", ["joint", "encoder"])
def test_masked_tubelets(name, mask, device):
    settings = {"pooling": "mean", "class_token": False, **ROTARY}
    encoder = ViViT(ViViTConfig(**MODELS[name] | settings))
    encoder.set_grad_checkpointing(device == "meta")
    objective = MaskedTubelets(encoder, mask=mask, mask_ratio=0.5, decoder_dim=32, decoder_depth=1)
    assert waits_of(objective, torch.empty(2, 1, 3, 8, 16, 24), device) == []


@by_device
def test_simclr(device):
    objective = SimCLR(ViViT(ViViTConfig(**MODELS["encoder"])), hidden_dim=8, output_dim=8)
    assert waits_of(objective, torch.empty(2, 2, 3, 8, 16, 24), device) == []


def test_simclr_that_drops_patches_by_names():
    encoder = ViViT(ViViTConfig(**MODELS["encoder"], patch_dropout=0.5))
    objective = SimCLR(encoder, hidden_dim=8, output_dim=8)
    draw = [("seed", 0), ("seed", 1)]
    assert waits_of(objective, torch.empty(2, 2, 3, 8, 16, 24), "cuda", draw) == []


def test_neural_prediction_with_names_of_draws_and_shared_movies():
    readouts = {name: GaussianReadout(5, 24, shifter=True) for name in ("a", "b")}
    core = neural_encoder(patch_dropout=0.5)
    model = NeuralModel(core, None, ConvGRU(24, 2, 4, hidden=5), readouts)
    place = FakeDevice("cuda")
    place.fake(model.train())
    parts = [
        place.fake({
            "session": session, "video": torch.empty(2, 1, 9, 8, 12),
            "behaviour": torch.empty(2, 9, 2), "pupil_centre": torch.empty(2, 9, 2),
        })
        for session in readouts
    ]  # fmt: skip
    for named in (True, False):
        for part in parts:
            part |= {"draw": [("seed", 0), ("seed", 1)]} if named else {"shows": [0, 0]}
            part.pop("shows" if named else "draw", None)
        with place.watched() as waits:
            rates = predict_parts(model, parts)
            assert all(each.device.type == "cuda" for each in rates)
        assert waits.found == []
