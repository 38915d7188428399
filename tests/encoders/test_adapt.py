"""Adapting an encoder to other geometries: tokens that can stay equal do, and nothing else changes."""

import logging
import warnings

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

from ssl_vivit import ViViT, ViViTConfig
from ssl_vivit.encoders.adapt import adapt, resample_kernel
from ssl_vivit.encoders.positions import resample_temporal

SMALL = {
    "num_frames": 8,
    "image_size": (32, 48),
    "tubelet_size": (4, 16, 16),
    "embed_dim": 32,
    "num_heads": 4,
}
VARIANTS = (
    "joint",
    "factorized_encoder",
    "factorized_self_attention",
    "factorized_dot_product",
)
PREPROCESSING = {
    "channels": "rgb",
    "mean": [0.2, 0.5, 0.7],
    "std": [0.2, 0.3, 0.1],
    "fps": 25.0,
    "frame_stride": 2,
    "resize": [32, 48],
}


def encoder_of(seed=0, **settings):
    torch.manual_seed(seed)
    settings = SMALL | settings
    if settings.get("variant", "factorized_encoder") == "factorized_encoder":
        settings |= {"spatial_depth": 2, "temporal_depth": 2}
    else:
        settings |= {"depth": 2}
    encoder = ViViT(ViViTConfig(**settings)).double().eval()
    for parameter in encoder.parameters():  # every number of the model counts in the output
        parameter.data += 0.02 * torch.randn_like(parameter)
    return encoder


