"""Encoders on fake CUDA tensors: all tensors on one device, and no operation makes the host wait."""

import pytest
import torch
from fake_cuda import FakeDevice
from small_encoders import CASES, MODELS, ROTARY

from ssl_vivit import ViViT, ViViTConfig


def causal(settings):
    return settings | {"temporal_causal": True, "temporal_padding": "causal"}


def ran(settings, device, visible=(), window=None, recompute=False, by_token=False):
    """Return the operations of a forward pass, and on ``meta`` of a backward pass, that the host would wait for."""
    encoder = ViViT(ViViTConfig(**settings | {"drop_path": 0.1})).train()
    encoder.set_grad_checkpointing(recompute)
    place = FakeDevice(device)
    place.fake(encoder)
    video = place.fake(torch.empty(2, 3, 8, 16, 24))
    masks = {}
    if visible:
        name = "visible_tokens" if by_token else "visible"
        masks = {name: place.fake(torch.empty(visible, dtype=torch.long))}
    with place.watched() as waits, encoder.attention_window(window):
        out = encoder(video, **masks)
        loss = out.pooled.float().square().mean() + out.tokens.float().mean()
        assert loss.device.type == device
        if device == "meta":
            loss.backward()
            trained = [p for p in encoder.parameters() if p.grad is not None]
            assert len(trained) > 10
            assert all(p.grad.device.type == device for p in trained)
    return waits.found


@pytest.mark.parametrize("name", CASES)
def test_a_forward_pass_under_autocast_waits_for_nothing(name):
    assert ran(CASES[name], "cuda") == []
    settings = causal(CASES[name])
    assert ran(settings, "cuda", (2, ViViTConfig(**settings).grid.t, 3)) == []


def test_sampled_frames_are_taken_without_an_index_from_the_host():
    sampled = MODELS["encoder"] | {
        "tubelet_embedding": "uniform_frames", "sampled_frames": 4, "tubelet_size": (1, 8, 8),
    }  # fmt: skip
    assert ran(sampled, "cuda") == []


by_variant = pytest.mark.parametrize("name", MODELS)


@by_variant
def test_a_backward_pass_waits_for_nothing(name):
    settings = MODELS[name] | {"register_tokens": 1} | ROTARY
    assert ran(causal(settings), "meta", (2, 4, 3), recompute=True) == []
    assert ran(settings | {"patch_dropout": 0.5}, "meta") == []


@by_variant
def test_windows_of_attention_and_tube_masks_wait_for_nothing(name):
    assert ran(causal(MODELS[name]), "cuda", window=2) == []
    assert ran(MODELS[name], "cuda", (2, 3)) == []
    if name == "joint":
        assert ran(causal(MODELS[name]), "cuda", (2, 5), by_token=True) == []


def test_what_waits_is_found():
    """The record finds each kind of operation that waits."""
    place = FakeDevice("cuda")
    there = place.fake(torch.empty(3))
    with place.mode:
        here = torch.empty(3)
    with place.watched() as waits:
        here.to("cuda")
        here.to("cuda", non_blocking=True)
        here.pin_memory().to("cuda", non_blocking=True)
        there.to("cpu")
        with pytest.raises(Exception, match=r"nonzero|data-dependent|dynamic"):
            there.nonzero()
        with pytest.raises(Exception, match=r"item|data-dependent|scalar"):
            there[0].item()
    found = " ".join(waits.found)
    assert len(waits.found) == 5, found
    with place.mode, pytest.raises(RuntimeError, match=r"same device|different devices"):
        there + here
