"""Settings of features: which clips of videos an encoder sees, and which of its features are kept.

No encoder is imported here, not even for type checkers: jsonargparse would import it before it
prints --help, and encoders take longer to load than torch.
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
    """Changes to the clips that an encoder was trained on; null keeps a setting.

    Args:
        num_frames: frames in a clip; the encoder's positions are fitted to it.
        frame_stride: steps between a clip's frames.
        fps: frames per second that the stride counts in.
    """

    num_frames: int | None = None
    frame_stride: int | None = None
    fps: float | None = None


@dataclass(frozen=True)
class ReadingForEncoder(VideoReading):
    """Settings for reading videos for an exported encoder.

    Args:
        frame_size: height and width that frames are decoded to; null keeps theirs, and takes
            central windows of the encoder's shape where a folder's videos have several sizes.
        clip: what differs from the clips of the encoder's pretraining.
        image_size: height and width that the encoder is fitted to, or one number for a square;
            null keeps its own.
    """

    clip: ClipChoice = field(default_factory=ClipChoice)
    image_size: tuple[int, int] | int | None = None

    def open_encoder(self, path: str) -> Any:
        """Load an exported ViViT, fitted to ``clip.num_frames`` and ``image_size``.

        Raises:
            RunError: if there is no encoder at that path.
            ValueError: as of :func:`~ssl_vivit.encoders.load_encoder`.
        """
        from ssl_vivit.encoders import load_encoder

        geometry: dict[str, Any] = {
            "num_frames": self.clip.num_frames,
            "image_size": self.image_size,
        }
        try:
            return load_encoder(path, **{name: value for name, value in geometry.items() if value})
        except FileNotFoundError as error:
            raise RunError(f"{error}; `make demo` makes runs/demo/encoder") from None
