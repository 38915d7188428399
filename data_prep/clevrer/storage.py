"""Storage of a video in a shard: the original file, h264 for quick access, or JPEG frames.

JPEG frames are the fastest to sample clips from and the largest. tests/benchmarks/bench_storage.py
measures by how much; docs/explanation/benchmarks.md has the results.
"""

from __future__ import annotations

import io
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import PurePosixPath
from typing import Any

import av
import numpy as np
from PIL import Image

from data_prep.clevrer.annotations import renumbered
from data_prep.clevrer.settings import Storage
from ssl_vivit.data.video.decoding import VideoInfo, iterate_frames, probe_video
from ssl_vivit.data.video.frame_times import resampled
from ssl_vivit.data.video.shards.index import ANNOTATION, MEASURES, content_hash
from ssl_vivit.errors import DataError, DecodingError

JPEG_QUALITY = 90
# Largest side that both x264 and FFmpeg's scaler support.
LARGEST_SIDE = 16384
# Largest number of repeats per frame, on average, if --fps fills the gaps of a varying rate.
MOST_REPEATS = 100
_MICROSECOND = Fraction(1, 1_000_000)
H264 = {
    # Frames are as close to the source as with JPEG_QUALITY, in a quarter of the bytes.
    "crf": "22",
    "preset": "veryfast",
    # A key frame every 8 frames. Decoding starts at a key frame, so on average 3.5 extra frames are
    # decoded.
    "g": "8",
    "bf": "0",
    # Disables the slowest steps of decoding: CABAC and deblocking.
    "tune": "fastdecode",
    # With macroblock-tree rate control, about one encode in twenty differs from the others.
    "x264-params": "mbtree=0",
}


@dataclass(frozen=True)
class Encoding:
    """Settings of a video's storage.

    Args:
        storage: ``original`` keeps the file; ``h264`` encodes it with a key frame every 8 frames;
            ``jpeg`` stores every frame as a picture.
        size: (H, W) of the stored frames; None keeps the size.
        fps: frames per second to keep: the frames shown at 0, 1/fps, 2/fps … by their time stamps.
            None keeps all frames. A rate above the video's rate also keeps all frames, unless the
            video's rate varies.

    Raises:
        DataError: if a value is out of range, or ``original`` is combined with ``size`` or ``fps``.
    """

    storage: Storage
    size: tuple[int, int] | None = None
    fps: float | None = None

    def __post_init__(self) -> None:
        if self.storage == "original" and (self.size or self.fps):
            raise DataError(
                "--storage original keeps the files as they are; "
                "--size and --fps need --storage h264 or jpeg"
            )
        if self.size and (
            len(self.size) != 2 or min(self.size) < 1 or max(self.size) > LARGEST_SIDE
        ):
            words = " ".join(map(str, self.size))
            raise DataError(
                f"--size {words} must be a height and a width from 1 to {LARGEST_SIDE} pixels"
            )
        if self.storage == "h264" and self.size and (self.size[0] % 2 or self.size[1] % 2):
            raise DataError(
                f"--size {self.size[0]} {self.size[1]}: --storage h264 needs an even height and an "
                "even width"
            )
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise DataError(f"--fps {self.fps} must be above 0; omit it to keep all frames")

    def members(
        self, name: str, video: bytes, annotation: bytes | None, num_frames: int | None
    ) -> dict[str, bytes]:
        """Return the files that store one video in a tar: contents by file extension.

        All frames of the video are decoded as a check.

        Args:
            name: file name of the video.
            video: content of the file.
            annotation: CLEVRER's annotation as JSON. Its frame numbers are changed if ``fps`` of
                this encoding drops frames.
            num_frames: number of frames that the video must have; None allows any number.

        Raises:
            DecodingError: if the video is broken or has another length, or the annotation is not
                JSON. Also if ``fps`` of this encoding would repeat frames too often, because the
                time stamps have gaps.
        """
        info = probe_video(video)
        if num_frames is not None and info.num_frames != num_frames:
            raise DecodingError(f"{info.num_frames} frames, but {num_frames} are asked for")
        kept = kept_frames(info, self.fps)
        times_kept = Counter(kept)
        frames = (
            frame
            for i, frame in enumerate(iterate_frames(video, self.size))
            for _ in range(times_kept[i])
        )
        times = info.times if self.fps is None else None
        fps = info.fps
        if self.fps is not None:
            fps = self.fps if info.times else min(self.fps, info.fps)
        if self.storage == "original":
            for _ in frames:
                pass
            members = {PurePosixPath(name).suffix[1:].lower(): video}
        elif self.storage == "h264":
            encoded = encode_h264(frames, fps, times)
            measures = probe_video(encoded)._asdict()
            members = {"mp4": encoded}
        else:
            members, measures = _jpeg_members(frames, fps)
            measures["times"] = times
        if self.storage != "original":
            # The hash of the source identifies the video after it has been re-encoded.
            facts = {**measures, "storage": self.storage, "source": content_hash(video)}
            known = {name: value for name, value in facts.items() if value is not None}
            members[MEASURES] = json.dumps(known).encode()
        if annotation is not None:
            members[ANNOTATION] = renumbered(annotation, kept, info.num_frames)
        return members


