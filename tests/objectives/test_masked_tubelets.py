"""Masked tubelets, compared with transformers' VideoMAE, slow loops and invariants."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ssl_vivit import Grid, ViViTConfig, create_encoder, load_encoder
from ssl_vivit.encoders.imports.transformers import from_videomae
from ssl_vivit.encoders.trunks.joint import Joint
from ssl_vivit.encoders.visible_tokens import Places
from ssl_vivit.objectives import MaskedTubelets
from ssl_vivit.objectives.embedding_geometry import effective_rank
from ssl_vivit.objectives.masking import (
    TubeletMask,
    draw_mask,
    hidden_count,
    mask_numbers,
    nearest_visible,
)
from ssl_vivit.objectives.pixel_targets import PixelScale, tubelet_pixels, video_of

PARITY = Path(__file__).parent / "parity"
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
VARIANTS = [
    "joint",
    "factorized_encoder",
    "factorized_self_attention",
    "factorized_dot_product",
]
SMALL = {"num_frames": 8, "image_size": (64, 96), "tubelet_size": (2, 16, 16), "num_heads": 4}


def small(variant="factorized_encoder", **settings):
    torch.manual_seed(0)
    depth = (
        {"spatial_depth": 2, "temporal_depth": 1}
        if variant == "factorized_encoder"
        else {"depth": 2}
    )
    return create_encoder("tiny", variant=variant, **(SMALL | depth | settings))


def small_objective(variant: str) -> MaskedTubelets:
    """Return an objective in float64 that is equal on all processes."""
    objective = MaskedTubelets(
        small(variant), mask="random", decoder_depth=2, preprocessing=IMAGENET
    )
    return objective.double()


def masks(kind: str, grid: Grid, ratio: float, count: int) -> TubeletMask:
    return draw_mask(kind, grid, ratio, torch.rand(count, mask_numbers(kind, grid)))


def masked_batch(objective: MaskedTubelets, part: slice) -> dict:
    """Return some of six clips, each with another mask."""
    generator = torch.Generator().manual_seed(1)
    clips = torch.randn(6, 1, 3, 8, 64, 96, dtype=torch.float64, generator=generator)
    visible, hidden, _ = objective.draw_mask(clips[:, 0], generator)
    return {"clips": clips[part], "mask": TubeletMask(visible[part], hidden[part])}


def videomae() -> tuple[MaskedTubelets, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return transformers' VideoMAEForPreTraining as an objective, its state dict, and its outputs."""
    config = json.loads((PARITY / "hf_videomae.json").read_text())["config"]
    state = load_file(PARITY / "hf_videomae.v5.safetensors")
    arrays = np.load(PARITY / "hf_videomae.npz")
    numbers = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    encoder = from_videomae(state, config).encoder
    objective = MaskedTubelets(
        encoder,
        mask="random",
        mask_ratio=0.75,
        decoder_depth=config["decoder_num_hidden_layers"],
        decoder_dim=config["decoder_hidden_size"],
        preprocessing=IMAGENET,
    )
    decoder = objective.decoder
    with torch.no_grad():
        decoder.project.weight.copy_(state["encoder_to_decoder.weight"])
        decoder.mask_token.copy_(state["mask_token"].flatten())
        decoder.head.weight.copy_(state["decoder.head.weight"])
        decoder.head.bias.copy_(state["decoder.head.bias"])
        decoder.trunk.norm.weight.copy_(state["decoder.norm.weight"])
        decoder.trunk.norm.bias.copy_(state["decoder.norm.bias"])
    decoder.trunk.norm.eps = 1e-5
    return objective, state, numbers


def mask_from_bool(hidden: torch.Tensor) -> TubeletMask:
    """Return a mask from (b, tokens) booleans, True for hidden tokens; clips hide equal numbers."""
    order = hidden.to(torch.uint8).argsort(dim=1, stable=True)
    visible = hidden.shape[1] - int(hidden[0].sum())
    return TubeletMask(order[:, :visible], order[:, visible:], by_token=True)


