"""encode_video of a file or of frames, compared with a plain decode of the whole video."""

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from small_encoders import MODEL1, MODEL2, MODEL3, make

from ssl_vivit import VideoClassifier
from ssl_vivit.errors import DecodingError
from ssl_vivit.evaluation import encode_video

ASSETS = Path(__file__).parents[2] / "assets"
# 512×512, 125 frames at 25 a second.
VIDEO = ASSETS / "collision_clips" / "example_0_new.mp4"
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
# Clips of 8 frames of 16×24 pixels.
PREPARED = {"mean": MEAN, "std": STD, "fps": 12.5, "frame_stride": 3}


def encoder(settings=MODEL2, **changes):
    made = make(**settings).float()
    made.preprocessing = {**PREPARED, **changes}
    return made


def plainly_decoded(path):
    """Return all frames of a video, and their times in seconds."""
    with av.open(str(path)) as container:
        found = [(f.to_ndarray(format="rgb24"), float(f.time)) for f in container.decode(video=0)]
    frames, seconds = zip(*found, strict=True)
    return np.stack(frames), np.array(seconds) - seconds[0]


def by_hand(frames):
    """Return the encoder's input for RGB frames: central crop of 2 : 3, resized, normalised."""
    _, height, width, _ = frames.shape
    tall = min(height, round(width * 2 / 3))
    top = (height - tall) // 2
    pixels = torch.from_numpy(frames[:, top : top + tall]).permute(0, 3, 1, 2).float() / 255
    pixels = F.interpolate(pixels, (16, 24), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return ((pixels - mean) / std).movedim(0, 1)[None]


def same(got, expected):
    for own, other in zip(got[:3], expected[:3], strict=True):
        if other is None:
            assert own is None
        else:
            assert (own.dtype, own.requires_grad) == (torch.float32, False)
            torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-3)
    assert got.grid == expected.grid


@torch.no_grad()
@pytest.mark.parametrize("settings", [MODEL1, MODEL2, MODEL3], ids=["1", "2", "3"])
def test_the_clip_in_the_middle(settings):
    model = encoder(settings)
    frames, _ = plainly_decoded(VIDEO)
    # 63 steps at 12.5 a second, 22 of them in a clip, which starts at step 20 of 0…41.
    expected = model(by_hand(frames[40 + 6 * np.arange(8)]))
    got = encode_video(VIDEO, model)
    same(got, expected)
    assert got.pooled.shape == (1, 24)
    assert got.tokens.shape == (1, 4, 6, 24)
    same(encode_video(str(VIDEO), model, tokens=False), expected._replace(tokens=None))


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_consecutive_clips_of_a_file_and_of_its_frames(batch_size):
    model = encoder(frame_stride=1)
    frames, _ = plainly_decoded(VIDEO)
    # Steps 0…62 hold 7 clips of 8 steps; the last 7 steps are left out.
    clips = [frames[2 * (8 * clip + np.arange(8))] for clip in range(7)]
    expected = model(torch.cat([by_hand(clip) for clip in clips]))
    same(encode_video(VIDEO, model, clips="all", batch_size=batch_size), expected)
    same(encode_video(frames, model, clips="all", fps=25.0, batch_size=batch_size), expected)
    assert expected.pooled.shape == (7, 24)


