"""Arguments of attention calls: no mask where flash attention could run, and batches that fit."""

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from fake_cuda import FakeDevice
from small_encoders import MODEL1, clip, make

from ssl_vivit import ViViT, ViViTConfig
from ssl_vivit.encoders import named_config
from ssl_vivit.encoders.trunks import blocks
from ssl_vivit.encoders.trunks.frame_blocks import FrameBlocks

CONFIGS = Path(__file__).parents[3] / "recipes" / "configs"


def masked(mask):
    """Return FrameBlocks.attend as one attention with the explicit mask."""

    def attend(self, attention, query, key, value):
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask(self, query.shape[2], query.device)
        )

    return attend


@pytest.mark.parametrize("window", [None, 1, 3, 9])
@pytest.mark.parametrize(("class_tokens", "registers"), [(0, 0), (1, 0), (0, 2), (1, 2)])
def test_the_mask_of_frame_blocks_is_its_definition(class_tokens, registers, window):
    layout = FrameBlocks(class_tokens, registers, 4, window)
    kinds = ["class"] * class_tokens + ["register"] * registers
    when = [None] * len(kinds) + [step for step in range(4) for _ in range(3)]
    kinds += ["token"] * 12
    mask = layout.mask(len(kinds), torch.device("cpu"))
    for row, query in enumerate(kinds):
        for column, key in enumerate(kinds):
            if query == "class":
                expected = True
            elif key == "class" or query == "register":
                expected = key == "register"
            elif key == "register":
                expected = True
            else:
                expected = 0 <= when[row] - when[column] < (window or 4)
            assert mask[row, column] == expected, (query, key, row, column)


@pytest.mark.parametrize("window", [None, 1, 2])
@pytest.mark.parametrize(
    "settings",
    [{}, {"class_token": False, "pooling": "mean"}, {"register_tokens": 2, "block": "parallel"}],
)
def test_time_step_by_time_step_is_attention_with_the_mask(monkeypatch, settings, window):
    encoder, found = make(**MODEL1 | settings | {"temporal_causal": True}), []
    for attend in (FrameBlocks.attend, masked(FrameBlocks.mask)):
        monkeypatch.setattr(FrameBlocks, "attend", attend)
        video = clip().requires_grad_()
        with encoder.attention_window(window):
            out = encoder(video)
        (gradient,) = torch.autograd.grad(out.tokens.square().sum() + out.pooled.sum(), video)
        found.append((out.tokens, out.pooled, gradient))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize("mask", [None, "causal", "for all", "for each"])
def test_batches_beyond_the_largest_are_split(monkeypatch, mask):
    config = ViViTConfig(**MODEL1)
    heads = blocks.HeadAttention(config).double()
    query, key, value = (torch.randn(7, 5, 24, dtype=torch.float64) for _ in range(3))
    if mask in ("for all", "for each"):
        mask = torch.rand(7 if mask == "for each" else 1, 1, 5, 5) < 0.5
        mask |= torch.eye(5, dtype=torch.bool)
    expected = heads(query, key, value, None, mask)
    monkeypatch.setattr(blocks, "LARGEST_BATCH", 3)
    seen = spy(monkeypatch)
    torch.testing.assert_close(heads(query, key, value, None, mask), expected, rtol=0, atol=1e-14)
    assert [call.batch for call in seen] == [3, 3, 1]


@dataclasses.dataclass
class Call:
    """Arguments of a call of attention."""

    batch: int
    dtypes: set
    mask: torch.Tensor | None
    causal: bool


def spy(monkeypatch):
    """Record all further calls of attention."""
    calls, original = [], F.scaled_dot_product_attention

    def called(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False):
        calls.append(Call(len(query), {x.dtype for x in (query, key, value)}, attn_mask, is_causal))
        return original(query, key, value, attn_mask, dropout_p, is_causal)

    monkeypatch.setattr(F, "scaled_dot_product_attention", called)
    return calls


def preset_encoders():
    """Return each preset that names an encoder."""
    for path in sorted(CONFIGS.glob("*.yaml")):
        settings = yaml.safe_load(path.read_text())
        encoder = settings.get("encoder") or {}
        if "name" in encoder:
            yield pytest.param(settings, id=path.stem)


@pytest.mark.parametrize("settings", list(preset_encoders()))
def test_attention_of_each_preset(monkeypatch, settings):
    """Run a full batch of the preset on fake tensors of one GPU, under autocast."""
    encoder = settings["encoder"]
    config = named_config(encoder["name"], **encoder.get("overrides") or {})
    # Depth changes no shape.
    shallow = {"depth": 1} if config.depth else {"spatial_depth": 1, "temporal_depth": 1}
    with torch.device("meta"):
        model = ViViT(dataclasses.replace(config, **shallow)).train()
        clips = settings["training"]["total_batch_size"] * 2
        size = (config.num_frames, *config.image_size)
        video = torch.empty(clips, config.in_channels, *size)
    place, calls = FakeDevice("cuda"), spy(monkeypatch)
    place.fake(model)
    video = place.fake(video)
    with place.watched() as waits:
        model(video)
    assert waits.found == []
    assert calls
    for call in calls:
        assert call.batch <= 65_535
        assert call.dtypes == {torch.bfloat16}
        assert call.mask is None
    assert any(call.causal for call in calls) == config.temporal_causal
