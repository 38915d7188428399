"""Settings of feature extraction: the clips that an encoder gets and the features to store.

This module must not import encoders, not even for type checkers: jsonargparse would load them
before it prints --help, which takes longer than loading torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ssl_vivit.data.video.videos import VideoReading
from ssl_vivit.errors import RunError

Summary = Literal["pooled", "mean", "both"]
Kept = Literal["pooled", "tokens", "both"]


@dataclass(frozen=True)
class ClipChoice:
    """Settings that replace those of the encoder's training clips; null keeps a setting.

    Args:
        num_frames: frames in a clip; the encoder's position embeddings are adapted to it.
        frame_stride: distance between successive frames of a clip, in frames at the rate ``fps``.
        fps: frame rate, in frames per second, at which clips are cut from videos.
    """

    num_frames: int | None = None
    frame_stride: int | None = None
    fps: float | None = None


# Encoder that `make demo` trains; the default of recipes that need an encoder.
DEMO_ENCODER = "runs/demo/encoder"


@dataclass(frozen=True)
class ReadingForEncoder(VideoReading):
    """Settings for reading videos for an exported encoder.

    Args:
        frame_size: height and width to which frames are decoded; null keeps the videos' size. If
            videos have several sizes, feature extraction takes central crops of the encoder's
            shape; probes need a size here.
        clip: settings that replace those of the encoder's training clips.
        image_size: height and width to which the encoder is adapted, or one number for a square;
            null keeps the encoder's size.
    """

    clip: ClipChoice = field(default_factory=ClipChoice)
    image_size: tuple[int, int] | int | None = None

    def open_encoder(self, path: str) -> Any:
        """Load an exported ViViT and adapt it to ``clip.num_frames`` and ``image_size``.

        Raises:
            RunError: if there is no encoder at ``path``.
            ValueError: see :func:`~ssl_vivit.encoders.load_encoder`.
        """
        from ssl_vivit.encoders import load_encoder

        geometry: dict[str, Any] = {
            "num_frames": self.clip.num_frames,
            "image_size": self.image_size,
        }
        try:
            return load_encoder(path, **{name: value for name, value in geometry.items() if value})
        except FileNotFoundError as error:
            hint = "; `make demo` makes it" if path == DEMO_ENCODER else ""
            raise RunError(f"{error}{hint}") from None
