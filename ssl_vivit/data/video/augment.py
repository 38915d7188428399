"""Augmentation of whole clips: drawn once a clip on the CPU, applied in batches on the device."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ssl_vivit.data.video.colour import JITTERS, adjust, luma
from ssl_vivit.data.video.resampling import blur_matrices, resize_matrices
from ssl_vivit.errors import DataError
from ssl_vivit.preprocessing import central_window
from ssl_vivit.settings import check_type

# float32 values of input in work at a time; a batch that is larger is augmented in parts.
_CHUNK_ELEMENTS = 128 * 2**20


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation that makes two views of a video differ: SimCLR's and CVRL's operations.

    The defaults are milder than theirs: CLEVRER's scenes differ in the colours of small objects
    alone, which must survive.

    All is drawn once a clip and is the same in its frames, as in CVRL (Qian et al. 2021,
    Sec. 3.2). Every probability may be 0.

    Args:
        strength: "full" augments; "none" cuts the largest central window of the output's shape
            and resizes it, for evaluation, and takes no notice of the other settings.
        scale: smallest and largest share of the frame's area that a crop keeps.
        ratio: range of a crop's width : height, relative to the output's own.
        flip_probability: how often a clip is mirrored left to right.
        jitter_probability: how often colours are changed.
        brightness: factors from [1 − x, 1 + x].
        contrast: factors from [1 − x, 1 + x].
        saturation: factors from [1 − x, 1 + x].
        hue: rotations of the colour circle from [−x, x] turns, x up to 0.5.
        grey_probability: how often a clip loses its colour.
        blur_probability: how often a clip is blurred.
        blur_sigma: range of the Gaussian's standard deviation in pixels of the output. It is cut
            off at a twentieth of the output's shorter side, as in SimCLR.
    """

    strength: Literal["full", "none"] = "full"
    scale: tuple[float, float] = (0.5, 1.0)
    ratio: tuple[float, float] = (0.75, 4 / 3)
    flip_probability: float = 0.5
    jitter_probability: float = 0.8
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.02
    grey_probability: float = 0.0
    blur_probability: float = 0.2
    blur_sigma: tuple[float, float] = (0.1, 2.0)

    def __post_init__(self) -> None:
        def refuse(name: str, rule: str) -> None:
            raise DataError(f"--data.augment.{name} is {getattr(self, name)}; it must be {rule}")

        check_type("--data.augment.strength", self.strength, Literal["full", "none"])
        for name in ("flip", "jitter", "grey", "blur"):
            if not 0 <= getattr(self, f"{name}_probability") <= 1:
                refuse(f"{name}_probability", "between 0 and 1")
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) < math.inf:
                refuse(name, "0 or more")
        if not 0 <= self.hue <= 0.5:
            refuse("hue", "between 0 and 0.5")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            refuse("scale", "two shares of the area, the smaller first, above 0 and up to 1")
        for name in ("ratio", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high < math.inf:
                refuse(name, "two numbers above 0, the smaller first")


class Augment:
    """uint8 clips → augmented, normalised floats of one size.

    Args:
        config: what may happen to a clip.
        size: (height, width) of the output.
        in_channels: 3 for RGB, 1 for luma (ITU-R 601).
        mean: of each channel, in units of the pixel range [0, 1]; one number serves all channels.
        std: of each channel, likewise.

    Raises:
        DataError: if a size or a number of channels cannot be.
    """

    def __init__(
        self,
        config: AugmentConfig,
        size: tuple[int, int],
        in_channels: int = 3,
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
    ) -> None:
        if in_channels not in (1, 3):
            raise DataError(f"in_channels is {in_channels}; clips have 3 (RGB) or 1 (luma)")
        if min(size) < 1:
            raise DataError(f"clips of {size[0]}×{size[1]} pixels are asked for")
        for name, values in (("mean", mean), ("std", std)):
            if len(values) not in (1, in_channels):
                raise DataError(
                    f"--data.{name} has {len(values)} numbers for {in_channels} channels; "
                    f"give 1 or {in_channels}"
                )
        if min(std) <= 0:
            raise DataError(f"--data.std is {list(std)}; every number must be above 0")
        self.config = config
        self.size = (int(size[0]), int(size[1]))
        self.in_channels = in_channels
        self.mean = tuple(float(m) for m in mean) * (in_channels if len(mean) == 1 else 1)
        self.std = tuple(float(s) for s in std) * (in_channels if len(std) == 1 else 1)
        # A kernel that reaches beyond the reflected border has no meaning for tiny frames.
        self.blur_radius = min(max(1, min(self.size) // 20), min(self.size) - 1)

    def without_randomness(self) -> Augment:
        """Return the evaluation's augmentation: central crop and resize, as many channels, as normalised."""
        config = replace(self.config, strength="none")
        return Augment(config, self.size, self.in_channels, self.mean, self.std)

    def draw(self, rng: np.random.Generator, height: int, width: int) -> dict[str, Tensor]:
        """Draw what happens to one clip of frames of the given size.

        Always takes the same count of numbers from the generator, so that one setting does not
        change what others draw.

        Returns:
            What was drawn, by name.
            ``crop`` int64 (4,): top, left, height, width; ``flip``, ``grey`` bool ();
            ``jitter`` float32 (4,): brightness, contrast and saturation factors, hue shift in
            turns; ``order`` int64 (4,): the sequence in which they are applied; ``blur`` float32
            (): the standard deviation in pixels, 0 for none.
        """
        config = self.config
        windows, chances, factors = rng.random((10, 4)), rng.random(4), rng.random(4)
        order, sigma = np.argsort(rng.random(4), kind="stable"), rng.random()
        if config.strength == "none":
            chances[:] = 1.0  # Below no probability.
            crop = central_window(height, width, *_aspects(self.size, (1.0, 1.0)))
        else:
            crop = _random_window(windows, height, width, self.size, config)

        flipped, jittered, greyed, blurred = chances < (
            config.flip_probability,
            config.jitter_probability,
            config.grey_probability,
            config.blur_probability,
        )
        jitter = np.array([1.0, 1.0, 1.0, 0.0])
        if jittered:
            spread = np.array([config.brightness, config.contrast, config.saturation, config.hue])
            low = np.maximum(jitter - spread, [0.0, 0.0, 0.0, -0.5])
            jitter = low + (jitter + spread - low) * factors
        low_sigma, high_sigma = config.blur_sigma
        blur = low_sigma + (high_sigma - low_sigma) * sigma if blurred else 0.0
        return {
            "crop": torch.tensor(crop, dtype=torch.int64),
            "flip": torch.tensor(bool(flipped)),
            "jitter": torch.tensor(jitter, dtype=torch.float32),
            "order": torch.tensor(order, dtype=torch.int64),
            "grey": torch.tensor(bool(greyed)),
            "blur": torch.tensor(blur, dtype=torch.float32),
        }

    @torch.no_grad()
    def __call__(
        self, clips: UInt8[Tensor, "n t H W 3"], params: Mapping[str, Tensor]
    ) -> Float[Tensor, "n c t h w"]:
        """Apply what was drawn, each clip its own, on the device that holds the clips.

        Args:
            clips: RGB frames.
            params: what :meth:`draw` returned, stacked over clips; best left on the CPU.
        """
        params = {name: value.cpu() for name, value in params.items()}
        n, t, height, width, _ = clips.shape
        # On a CPU one clip at a time: its window alone is converted and stays in the cache.
        room = max(1, _CHUNK_ELEMENTS // (t * height * width * 3)) if clips.is_cuda else 1
        out = clips.new_empty((n, self.in_channels, t, *self.size), dtype=torch.float32)
        # In half precision, as a caller's autocast would have it, colours would get steps.
        with torch.autocast(clips.device.type, enabled=False):
            for i in range(0, n, room):
                part = {name: value[i : i + room] for name, value in params.items()}
                out[i : i + room] = self._apply(clips[i : i + room], part)
        return out

    def _apply(
        self, clips: UInt8[Tensor, "n t H W 3"], params: dict[str, Tensor]
    ) -> Float[Tensor, "n c t h w"]:
        video = self._crop_and_resize(clips, params["crop"], params["flip"])
        video = _jitter(video, params["jitter"], params["order"])
        if self.in_channels == 1:
            video = luma(video)
        elif params["grey"].any():
            video = _replace(video, params["grey"], lambda some: luma(some).expand_as(some))
        if params["blur"].any():
            blurred = params["blur"] > 0
            sigma = params["blur"][blurred].to(clips.device)
            video = _replace(video, blurred, lambda some: self._blur(some, sigma))
        mean, std = (
            torch.tensor(values, device=clips.device)[:, None, None, None]
            for values in (self.mean, self.std)
        )
        return (video - mean) / std

    def _crop_and_resize(
        self, clips: UInt8[Tensor, "n t H W 3"], crop: Int[Tensor, "n 4"], flip: Tensor
    ) -> Float[Tensor, "n 3 t h w"]:
        """Crop, resize and mirror all clips by two matrix products: rows, then columns."""
        height, width = self.size
        # Outside the windows' common bounding box all weights are zero.
        top, left = (int(v) for v in crop[:, :2].amin(0))
        bottom, right = (int(v) for v in (crop[:, :2] + crop[:, 2:]).amax(0))
        box = clips[:, :, top:bottom, left:right]
        tops, lefts, heights, widths = (
            (crop - crop.new_tensor([top, left, 0, 0])).to(clips.device, torch.float32).unbind(1)
        )
        rows = resize_matrices(tops, heights, bottom - top, height)
        columns = resize_matrices(lefts, widths, right - left, width)
        columns = torch.where(flip.to(clips.device)[:, None, None], columns.flip(1), columns)

        wide = rearrange(box, "n t y x c -> n y (t x c)").to(torch.float32)
        flat = torch.bmm(rows / 255, wide)
        flat = rearrange(flat, "n h (t x c) -> n (c t h) x", t=box.shape[1], c=3)
        small = torch.bmm(flat, columns.transpose(1, 2))
        return rearrange(small, "n (c t h) w -> n c t h w", c=3, h=height).clamp_(0, 1)

    def _blur(
        self, video: Float[Tensor, "n c t h w"], sigma: Float[Tensor, " n"]
    ) -> Float[Tensor, "n c t h w"]:
        down = blur_matrices(sigma, self.blur_radius, self.size[0])[:, None, None]
        across = blur_matrices(sigma, self.blur_radius, self.size[1])[:, None, None]
        return down @ video @ across.transpose(-1, -2)


def _jitter(
    video: Float[Tensor, "n 3 t h w"], jitter: Float[Tensor, "n 4"], order: Int[Tensor, "n 4"]
) -> Float[Tensor, "n 3 t h w"]:
    neutral = jitter == jitter.new_tensor([1.0, 1.0, 1.0, 0.0])
    for place in range(order.shape[1]):
        for i, name in enumerate(JITTERS):
            which = (order[:, place] == i) & ~neutral[:, i]
            if which.any():
                factors = jitter[which, i].to(video.device)[:, None, None, None, None]
                video = _replace(
                    video, which, lambda some, name=name, f=factors: adjust[name](some, f)
                )
    return video


def _replace(video: Tensor, which: Tensor, change) -> Tensor:
    """``video`` with the clips that ``which`` (a mask on the CPU) marks changed."""
    if which.all():
        return change(video)
    # Indices made on the CPU spare the device a synchronisation that a mask would need.
    indices = which.nonzero()[:, 0].to(video.device)
    return video.index_copy(0, indices, change(video[indices]).contiguous())


def _aspects(size: tuple[int, int], ratio: tuple[float, float]) -> tuple[float, float]:
    """Limits of a window's width : height in pixels, from limits relative to the output's."""
    return ratio[0] * size[1] / size[0], ratio[1] * size[1] / size[0]


def _random_window(
    numbers: np.ndarray, height: int, width: int, size: tuple[int, int], config: AugmentConfig
) -> tuple[int, int, int, int]:
    """torchvision's ``RandomResizedCrop.get_params``, on numbers drawn beforehand."""
    aspects = _aspects(size, config.ratio)
    for area_at, aspect_at, top_at, left_at in numbers:
        share = config.scale[0] + (config.scale[1] - config.scale[0]) * area_at
        aspect = math.exp(
            math.log(aspects[0]) + (math.log(aspects[1]) - math.log(aspects[0])) * aspect_at
        )
        crop_width = round(math.sqrt(height * width * share * aspect))
        crop_height = round(math.sqrt(height * width * share / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(top_at * (height - crop_height + 1))
            left = int(left_at * (width - crop_width + 1))
            return top, left, crop_height, crop_width
    return central_window(height, width, *aspects)
