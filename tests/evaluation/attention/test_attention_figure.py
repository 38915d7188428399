"""The attention figure: the clip, the extent of maps on frames, the values of the rows."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from readable_figures import faults
from small_encoders import MODEL2, MODELS, clip, make

from ssl_vivit import ViViT, ViViTConfig
from ssl_vivit.data.video.decoding import VideoInfo, decode_frames, probe_video
from ssl_vivit.evaluation.attention import figure as attention_figure
from ssl_vivit.evaluation.attention.command import main
from ssl_vivit.evaluation.attention.figure import attention_over_frames, frame_of_step
from ssl_vivit.evaluation.attention.maps import attention_maps
from ssl_vivit.evaluation.features.video_clip import ClipCutting, clip_of_video, numbered_clip

# 512×512, 125 frames at 25 a second.
VIDEO = Path(__file__).parents[2] / "assets" / "collision_clips" / "example_0_new.mp4"
PREPARED = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "fps": 12.5, "frame_stride": 3}


def prepared(image_size=(16, 24), **changes) -> ViViT:
    torch.manual_seed(0)
    tubelet = (2, image_size[0] // 2, image_size[1] // 2)
    encoder = ViViT(
        ViViTConfig(**MODEL2 | {"image_size": image_size, "tubelet_size": tubelet})
    ).eval()
    encoder.preprocessing = PREPARED | changes
    return encoder


@pytest.mark.parametrize(
    ("start", "changes", "first", "step"),
    [
        (None, {}, 40, 6),  # 63 steps at 12.5 Hz, 22 of them in a clip: starts at step 20 of 0…41
        (0.5, {}, 12, 6),  # step 6.25 at 12.5 Hz, to the nearest
        (0.54, {}, 14, 6),  # step 6.75
        (1.0, {"fps": None, "frame_stride": 2}, 25, 2),
    ],
)
def test_clips_have_the_frames_and_the_pixels_of_pretraining(start, changes, first, step):
    video = clip_of_video(prepared((512, 512), **changes), VIDEO, start=start)
    frames = decode_frames(VIDEO, [first + step * i for i in range(8)]).astype(np.float64) / 255
    expected = (frames - np.array(PREPARED["mean"])) / np.array(PREPARED["std"])
    expected = torch.from_numpy(expected).permute(3, 0, 1, 2)[None].float()
    torch.testing.assert_close(video, expected, rtol=0, atol=1e-5)


def test_clips_of_another_shape_are_cropped_in_the_middle_and_other_pixel_ranges_understood():
    encoder = prepared((256, 512))
    wide = clip_of_video(encoder, VIDEO)
    whole = clip_of_video(prepared((512, 512)), VIDEO)
    torch.testing.assert_close(wide, whole[..., 128:384, :], rtol=0, atol=1e-5)
    # 0.4 and 0.2 in [0, 1] are −0.2 and 0.4 in [−1, 1].
    encoder.preprocessing |= {"pixel_range": [-1, 1], "mean": [-0.2, 0.0, 0.2]}
    encoder.preprocessing |= {"std": [0.4, 0.5, 0.6]}
    torch.testing.assert_close(clip_of_video(encoder, VIDEO), wide, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "start", "message"),
    [
        (
            {"frame_stride": 20},
            None,
            r"125 frames at 25 frames/s \(5 s\); .* needs \d+ frames; take a longer",
        ),
        ({}, 4.0, r"does not fit at start 4 s"),
        ({}, -1.0, r"does not fit at start -1 s"),
        ({"mean": [0.5, 0.5]}, None, r"has 2 means and 3 stds for 3 channels"),
    ],
)
def test_clips_that_cannot_be_are_refused(changes, start, message):
    with pytest.raises(ValueError, match=message):
        clip_of_video(prepared(**changes), VIDEO, start=start)


def test_a_start_needs_a_frame_rate():
    cutting = ClipCutting(prepared(), VideoInfo(125, 512, 512, 0.0), "film")
    assert cutting.at(0.0)[0, 0] == 0
    with pytest.raises(
        ValueError, match="film states no frame rate, so the frame at start 2 s is unknown"
    ):
        cutting.at(2.0)


GEOMETRIES = {
    "plain": {},
    "overlapping": {"tubelet_size": (4, 8, 8), "tubelet_stride": (2, 4, 8)},
    "causal": {
        "tubelet_size": (4, 8, 8),
        "tubelet_stride": (2, 8, 8),
        "temporal_padding": "causal",
    },
    "uniform frames": {"tubelet_embedding": "uniform_frames"},
    "cropped": {"tubelet_size": (3, 6, 10), "tubelet_stride": (3, 5, 9), "remainder": "crop"},
}


@torch.no_grad()
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_maps_cover_the_pixels_that_their_tokens_see(geometry):
    encoder = make(**MODEL2 | GEOMETRIES[geometry])
    config, grid = encoder.config, encoder.config.grid
    base = encoder.tubelets(torch.zeros(1, 3, 8, 16, 24).double())[0]

    def seen(axis, length):
        """Return (positions, t, n): whether the pixel at each position affects the token."""
        reached = []
        for position in range(length):
            video = torch.zeros(1, 3, 8, 16, 24).double()
            video.select(axis, position).fill_(1.0)
            reached.append((encoder.tubelets(video)[0] != base).any(-1)[0])
        return torch.stack(reached)

    frames = seen(2, 8)
    for step in range(grid.t):
        assert frames[frame_of_step(config, 8, step), step].all()
    rows = seen(3, 16)[:, 0].unflatten(-1, grid[1:])[:, :, 0]
    columns = seen(4, 24)[:, 0].unflatten(-1, grid[1:])[:, 0]
    left, right, bottom, top = attention_figure.map_extent(
        config, config.image_size, grid.h, grid.w
    )
    for axis, (pixels, low, high, count) in enumerate(
        ((rows, top, bottom, grid.h), (columns, left, right, grid.w))
    ):
        for i in range(count):
            positions = pixels[:, i].nonzero().double()
            drawn = low + (high - low) / count * (i + 0.5)
            assert abs(positions.mean().item() - drawn) < 1e-9, (axis, i)


@pytest.mark.parametrize("name", MODELS)
def test_even_attention_is_one_everywhere(name):
    encoder = make(**MODELS[name])
    for key, parameter in encoder.named_parameters():
        if "qkv" in key:
            torch.nn.init.zeros_(parameter)
    rows = attention_figure._rows(attention_maps(encoder, clip()), heads=True)
    specials = int(bool(encoder.config.class_token))
    sequence = 24 if name == "joint" else 6
    for title, shares in rows.items():
        assert shares.shape == (4, 2, 3)
        expected = 1.0 if title == "rollout" else sequence / (sequence + specials)
        torch.testing.assert_close(
            shares, torch.full_like(shares, expected), rtol=0, atol=1e-12, msg=title
        )


def test_the_figure_shows_the_frames_and_a_row_for_each_map(tmp_path):
    encoder = make(**MODEL2).float()
    encoder.preprocessing = {"mean": [0.0], "std": [1.0]}
    video = torch.zeros(1, 3, 8, 16, 24)
    video[:, 0] = 1.0
    for heads in (False, True):
        attention_over_frames(encoder, video, tmp_path / f"{heads}.png", heads=heads, columns=3)
    few, many = (
        np.asarray(Image.open(tmp_path / f"{h}.png").convert("RGB")) for h in (False, True)
    )
    red = (few == (255, 0, 0)).all(-1)
    assert red.sum() > 3 * 60 * 90
    assert red[few.shape[0] // 2 :].sum() == 0  # Under the maps no frame is as bright.
    assert many.shape[0] / few.shape[0] == pytest.approx(5 / 3, abs=0.15)
    attention_over_frames(encoder, video, tmp_path / "again.png", columns=3)
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "False.png").read_bytes()


def test_the_figure_of_many_steps_fits_the_page(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(attention_figure, "save", lambda figure, path: drawn.append(figure))
    encoder = make(**MODEL2 | {"num_frames": 16}).float()
    encoder.preprocessing = {"mean": [0.0], "std": [1.0]}
    attention_over_frames(encoder, torch.zeros(1, 3, 16, 16, 24), tmp_path / "a.png", heads=True)
    (figure,) = drawn
    assert faults(figure) == []
    titles = [axis.get_title(loc="left") for axis in figure.axes[:9]]
    assert titles[:2] == ["frame 1", "frame 3"]
    assert titles[8] == "rollout, × even share"
    numbers = range(20, 52, 2)
    attention_over_frames(
        encoder, torch.zeros(1, 3, 16, 16, 24), tmp_path / "b.png", numbers=numbers
    )
    titles = [axis.get_title(loc="left") for axis in drawn[1].axes[:2]]
    assert titles == ["frame 22", "frame 26"]


def test_a_numbered_clip_has_the_frames_of_its_numbers():
    encoder = prepared()
    video, numbers = numbered_clip(encoder, VIDEO)
    assert torch.equal(video, clip_of_video(encoder, VIDEO))
    cutting = ClipCutting(encoder, probe_video(VIDEO), "x")
    assert torch.equal(cutting.prepared(decode_frames(VIDEO, numbers))[None], video)
    assert numbers == sorted(numbers)
    assert len(numbers) == encoder.config.num_frames


def test_a_row_of_maps_has_one_scale(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(attention_figure, "save", lambda figure, path: drawn.append(figure))
    encoder, video = make(**MODEL2).float(), clip(1).float()
    encoder.preprocessing = {"mean": [0.0], "std": [1.0]}
    attention_over_frames(encoder, video, tmp_path / "a.png")
    shares = attention_figure._rows(attention_maps(encoder, video), heads=False)["rollout"]
    maps = [axis.images[1] for axis in drawn[0].axes[4:8]]
    assert [image.get_clim() for image in maps] == [(0, shares.max().item())] * 4
    for image, share in zip(maps, shares, strict=True):
        np.testing.assert_array_equal(image.get_array(), share)


def test_the_command_draws_a_video_and_answers_mistakes_in_one_line(tmp_path, capsys):
    encoder = prepared()
    encoder.save_pretrained(tmp_path / "encoder")
    arguments = [str(tmp_path / "encoder"), str(VIDEO), str(tmp_path / "new" / "out.png")]
    assert main([*arguments, "--heads"]) == 0
    assert Image.open(tmp_path / "new" / "out.png").format == "PNG"
    assert capsys.readouterr().out == f"attention  {tmp_path / 'new' / 'out.png'}\n"
    encoder.preprocessing = None
    encoder.save_pretrained(tmp_path / "bare")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    for wrong, message in (
        ([str(tmp_path / "none"), *arguments[1:]], "no exported encoder"),
        ([str(tmp_path / "bare"), *arguments[1:]], "does not say how pixels are normalised"),
        ([arguments[0], str(broken), arguments[2]], "no readable video"),
        ([arguments[0], str(tmp_path / "none.mp4"), arguments[2]], "none.mp4"),
        ([*arguments, "--start", "100"], "does not fit at start 100 s"),
        ([*arguments[:2], str(tmp_path / "new.jpg")], "new.jpg must end in .png or .gif"),
        (
            [*arguments[:2], str(tmp_path / "new")],
            "new is a directory; give the name of a PNG or GIF",
        ),
    ):
        assert main(wrong) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert message in error
        assert error.count("\n") == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "bare", "broken.mp4", "encoder", "new",
    ]  # fmt: skip