@torch.no_grad()
def test_clips_of_a_varying_rate_go_by_time_stamps(tmp_path):
    ticks = [*range(0, 2000, 100), *range(2000, 4000, 20)]  # 10, then 50 frames a second
    path, base = tmp_path / "varying.mp4", Fraction(1, 1000)
    draw = np.random.default_rng(0)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=50, options={"crf": "10"})
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        stream.time_base = stream.codec_context.time_base = base
        for tick in ticks:
            grey = np.full((32, 48, 3), draw.integers(256), np.uint8)
            frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
            frame.pts, frame.time_base = tick, base
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    frames, seconds = plainly_decoded(path)
    model = encoder(frame_stride=1)
    wanted = np.arange(48) / 12.5  # six clips of 8 steps fit into 50
    shown = [max(i for i, begun in enumerate(seconds) if begun <= t + 1e-6) for t in wanted]
    expected = model(torch.cat([by_hand(frames[shown[k : k + 8]]) for k in range(0, 48, 8)]))
    same(encode_video(path, model, clips="all"), expected)
    # Repeated frames of a film that is slower than the encoder's rate.
    fast = encoder(frame_stride=1, fps=50.0)
    got = encode_video(path, fast, clips="all", tokens=False)
    first = model(by_hand(frames[[0, 0, 0, 0, 0, 1, 1, 1]]))
    torch.testing.assert_close(got.pooled[:1], first.pooled, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_frames_without_a_rate_are_the_encoders_steps():
    frames = np.random.default_rng(0).integers(0, 256, (30, 20, 30, 3), np.uint8)
    model = encoder()
    expected = model(by_hand(frames[4 + 3 * np.arange(8)]))  # 22 of 30 frames, from 4 of 0…8 on
    same(encode_video(frames, model), expected)
    same(encode_video(torch.from_numpy(frames), model), expected)
    same(encode_video(list(frames), model), expected)
    # Clips of every third frame follow each other: from 0 and from 24 on.
    frames = np.concatenate([frames, frames[:20]])
    expected = model(torch.cat([by_hand(frames[k + 3 * np.arange(8)]) for k in (0, 24)]))
    same(encode_video(frames, model, clips="all"), expected)


def test_the_encoder_stays_in_its_mode_and_precision():
    model = encoder()
    expected = encode_video(VIDEO, model)
    model = make(**MODEL2 | {"mlp_dropout": 0.5, "patch_dropout": 0.5}).train()
    model.preprocessing = PREPARED
    same(encode_video(VIDEO, model), expected)
    assert model.training
    assert model.tubelets.weight.dtype == torch.float64


SHORT = np.zeros((7, 16, 24, 3), np.uint8)


@pytest.mark.parametrize(
    ("video", "options", "changes", "message"),
    [
        (VIDEO, {}, {"mean": None}, "does not say how pixels are normalised; set encoder.prepro"),
        (
            VIDEO,
            {},
            {"frame_stride": 20},
            r"at 25 frames/s \(5 s\); .* and needs 281 frames; take a longer",
        ),
        (
            SHORT,
            {},
            {},
            r"^the array has 7 frames; a clip of 8 frames at stride 3 needs 22 frames; take a longer "
            r"video, or call load_encoder\(…, num_frames=2\)$",
        ),
        (VIDEO, {"clips": "every"}, {}, "clips 'every' is unknown; use 'central' or 'all'"),
        (VIDEO, {"fps": 25.0}, {}, "fps 25.0 is for arrays of frames, .* omit fps"),
        (SHORT, {"fps": -1.0}, {}, r"fps -1\.0 must be above 0"),
        (SHORT / 255, {}, {}, r"float64 of shape .* such as \(frames \* 255\)\.round\(\) as uint8"),
        ([SHORT, SHORT[:3]], {}, {}, r"video is a list, not an array of frames"),
        ([VIDEO, VIDEO], {}, {}, r"video is a list, not an array of frames"),
        ([SHORT, SHORT], {}, {}, r"give uint8 RGB frames \(T, H, W, 3\) of one video"),
        (SHORT[None], {}, {}, r"give uint8 RGB frames \(T, H, W, 3\) of one video$"),
    ],
)
def test_what_cannot_be_encoded_is_refused_in_a_line(video, options, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        encode_video(video, encoder(**changes), **options)
    assert "\n" not in str(caught.value)


def test_other_models_missing_and_broken_files_are_named(tmp_path):
    model = encoder()
    with pytest.raises(TypeError, match="encoder is a VideoClassifier; give a ViViT"):
        encode_video(VIDEO, VideoClassifier(model, 2))
    with pytest.raises(FileNotFoundError, match=r"none\.mp4 is no file"):
        encode_video(tmp_path / "none.mp4", model)
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(DecodingError, match=r"text\.mp4: no readable video"):
        encode_video(tmp_path / "text.mp4", model)
    with pytest.raises(DecodingError, match=r"corrupted\.mp4: "):
        encode_video(ASSETS / "awkward_videos" / "corrupted.mp4", model, clips="all")


@pytest.mark.parametrize("clips", ["central", "all"])
def test_a_truncated_file_is_named(tmp_path, clips):
    path = tmp_path / "cut.mp4"
    noise = np.random.default_rng(0).integers(0, 256, (8, 32, 48, 3), np.uint8)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as out:
        stream = out.add_stream("libx264", rate=25, options={"bf": "0"})
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for picture in noise:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    path.write_bytes(path.read_bytes()[:-500])  # the header says all frames, the last one is cut
    with pytest.raises(DecodingError, match=r"^\S+cut\.mp4: breaks after 7 of 8 frames") as caught:
        encode_video(path, encoder(frame_stride=1, fps=25.0), clips=clips)
    assert str(caught.value).count("cut.mp4") == 1


@torch.no_grad()
def test_the_calls_of_the_docs_run_unchanged(tmp_path, monkeypatch):
    encoder().save_pretrained(tmp_path / "runs/demo/encoder")
    VideoClassifier(encoder(), 10).save_pretrained(tmp_path / "classifier")
    (tmp_path / "film.mp4").symlink_to(VIDEO)
    monkeypatch.chdir(tmp_path)
    pages = Path(__file__).parents[3] / "docs" / "how_to"
    names = {"torch": torch, "timm": timm, "encoder": encoder(resize=(16, 24))}
    for page, call in (("encoder", "encode_video("), ("classifier", '"local-dir:')):
        parts = (pages / f"{page}.md").read_text().split("```python\n")[1:]
        (block,) = (code for part in parts if call in (code := part.split("```")[0]))
        exec(block, names)
    assert names["output"].pooled.shape == (1, 24)
    assert names["video"].shape == (1, 3, 16, 16, 24)
    assert names["other"].encoder.config.image_size == (96, 96)
    assert len(names["maps"](names["video"][:, :, :8])) == 3


def test_the_package_does_not_load_torch_before_the_name_is_used():
    code = (
        "import sys, ssl_vivit.evaluation as e; assert 'encode_video' in dir(e); "
        "print('torch' in sys.modules); e.encode_video; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
