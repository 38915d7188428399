"""Masks that differ between time steps, compared with all tokens and masked keys."""

import pytest
import torch
from small_encoders import CASES, MODEL1, MODEL2, MODEL3, MODEL4, PARALLEL, ROTARY, clip, make
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ssl_vivit.encoders.trunks.blocks import HeadAttention
from ssl_vivit.encoders.trunks.frame_blocks import FrameBlocks
from ssl_vivit.encoders.trunks.time_sequences import TimeSequences

STEPS, POSITIONS = 4, 6
# Overlapping tubelets have a grid of their own.
ALIKE = {name: case for name, case in CASES.items() if "overlapping" not in name}
by_case = pytest.mark.parametrize("settings", ALIKE.values(), ids=ALIKE)
both_ways = pytest.mark.parametrize("on_grid", [False, True], ids=["row", "grid"])


def random_visible(kept: int, batch: int = 2) -> Tensor:
    """Return other positions at every time step, in random order; position 5 is never visible."""
    generator = torch.Generator().manual_seed(3)
    return torch.rand(batch, STEPS, POSITIONS - 1, generator=generator).argsort(-1)[..., :kept]


def compute(monkeypatch, on_grid: bool) -> None:
    """Set which of the two implementations computes attention over time."""
    made = TimeSequences.of
    monkeypatch.setattr(TimeSequences, "of", lambda *args, **kw: made(*args, **kw, on_grid=on_grid))


def with_masked_keys(monkeypatch, encoder, visible: Tensor) -> None:
    """Run every attention of the encoder over all tokens, with hidden tokens masked as keys."""
    config = encoder.config
    there = torch.zeros(len(visible), STEPS, POSITIONS, dtype=torch.bool).scatter(2, visible, True)
    framed = bool(config.class_token) or config.frame_pooling != "none"
    model2 = config.variant == "factorized_encoder"

    def padded(keys: Tensor, before: int, after: int = 0) -> Tensor:
        return torch.nn.functional.pad(keys, (before, after), value=True)

    in_space = padded(there.flatten(0, 1), config.register_tokens + int(config.class_token or 0))
    over_time = there.transpose(1, 2)
    if model2 and framed:
        over_time = torch.cat((torch.ones_like(over_time[:, :1]), over_time), dim=1)
    after = int(config.pooling == "temporal_cls")
    over_time = padded(over_time.flatten(0, 1), config.register_tokens, after)
    jointly = padded(there.flatten(1), config.register_tokens + int(config.class_token or 0))
    by_shape = {tuple(keys.shape): keys for keys in (in_space, over_time)}
    if config.variant == "joint":
        by_shape = {tuple(jointly.shape): jointly}
    forward = HeadAttention.forward

    def masked(self, query, key, value, rotation=None, mask=None):
        keys = by_shape[tuple(key.shape[:2])]
        length = keys.shape[1]
        allowed = keys[:, None, None, :].expand(-1, -1, length, -1)
        if isinstance(mask, Tensor):
            allowed = allowed & mask
        elif isinstance(mask, FrameBlocks):
            allowed = allowed & mask.mask(length, key.device)
        elif mask == "causal":
            allowed = allowed & torch.ones(length, length, dtype=torch.bool).tril()
        # A hidden query would have no key at all; nothing reads what it gives.
        allowed = allowed | torch.eye(length, dtype=torch.bool)
        return forward(self, query, key, value, rotation, allowed)

    monkeypatch.setattr(HeadAttention, "forward", masked)


def visible_of(tokens: Tensor, visible: Tensor) -> Tensor:
    return tokens.gather(2, visible[..., None].expand(-1, -1, -1, tokens.shape[-1]))


@by_case
@both_ways
@pytest.mark.parametrize("causal", [False, True])
def test_equals_all_tokens_with_masked_keys(monkeypatch, settings, on_grid, causal):
    encoder, visible = make(**settings, temporal_causal=causal), random_visible(2)
    if encoder.config.frame_pooling != "none" or encoder.config.temporal_depth == 0:
        pytest.skip("frame vectors are pooled over patches, which hidden ones would change")
    video = clip().requires_grad_()
    with monkeypatch.context() as patch:
        compute(patch, on_grid)
        out = encoder(video, visible)
    (gradient,) = torch.autograd.grad(out.tokens.square().sum(), video)
    assert gradient.isfinite().all()
    with monkeypatch.context() as patch:
        with_masked_keys(patch, encoder, visible)
        full = encoder(video)
    expected = visible_of(full.tokens, visible)
    torch.testing.assert_close(out.tokens, expected, rtol=0, atol=1e-11)
    (slow,) = torch.autograd.grad(expected.square().sum(), video)
    torch.testing.assert_close(gradient, slow, rtol=0, atol=1e-9)
    if out.cls is not None:
        torch.testing.assert_close(out.cls, full.cls, rtol=0, atol=1e-11)


@torch.no_grad()
@by_case
@both_ways
def test_all_visible_equals_no_mask(monkeypatch, settings, on_grid):
    compute(monkeypatch, on_grid)
    encoder, video = make(**settings), clip()
    full = encoder(video)
    order = torch.rand(2, STEPS, POSITIONS).argsort(-1)
    masked = encoder(video, order)
    torch.testing.assert_close(masked.tokens, visible_of(full.tokens, order), rtol=0, atol=1e-11)
    torch.testing.assert_close(masked.pooled, full.pooled, rtol=0, atol=1e-11)