def smooth_video(channels=3, size=(8, 32, 48), seed=1):
    """Return bandlimited noise with periods of at least a few pixels and frames."""
    generator = torch.Generator().manual_seed(seed)
    coarse = [max(2, side // 6) for side in size]
    noise = torch.randn(2, channels, *coarse, generator=generator, dtype=torch.float64)
    return F.interpolate(noise, size=size, mode="trilinear")


def correlation(a, b):
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()


def test_little_energy_left_is_a_warning_in_the_log(caplog):
    encoder = encoder_of()
    with caplog.at_level(logging.INFO):
        adapt(encoder, tubelet_size=(8, 32, 32), num_frames=16, image_size=(64, 96))
        adapt(encoder, tubelet_size=(4, 8, 8), image_size=(16, 24))
    fine, coarse = caplog.records
    assert fine.levelno == logging.INFO
    assert fine.getMessage() == (
        "resampling the tubelet kernel from 4×16×16 to 8×32×32 keeps 100.0 % of its energy "
        "(sum of squares)"
    )
    assert coarse.levelno == logging.WARNING
    share = resample_kernel(encoder.tubelets.weight.detach(), (4, 8, 8))[1]
    assert f"{100 * share:.1f} %" in coarse.getMessage()


# whole encoders


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_geometry_is_the_identity_bit_for_bit(variant):
    encoder = encoder_of(variant=variant)
    encoder.preprocessing = dict(PREPROCESSING)
    next(encoder.parameters()).requires_grad_(False)
    state = torch.get_rng_state()
    same = adapt(encoder, image_size=(32, 48), num_frames=8, in_channels=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert same is not encoder
    assert same.config == encoder.config
    assert same.preprocessing == PREPROCESSING
    assert list(same.state_dict()) == list(encoder.state_dict())
    for (name, old), new in zip(encoder.named_parameters(), same.parameters(), strict=True):
        assert torch.equal(old, new), name
        assert old.data_ptr() != new.data_ptr()
        assert old.requires_grad == new.requires_grad
    assert torch.equal(same(smooth_video()).tokens, encoder(smooth_video()).tokens)


@pytest.mark.parametrize("variant", VARIANTS)
def test_tubelets_scaled_with_the_video_give_the_old_tokens(variant):
    encoder = encoder_of(variant=variant)
    finer = adapt(encoder, tubelet_size=(8, 32, 32), num_frames=16, image_size=(64, 96))
    assert finer.config.tubelet_stride == (8, 32, 32)
    video = smooth_video()
    # Tubelet by tubelet, as the kernel's resampling sees it: exact.
    tubelets = rearrange(
        video, "b c (t pt) (h ph) (w pw) -> (b t h w) (c pt) ph pw", pt=4, ph=16, pw=16
    )
    tubelets = F.interpolate(tubelets, scale_factor=2, mode="bicubic", antialias=True)
    tubelets = rearrange(tubelets, "n (c pt) ph pw -> n (c ph pw) pt", pt=4)
    tubelets = F.interpolate(tubelets, scale_factor=2, mode="linear")
    exact = rearrange(
        tubelets,
        "(b t h w) (c ph pw) pt -> b c (t pt) (h ph) (w pw)",
        t=2, h=2, w=3, ph=32, pw=32,
    )  # fmt: skip
    expected = encoder(video)
    assert torch.allclose(finer(exact).tokens, expected.tokens, atol=1e-10)
    # The whole video interpolated: borders of tubelets see their neighbours, so nearly.
    whole = F.interpolate(video, scale_factor=2, mode="trilinear")
    assert correlation(finer(whole).tokens, expected.tokens) > 0.998
    assert correlation(finer(whole).pooled, expected.pooled) > 0.998


def slow_bicubic(table, old, new):
    image = rearrange(table, "(h w) d -> 1 d h w", h=old[0])
    image = F.interpolate(image, size=new, mode="bicubic", antialias=True)
    return rearrange(image, "1 d h w -> (h w) d")


def test_separate_tables_keep_their_class_slots_and_are_interpolated():
    encoder = encoder_of(pooling="temporal_cls")
    adapted = adapt(encoder, image_size=(48, 80), num_frames=16)
    old, new = encoder.positions, adapted.positions
    assert torch.equal(new.spatial[0], old.spatial[0])
    assert torch.allclose(
        new.spatial[1:], slow_bicubic(old.spatial[1:], (2, 3), (3, 5)), atol=1e-12
    )
    assert torch.equal(new.temporal[0], old.temporal[0])
    first, last = old.temporal[1], old.temporal[2]
    expected = torch.stack([first, 0.75 * first + 0.25 * last, 0.25 * first + 0.75 * last, last])
    assert torch.allclose(new.temporal[1:], expected, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_joint_tables_are_interpolated_in_time_and_space(variant):
    encoder = encoder_of(variant=variant, joint_positions="learned")
    adapted = adapt(encoder, image_size=(48, 80), num_frames=4)
    slots = 1 if variant == "joint" else 0
    old, new = encoder.positions.joint, adapted.positions.joint
    assert new.shape == (slots + 1 * 15, 32)
    assert torch.equal(new[:slots], old[:slots])
    middle = (old[slots : slots + 6] + old[slots + 6 :]) / 2
    assert torch.allclose(new[slots:], slow_bicubic(middle, (2, 3), (3, 5)), atol=1e-12)


def test_rotary_encoders_change_in_nothing_but_their_config():
    encoder = encoder_of(spatial_positions="rotary", temporal_positions="rotary")
    adapted = adapt(encoder, image_size=(64, 32), num_frames=20)
    assert adapted.config.grid == (5, 4, 2)
    assert all(
        torch.equal(a, b) for a, b in zip(encoder.parameters(), adapted.parameters(), strict=True)
    )
    video = smooth_video(size=(20, 64, 32))
    assert torch.equal(adapted(video).tokens, encoder(video).tokens)


def test_uniform_frames_change_in_nothing_but_their_config():
    encoder = encoder_of(tubelet_embedding="uniform_frames", sampled_frames=3, num_frames=9)
    adapted = adapt(encoder, num_frames=30)
    assert adapted.config.frames_of(30) == [8, 15, 22]
    assert torch.equal(adapted.tubelets.weight, encoder.tubelets.weight)
    assert torch.equal(adapted.positions.temporal, encoder.positions.temporal)


def test_overlapping_tubelets_keep_their_overlap():
    encoder = encoder_of(tubelet_stride=(2, 8, 8))
    finer = adapt(encoder, tubelet_size=(8, 32, 32), num_frames=16, image_size=(64, 96))
    assert finer.config.tubelet_stride == (4, 16, 16)
    assert finer.config.grid == encoder.config.grid
    dense = adapt(encoder, tubelet_stride=(4, 16, 16))
    assert torch.equal(dense.tubelets.weight, encoder.tubelets.weight)
    with pytest.raises(ValueError, match="give tubelet_stride too"):
        adapt(encoder, tubelet_size=(3, 16, 16))


@pytest.mark.parametrize("padding", ["none", "causal"])
def test_causal_time_is_cropped_and_a_longer_table_resampled_once(padding):
    encoder = encoder_of(temporal_causal=True, tubelet_stride=(2, 16, 16), temporal_padding=padding)
    shorter = adapt(encoder, num_frames=4)
    steps = shorter.config.grid.t
    assert torch.equal(shorter.positions.temporal, encoder.positions.temporal[:steps])
    video = smooth_video()
    assert torch.allclose(
        shorter(video[:, :, :4]).tokens, encoder(video).tokens[:, :steps], atol=1e-12
    )
    longer = adapt(encoder, num_frames=16)
    table, before = longer.positions.temporal, len(encoder.positions.temporal)
    assert len(table) == longer.config.grid.t > before
    assert torch.equal(table, resample_temporal(encoder.positions.temporal.double(), len(table)))
    fewer = adapt(encoder, num_frames=10, tubelet_stride=(4, 16, 16), remainder="crop")
    assert fewer.config.grid.t <= encoder.config.grid.t


def test_causal_padding_adds_the_tokens_in_front():
    encoder = encoder_of(tubelet_stride=(2, 16, 16), temporal_positions="rotary")
    padded = adapt(encoder, temporal_padding="causal")
    assert (encoder.config.grid.t, padded.config.grid.t) == (3, 4)
    video = smooth_video()
    assert torch.allclose(padded.tubelets(video)[0][:, 1:], encoder.tubelets(video)[0], atol=1e-12)


def test_a_change_of_causality_is_warned_of():
    encoder = encoder_of()
    with pytest.warns(UserWarning, match="now sees none; expect worse features") as caught:
        causal = adapt(encoder, temporal_causal=True)
    assert caught[0].filename == __file__
    video = smooth_video().requires_grad_()
    causal(video).tokens[:, 0].sum().backward()
    assert (video.grad[:, :, 4:] == 0).all()
    with pytest.warns(UserWarning, match="later frames, which it never learned to use"):
        adapt(causal, temporal_causal=False)
    spatial_only = encoder_of()
    spatial_only = ViViT(ViViTConfig(**SMALL, spatial_depth=1, temporal_depth=0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapt(spatial_only, temporal_causal=True)


def test_sinusoids_over_all_tokens_at_another_width_are_warned_of():
    encoder = encoder_of(variant="joint", joint_positions="sinusoidal")
    with pytest.warns(UserWarning, match="with 4×3 tokens instead of 2×3, .* another location"):
        adapt(encoder, image_size=(64, 48))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapt(encoder, num_frames=16)


# channels


def normalised(grey, preprocessing):
    mean, std = (
        torch.tensor(preprocessing[name], dtype=torch.float64)[:, None, None, None]
        for name in ("mean", "std")
    )
    return (grey.expand(-1, len(mean), -1, -1, -1) - mean) / std


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_grey_clip_gives_the_tokens_that_it_gave_in_colour(variant):
    encoder = encoder_of(variant=variant)
    encoder.preprocessing = dict(PREPROCESSING)
    grey = adapt(encoder, in_channels=1)
    assert grey.tubelets.weight.shape == (32, 1, 4, 16, 16)
    assert grey.preprocessing["channels"] == "luma"
    assert grey.preprocessing["mean"] == pytest.approx([1.4 / 3])
    assert grey.preprocessing["std"] == pytest.approx([0.2])
    assert encoder.preprocessing == PREPROCESSING
    pixels = smooth_video(channels=1).sigmoid()
    expected = encoder(normalised(pixels, PREPROCESSING))
    output = grey(normalised(pixels, grey.preprocessing))
    assert torch.allclose(output.tokens, expected.tokens, atol=1e-10, rtol=0)
    assert torch.allclose(output.pooled, expected.pooled, atol=1e-10, rtol=0)
    # and back: three equal channels
    colour = adapt(grey, in_channels=3)
    assert colour.preprocessing["channels"] == "rgb"
    again = colour(normalised(pixels, colour.preprocessing))
    assert torch.allclose(again.tokens, expected.tokens, atol=1e-10, rtol=0)


def test_without_preprocessing_channels_are_summed():
    encoder = encoder_of()
    grey = adapt(encoder, in_channels=1)
    assert torch.allclose(grey.tubelets.weight, encoder.tubelets.weight.sum(1, keepdim=True))
    assert torch.equal(grey.tubelets.bias, encoder.tubelets.bias)
    assert grey.preprocessing is None


def test_causal_padding_is_exact_for_equal_means_and_later_tokens_for_all():
    encoder = encoder_of(
        tubelet_stride=(2, 16, 16), temporal_padding="causal", temporal_positions="rotary"
    )
    pixels = smooth_video(channels=1).sigmoid()
    for mean, exact_from in (([0.4, 0.4, 0.4], 0), ([0.2, 0.5, 0.7], 1)):
        encoder.preprocessing = PREPROCESSING | {"mean": mean}
        grey = adapt(encoder, in_channels=1)
        old = encoder.tubelets(normalised(pixels, encoder.preprocessing))[0]
        new = grey.tubelets(normalised(pixels, grey.preprocessing))[0]
        same = (old - new).abs().amax((0, 2, 3)) < 1e-10
        assert same.tolist() == [exact_from == 0, True, True, True]


def test_channels_and_kernel_together():
    encoder = encoder_of()
    encoder.preprocessing = dict(PREPROCESSING)
    size = {"tubelet_size": (2, 8, 8), "num_frames": 4, "image_size": (16, 24)}
    colour, grey = adapt(encoder, **size), adapt(encoder, **size, in_channels=1)
    pixels = smooth_video(channels=1, size=(4, 16, 24)).sigmoid()
    assert torch.allclose(
        grey(normalised(pixels, grey.preprocessing)).tokens,
        colour(normalised(pixels, colour.preprocessing)).tokens,
        atol=1e-10,
    )


def test_preprocessing_names_the_new_sampling():
    encoder = encoder_of()
    encoder.preprocessing = dict(PREPROCESSING)
    finer = adapt(encoder, tubelet_size=(8, 32, 32), num_frames=16, image_size=(64, 96))
    assert finer.preprocessing == PREPROCESSING | {"fps": 50.0, "resize": [64, 96]}
    longer = adapt(encoder, num_frames=16)
    assert longer.preprocessing == PREPROCESSING


# refusals


@pytest.mark.parametrize(
    ("geometry", "message"),
    [
        ({"embed_dim": 64}, "embed_dim cannot be adapted.* create_encoder"),
        ({"variant": "joint"}, "variant cannot be adapted"),
        ({"image_sise": (32, 32)}, "'image_sise' is unknown; did you mean 'image_size'"),
        ({"image_size": (33, 48)}, "image_size height 33 is not filled .* use 32 or 48"),
        ({"in_channels": 2}, "in_channels 3 cannot become 2: only colour"),
        ({"tubelet_size": 4}, "tubelet_size 4 must be 3 positive whole numbers"),
        ({"tubelet_stride": (8, 16, 16)}, "tubelet_stride .* exceeds tubelet_size"),
    ],
)
def test_invalid_geometries_are_refused_in_one_line(geometry, message):
    with pytest.raises(ValueError, match=message) as refusal:
        adapt(encoder_of(), **geometry)
    assert "\n" not in str(refusal.value)


def test_statistics_of_other_channels_are_refused():
    encoder = encoder_of()
    encoder.preprocessing = {"mean": [0.5, 0.5], "std": [0.5]}
    with pytest.raises(
        ValueError, match=r"preprocessing mean \[0.5, 0.5\] does not fit in_channels 3"
    ):
        adapt(encoder, in_channels=1)


def test_half_precision_stays_half_precision():
    encoder = encoder_of().bfloat16()
    adapted = adapt(encoder, image_size=(64, 48), num_frames=16, tubelet_size=(4, 8, 16))
    assert {parameter.dtype for parameter in adapted.parameters()} == {torch.bfloat16}
