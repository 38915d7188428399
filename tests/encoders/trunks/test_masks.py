"""Tube masks and token masks: full masks change nothing, and hidden tokens have no effect."""

import pytest
import torch
from small_encoders import CASES, MODEL1, MODEL2, MODEL3, MODEL4, PARALLEL, ROTARY, clip, make

by_case = pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
joint = pytest.mark.parametrize(
    "settings", [v for v in CASES.values() if v.get("variant") == "joint"]
)


@torch.no_grad()
@by_case
def test_all_tubes_visible_equals_no_mask_and_permutes(settings):
    encoder, video = make(**settings), clip()
    full = encoder(video)
    order = torch.stack([torch.randperm(full.grid.n) for _ in range(2)])
    masked = encoder(video, order)
    expected = torch.stack([full.tokens[b][:, order[b]] for b in range(2)])
    torch.testing.assert_close(masked.tokens, expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(masked.pooled, full.pooled, rtol=0, atol=1e-11)
    if full.cls is not None:
        torch.testing.assert_close(masked.cls, full.cls, rtol=0, atol=1e-11)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_indices_may_be_of_any_whole_number_type(dtype):
    encoder, video = make(**MODEL2), clip()
    for visible in (torch.tensor([[0, 4], [3, 1]]), torch.tensor([[[0, 4]] * 4, [[3, 1]] * 4])):
        expected, got = encoder(video, visible), encoder(video, visible.to(dtype))
        assert torch.equal(got.tokens, expected.tokens)


@by_case
def test_hidden_pixels_reach_no_token(settings):
    encoder, video = make(**settings), clip().requires_grad_()
    output = encoder(video, torch.tensor([[0, 4], [4, 0]]))
    (output.tokens.square().sum() + output.pooled.square().sum()).backward()
    height, width = encoder.config.tubelet_size[1:]
    rows, columns = encoder.config.tubelet_stride[1:]
    seen = torch.zeros(16, 24, dtype=torch.bool)
    for index in (0, 4):
        row, column = divmod(index, encoder.config.grid.w)
        seen[row * rows : row * rows + height, column * columns : column * columns + width] = True
    gradient = video.grad.abs().amax((0, 1, 2))
    assert (gradient[~seen] == 0).all()
    assert (gradient[seen] > 0).all()


@torch.no_grad()
@joint
@pytest.mark.parametrize("causal", [False, True])
def test_all_tokens_visible_equals_no_mask_and_permutes(settings, causal):
    encoder, video = make(**settings, temporal_causal=causal), clip()
    full = encoder(video)
    order = torch.stack([torch.randperm(24) for _ in range(2)])
    masked = encoder(video, visible_tokens=order)
    assert masked.tokens.shape == (2, 1, 24, 24)
    expected = full.tokens.flatten(1, 2).gather(1, order[..., None].expand(-1, -1, 24))
    torch.testing.assert_close(masked.tokens[:, 0], expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(masked.pooled, full.pooled, rtol=0, atol=1e-11)


@torch.no_grad()
@joint
@pytest.mark.parametrize("causal", [False, True])
def test_token_masks_that_are_tubes_equal_tube_masks(settings, causal):
    encoder, video = make(**settings, temporal_causal=causal), clip()
    tubes = torch.tensor([[5, 1], [0, 3]])
    tokens = (torch.arange(4)[:, None] * 6 + tubes[:, None]).flatten(1)
    by_tube, by_token = encoder(video, tubes), encoder(video, visible_tokens=tokens)
    torch.testing.assert_close(
        by_token.tokens[:, 0], by_tube.tokens.flatten(1, 2), rtol=0, atol=1e-11
    )
    torch.testing.assert_close(by_token.pooled, by_tube.pooled, rtol=0, atol=1e-11)


@joint
def test_pixels_of_hidden_tokens_reach_nothing(settings):
    encoder, video = make(**settings), clip(batch=1).requires_grad_()
    output = encoder(video, visible_tokens=torch.tensor([[0, 10, 23]]))
    (output.tokens.square().sum() + output.pooled.square().sum()).backward()
    seen = torch.zeros(8, 16, 24, dtype=torch.bool)
    for token in (0, 10, 23):
        t, row, column = token // 6, token % 6 // 3, token % 3
        seen[2 * t : 2 * t + 2, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = True
    gradient = video.grad.abs().amax((0, 1))
    assert torch.equal(gradient > 0, seen)


@torch.no_grad()
@pytest.mark.parametrize(
    "settings",
    [{}, ROTARY, {"class_token": False, "register_tokens": 2}, {"temporal_causal": True}],
)
@pytest.mark.parametrize("block", [{}, PARALLEL])
@pytest.mark.parametrize("model", [MODEL1, MODEL2])
def test_class_only_path_equals_the_dense_one(model, block, settings):
    encoder, video = make(**(model | block | settings)), clip()
    dense, sparse = encoder(video), encoder(video, tokens=False)
    assert sparse.tokens is None
    torch.testing.assert_close(sparse.pooled, dense.pooled, rtol=0, atol=1e-12)
    if dense.cls is not None:
        torch.testing.assert_close(sparse.cls, dense.cls, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "mask", "message"),
    [
        (MODEL2, {"visible_tokens": torch.tensor([[0]])}, "use visible, or variant"),
        (MODEL3, {"visible_tokens": torch.tensor([[0]])}, "not supported by factorized_self"),
        (MODEL4, {"visible_tokens": torch.tensor([[0]])}, "or variant='joint'"),
        (MODEL1, {"visible_tokens": torch.tensor([[0]]), "visible": torch.tensor([[0]])},
         "not both"),
        (MODEL2, {"visible": torch.tensor([0, 1])}, r"visible of shape \(2,\).*of shape \(B, kept\)"),
        (MODEL2, {"visible": torch.tensor([[0], [1]])}, "B = 1, the number of clips"),
        (MODEL2, {"visible": torch.ones(1, 6, dtype=torch.bool)}, "give the indices of visible positions"),
        (MODEL2, {"visible": torch.tensor([[0.0]])}, "whole-number"),
        (MODEL2, {"visible": [[0, 1]]}, "visible is a list; give a tensor of indices"),
        (MODEL2, {"visible": torch.tensor([[6]])}, "visible has indices from 6 to 6.*0 to 5"),
        (MODEL1, {"visible_tokens": torch.tensor([[-1, 3]])}, "from -1 to 3.*0 to 23"),
        (MODEL2, {"visible": torch.tensor([[3, 0, 3]])}, "visible has an index twice"),
        (MODEL2, {"visible": torch.zeros(1, 4, 2, dtype=torch.int64)}, "has an index twice"),
        (MODEL2, {"visible": torch.zeros(1, 0, dtype=torch.int64)}, "hides all tokens; keep one or more"),
    ],
)  # fmt: skip
def test_masks_that_do_not_fit_are_refused(settings, mask, message):
    with pytest.raises(ValueError, match=message) as refusal:
        make(**settings)(clip(batch=1), **mask)
    assert "\n" not in str(refusal.value)


@torch.no_grad()
def test_masked_tokens_have_no_map():
    encoder = make(**MODEL1)
    for mask in ({"visible": torch.tensor([[0], [1]])}, {"visible_tokens": torch.arange(24)[None]}):
        output = encoder(clip(batch=len(next(iter(mask.values())))), **mask)
        with pytest.raises(ValueError, match="encode without visible"):
            _ = output.map
