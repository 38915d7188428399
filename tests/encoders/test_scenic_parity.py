"""Models 2 and 3 against numbers made by google-research/scenic."""

import pytest
import torch
from scenic_weights import ScenicCase

CASES = ["model2_token", "model2_gap", "model2_token_lowvar", "model3_space_time"]


@pytest.mark.parametrize("name", CASES)
def test_outputs_equal_scenic(name):
    case = ScenicCase(name)
    with torch.no_grad():
        pooled = case.encoder()(case.video).pooled
    prelogits = torch.from_numpy(case.arrays["prelogits_f64"])
    logits = torch.from_numpy(case.arrays["logits_f64"])
    torch.testing.assert_close(pooled, prelogits, rtol=0, atol=1e-10)
    torch.testing.assert_close(case.logits(pooled), logits, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_float32_stays_close_to_scenic(name):
    case = ScenicCase(name)
    with torch.no_grad():
        pooled = case.encoder().float()(case.video.float()).pooled
    prelogits = torch.from_numpy(case.arrays["prelogits_f64"]).float()
    torch.testing.assert_close(pooled, prelogits, rtol=1e-5, atol=1e-5)


def test_gradients_equal_scenic():
    case = ScenicCase("model2_token")
    encoder, video = case.encoder(), case.video.requires_grad_()
    weights = torch.from_numpy(case.arrays["grad_logit_weights"]).double()
    (case.logits(encoder(video).pooled) * weights).sum().backward()

    grad_input = torch.from_numpy(case.arrays["grad_input_f64"]).permute(0, 4, 1, 2, 3)
    torch.testing.assert_close(video.grad, grad_input, rtol=0, atol=1e-9)
    expected = case.state("grad")
    for name, parameter in encoder.named_parameters():
        # Parameter gradients come in float32.
        torch.testing.assert_close(parameter.grad, expected[name], rtol=2e-5, atol=2e-5, msg=name)


def test_intermediates_equal_scenic():
    case = ScenicCase("model2_token")
    encoder = case.encoder()
    with torch.no_grad():
        tokens, grid = encoder.tubelets(case.video)
    embedded = torch.from_numpy(case.arrays["inter/embedding"]).double()
    assert (grid.t, grid.h, grid.w) == embedded.shape[1:4]
    torch.testing.assert_close(tokens, embedded.flatten(2, 3), rtol=0, atol=1e-5)