def with_their_blocks(objective, state, config):
    """Replace the decoder's blocks by blocks with the heads and MLP widths of VideoMAE."""
    own = objective.decoder.trunk.config
    settings = own.to_dict() | {
        "num_heads": config["decoder_num_attention_heads"],
        "head_dim": None,
        "mlp_ratio": config["decoder_intermediate_size"] / config["decoder_hidden_size"],
        "norm_eps": config["layer_norm_eps"],
    }
    trunk = Joint(ViViTConfig.from_dict(settings))
    for i, block in enumerate(trunk.blocks):
        prefix = f"decoder.decoder_layers.{i}."
        attention = prefix + "attention.attention."
        width = own.embed_dim
        biases = [
            state.get(attention + f"{part}.bias", torch.zeros(width))
            for part in ("query", "key", "value")
        ]
        block.load_state_dict(
            {
                "attention.qkv.weight": torch.cat(
                    [state[attention + f"{part}.weight"] for part in ("query", "key", "value")]
                ),
                "attention.qkv.bias": torch.cat(biases),
            }
            | {
                f"{ours}.{part}": state[f"{prefix}{theirs}.{part}"]
                for ours, theirs in (
                    ("attention.proj", "attention.output.dense"),
                    ("mlp.fc1", "intermediate.dense"),
                    ("mlp.fc2", "output.dense"),
                    ("attention_norm", "layernorm_before"),
                    ("mlp_norm", "layernorm_after"),
                )
                for part in ("weight", "bias")
            }
        )
    trunk.norm = objective.decoder.trunk.norm
    objective.decoder.trunk = trunk
    return objective


def test_loss_labels_and_gradients_equal_videomae():
    objective, state, numbers = videomae()
    config = json.loads((PARITY / "hf_videomae.json").read_text())["config"]
    objective = with_their_blocks(objective, state, config)
    video = numbers["pixel_values"].transpose(1, 2).contiguous()
    mask = mask_from_bool(numbers["bool_masked_pos"])

    labels = objective.targets(video, mask)
    torch.testing.assert_close(labels, numbers["labels"], rtol=0, atol=1e-6)
    predicted, _ = objective.predict(video, mask)
    torch.testing.assert_close(predicted, numbers["logits"], rtol=0, atol=1e-5)
    step = objective({"clips": video[:, None], "mask": mask})
    torch.testing.assert_close(step.loss, numbers["loss"], rtol=0, atol=1e-6)
    step.loss.backward()
    for ours, theirs in (
        (objective.decoder.mask_token, "mask_token"),
        (
            objective.encoder.tubelets.weight,
            "videomae.embeddings.patch_embeddings.projection.weight",
        ),
        (objective.decoder.project.weight, "encoder_to_decoder.weight"),
    ):
        expected = numbers[f"grad/{theirs}"].reshape(ours.shape)
        torch.testing.assert_close(ours.grad, expected, rtol=1e-4, atol=1e-6)


