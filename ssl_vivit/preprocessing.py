"""Preprocessing that turns frames into an encoder's input."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8
    from torch import Tensor

# Luma weights of R, G and B by ITU-R 601, rounded as in torchvision.
LUMA = (0.2989, 0.587, 0.114)


@dataclass(frozen=True, eq=False)
class Preprocessing(Mapping[str, Any]):
    """Settings that turn uint8 frames into an encoder's video.

    The settings are saved in config.json of an exported encoder. Calling the object on frames
    applies the preprocessing. The object is also a mapping from the names of known settings to
    their values, and compares equal to a dictionary of them.

    Args:
        pixel_range: values of black and white on the scale of ``mean`` and ``std``. None means
            (0, 1).
        channels: ``rgb``, or ``luma`` (ITU-R 601). None if unknown.
        mean: mean of each channel, or one number for all channels.
        std: standard deviation of each channel, or one number for all channels.
        fps: frames per second to which ``frame_stride`` refers. None means the video's own rate.
        frame_stride: number of video frames, at ``fps``, from one frame of a clip to the next. 1
            takes every frame.
        resize: (H, W) of the result. The largest central window with this aspect ratio is resized.

    Raises:
        TypeError: for values that are not numbers.
        ValueError: for values that are not finite, a standard deviation or frame rate of 0 or less,
            or equal values of black and white.
    """

    pixel_range: tuple[float, float] | None = None
    channels: Literal["rgb", "luma"] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    fps: float | None = None
    frame_stride: int | None = None
    resize: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name, kind in (
            ("pixel_range", float),
            ("mean", float),
            ("std", float),
            ("resize", int),
        ):
            value = getattr(self, name)
            if value is not None:
                values = value if isinstance(value, Sequence) else (value,)
                self._check_finite(name, values)
                object.__setattr__(self, name, tuple(kind(each) for each in values))
        self._check_finite("fps", () if self.fps is None else (self.fps,))
        if self.pixel_range is not None and self.pixel_range[0] == self.pixel_range[-1]:
            raise ValueError(
                f"preprocessing pixel_range {self.pixel_range} must be two different numbers"
            )

    def _check_finite(self, name: str, values: Sequence[Any]) -> None:
        for each in values:
            try:
                value = float(each)
            except OverflowError:  # an integer of more than 308 digits
                value = math.inf
            if not math.isfinite(value) or (name in ("std", "fps") and value <= 0):
                positive = "positive and " if name in ("std", "fps") else ""
                raise ValueError(f"preprocessing {name} is {value:g}; it must be {positive}finite")

    @classmethod
    def of(cls, settings: Mapping[str, Any] | None) -> Preprocessing | None:
        """Build the preprocessing from the settings in config.json; return None for None.

        Raises:
            ValueError: for an unknown name.
        """
        if settings is None or isinstance(settings, cls):
            return settings
        names = [field.name for field in fields(cls)]
        for name in settings:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                hint = f"; did you mean {near[0]}?" if near else ";"
                raise ValueError(
                    f"preprocessing has no setting {name!r}{hint} choose from {', '.join(names)}"
                )
        return cls(**settings)

    def __getitem__(self, name: str) -> Any:
        if name not in self.__dataclass_fields__:
            raise KeyError(name)
        value = getattr(self, name)
        return list(value) if isinstance(value, tuple) else value

    def __contains__(self, name: object) -> bool:
        return name in tuple(self)

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value of a setting, or ``default`` if the value is unknown."""
        return dict(self).get(name, default)

    def __iter__(self) -> Iterator[str]:
        return (each.name for each in fields(self) if getattr(self, each.name) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __or__(self, changes: Mapping[str, Any]) -> Preprocessing:
        """Return a copy with some settings changed."""
        return replace(self, **changes)

    __hash__ = None  # type: ignore[assignment]

    @property
    def normalised(self) -> bool:
        """Whether mean and standard deviation are known."""
        return self.mean is not None and self.std is not None

    def statistics(self, channels: int) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation of each channel, for pixels scaled to [0, 1].

        Raises:
            ValueError: if ``mean`` or ``std`` is unknown, or has another number of channels.
        """
        if self.mean is None or self.std is None:
            raise ValueError(
                "the encoder does not say how pixels are normalised; set encoder.preprocessing, "
                'such as {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}, and save the encoder'
            )
        low, high = self.pixel_range or (0.0, 1.0)
        mean = [(value - low) / (high - low) for value in self.mean]
        std = [value / (high - low) for value in self.std]
        if len(mean) != len(std) or len(mean) not in (1, channels):
            raise ValueError(
                f"the encoder's preprocessing has {len(mean)} means and {len(std)} stds for "
                f"{channels} channels; give one mean and one std for each channel"
            )
        repeats = channels // len(mean)
        return mean * repeats, std * repeats

    def __call__(
        self, frames: UInt8[Tensor, "*b t H W 3"] | np.ndarray
    ) -> Float[Tensor, "*b c t h w"]:
        """Crop, resize and normalise RGB frames.

        Resizing is bilinear and antialiased.

        Args:
            frames: uint8 RGB frames (T, H, W, 3) or (B, T, H, W, 3), as a tensor or a NumPy array.

        Returns:
            Video for the encoder. It keeps the size of the frames if ``resize`` is unknown.

        Raises:
            ValueError: for frames of another shape or type, or if mean and std are unknown.
        """
        import torch
        import torch.nn.functional as F

        given = torch.as_tensor(frames)
        if given.dtype != torch.uint8 or given.ndim not in (4, 5) or given.shape[-1] != 3:
            raise ValueError(
                f"frames are {given.dtype} of shape {tuple(given.shape)}; give uint8 RGB frames "
                "(T, H, W, 3) or (B, T, H, W, 3)"
            )
        channels = 1 if self.channels == "luma" else 3
        mean, std = self.statistics(channels)
        pixels = given.movedim(-1, -3).flatten(0, -4).float() / 255
        if self.resize is not None:
            aspect = self.resize[1] / self.resize[0]
            rows, columns = given.shape[-3:-1]
            top, left, height, width = central_window(rows, columns, aspect, aspect)
            pixels = pixels[..., top : top + height, left : left + width]
            pixels = F.interpolate(pixels, self.resize, mode="bilinear", antialias=True).clamp(0, 1)
        if channels == 1:
            pixels = torch.einsum("n c h w, c -> n h w", pixels, pixels.new_tensor(LUMA))[:, None]
        shift, scale = (pixels.new_tensor(values)[:, None, None] for values in (mean, std))
        video = ((pixels - shift) / scale).unflatten(0, given.shape[:-3])
        return video.movedim(-3, -4)


def central_window(
    height: int, width: int, narrowest: float, widest: float
) -> tuple[int, int, int, int]:
    """Find the largest central window of a frame whose aspect ratio is within limits.

    Args:
        height: height of the frame in pixels.
        width: width of the frame in pixels.
        narrowest: smallest allowed ratio of width to height.
        widest: largest allowed ratio of width to height.

    Returns:
        Top, left, height and width of the window in pixels.
    """
    crop_height, crop_width = height, width
    if width / height < narrowest:
        crop_height = max(1, min(height, round(width / narrowest)))
    elif width / height > widest:
        crop_width = max(1, min(width, round(height * widest)))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width
