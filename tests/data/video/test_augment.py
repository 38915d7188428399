"""Augmentation, compared with torchvision clip by clip and operation by operation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as F
from einops import rearrange
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.transforms import RandomResizedCrop

from ssl_vivit.data.randomness import named_generator
from ssl_vivit.data.video import augment as augment_module
from ssl_vivit.data.video.augment import Augment, AugmentConfig
from ssl_vivit.errors import DataError

# SimCLR's strengths, so that all operations take part in most draws.
STRONG = AugmentConfig(
    scale=(0.3, 1.0), brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1,
    grey_probability=0.2, blur_probability=0.5,
)  # fmt: skip

RAW = {"mean": (0.0,), "std": (1.0,)}


def some_clips(n: int, t: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Return clips with smooth and rough parts, black, white and grey patches, and saturated colours."""
    generator = torch.Generator().manual_seed(seed)
    clips = torch.randint(0, 256, (n, t, height, width, 3), generator=generator, dtype=torch.uint8)
    clips[:, :, : height // 3, : width // 3] = 0
    clips[:, :, height // 3 : height // 2, : width // 3] = 255
    clips[:, :, height // 2 :, : width // 4] = 77
    clips[:, :, :5, width // 2 :] = torch.tensor([255, 0, 0], dtype=torch.uint8)
    return clips


def neutral(n: int, height: int, width: int) -> dict[str, Tensor]:
    return {
        "crop": torch.tensor([[0, 0, height, width]] * n),
        "flip": torch.zeros(n, dtype=torch.bool),
        "jitter": torch.tensor([[1.0, 1.0, 1.0, 0.0]] * n),
        "order": torch.arange(4).repeat(n, 1),
        "grey": torch.zeros(n, dtype=torch.bool),
        "blur": torch.zeros(n),
    }


def draw_many(augment: Augment, n: int, height: int, width: int) -> dict[str, Tensor]:
    drawn = [augment.draw(named_generator(7, i), height, width) for i in range(n)]
    return {name: torch.stack([d[name] for d in drawn]) for name in drawn[0]}


def frames_of(clip: Tensor) -> Tensor:
    return rearrange(clip, "t h w c -> t c h w").float() / 255


def torchvision_clip(clip: Tensor, augment: Augment, params: dict[str, Tensor], i: int) -> Tensor:
    """Apply the operations to one clip by torchvision; return (C, T, h, w)."""
    top, left, height, width = params["crop"][i].tolist()
    x = F.resized_crop(
        frames_of(clip), top, left, height, width, list(augment.size), antialias=True
    )
    x = F.horizontal_flip(x) if params["flip"][i] else x
    factors = params["jitter"][i].tolist()
    for which in params["order"][i].tolist():
        if which == 0:
            x = F.adjust_brightness(x, factors[0])
        elif which == 1:
            # One image that holds all frames: torchvision's mean is then the clip's.
            tall = rearrange(x, "t c h w -> c (t h) w")
            x = rearrange(F.adjust_contrast(tall, factors[1]), "c (t h) w -> t c h w", t=len(x))
        elif which == 2:
            x = F.adjust_saturation(x, factors[2])
        else:
            x = F.adjust_hue(x, factors[3])
    if augment.in_channels == 1:
        x = F.rgb_to_grayscale(x, num_output_channels=1)
    elif params["grey"][i]:
        x = F.rgb_to_grayscale(x, num_output_channels=3)
    if params["blur"][i] > 0:
        kernel = 2 * augment.blur_radius + 1
        x = F.gaussian_blur(x, [kernel, kernel], [params["blur"][i].item()] * 2)
    mean, std = torch.tensor(augment.mean), torch.tensor(augment.std)
    return rearrange((x - mean[:, None, None]) / std[:, None, None], "t c h w -> c t h w")


@pytest.mark.parametrize(
    ("source", "size"), [((40, 60), (24, 24)), ((36, 64), (36, 64)), ((20, 30), (45, 32))]
)
def test_crop_and_resize_equal_torchvision(source: tuple[int, int], size: tuple[int, int]) -> None:
    clips = some_clips(12, 3, *source)
    augment = Augment(AugmentConfig(scale=(0.05, 1.0), flip_probability=0.5), size, **RAW)
    params = {**neutral(12, *source), "flip": torch.arange(12) % 2 == 0}
    params["crop"] = draw_many(augment, 12, *source)["crop"]
    out = augment(clips, params)
    assert out.shape == (12, 3, 3, *size)
    for i in range(12):
        expected = torchvision_clip(clips[i], augment, params, i)
        assert (out[i] - expected).abs().max() < 1e-5


@pytest.mark.parametrize("operation", [0, 1, 2, 3])
def test_each_colour_change_equals_torchvision(operation: int) -> None:
    clips = some_clips(6, 2, 18, 22)
    augment = Augment(STRONG, (18, 22), **RAW)
    params = neutral(6, 18, 22)
    values = [0.2, 0.7, 1.3, 1.9, 1.0, 0.0] if operation < 3 else [-0.5, -0.1, 0.05, 0.3, 0.0, 0.5]
    params["jitter"][:, operation] = torch.tensor(values)
    out = augment(clips, params)
    for i in range(6):
        expected = torchvision_clip(clips[i], augment, params, i)
        assert (out[i] - expected).abs().max() < 1e-5
    assert (out[0] - frames_of(clips[0]).transpose(0, 1)).abs().max() > 0.1


@pytest.mark.parametrize("size", [(64, 64), (36, 64), (224, 100)])
def test_blur_equals_torchvision(size: tuple[int, int]) -> None:
    clips = some_clips(4, 2, *size)
    augment = Augment(STRONG, size, **RAW)
    assert augment.blur_radius == max(1, min(size) // 20)
    params = {**neutral(4, *size), "blur": torch.tensor([0.1, 0.8, 0.0, 2.0])}
    out = augment(clips, params)
    for i in range(4):
        assert (out[i] - torchvision_clip(clips[i], augment, params, i)).abs().max() < 1e-5


@pytest.mark.parametrize("in_channels", [3, 1])
def test_everything_drawn_equals_torchvision(in_channels: int) -> None:
    clips = some_clips(24, 2, 48, 64)
    config = replace(STRONG, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)
    augment = Augment(config, (40, 40), in_channels, mean=(0.45,), std=(0.225,))
    params = draw_many(augment, 24, 48, 64)
    assert {bool(b) for b in params["grey"]} == {True, False}
    out = augment(clips, params)
    assert out.shape == (24, in_channels, 2, 40, 40)
    assert out.dtype == torch.float32
    for i in range(24):
        # A hue is not continuous where a colour turns grey, so pixels are compared by their mean
        # as well as by their maximum.
        difference = (out[i] - torchvision_clip(clips[i], augment, params, i)).abs() * 0.225
        assert difference.mean() < 1e-5
        assert difference.max() < 5e-3


def test_a_clip_is_treated_as_its_frames_are() -> None:
    """Contrast is left out, because it depends on all frames of the clip."""
    augment = Augment(AugmentConfig(contrast=0.0), (32, 32))
    clips = some_clips(8, 5, 40, 50)
    params = draw_many(augment, 8, 40, 50)
    out = augment(clips, params)
    for frame in range(5):
        alone = augment(clips[:, frame : frame + 1], params)
        assert torch.allclose(out[:, :, frame : frame + 1], alone, atol=1e-6)


def test_contrast_keeps_the_clips_mean_not_each_frames() -> None:
    clips = torch.zeros(1, 2, 8, 8, 3, dtype=torch.uint8)
    clips[:, 1] = 200
    augment = Augment(STRONG, (8, 8), **RAW)
    params = neutral(1, 8, 8)
    params["jitter"][:, 1] = 0.5
    out = augment(clips, params)
    assert out[0, :, 0].unique().item() == pytest.approx(0.25 * 200 / 255, abs=1e-3)
    assert out[0, :, 1].unique().item() == pytest.approx(0.75 * 200 / 255, abs=1e-3)


@pytest.mark.parametrize("in_channels", [3, 1])
@pytest.mark.parametrize("chunk", [1, 5000, 2**20])
def test_a_batch_is_as_its_clips_one_by_one(
    in_channels: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(augment_module, "_CHUNK_ELEMENTS", chunk)
    augment = Augment(STRONG, (20, 28), in_channels)
    clips = some_clips(7, 2, 30, 34)
    params = draw_many(augment, 7, 30, 34)
    one_by_one = augment(clips, params)
    together = augment._apply(clips, params)
    assert torch.allclose(one_by_one, together, atol=1e-5)


class Traffic(TorchDispatchMode):
    """Count kernels, copies from the host, and bytes that operations read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels, self.bytes, self.copies, self.waits = 0, 0, 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        inputs, outputs = (
            [each for each in tree_leaves(part) if isinstance(each, Tensor)]
            for part in ((args, kwargs), out)
        )
        on_device = [each for each in (*inputs, *outputs) if each.device.type == "meta"]
        name = func.overloadpacket.__name__
        if not on_device or func.is_view or name in ("empty", "_unsafe_view", "detach"):
            return out
        if any(each.device.type == "cpu" and each.ndim for each in inputs):
            self.copies += 1
            blocking = not (name == "_to_copy" and kwargs.get("non_blocking"))
            self.waits += [name] if blocking else []
        elif name in ("_local_scalar_dense", "nonzero", "masked_select"):
            self.waits.append(name)
        self.kernels += 1
        if name in ("index", "index_select"):
            on_device = [out, out]
        elif name in ("index_copy_", "copy_"):
            on_device = [inputs[-1], inputs[-1]]
        self.bytes += sum(each.numel() * each.element_size() for each in on_device)
        return out


def test_augmentation_of_a_batch_stays_within_its_budget() -> None:
    """The batch has 64 videos with two views of 16 CLEVRER frames, as in the small preset."""
    augment = Augment(AugmentConfig(), (112, 112))
    params = draw_many(augment, 128, 320, 480)
    clips = torch.empty(128, 16, 320, 480, 3, dtype=torch.uint8, device="meta")
    with Traffic() as traffic:
        out = augment._apply(clips, params)
    assert out.shape == (128, 3, 16, 112, 112)
    assert traffic.waits == []
    assert traffic.copies == 2
    assert traffic.kernels <= 350
    assert traffic.bytes <= 36e9


def test_autocast_does_not_reach_the_pixels() -> None:
    augment = Augment(STRONG, (20, 20))
    clips = some_clips(3, 2, 30, 34)
    params = draw_many(augment, 3, 30, 34)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = augment(clips, params)
    assert torch.equal(inside, augment(clips, params))


@pytest.mark.gpu
def test_the_device_gives_what_the_cpu_gives() -> None:
    augment = Augment(STRONG, (112, 112))
    clips = some_clips(32, 4, 120, 160)
    params = draw_many(augment, 32, 120, 160)
    difference = (augment(clips.cuda(), params).cpu() - augment(clips, params)).abs()
    assert difference.mean() < 1e-4


def test_draws_depend_only_on_the_generator() -> None:
    augment = Augment(STRONG, (32, 32))
    torch.manual_seed(0)
    first = augment.draw(named_generator(3), 40, 50)
    torch.manual_seed(1)
    np.random.seed(2)  # noqa: NPY002
    second = augment.draw(named_generator(3), 40, 50)
    assert all(torch.equal(first[name], second[name]) for name in first)
    calm = Augment(replace(STRONG, jitter_probability=0.0), (32, 32)).draw(
        named_generator(3), 40, 50
    )
    assert torch.equal(calm["crop"], first["crop"])
    assert torch.equal(calm["blur"], first["blur"])


def test_windows_are_distributed_as_torchvisions() -> None:
    torch.manual_seed(0)
    n, height, width = 4000, 60, 90
    augment = Augment(AugmentConfig(scale=(0.2, 1.0)), (32, 32))
    ours = draw_many(augment, n, height, width)["crop"].double()
    image = torch.empty(3, height, width)
    theirs = torch.tensor(
        [RandomResizedCrop.get_params(image, (0.2, 1.0), (0.75, 4 / 3)) for _ in range(n)]
    ).double()
    difference = (ours.mean(0) - theirs.mean(0)).abs()
    assert (difference < 4 * (theirs.std(0) * (2 / n) ** 0.5)).all()
    assert ((ours[:, :2] >= 0) & (ours[:, :2] + ours[:, 2:] <= torch.tensor([60, 90]))).all()
    for q in (0.1, 0.5, 0.9):
        assert (ours.quantile(q, 0) - theirs.quantile(q, 0)).abs().max() <= 3
    # Size, shape and place have nothing to do with each other.
    room = torch.tensor([height, width]) - ours[:, 2:]
    wide = (room >= 10).all(1)
    places = (ours[:, :2] / room)[wide]
    traits = torch.stack((ours[:, 2] * ours[:, 3], ours[:, 3] / ours[:, 2]))[:, wide]
    between = torch.corrcoef(torch.cat((traits, places.T)))[2:]
    assert (between - torch.eye(4)[2:]).abs().max() < 4 / len(places) ** 0.5


def test_shapes_are_relative_to_the_outputs_aspect() -> None:
    augment = Augment(AugmentConfig(scale=(0.2, 0.3), ratio=(0.9, 1.1)), (36, 64))
    crop = draw_many(augment, 200, 320, 480)["crop"].double()
    relative = crop[:, 3] / crop[:, 2] * 36 / 64
    assert relative.min() > 0.88
    assert relative.max() < 1.12


def test_chances_and_ranges_of_draws() -> None:
    config = STRONG
    params = draw_many(Augment(config, (32, 32)), 3000, 40, 50)
    changed = (params["jitter"] != torch.tensor([1.0, 1.0, 1.0, 0.0])).any(1)
    for drawn, probability in (
        (params["flip"], 0.5),
        (changed, 0.8),
        (params["grey"], 0.2),
        (params["blur"] > 0, 0.5),
    ):
        assert abs(drawn.double().mean().item() - probability) < 4 * (0.25 / 3000) ** 0.5
    factors = params["jitter"][changed]
    for column, (low, high) in enumerate([(0.6, 1.4)] * 3 + [(-0.1, 0.1)]):
        assert low - 1e-6 <= factors[:, column].min() < low + 0.01 * (high - low)
        assert high + 1e-6 >= factors[:, column].max() > high - 0.01 * (high - low)
    assert set(map(tuple, params["order"].tolist())).__len__() == 24


def test_without_randomness_is_a_central_crop() -> None:
    augment = Augment(AugmentConfig(), (20, 20), **RAW).without_randomness()
    params = {k: v[None] for k, v in augment.draw(named_generator(0), 40, 60).items()}
    assert params["crop"].tolist() == [[0, 10, 40, 40]]
    assert augment.draw(named_generator(0), 60, 40)["crop"].tolist() == [10, 0, 40, 40]
    clips = some_clips(1, 2, 40, 60)
    expected = F.resize(F.center_crop(frames_of(clips[0]), [40, 40]), [20, 20], antialias=True)
    out = augment(clips, params)[0]
    assert (out - expected.transpose(0, 1)).abs().max() < 1e-5
    again = augment.draw(named_generator(1), 40, 60)
    assert all(
        torch.equal(params[k][0], again[k]) for k in ("crop", "flip", "jitter", "grey", "blur")
    )


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("scale", (0.0, 1.0)),
        ("scale", (0.5, 1.5)),
        ("ratio", (2.0, 0.5)),
        ("flip_probability", 1.5),
        ("brightness", -0.1),
        ("hue", 0.7),
        ("blur_sigma", (0.0, 1.0)),
    ],
)
def test_settings_out_of_range_are_named(setting: str, value: object) -> None:
    with pytest.raises(DataError, match=rf"--data\.augment\.{setting} is .*; it must be"):
        AugmentConfig(**{setting: value})  # type: ignore[arg-type]


def test_channels_and_statistics_must_agree() -> None:
    with pytest.raises(DataError, match=r"in_channels is 4"):
        Augment(AugmentConfig(), (8, 8), in_channels=4)
    with pytest.raises(DataError, match=r"--data\.mean has 3 numbers for 1 channels"):
        Augment(AugmentConfig(), (8, 8), in_channels=1, mean=(0.1, 0.2, 0.3))
    with pytest.raises(DataError, match=r"--data\.std is \[0\.0\]"):
        Augment(AugmentConfig(), (8, 8), std=(0.0,))