def test_targets_are_each_tubelets_pixels_normalised_by_a_slow_loop():
    objective = MaskedTubelets(small(), preprocessing=IMAGENET, mask="tube", mask_ratio=0.5)
    video = torch.randn(2, 3, 8, 64, 96, dtype=torch.float64)
    mask = objective.draw_mask(video)
    targets = objective.targets(video, mask)
    assert targets.shape == (2, 4 * 12, 2 * 16 * 16 * 3)
    for b in range(2):
        for t in range(4):
            for i, position in enumerate(mask.hidden[b].tolist()):
                row, column = divmod(position, 6)
                expected = torch.zeros(2, 16, 16, 3, dtype=torch.float64)
                for c in range(3):
                    cell = video[b, c, 2 * t : 2 * t + 2, 16 * row : 16 * row + 16,
                                 16 * column : 16 * column + 16]  # fmt: skip
                    x = cell * IMAGENET["std"][c] + IMAGENET["mean"][c]
                    spread = ((x - x.mean()).square().sum() / (x.numel() - 1)).sqrt()
                    expected[..., c] = (x - x.mean()) / (spread + 1e-6)
                got = targets[b, t * 12 + i].view(2, 16, 16, 3)
                torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("variant", "settings"),
    [
        ("joint", {}),
        ("factorized_encoder", {}),
        ("factorized_encoder", {"pooling": "temporal_cls"}),
        ("factorized_encoder", {"final_norm": "pooled"}),
        ("factorized_self_attention", {"pooling": "attention"}),
    ],
)
def test_pooled_learns_to_be_the_mean_of_visible_tokens(variant, settings):
    objective = MaskedTubelets(small(variant, **settings), mask="random", mask_ratio=0.5).double()
    video = torch.randn(3, 3, 8, 64, 96, dtype=torch.float64)
    mask = objective.draw_mask(video)
    predicted, out = objective.predict(video, mask)
    errors = (predicted - objective.targets(video, mask)).square().mean((1, 2))
    mean = objective.encoder.pooled_norm(out.tokens.flatten(1, 2).mean(1))
    distances = (out.pooled - mean).square().mean(1)
    step = objective({"clips": video[:, None], "mask": mask})
    expected = sum(errors[i] * (1 + distances[i]) for i in range(3)) / 3
    torch.testing.assert_close(step.loss, expected)
    torch.testing.assert_close(step.metrics["pooled_distance"], distances.mean())
    assert distances.min() > 0.01
    # The gradient of the distances goes to pooled alone, in units of each clip's error.
    torch.autograd.backward(
        errors.mean() + (errors.detach() * (out.pooled - mean.detach()).square().mean(1)).mean()
    )
    by_hand = {name: p.grad.clone() for name, p in objective.named_parameters() if p.requires_grad}
    objective.zero_grad()
    step.loss.backward()
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, by_hand[name])
    optimizer = torch.optim.AdamW(objective.parameters(), 3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        step = objective({"clips": video[:, None], "mask": mask})
        step.loss.backward()
        optimizer.step()
    assert step.metrics["pooled_distance"] < 0.5 * distances.mean()


@pytest.mark.parametrize("pooling", ["mean", "max", "sum", "first"])
def test_pooled_that_tokens_make_by_themselves_adds_nothing_to_the_loss(pooling):
    encoder = small("factorized_self_attention", pooling=pooling, final_norm="pooled")
    objective = MaskedTubelets(encoder)
    video = torch.randn(2, 3, 8, 64, 96)
    mask = objective.draw_mask(video)
    predicted, _ = objective.predict(video, mask)
    step = objective({"clips": video[:, None], "mask": mask})
    torch.testing.assert_close(
        step.loss, (predicted - objective.targets(video, mask)).square().mean()
    )
    assert ("pooled_distance" in step.metrics) == (pooling == "mean")


def test_metrics_are_of_the_mean_of_each_clips_visible_tokens():
    objective = MaskedTubelets(small(), preprocessing=IMAGENET).double()
    video, mask = torch.randn(5, 3, 8, 64, 96).double(), masks("tube", Grid(4, 4, 6), 0.9, 5)
    metrics = objective({"clips": video[:, None], "mask": mask}).metrics
    tokens = objective.encoder(video, mask.visible).tokens.detach()
    features = torch.stack([clip.flatten(0, 1).mean(0) for clip in tokens])
    deviations = [column.std(correction=0) for column in features.T]
    expected = sum(deviations) / len(deviations)
    torch.testing.assert_close(metrics["feature_std"].double(), expected, rtol=1e-5, atol=0)
    singular = torch.linalg.svdvals(torch.nn.functional.normalize(features, dim=1))
    share = singular / singular.sum()
    expected = (-share * share.log()).sum().exp()
    torch.testing.assert_close(metrics["effective_rank"].double(), expected, rtol=1e-5, atol=0)


def test_constant_tubelets_give_finite_losses_and_gradients():
    objective = MaskedTubelets(small(), preprocessing=IMAGENET)
    step = objective({"clips": torch.full((2, 1, 3, 8, 64, 96), 0.3)})
    step.loss.backward()
    assert step.loss.isfinite()
    assert all(p.grad.isfinite().all() for p in objective.parameters() if p.requires_grad)


@pytest.mark.parametrize("kind", ["tube", "block", "random"])
@pytest.mark.parametrize(("ratio", "hidden"), [(0.9, 21), (0.5, 12), (0.75, 18)])
def test_masks_hide_an_exact_share_and_partition_the_tokens(kind, ratio, hidden):
    mask = masks(kind, Grid(3, 4, 6), ratio, 5)
    assert not mask.by_token
    assert mask.hidden.shape == ((5, 3, hidden) if kind == "random" else (5, hidden))
    everything = torch.cat((mask.visible, mask.hidden), dim=-1).sort(-1).values
    assert torch.equal(everything, torch.arange(24).expand_as(everything))
    assert torch.equal(mask.hidden, mask.hidden.sort(-1).values)
    assert torch.equal(mask.visible, mask.visible.sort(-1).values)
    if kind == "random":
        assert (mask.hidden[:, 0] != mask.hidden[:, 1]).any()


@pytest.mark.parametrize("total", [10, 49, 100, 196])
def test_a_ratio_that_is_a_whole_count_hides_that_many(total):
    """In floating point, products such as 0.29 · 100 are below the whole number."""
    counts = list(range(1, total))
    assert [hidden_count(total, count / total, "positions") for count in counts] == counts
    assert hidden_count(total, 1.9 / total, "positions") == 1


@pytest.mark.parametrize("kind", ["tube", "block", "random"])
def test_the_mask_of_a_clip_depends_only_on_its_names(kind, monkeypatch):
    """The mask does not depend on other clips; it differs between epochs, samples and views."""
    objective = MaskedTubelets(small(), mask=kind)
    drawn = []

    predict = objective.predict

    def recorded(video, mask):
        drawn.append(mask)
        return predict(video, mask)

    monkeypatch.setattr(objective, "predict", recorded)

    def visible(*draw):
        objective({"clips": torch.zeros(len(draw), 2, 3, 8, 64, 96), "draw": list(draw)})
        return drawn.pop().visible.unflatten(0, (len(draw), 2))

    one, other, later = (3, 0, "one"), (3, 0, "other"), (3, 1, "one")
    together = visible(one, other, later)
    for place, names in enumerate((one, other, later)):
        assert torch.equal(visible(names)[0], together[place])
    assert torch.equal(visible(later, one)[1], together[0])
    assert len({tuple(mask.flatten().tolist()) for mask in together.flatten(0, 1)}) == 6


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9])
def test_block_masks_hide_rectangle_after_rectangle_as_a_slow_loop(ratio):
    grid = Grid(2, 5, 9)
    numbers = torch.rand(4, mask_numbers("block", grid), generator=torch.Generator().manual_seed(0))
    mask = draw_mask("block", grid, ratio, numbers)
    for b in range(4):
        aspects, tops, lefts, within = numbers[b].split([64, 64, 64, 45])
        order = []
        for aspect, top, left in zip(aspects, tops, lefts, strict=True):
            aspect = 0.75 * 2.0 ** aspect.item()  # from 3/4 to 3/2
            height = min(max(round((0.15 * 45 * aspect) ** 0.5), 1), 5)
            width = min(max(round((0.15 * 45 / aspect) ** 0.5), 1), 9)
            y, x = int(top * (5 - height + 1)), int(left * (9 - width + 1))
            inside = [i * 9 + j for i in range(y, y + height) for j in range(x, x + width)]
            order += sorted({*inside} - {*order}, key=lambda place: within[place].item())
        order += sorted({*range(45)} - {*order}, key=lambda place: within[place].item())
        assert mask.hidden[b].tolist() == sorted(order[: int(45 * ratio)])


