"""Augmentation of clips: drawn once for each clip on the CPU, applied in batches on the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from ssl_vivit.data.to_device import to_device
from ssl_vivit.data.video.colour import JITTERS, adjust, luma
from ssl_vivit.data.video.resampling import blur_matrices, resize_matrices
from ssl_vivit.errors import DataError
from ssl_vivit.preprocessing import central_window
from ssl_vivit.settings import check_type

# Largest number of float32 input values that are resized at once; larger batches are divided.
_CHUNK_ELEMENTS = 128 * 2**20


@dataclass(frozen=True)
class AugmentConfig:
    """Settings of the augmentation of views, with the operations of SimCLR and CVRL.

    The defaults are milder than in SimCLR, because CLEVRER's scenes may differ only in the colours
    of small objects. Changes are drawn once for each clip and are equal in all of its frames, as in
    CVRL (Qian et al. 2021, Sec. 3.2). Every probability may be 0.

    Args:
        strength: "full" augments. "none", for evaluation, crops the largest central window with the
            output's aspect ratio and resizes it; all other settings are ignored.
        scale: smallest and largest fraction of the frame's area that a crop keeps.
        ratio: range of a crop's aspect ratio (width / height), relative to that of the output.
        flip_probability: probability of mirroring a clip left to right.
        jitter_probability: probability of changing the colours of a clip.
        brightness: half width x of the range [1 − x, 1 + x] of the brightness factor.
        contrast: half width of the range of the contrast factor, which is centred at 1.
        saturation: half width of the range of the saturation factor, which is centred at 1.
        hue: largest rotation of the colour circle in either direction, in turns, up to 0.5.
        grey_probability: probability of converting a clip to grey.
        blur_probability: probability of blurring a clip.
        blur_sigma: range of the Gaussian's standard deviation in pixels of the output. The kernel
            is cut off at a twentieth of the output's shorter side, as in SimCLR.
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
            refuse("scale", "two fractions of the area, the smaller first, above 0 and up to 1")
        for name in ("ratio", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high < math.inf:
                refuse(name, "two numbers above 0, the smaller first")


class Augment:
    """Converts uint8 clips to augmented, normalised floats of one size.

    Args:
        config: settings of the augmentation.
        size: (height, width) of the output.
        in_channels: 3 for RGB, 1 for luma (ITU-R 601).
        mean: mean of each channel for pixels scaled to [0, 1], or one number for all channels.
        std: standard deviation of each channel for pixels scaled to [0, 1], or one number for all
            channels.

    Raises:
        DataError: if a size, a number of channels or a standard deviation is invalid.
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
            raise DataError(f"the size of clips is {size[0]}×{size[1]}; both must be at least 1")
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
        # The kernel must not reach beyond the reflected border of tiny frames.
        self.blur_radius = min(max(1, min(self.size) // 20), min(self.size) - 1)

    def without_randomness(self) -> Augment:
        """Return the preprocessing for evaluation, which only crops, resizes and normalises."""
        config = replace(self.config, strength="none")
        return Augment(config, self.size, self.in_channels, self.mean, self.std)

    def draw(self, rng: np.random.Generator, height: int, width: int) -> dict[str, Tensor]:
        """Draw the parameters of the augmentation of one clip with frames of the given size.

        Every call takes equally many numbers from ``rng``, so that changing one setting does not
        change the draws of other settings.

        Returns:
            The parameters by name.

            - ``crop`` int64 (4,): top, left, height and width in pixels
            - ``flip``, ``grey`` bool (): whether the clip is mirrored or converted to grey
            - ``jitter`` float32 (4,): factors of brightness, contrast and saturation, and shift of
              the hue in turns
            - ``order`` int64 (4,): order of these colour changes
            - ``blur`` float32 (): standard deviation in pixels, 0 for none
        """
        config = self.config
        windows, chances, factors = rng.random((10, 4)), rng.random(4), rng.random(4)
        order, sigma = np.argsort(rng.random(4), kind="stable"), rng.random()
        if config.strength == "none":
            chances[:] = 1.0  # nothing is applied
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
        """Apply drawn parameters to clips, on the device of the clips.

        The host does not wait for the device.

        Args:
            clips: RGB frames, uint8 (n, T, H, W, 3).
            params: parameters that :meth:`draw` returned, stacked over clips, on the CPU.
        """
        # Disable autocast, since half precision would quantise colours visibly.
        with torch.autocast(clips.device.type, enabled=False):
            if clips.device.type != "cpu":
                return self._apply(clips, params)
            # On a CPU process one clip at a time, so that its window fits into the cache.
            n, t = clips.shape[:2]
            out = torch.empty((n, self.in_channels, t, *self.size))
            for i in range(n):
                own = {name: value[i : i + 1] for name, value in params.items()}
                out[i] = self._apply(clips[i : i + 1], own)[0]
            return out

    def _apply(
        self, clips: UInt8[Tensor, "n t H W 3"], params: Mapping[str, Tensor]
    ) -> Float[Tensor, "n c t h w"]:
        changes = _Changes(params, clips.device)
        video = self._crop_and_resize(clips, changes)
        for name, which in changes.jitters:
            video = _changed(video, which, changes.factors[name], adjust[name])
        if self.in_channels == 1:
            video = luma(video)
        else:
            video = _changed(video, changes.grey, None, lambda some, _: luma(some).expand_as(some))
        video = _changed(video, changes.blurred, changes.sigma, self._blur)
        for channel, (mean, std) in enumerate(zip(self.mean, self.std, strict=True)):
            video[:, channel].sub_(mean).div_(std)
        return video

    def _crop_and_resize(
        self, clips: UInt8[Tensor, "n t H W 3"], changes: _Changes
    ) -> Float[Tensor, "n 3 t h w"]:
        """Crop, resize and mirror clips by two matrix products: along height, then along width."""
        height, width = self.size
        # Crop to the bounding box of all windows; weights are zero outside.
        top, left, bottom, right = changes.box
        box = clips[:, :, top:bottom, left:right]
        tops, lefts, heights, widths = changes.crop.unbind(1)
        rows = resize_matrices(tops - top, heights, bottom - top, height) / 255
        columns = resize_matrices(lefts - left, widths, right - left, width)
        columns = torch.where(changes.flip[:, None, None], columns.flip(1), columns).transpose(1, 2)

        n, t = box.shape[:2]
        out = torch.empty((n, 3, t, height, width), device=clips.device)
        room = max(1, _CHUNK_ELEMENTS // box[0].numel())
        for i in range(0, n, room):
            part = slice(i, i + room)
            wide = rearrange(box[part], "n t y x c -> n y t x c").to(
                torch.float32, memory_format=torch.contiguous_format
            )
            flat = torch.bmm(rows[part], wide.flatten(2))
            flat = rearrange(flat, "n h (t x c) -> n (c t h) x", t=t, c=3)
            small = torch.bmm(flat, columns[part])
            out[part] = rearrange(small, "n (c t h) w -> n c t h w", c=3, h=height)
        return out.clamp_(0, 1)

    def _blur(
        self, video: Float[Tensor, "n c t h w"], sigma: Float[Tensor, "n 1 1 1 1"]
    ) -> Float[Tensor, "n c t h w"]:
        sigma = sigma.flatten()
        down = blur_matrices(sigma, self.blur_radius, self.size[0])[:, None, None]
        across = blur_matrices(sigma, self.blur_radius, self.size[1])[:, None, None]
        return down @ video @ across.transpose(-1, -2)


class _Changes:
    """Drawn augmentation parameters of the n clips of a batch, copied to the device of the clips.

    The clips that an operation changes are selected on the host. The indices of these clips are
    copied to the device in one copy, all other parameters in another.

    Attributes:
        box: top, left, bottom and right of the bounding box of all crops, in pixels, on the host.
        crop: (n, 4), top, left, height and width of each crop in pixels.
        flip: bool (n,), whether a clip is mirrored.
        factors: dictionary from the name of a colour change to its factors (n, 1, 1, 1, 1).
        sigma: (n, 1, 1, 1, 1), standard deviations of the blur in pixels; 0 for no blur.
        jitters: list of (name of a colour change, indices of the clips to change), in the order in
            which they are applied.
        grey: indices of the clips that are converted to grey.
        blurred: indices of the clips that are blurred.
    """

    def __init__(self, params: Mapping[str, Tensor], device: torch.device) -> None:
        crop, jitter, order = params["crop"], params["jitter"], params["order"]
        ends = crop[:, :2] + crop[:, 2:]
        top, left, bottom, right = (*crop[:, :2].amin(0).tolist(), *ends.amax(0).tolist())
        self.box = (top, left, bottom, right)
        numbers = to_device(
            torch.cat(
                (crop, params["flip"][:, None], jitter, params["blur"][:, None].to(jitter)), 1
            ),
            device,
        )
        self.crop, self.flip = numbers[:, :4], numbers[:, 4] > 0
        factors = numbers[:, 5:, None, None, None, None].unbind(1)
        self.factors, self.sigma = dict(zip(JITTERS, factors[:-1], strict=True)), factors[-1]

        changed = jitter != jitter.new_tensor([1.0, 1.0, 1.0, 0.0])
        masks = [
            (order[:, place] == i) & changed[:, i]
            for place in range(order.shape[1])
            for i in range(len(JITTERS))
        ]
        which = [mask.nonzero()[:, 0] for mask in (*masks, params["grey"], params["blur"] > 0)]
        there = to_device(torch.cat(which), device).split([len(each) for each in which])
        *jitters, self.grey, self.blurred = there
        self.jitters = [
            (name, indices)
            for name, indices in zip(JITTERS * order.shape[1], jitters, strict=True)
            if len(indices)
        ]


def _changed(
    video: Tensor, which: Tensor, factors: Tensor | None, change: Callable[..., Tensor]
) -> Tensor:
    """Return all clips after changing some of them; the input may be modified in place.

    Args:
        video: clips (n, …).
        which: indices of the clips to change.
        factors: factor of each of the n clips. None if the change has no factor.
        change: function (clips, their factors) that returns the changed clips.
    """
    if len(which) in (0, len(video)):
        return change(video, factors).contiguous() if len(which) else video
    some = None if factors is None else factors[which]
    return video.index_copy_(0, which, change(video[which], some).contiguous())


def _aspects(size: tuple[int, int], ratio: tuple[float, float]) -> tuple[float, float]:
    """Return the smallest and largest aspect ratio (width / height) of a crop.

    Args:
        size: (height, width) of the output.
        ratio: smallest and largest aspect ratio, relative to the aspect ratio of the output.
    """
    return ratio[0] * size[1] / size[0], ratio[1] * size[1] / size[0]


def _random_window(
    numbers: np.ndarray, height: int, width: int, size: tuple[int, int], config: AugmentConfig
) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) of a random crop.

    The crop is computed as in torchvision's ``RandomResizedCrop.get_params``. If the crops of all
    attempts exceed the frame, a central crop is returned.

    Args:
        numbers: (attempts, 4) random numbers, uniform in [0, 1).
        height: height of the frame in pixels.
        width: width of the frame in pixels.
        size: (height, width) of the output.
        config: settings of the augmentation, with the ranges of area and aspect ratio.
    """
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
