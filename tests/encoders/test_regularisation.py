"""Dropout of patches, attention, MLP and branches: scale in training, no effect in eval mode."""

import pytest
import torch
from small_encoders import MODEL1, MODEL2, MODEL3, MODEL4, MODELS, PARALLEL, clip, make
from torch import nn

by_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


@by_model
@pytest.mark.parametrize("block", [{}, PARALLEL])
@pytest.mark.parametrize("name", ["patch_dropout", "attention_dropout", "mlp_dropout", "drop_path"])
def test_regularisation_acts_only_in_training(name, model, block):
    encoder, video = make(**model, **block, **{name: 0.5}), clip()
    plain = make(**model, **block)
    assert torch.equal(encoder(video).tokens, plain(video).tokens)
    assert torch.equal(encoder(video).tokens, encoder(video).tokens)
    encoder.train()
    plain.train()
    torch.manual_seed(0)
    first, second = encoder(video).tokens, encoder(video).tokens
    assert not torch.equal(first, second)
    assert torch.equal(plain(video).tokens, plain.eval()(video).tokens)


@by_model
@pytest.mark.parametrize(("share", "count"), [(0.2, 1), (0.5, 3), (0.9, 5)])
def test_patch_dropout_leaves_zeros_for_whole_tubes(model, share, count):
    encoder, video = make(**model, patch_dropout=share).train(), clip()
    output = encoder(video)
    dropped = (output.tokens == 0).all(-1)
    assert (dropped.sum(-1) == count).all()
    assert (dropped == dropped[:, :1]).all()
    # The kept ones are what a mask of them gives.
    for b in range(2):
        kept = (~dropped[b, 0]).nonzero()[:, 0][None]
        alone = encoder.eval()(video[b : b + 1], kept)
        torch.testing.assert_close(
            alone.tokens[0], output.tokens[b][:, kept[0]], rtol=0, atol=1e-12
        )
        torch.testing.assert_close(alone.pooled[0], output.pooled[b], rtol=0, atol=1e-12)


def test_patch_dropout_takes_from_the_visible():
    visible = torch.tensor([[5, 0, 3, 1], [2, 4, 1, 0]])
    encoder, video = make(**MODEL2, patch_dropout=0.5).train(), clip()
    tokens = encoder(video, visible).tokens
    assert tokens.shape == (2, 4, 4, 24)
    assert ((tokens == 0).all(-1).sum(-1) == 2).all()
    tokens = make(**MODEL1, patch_dropout=0.5).train()(video, visible_tokens=visible).tokens
    assert tokens.shape == (2, 1, 4, 24)
    assert ((tokens == 0).all(-1).sum(-1) == 2).all()


@by_model
def test_random_numbers_that_are_given_choose_the_patches(model):
    encoder, video = make(**model, patch_dropout=0.5).train(), clip()
    numbers = torch.tensor([[0.9, 0.1, 0.5, 0.2, 0.8, 0.3], [0.1, 0.2, 0.9, 0.8, 0.7, 0.3]])
    tokens = encoder(video, patch_draw=numbers).tokens
    for b, kept in enumerate(([1, 3, 5], [0, 1, 5])):
        seen = (tokens[b] != 0).any(-1)
        assert torch.equal(seen, torch.isin(torch.arange(6), torch.tensor(kept)).expand_as(seen))
    with pytest.raises(ValueError, match=r"patch_draw of shape \(2, 5\) must be \(2, 6\)"):
        encoder(video, patch_draw=numbers[:, :5])
    plain = encoder.eval()(video).tokens
    assert torch.equal(encoder(video, patch_draw=numbers).tokens, plain)


def test_random_numbers_that_are_given_choose_among_the_visible():
    visible = torch.tensor([[5, 0, 3, 1], [2, 4, 1, 0]])
    numbers = torch.tensor([[0.3, 0.1, 0.2, 0.4], [0.4, 0.3, 0.2, 0.1]])
    encoder, video = make(**MODEL2, patch_dropout=0.5).train(), clip()
    tokens = encoder(video, visible, patch_draw=numbers).tokens
    expected = torch.tensor([[False, True, True, False], [False, False, True, True]])
    assert torch.equal((tokens != 0).any(-1)[:, 0], expected)
    encoder = make(**MODEL1, patch_dropout=0.5).train()
    tokens = encoder(video, visible_tokens=visible, patch_draw=numbers).tokens
    assert torch.equal((tokens != 0).any(-1)[:, 0], expected)


def test_stochastic_depth_keeps_the_expectation():
    encoder = make(**(MODEL2 | {"spatial_depth": 1, "temporal_depth": 1}), drop_path=0.5).train()
    branch = encoder.trunk.temporal_blocks[0].mlp_branch
    torch.manual_seed(0)
    x = torch.ones(20_000, 1, 1, dtype=torch.float64)
    out = branch(x)
    assert set(out.unique().tolist()) == {0.0, 2.0}
    assert abs(out.mean().item() - 1.0) < 0.03
    first = encoder.trunk.spatial_blocks[0].mlp_branch.drop_path
    assert isinstance(first, nn.Identity)


def test_stochastic_depth_rises_linearly_through_all_blocks():
    for model in MODELS.values():
        encoder = make(**model, drop_path=0.3)
        if model is MODEL2:
            blocks = [*encoder.trunk.spatial_blocks, *encoder.trunk.temporal_blocks]
        else:
            blocks = encoder.trunk.blocks
        rates = [getattr(block.mlp_branch.drop_path, "drop_prob", 0.0) for block in blocks]
        assert rates == pytest.approx([0.3 * i / (len(blocks) - 1) for i in range(len(blocks))])


@pytest.mark.parametrize("model", [MODEL3, MODEL4])
def test_a_branch_is_dropped_for_a_whole_clip(model):
    """With the last block's branches dropped, all tokens of a clip equal those of the block before."""
    settings = model | {"drop_path": 0.7, "final_norm": "none"}
    encoder, video = make(**settings).train(), clip(batch=16)
    before = []
    encoder.trunk.blocks[1].register_forward_pre_hook(lambda _, args: before.append(args[0].tokens))
    torch.manual_seed(0)
    same = (encoder(video).tokens == before[0]).all(-1)
    by_clip = same.flatten(1)
    assert (by_clip.all(1) == by_clip.any(1)).all()
    assert 0 < by_clip.all(1).sum() < 16