def test_names_of_other_samples_than_the_clips_are_refused():
    batch = {"clips": torch.zeros(2, 1, 3, 8, 64, 96), "draw": [(0, 0, "a")] * 3}
    with pytest.raises(ValueError, match="2 samples, but draw has names of 3"):
        MaskedTubelets(small())(batch)


@pytest.mark.parametrize("kind", ["tube", "random"])
def test_indices_among_all_tokens_are_in_the_order_of_time(kind):
    mask = masks(kind, Grid(3, 4, 6), 0.75, 2)
    for part, tokens in zip(mask[:2], mask.tokens(Grid(3, 4, 6)), strict=True):
        for b in range(2):
            at = part[b] if kind == "random" else part[b].expand(3, -1)
            assert tokens[b].tolist() == [t * 24 + i for t in range(3) for i in at[t].tolist()]


def test_every_position_is_hidden_equally_often_and_blocks_are_contiguous():
    grid = Grid(1, 8, 8)
    torch.manual_seed(0)
    hidden = {kind: torch.zeros(4000, 64).scatter(1, masks(kind, grid, 0.5, 4000).hidden, 1.0)
              for kind in ("tube", "block")}  # fmt: skip
    # Four standard errors of a share of 0.5 over 4000 masks.
    assert (hidden["tube"].mean(0) - 0.5).abs().max() < 4 * 0.5 / 4000**0.5
    neighbours = {
        kind: (mask.view(-1, 8, 8)[:, :, 1:] == mask.view(-1, 8, 8)[:, :, :-1]).float().mean()
        for kind, mask in hidden.items()
    }
    assert neighbours["tube"] == pytest.approx(0.5, abs=0.02)
    assert neighbours["block"] > 0.75


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("positions", ["sinusoidal", "rotary"])
@pytest.mark.parametrize("kind", ["tube", "random"])
def test_only_visible_pixels_reach_predictions_and_every_parameter_learns(
    variant, causal, positions, kind
):
    encoder = small(variant, temporal_causal=causal, register_tokens=1)
    objective = MaskedTubelets(encoder, mask=kind, mask_ratio=0.75, decoder_positions=positions)
    video = torch.randn(1, 3, 8, 64, 96, requires_grad=True)
    mask = objective.draw_mask(video)
    predicted, _ = objective.predict(video, mask)
    predicted.square().sum().backward()
    seen = torch.zeros(4 * 24, dtype=torch.bool)
    seen[mask.tokens(Grid(4, 4, 6))[0][0]] = True
    seen = seen.view(4, 4, 6).repeat_interleave(2, 0)
    seen = seen.repeat_interleave(16, 1).repeat_interleave(16, 2)
    assert torch.equal(video.grad[0].abs().amax(0) > 0, seen)
    objective.zero_grad()
    objective({"clips": video.detach()[:, None], "mask": mask}).loss.backward()
    for name, parameter in objective.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("positions", ["sinusoidal", "rotary"])