def kept_frames(info: VideoInfo, fps: float | None) -> list[int]:
    """Return the numbers of the frames shown at 0, 1/fps, 2/fps …; all frames if ``fps`` is None.

    Raises:
        DecodingError: if frames would be repeated more than a hundred times on average.
    """
    if fps is not None and info.times is not None:
        seconds = info.times[-1]
        if seconds * fps > MOST_REPEATS * info.num_frames:
            raise DecodingError(
                f"its time stamps spread {info.num_frames} frames over {seconds:g} s; --fps "
                f"{fps:g} would repeat each frame more than {MOST_REPEATS} times; lower --fps or "
                "fix the time stamps"
            )
        return resampled(info.times, fps).tolist()
    if fps is None or not info.fps or fps >= info.fps:
        return list(range(info.num_frames))
    step = info.fps / fps
    numbers = (int(k * step + 1e-6) for k in range(info.num_frames))
    return list(itertools.takewhile(lambda i: i < info.num_frames, numbers))


def encode_h264(
    frames: Iterable[np.ndarray], fps: float, times: Sequence[float] | None = None
) -> bytes:
    """Encode frames to mp4; equal frames give equal bytes.

    Args:
        frames: uint8 RGB arrays, each (H, W, 3).
        fps: frames per second.
        times: onsets of the frames in seconds, saved as time stamps; None for a constant rate.
    """
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        rate = Fraction(fps).limit_denominator(1001 * 60) if fps else Fraction(25)
        stream = container.add_stream("libx264", rate=rate, options=H264)
        stream.codec_context.thread_count = 1
        if times is not None:
            stream.time_base = stream.codec_context.time_base = _MICROSECOND
        for i, frame in enumerate(frames):
            if i == 0:
                stream.height, stream.width = frame.shape[:2]
                odd = stream.height % 2 or stream.width % 2
                stream.pix_fmt = "yuv444p" if odd else "yuv420p"
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            if times is not None:
                picture.pts, picture.time_base = round(times[i] / _MICROSECOND), _MICROSECOND
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return file.getvalue()


def _jpeg_members(
    frames: Iterator[np.ndarray], fps: float
) -> tuple[dict[str, bytes], dict[str, Any]]:
    members, shape = {}, (0, 0)
    for i, frame in enumerate(frames):
        picture = io.BytesIO()
        Image.fromarray(frame).save(picture, "JPEG", quality=JPEG_QUALITY)
        members[f"{i:04d}.jpg"] = picture.getvalue()
        shape = frame.shape[:2]
    height, width = shape
    return members, {"num_frames": len(members), "height": height, "width": width, "fps": fps}
