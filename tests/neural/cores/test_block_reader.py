"""Blocks of an encoder that a model of neurons reads: tokens, weighted sum, errors."""

from __future__ import annotations

import pytest
import torch
from small_models import clip, encoder, model, walk

from ssl_vivit.encoders.classifier import VideoClassifier
from ssl_vivit.encoders.intermediates import block_names, freeze_unread
from ssl_vivit.errors import NeuralModelError
from ssl_vivit.neural.building import build_neural_model
from ssl_vivit.neural.config import BaselineConfig, NeuralEncoderChoice, NeuralModelConfig
from ssl_vivit.neural.cores.block_reader import BlockReader, blocks_told, chosen_blocks
from ssl_vivit.neural.cores.causal_resnet import CausalResNet, CausalResNetConfig
from ssl_vivit.neural.cores.vivit_core import ViViTCore
from ssl_vivit.neural.model import NeuralModel
from ssl_vivit.neural.modulators import ConvGRU

DEEP = {
    "joint": {"variant": "joint", "depth": 3},
    "joint, class token, registers": {
        "variant": "joint", "depth": 3, "class_token": True, "register_tokens": 2,
    },
    "factorized_encoder": {"spatial_depth": 2, "temporal_depth": 2},
    "class token, registers, learned positions": {
        "spatial_depth": 2, "temporal_depth": 2, "class_token": True, "register_tokens": 2,
        "spatial_positions": "learned", "temporal_positions": "learned",
    },
    "temporal class token": {
        "spatial_depth": 2, "temporal_depth": 2, "class_token": True, "pooling": "temporal_cls",
    },
    "joint positions": {
        "spatial_depth": 2, "temporal_depth": 2, "spatial_positions": "none",
        "temporal_positions": "none", "joint_positions": "learned",
    },
    "frame pooling": {"spatial_depth": 2, "temporal_depth": 2, "frame_pooling": "mean"},
    "no temporal blocks": {"spatial_depth": 3, "temporal_depth": 0},
    "factorized_self_attention": {
        "variant": "factorized_self_attention", "depth": 3, "register_tokens": 1,
    },
    "factorized_dot_product": {"variant": "factorized_dot_product", "depth": 3},
    "pooled norm": {"spatial_depth": 2, "temporal_depth": 2, "final_norm": "pooled"},
    "no norm": {"variant": "joint", "depth": 3, "final_norm": "none"},
}  # fmt: skip
by_encoder = pytest.mark.parametrize("settings", DEEP.values(), ids=DEEP)


def deep(settings):
    """Return an encoder whose blocks and norms all have different effects."""
    torch.manual_seed(0)
    made = encoder(**settings).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


def features_of(core, video, norm=True):
    """Return maps (b, d, t, h, w) of all blocks."""
    return VideoClassifier(core, 0).forward_intermediates(video, norm=norm, intermediates_only=True)


@torch.no_grad()
@by_encoder
def test_one_block_gives_its_normalised_tokens(settings):
    core, video = deep(settings), clip(batch=2, frames=8)
    expected = features_of(core, video)
    for block, map in enumerate(expected):
        found = BlockReader([block])(core, video)
        torch.testing.assert_close(found, map, rtol=0, atol=0)
        assert found.shape == (2, 24, 2, 2, 3)
        whole = model(core, layers=block, randomised=False)
        torch.testing.assert_close(whole.tokens(video)[0], map, rtol=0, atol=0)
    assert torch.equal(found, core(video).map)