@pytest.mark.parametrize("kind", ["tube", "random"])
def test_predictions_do_not_depend_on_the_order_of_the_mask(variant, positions, kind):
    objective = MaskedTubelets(
        small(variant), mask=kind, mask_ratio=0.75, decoder_positions=positions
    )
    objective = objective.double().eval()
    video = torch.randn(1, 3, 8, 64, 96, dtype=torch.float64)
    mask = objective.draw_mask(video)
    order, other = torch.randperm(6), torch.randperm(18)
    shuffled = mask._replace(visible=mask.visible[..., order], hidden=mask.hidden[..., other])
    with torch.no_grad():
        first = objective.predict(video, mask)[0].unflatten(1, (4, 18))
        second = objective.predict(video, shuffled)[0].unflatten(1, (4, 18))
    torch.testing.assert_close(second, first[:, :, other], rtol=0, atol=1e-10)


@pytest.mark.parametrize("positions", ["sinusoidal", "rotary"])
def test_a_tube_mask_is_the_mask_of_its_tokens(positions):
    objective = MaskedTubelets(small("joint"), mask_ratio=0.75, decoder_positions=positions)
    objective = objective.double().eval()
    video = torch.randn(2, 3, 8, 64, 96, dtype=torch.float64)
    tubes = objective.draw_mask(video)
    visible, hidden = tubes.tokens(Grid(4, 4, 6))
    with torch.no_grad():
        by_tube = objective.predict(video, tubes)[0]
        by_token = objective.predict(video, TubeletMask(visible, hidden, by_token=True))[0]
    torch.testing.assert_close(by_token, by_tube, rtol=0, atol=1e-10)


