"""Features of clips: several clips equal single clips; preparation by the encoder; labels."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from data_prep.clevrer.packing import pack
from data_prep.synthetic_clevrer.videos import render
from ssl_vivit.data.video.clevrer import clip_labels
from ssl_vivit.data.video.loader import ClipBatches
from ssl_vivit.data.video.shards import ShardSet
from ssl_vivit.encoders import create_encoder
from ssl_vivit.errors import DataError
from ssl_vivit.evaluation.features.extraction import (
    EncoderFeatures,
    MotionEnergyFeatures,
    PixelFeatures,
    clip_features,
    untrained,
)
from ssl_vivit.evaluation.features.preparation import ClipChoice, check_whole_frames, preparation
from ssl_vivit.evaluation.probes.labelled_videos import ClevrerLabels

PREPROCESSING = {"mean": [0.4] * 3, "std": [0.2] * 3, "fps": 25.0, "frame_stride": 3}


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> ShardSet:
    folder = tmp_path_factory.mktemp("rendered")
    render(folder / "v", 6, size=(24, 36), num_frames=32, workers=1, progress=False)
    pack(folder / "v", folder / "s", folder / "v", frames=32, workers=1, progress=False)
    return ShardSet(str(folder / "s" / "*.tar"))


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    made = create_encoder(
        "vivit_tiny", num_frames=4, image_size=(16, 24), tubelet_size=(2, 8, 8), embed_dim=24,
        num_heads=2, spatial_depth=1, temporal_depth=1, patch_dropout=0.5, drop_path=0.5,
    )  # fmt: skip
    made.preprocessing = dict(PREPROCESSING)
    return made


def test_several_clips_are_described_as_each_by_itself(videos, encoder):
    prepared = preparation(encoder, videos.fps, clips=3)
    dataset = prepared.dataset(videos, labels=True)

    loader = ClipBatches(dataset, shuffle=False)
    extractors = {name: EncoderFeatures(encoder, name) for name in ("pooled", "mean", "both")}
    found = clip_features(extractors, loader.once(4, "cpu"), ClevrerLabels(videos), videos=6)
    assert found.keys == videos.keys
    encoder.eval()
    with torch.no_grad():
        for i, batch in enumerate(loader.once(1, "cpu")):
            for view in range(3):
                out = encoder(batch["clips"][:, view])
                mean = out.tokens.mean((1, 2))[0]
                got = {name: value[i, view] for name, value in found.vectors.items()}
                torch.testing.assert_close(got["pooled"], out.pooled[0], rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(got["mean"], mean, rtol=1e-4, atol=1e-5)
                both = torch.cat((out.pooled[0], mean))
                torch.testing.assert_close(got["both"], both, rtol=1e-4, atol=1e-5)


def test_tokens_of_all_clips_are_kept(videos, encoder, tmp_path):

    loader = ClipBatches(preparation(encoder, videos.fps, clips=2).dataset(videos), shuffle=False)
    found = clip_features(
        {"e": EncoderFeatures(encoder, "pooled"), "p": PixelFeatures((2, 2, 3))},
        loader.once(4, "cpu"), lambda batch: {"n": torch.ones(len(batch["key"]))},
        videos=6, token_folder=tmp_path,
    )  # fmt: skip
    assert found.tokens["e"].shape == (6, 2, 2 * 6, 24)
    assert found.tokens["p"].shape == (6, 2, 2, 2 * 3 * 3)
    clips = torch.cat([batch["clips"] for batch in loader.once(1, "cpu")])
    with torch.no_grad():
        tokens = encoder.eval()(clips[4]).tokens.flatten(1, 2)
    got = found.tokens["e"].read(torch.tensor([4]), slice(0, 2))[0]
    torch.testing.assert_close(got, tokens.flatten(0, 1), rtol=2e-3, atol=2e-3)


def test_describing_leaves_the_encoder_as_it_was(encoder):
    encoder.train()
    encoder.trunk.spatial_norm.eval()
    EncoderFeatures(encoder)(torch.randn(1, 3, 4, 16, 24))
    assert encoder.training
    assert not encoder.trunk.spatial_norm.training


def test_pixels_are_averaged_over_blocks():
    clips = torch.randn(2, 3, 8, 16, 24)
    got = PixelFeatures((4, 8, 12))(clips, tokens=True)
    block = clips[1, 2, 2:4, 6:8, 20:22].mean()
    # time 1, row 3, column 10, channel 2
    torch.testing.assert_close(got.tokens[1, 1].view(8, 12, 3)[3, 10, 2], block)
    torch.testing.assert_close(got.vectors, got.tokens.flatten(1))
    assert PixelFeatures()(torch.randn(1, 1, 2, 4, 6)).vectors.shape == (1, 2 * 4 * 6)


def test_motion_energy_is_the_change_from_frame_to_frame_over_blocks():
    clips = torch.randn(2, 3, 9, 16, 24)
    got = MotionEnergyFeatures((4, 8, 12))(clips, tokens=True)
    moving = torch.stack([(clips[1, :, t + 1] - clips[1, :, t]).abs() for t in (2, 3)])
    # time 1, row 3, column 10
    expected = moving[:, :, 6:8, 20:22].mean()
    torch.testing.assert_close(got.tokens[1, 1].view(8, 12)[3, 10], expected)
    torch.testing.assert_close(got.vectors, got.tokens.flatten(1))
    still = MotionEnergyFeatures()(torch.randn(1, 3, 1, 16, 24)).vectors
    assert torch.equal(still, torch.zeros(1, 8 * 12))


def test_clips_are_cut_as_in_pretraining_by_default(videos, encoder):
    own = preparation(encoder, videos.fps)
    assert (own.clip.length, own.clip.frame_stride, own.clip.fps) == (4, 3, 25.0)
    assert (own.size, own.in_channels) == ((16, 24), 3)
    assert (own.mean, own.std) == ((0.4,) * 3, (0.2,) * 3)
    other = preparation(encoder, videos.fps, ClipChoice(frame_stride=2, fps=12.5), clips=4).clip
    assert (other.frame_stride, other.fps, other.views) == (2, 12.5, 4)
    assert preparation(encoder, videos.fps, clips=4).one_long_clip().clip.length == 16
    encoder.preprocessing = None
    bare = preparation(encoder, videos.fps)
    assert (bare.clip.frame_stride, bare.clip.fps, bare.mean) == (1, None, (0.5,))


@pytest.mark.parametrize("unknown", [0.0, np.nan])
def test_videos_that_name_no_rate_are_counted_in_frames(encoder, unknown):
    assert preparation(encoder, np.array([25.0, unknown])).clip.fps is None


def test_statistics_may_be_in_another_pixel_range(videos, encoder):
    encoder.preprocessing |= {"pixel_range": [0, 255], "mean": [102.0], "std": [51.0]}
    got = preparation(encoder, videos.fps)
    assert got.mean == pytest.approx((0.4,) * 3)
    assert got.std == pytest.approx((0.2,) * 3)


def test_a_geometry_that_shows_too_little_of_the_frames_is_refused(videos):
    square = create_encoder("vivit_tiny", num_frames=4, image_size=(32, 32))
    dataset = preparation(square, videos.fps).dataset(videos)
    with pytest.raises(DataError, match=r"67% of frames.*--data.image_size '\[32, 48\]'"):
        check_whole_frames(square, dataset, "it")
    fitting = create_encoder("vivit_tiny", num_frames=4, image_size=(32, 48))
    check_whole_frames(fitting, preparation(fitting, videos.fps).dataset(videos), "it")


@pytest.mark.parametrize("clips", [1, 3])
def test_several_clips_are_labelled_as_one(videos, encoder, clips):

    dataset = preparation(encoder, videos.fps, clips=clips).dataset(videos, labels=True)
    batch = next(ClipBatches(dataset, shuffle=False).once(6, "cpu"))
    told = ClevrerLabels(videos)(batch)
    for i in range(6):
        frames = sorted({int(frame) for view in batch["frames"][i] for frame in view})
        expected = clip_labels(videos.annotation(i), frames)
        for name, value in expected.items():
            assert torch.equal(told[name][i], value)
            if clips == 1:
                assert torch.equal(batch[name][i, 0], value)
    if clips == 3:
        spans = told["num_collisions"] >= batch["num_collisions"].sum(1)
        assert spans.all()
        seen = told["presence"] == batch["presence"].amax(1)
        assert seen.all()


def test_untrained_copies_differ_only_by_seed_and_do_not_change_other_draws(encoder):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = untrained(encoder, 1), untrained(encoder, 1), untrained(encoder, 2)
    assert torch.equal(torch.rand(1), expected)
    weights = [twin.tubelets.weight for twin in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert first.config == encoder.config
    assert not F.cosine_similarity(weights[0].flatten(), encoder.tubelets.weight.flatten(), 0) > 0.5