@torch.no_grad()
@by_encoder
def test_several_blocks_are_a_weighted_sum(settings):
    """The sum equals a loop over blocks and tokens, with an explicit norm if the encoder has none."""
    core, video = deep(settings), clip(frames=8)
    count = len(block_names(core))
    blocks = [0, count - 2, count - 1]
    reader = BlockReader(blocks).double()
    logits = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    reader.logits.copy_(logits)
    shares = (logits.exp() / logits.exp().sum()).tolist()
    maps = features_of(core, video)
    found = reader(core, video)
    for t in range(2):
        for y in range(2):
            for x in range(3):
                expected = torch.zeros(1, 24, dtype=torch.float64)
                for block, share in zip(blocks, shares, strict=True):
                    token = maps[block][:, :, t, y, x]
                    if core.config.final_norm != "tokens":
                        deviation = token - token.mean(1, keepdim=True)
                        variance = deviation.square().mean(1, keepdim=True)
                        token = deviation / (variance + core.config.norm_eps).sqrt()
                    expected += share * token
                torch.testing.assert_close(found[:, :, t, y, x], expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_weights_start_equal_and_are_part_of_the_model():
    whole = model(deep(DEEP["factorized_encoder"]), layers="all", randomised=False)
    torch.testing.assert_close(
        whole.tokens(clip(frames=8))[0],
        torch.stack(features_of(whole.encoder, clip(frames=8))).mean(0),
        rtol=0, atol=1e-12,
    )  # fmt: skip
    assert whole.state_dict()["block_reader.logits"].tolist() == [0.0] * 4
    extent = "the encoder has blocks 0 to 1 (spatial), 2 to 3 (temporal)"
    terms = ", ".join(f"block {block} (0.250)" for block in range(4))
    expected = f"sum of {terms}; {extent}"
    assert blocks_told(whole.encoder, whole.block_reader) == expected
    assert blocks_told(whole.encoder, BlockReader([1])) == f"block 1; {extent}"
    assert blocks_told(whole.encoder, None) == f"the last block; {extent}"
    assert blocks_told(deep(DEEP["joint"]), None) == "the last block; the encoder has blocks 0 to 2"


@torch.no_grad()
def test_the_last_block_is_read_by_default():
    core, video = deep(DEEP["factorized_encoder"]), clip(frames=11)
    plain = model(core, modulator=ConvGRU(24, 2, 4, hidden=5))
    state = plain.state_dict()
    for layers in (-1, 3, [3], [-1]):
        whole = model(core, modulator=ConvGRU(24, 2, 4, hidden=5), layers=layers)
        assert whole.block_reader is None
        assert whole.state_dict().keys() == state.keys()
        whole.load_state_dict(state)
        assert torch.equal(whole(video, walk(frames=11)), plain(video, walk(frames=11)))


@pytest.mark.parametrize("layers", [0, [1, 0], 2, [-2, 0]])
@by_encoder
def test_later_blocks_are_not_computed(settings, layers):
    core = deep(settings)
    blocks = chosen_blocks(core, layers)
    calls = []
    for name in block_names(core):
        block = core.get_submodule(name)
        block.forward = lambda *args, run=block.forward, name=name: (
            calls.append(name),
            run(*args),
        )[1]
    BlockReader(blocks)(core, clip(frames=8))
    assert calls == block_names(core)[: blocks[-1] + 1]


def test_numbers_of_blocks_count_from_either_end_and_rise():
    core = deep(DEEP["factorized_encoder"])
    assert chosen_blocks(core, "all") == [0, 1, 2, 3]
    assert chosen_blocks(core, -4) == [0]
    assert chosen_blocks(core, (3, 0, -2)) == [0, 2, 3]


@torch.no_grad()
def test_patches_are_dropped_by_the_numbers_that_are_given():
    core = deep(DEEP["factorized_encoder"] | {"patch_dropout": 0.5}).train()
    video, draw = clip(batch=2, frames=8), torch.rand(2, 6)
    for reader in (BlockReader([1]), BlockReader([0, 3]).double()):
        map = ViViTCore(core, reader).dense(video, draw)
        dropped = (map == 0).all(1)
        assert torch.equal(dropped, (core(video, patch_draw=draw).map == 0).all(1))
        assert dropped.sum() == 2 * 2 * 3
        assert torch.equal(ViViTCore(core, reader).dense(video, draw), map)


@pytest.mark.parametrize("layers", [0, 2, [0, 2], "all"])
@by_encoder
def test_gradient_checkpointing_changes_no_gradient(settings, layers):
    found = []
    for enable in (False, True):
        core = deep(settings)
        core.set_grad_checkpointing(enable)
        whole = model(core, layers=layers)
        whole(clip(frames=8)).square().sum().backward()
        found.append({n: p.grad for n, p in whole.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("layers", [0, 1, 2, -1, [0, 1], "all"])
@by_encoder
def test_parameters_are_trainable_if_and_only_if_they_take_part(settings, layers):
    core = deep(settings)
    core.freeze_pooling()
    whole = model(core, layers=layers)
    if whole.block_reader is not None:
        freeze_unread(core, whole.block_reader.blocks[-1])
    trainable = {name for name, p in whole.named_parameters() if p.requires_grad}
    whole.requires_grad_(True)
    whole(clip(frames=12)).square().sum().backward()
    found = {n for n, p in whole.named_parameters() if p.grad is not None and p.grad.any()}
    assert found == trainable


def test_half_precision_gives_rates_in_full():
    whole = model(deep(DEEP["factorized_encoder"]), layers="all").float()
    video = clip(frames=9).float()
    with torch.autocast("cpu", torch.bfloat16):
        rates = whole(video)
    assert rates.dtype == torch.float32
    torch.testing.assert_close(rates, whole(video), rtol=0.1, atol=0.05)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (
            4,
            r"layers names block 4; .* blocks 0 to 1 \(spatial\), 2 to 3 \(temporal\), and -1 to -4",
        ),
        (-5, "layers names block -5; "),
        ([0, 7], "layers names block 7; "),
        ([], "layers is an empty list; name one block or more, or give null for the last"),
        ([1, 0, -3], r"layers \[1, 0, -3\] names block 1 twice; name it once"),
        (
            "last",
            "layers 'last' must be the number of a block, a list of such numbers, all, or null",
        ),
        (True, "layers True must be"),
        (1.0, r"layers 1\.0 must be"),
        ([0, "1"], r"layers \[0, '1'\] must be"),
        ({0: 1}, r"layers \{0: 1\} must be"),
    ],
)
def test_blocks_that_cannot_be_read_are_refused_in_one_line(layers, message):
    with pytest.raises(NeuralModelError, match=f"^model.{message}") as error:
        model(deep(DEEP["factorized_encoder"]), layers=layers)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("core", ["ln", "ln_separable", "energy", "resnet", "x3d"])
def test_other_cores_have_no_blocks(core):
    config = NeuralModelConfig(layers=0)
    with pytest.raises(
        NeuralModelError, match=f"--core {core} has no blocks .*--model.layers is 0;"
    ):
        build_neural_model(
            core, NeuralEncoderChoice(), config, BaselineConfig(), [], longest=10
        )  # fmt: skip
    core = CausalResNet(CausalResNetConfig())
    with pytest.raises(NeuralModelError, match=r"is a CausalResNet; set model\.layers to null"):
        NeuralModel(core, readouts={"a": torch.nn.Identity()}, layers=0)