@pytest.mark.parametrize("variant", VARIANTS)
def test_attention_of_a_rotary_decoder_decreases_with_distance(variant):
    """With equal queries and keys, attention is largest at offset zero."""
    objective = MaskedTubelets(small(variant), decoder_positions="rotary").double().eval()
    decoder, grid = objective.decoder, Grid(4, 4, 6)
    assert decoder.rotary is not None
    places = Places(grid)
    x = torch.zeros(1, 4, 24, 96, dtype=torch.float64)
    if variant == "joint":
        turned = [decoder.rotary.joint_rotation(places, x)]
        coordinates = [[(t, n // 6, n % 6) for t in range(4) for n in range(24)]]
    else:
        turned = list(decoder.rotary.rotations(places, x))
        coordinates = [[(n // 6, n % 6) for n in range(24)], [(t,) for t in range(4)]]
    for rotation, place in zip(turned, coordinates, strict=True):
        width = 2 * rotation.cos.shape[-1]
        one = torch.ones(1, 1, len(place), width, dtype=torch.float64)
        first = rotation.apply(one)[0, 0]
        scores = first @ first.T
        by_offset: dict[tuple, float] = {}
        for i, j in itertools.product(range(len(place)), repeat=2):
            offset = tuple(b - a for a, b in zip(place[i], place[j], strict=True))
            score = float(scores[i, j])
            assert by_offset.setdefault(offset, score) == pytest.approx(score, abs=1e-9)
            assert any(offset) == (score < width - 1e-3)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("positions", ["sinusoidal", "rotary"])
def test_a_decoder_distinguishes_times_and_places(variant, positions):
    """All tokens are equal, so predictions can differ only by positions."""
    objective = MaskedTubelets(small(variant), decoder_positions=positions).double().eval()
    grid, width = Grid(4, 4, 6), objective.encoder.embed_dim
    mask = masks("tube", grid, 0.75, 1)
    tokens = torch.ones(1, 4, 6, width, dtype=torch.float64)
    with torch.no_grad():
        predicted = objective.decoder(tokens, mask, grid).unflatten(1, (4, 18))[0]
    assert predicted.std(0).amin(0).max() > 1e-3
    assert predicted.std(1).amin(0).max() > 1e-3


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("positions", ["sinusoidal", "rotary"])
def test_without_sinusoids_only_a_rotary_decoder_distinguishes_places(
    variant, positions, monkeypatch
):
    objective = MaskedTubelets(
        small(variant), mask="tube", mask_ratio=0.75, decoder_positions=positions
    )
    objective = objective.double().eval()
    for name in ("add_spatial", "add_temporal"):
        monkeypatch.setattr(objective.decoder.positions, name, lambda x, places: x)
    video = torch.randn(1, 3, 8, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        predicted = objective.predict(video, objective.draw_mask(video))[0].unflatten(1, (4, 18))
    assert (predicted[0, 0].std(0).max() > 1e-4) == (positions == "rotary")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tubelet_size": (4, 16, 16), "tubelet_stride": (2, 16, 16), "temporal_padding": "causal"},
        {"tubelet_size": (4, 16, 16), "tubelet_embedding": "uniform_frames"},
        {"in_channels": 1, "image_size": (70, 100), "remainder": "crop"},
    ],
)
def test_pixels_of_tubelets_tile_the_video(settings):
    config = small(**settings).config
    height, width = config.image_size
    video = torch.rand(2, config.in_channels, 8, height, width)
    pixels = tubelet_pixels(video, config)
    assert pixels.shape[1:3] == (config.grid.t, config.grid.n)
    frames = config.frames_of(8) if config.tubelet_embedding == "uniform_frames" else range(8)
    assert torch.equal(video_of(pixels, config, config.grid.h), video[:, :, frames, :64, :96])
    scale = PixelScale(pixels)
    torch.testing.assert_close(scale.restored(scale.normalised(pixels)), pixels, rtol=0, atol=1e-5)


def test_a_reconstruction_pastes_what_was_visible():
    objective = MaskedTubelets(small(), preprocessing={"mean": [0.5], "std": [0.1]})
    video = (torch.rand(2, 3, 8, 64, 96) - 0.5) / 0.1
    out = objective.reconstruct(video)
    torch.testing.assert_close(out.video, video * 0.1 + 0.5)
    hidden = out.hidden.repeat_interleave(2, 1).repeat_interleave(16, 2).repeat_interleave(16, 3)
    changed = (out.video != out.predicted).any(1)
    assert (changed <= hidden).all()
    assert changed[hidden].float().mean() > 0.9
    assert out.hidden.float().mean().item() == pytest.approx(21 / 24)
    assert out.frames == list(range(8))
    assert out.rescaled


def test_a_reconstruction_names_the_frames_that_uniform_sampling_takes():
    encoder = small("joint", tubelet_embedding="uniform_frames", tubelet_size=(2, 16, 16))
    objective = MaskedTubelets(encoder, normalize_targets=False)
    video = torch.rand(1, 3, 8, 64, 96)
    out = objective.reconstruct(video)
    assert out.frames == encoder.config.frames_of(8) != list(range(4))
    assert torch.equal(out.video, video[:, :, out.frames])
    assert not out.rescaled


@pytest.mark.parametrize("kind", ["tube", "random"])
def test_the_copied_tubelet_is_the_nearest_visible_one(kind):
    grid = Grid(3, 4, 5)
    mask = masks(kind, grid, 0.8, 2)
    found, distance = nearest_visible(mask, grid, 3)
    visible, hidden = mask.tokens(grid)

    def place(index):
        t, n = divmod(index, 20)
        return torch.tensor([t, n // 5, n % 5], dtype=torch.float)

    for b in range(2):
        for i, at in enumerate(hidden[b].tolist()):
            expected = sorted((place(v) - place(at)).norm().item() for v in visible[b].tolist())
            near = [(place(v) - place(at)).norm().item() for v in found[b, i].tolist()]
            assert near == pytest.approx(expected[:3])
            assert distance[b, i].tolist() == pytest.approx(near)
            assert len(set(found[b, i].tolist())) == 3


def test_interpolation_weighs_the_nearest_visible_tubelets_by_inverse_square_distance():
    objective = MaskedTubelets(small(), mask="random", normalize_targets=False).eval()
    video = torch.rand(1, 3, 8, 64, 96, dtype=torch.float64)
    got = objective.double().errors({"clips": video[:, None]}, seed=2)["interpolation_error"]
    mask = objective.draw_mask(video, torch.Generator().manual_seed(2))
    visible, hidden = (x[0] for x in mask.tokens(Grid(4, 4, 6)))
    pixels = tubelet_pixels(video, objective.encoder.config).flatten(1, 2)[0]
    places = torch.tensor(
        [[t, r, c] for t in range(4) for r in range(4) for c in range(6)]
    ).double()
    losses = []
    for at in hidden.tolist():
        squared = (places[visible] - places[at]).square().sum(1)
        nearest = squared.argsort(stable=True)[:8]
        guess = sum(pixels[visible[i]] / squared[i] for i in nearest) / sum(
            1 / squared[i] for i in nearest
        )
        losses.append((guess - pixels[at]).square().mean())
    torch.testing.assert_close(got[0], torch.stack(losses).mean(), rtol=0, atol=1e-7)


def test_errors_are_measured_clip_by_clip_with_the_seeds_masks():
    objective = MaskedTubelets(small(), preprocessing={"mean": [0.5], "std": [0.1]}).eval()
    clips = torch.randn(3, 1, 3, 8, 64, 96)
    errors = objective.errors({"clips": clips}, seed=4)
    mask = objective.draw_mask(clips[:, 0], torch.Generator().manual_seed(4))
    with torch.no_grad():
        predicted, _ = objective.predict(clips[:, 0], mask)
    by_clip = (predicted - objective.targets(clips[:, 0], mask)).square().mean((1, 2))
    torch.testing.assert_close(errors["error"], by_clip)
    # Independent normalised noise in place of the truth has twice its variance.
    assert errors["copy_error"].mean().item() == pytest.approx(2.0, abs=0.05)
    targets = objective.targets(clips[:, 0], mask).unflatten(2, (512, 3))
    by_hand = targets.var(2, correction=0).mean((1, 2))
    torch.testing.assert_close(errors["mean_error"], by_hand)
    assert by_hand[0].item() == pytest.approx(511 / 512, abs=1e-4)
    assert torch.equal(objective.errors({"clips": clips}, seed=4)["error"], errors["error"])
    assert not torch.equal(objective.errors({"clips": clips}, seed=5)["error"], errors["error"])


def test_training_lowers_the_loss_and_exports_the_encoder(tmp_path):
    torch.manual_seed(0)
    objective = MaskedTubelets(small(), mask_ratio=0.5, preprocessing={"mean": [0.5], "std": [0.1]})
    optimizer = torch.optim.AdamW(objective.parameters(), 1e-3)
    ramp = torch.linspace(-1, 1, 96).expand(4, 1, 3, 8, 64, 96)
    clips = ramp * torch.tensor([1.0, -1.0, 0.5, -0.5]).view(4, 1, 1, 1, 1, 1)
    losses = []
    for _ in range(60):
        step = objective({"clips": clips})
        optimizer.zero_grad()
        step.loss.backward()
        optimizer.step()
        losses.append(step.loss.item())
    # Whether a tubelet brightens to the left or to the right must be read off the visible ones.
    assert losses[0] > 1.0
    assert losses[-1] < 0.1
    objective.export(tmp_path / "encoder", training={"steps": 60})
    loaded = load_encoder(tmp_path / "encoder")
    for name, value in objective.encoder.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    assert "random masks of 0.5" in (tmp_path / "encoder" / "README.md").read_text()


@pytest.mark.parametrize(
    ("architecture", "settings", "message"),
    [
        ({}, {"mask_ratio": 1.0}, r"hides 24 of 24 positions.*use 0\.0417 to 0\.9583"),
        ({}, {"mask_ratio": float("nan")}, "hides 0 of 24"),
        ({}, {"mask_ratio": float("inf")}, "objective.mask_ratio inf hides 0 of 24"),
        ({"image_size": (16, 16)}, {}, "at least one must be hidden and one visible"),
        ({}, {"mask_ratio": 0.01}, "hides 0 of 24"),
        ({}, {"mask_ratio": -0.5}, "hides 0 of 24"),
        ({}, {"mask": "tubes"}, "choose one of tube, block, random"),
        ({}, {"decoder_depth": 0}, "decoder_depth is 0; it must be at least 1"),
        ({}, {"decoder_dim": 50}, "decoder_dim 50 must be a multiple of 4"),
        ({}, {"decoder_dim": 40, "decoder_positions": "rotary"}, "40 must be a multiple of 16"),
        ({}, {"decoder_positions": "learned"}, "decoder_positions 'learned' is unknown"),
        ({"patch_dropout": 0.1}, {}, "patch_dropout 0.1 would hide more"),
        ({"tubelet_stride": (2, 8, 8)}, {}, "visible tubelets contain pixels of hidden ones"),
        ({"tubelet_size": (4, 16, 16), "tubelet_stride": (2, 16, 16), "variant": "joint"},
         {"mask": "random"}, "use objective.mask tube"),
    ],
)  # fmt: skip
def test_what_cannot_be_masked_is_refused(architecture, settings, message):
    with pytest.raises(ValueError, match=message) as refusal:
        MaskedTubelets(small(**architecture), **settings)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("total", [2, 3, 7, 12, 24, 384, 999, 4096])
def test_the_ratios_that_a_refusal_names_will_do(total):
    with pytest.raises(ValueError, match="use ") as refusal:
        hidden_count(total, 1.0, "positions")
    least, most = map(float, str(refusal.value).split("use ")[1].split(" to "))
    assert hidden_count(total, least, "positions") >= 1
    assert hidden_count(total, most, "positions") <= total - 1


def test_the_effective_rank_is_computed_in_full_precision_under_autocast():
    objective = MaskedTubelets(small())
    clips = torch.randn(6, 1, 3, 8, 64, 96)
    mask = objective.draw_mask(clips[:, 0])
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        step = objective({"clips": clips, "mask": mask})
        features = objective.predict(clips[:, 0], mask)[1].tokens.float().mean((1, 2))
    assert step.loss.dtype == torch.float32
    expected = effective_rank(torch.nn.functional.normalize(features, dim=1))
    torch.testing.assert_close(step.metrics["effective_rank"], expected, rtol=1e-6, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert (features @ features.T).dtype == torch.bfloat16  # which no GPU decomposes


def test_two_processes_equal_one_on_the_joined_batch(tmp_path):
    """Loss and gradients of every variant under DDP, which refuses parameters without gradients."""
    script = Path(__file__).parent / "masked_tubelets_on_ranks.py"
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2",
         "--master_port", "0", "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0",
         script, tmp_path],
        check=True,
    )  # fmt: skip
    ranks = [load_file(tmp_path / f"rank{rank}.safetensors") for rank in range(2)]
    for variant in VARIANTS:
        objective = small_objective(variant)
        step = objective(masked_batch(objective, slice(0, 6)))
        step.loss.backward()
        halves = [rank[f"{variant}/loss"].item() for rank in ranks]
        assert sum(halves) / 2 == pytest.approx(step.loss.item(), abs=1e-10)
        assert halves[0] != pytest.approx(halves[1], abs=1e-6)
        for name, parameter in objective.named_parameters():
            if parameter.requires_grad:
                for rank in ranks:
                    got = rank[f"{variant}/{name}"]
                    torch.testing.assert_close(got, parameter.grad, rtol=0, atol=1e-10)


@pytest.mark.gpu
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_in_half_precision_on_the_device(variant):
    """The loss is near that in full precision, and all gradients are finite."""
    torch.manual_seed(0)
    objective = MaskedTubelets(small(variant), decoder_depth=2, preprocessing=IMAGENET).cuda()
    batch = {"clips": torch.randn(6, 1, 3, 8, 64, 96).cuda()}
    batch["mask"] = objective.draw_mask(batch["clips"][:, 0])
    expected = objective(batch).loss.item()
    with torch.autocast("cuda", torch.bfloat16):
        step = objective(batch)
    step.loss.backward()
    assert step.loss.item() == pytest.approx(expected, rel=0.01)
    assert all(value.isfinite() for value in step.metrics.values())
    assert all(p.grad.isfinite().all() for p in objective.parameters() if p.requires_grad)