@torch.no_grad()
@by_case
@both_ways
@pytest.mark.parametrize("causal", [False, True])
def test_the_same_positions_at_all_times_equal_a_tube_mask(monkeypatch, settings, on_grid, causal):
    compute(monkeypatch, on_grid)
    encoder, video = make(**settings, temporal_causal=causal), clip()
    tubes = torch.tensor([[5, 1], [0, 3]])
    by_tube = encoder(video, tubes)
    by_time = encoder(video, tubes[:, None].expand(-1, STEPS, -1))
    torch.testing.assert_close(by_time.tokens, by_tube.tokens, rtol=0, atol=1e-11)
    torch.testing.assert_close(by_time.pooled, by_tube.pooled, rtol=0, atol=1e-11)
    if by_tube.cls is not None:
        torch.testing.assert_close(by_time.cls, by_tube.cls, rtol=0, atol=1e-11)


@both_ways
@pytest.mark.parametrize("settings", [MODEL1, MODEL2, MODEL3, MODEL4])
def test_pixels_of_hidden_tubelets_reach_nothing(monkeypatch, settings, on_grid):
    compute(monkeypatch, on_grid)
    encoder, video, visible = make(**settings), clip().requires_grad_(), random_visible(2)
    output = encoder(video, visible)
    (output.tokens.square().sum() + output.pooled.square().sum()).backward()
    there = torch.zeros(2, STEPS, POSITIONS, dtype=torch.bool).scatter(2, visible, True)
    seen = there.view(2, STEPS, 2, 3)
    for axis, size in ((1, 2), (2, 8), (3, 8)):
        seen = seen.repeat_interleave(size, axis)
    assert torch.equal(video.grad.abs().amax(1) > 0, seen)


@torch.no_grad()
@pytest.mark.parametrize("model", [MODEL2, MODEL2 | {"pooling": "temporal_cls"}])
def test_without_tokens_frame_vectors_see_the_same(model):
    encoder, video, visible = make(**model, **ROTARY), clip(), random_visible(3)
    torch.testing.assert_close(
        encoder(video, visible, tokens=False).pooled, encoder(video, visible).pooled,
        rtol=0, atol=1e-12,
    )  # fmt: skip


def test_checkpointing_and_dropping_patches_work_on_varying_masks():
    for settings in (MODEL2 | {"register_tokens": 1}, MODEL3 | PARALLEL, MODEL4):
        encoder, video = make(**settings, patch_dropout=0.5).train(), clip()
        visible = random_visible(4)
        encoder.set_grad_checkpointing()
        torch.manual_seed(0)
        tokens = encoder(video, visible).tokens
        tokens.square().sum().backward()
        assert tokens.shape == (2, STEPS, 4, 24)
        kept = tokens.any(-1)
        assert (kept.sum(-1) == 2).all()
        # Which two of the four differs from step to step.
        assert (kept[:, 0] != kept[:, 1]).any()
        slots = kept.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)[..., :2]
        expected = encoder.eval()(video, visible.gather(2, slots)).tokens
        torch.testing.assert_close(
            tokens.gather(2, slots[..., None].expand(-1, -1, -1, 24)), expected, rtol=0, atol=1e-11
        )


@torch.no_grad()
@both_ways
@pytest.mark.parametrize("model", [MODEL1, MODEL2, MODEL3, MODEL4])
def test_linear_layers_cost_what_visible_tokens_cost(monkeypatch, model, on_grid):
    compute(monkeypatch, on_grid)
    # Without class tokens every product but those of attention is one of patch tokens.
    encoder = make(**model, class_token=False, pooling="mean")

    def products(visible: Tensor | None) -> int:
        with FlopCounterMode(display=False) as counter:
            encoder(clip(), visible)
        counts = counter.get_flop_counts()["Global"]
        return sum(
            count for name, count in counts.items() if "mm" in str(name) and "bmm" not in str(name)
        )

    assert products(random_visible(2)) * POSITIONS == products(None) * 2 > 0


def test_the_cheaper_way_is_taken():
    def on_grid(kept, positions, steps):
        visible = torch.rand(1, steps, positions).argsort(-1)[..., :kept]
        sequences = TimeSequences.of(visible, positions, before=0, after=0, causal=False)
        return sequences.on_grid

    # (kept · steps)² products against positions · steps · max(steps, 100).
    assert not on_grid(25, 64, 10)
    assert on_grid(26, 64, 10)
    assert not on_grid(8, 64, 200)
    assert on_grid(9, 64, 200)


@pytest.mark.parametrize(
    ("visible", "message"),
    [
        (torch.zeros(1, 3, 2, dtype=torch.long), r"\(B, kept\) or \(B, 4, kept\) with B = 1"),
        (torch.full((1, 4, 1), 6), "visible has indices from 6 to 6.*0 to 5"),
    ],
)
def test_masks_that_do_not_fit_are_refused(visible, message):
    with pytest.raises(ValueError, match=message) as refusal:
        make(**MODEL2)(clip(batch=1), visible)
    assert "\n" not in str(refusal.value)
