"""Storage of a video in a shard: as it came, as h264 for quick access, or as JPEG frames.

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
# What x264 and FFmpeg's scaler both take.
LARGEST_SIDE = 16384
# Of frames on average, where --fps fills the gaps of a varying rate.
MOST_REPEATS = 100
_MICROSECOND = Fraction(1, 1_000_000)
H264 = {
    # As close to the source as JPEG_QUALITY is, at a fourth of the bytes.
    "crf": "22",
    "preset": "veryfast",
    # Decoding a clip starts at a key frame: with one every 8 frames, 3.5 are decoded in vain.
    "g": "8",
    "bf": "0",
    # Leaves out what costs a decoder most: CABAC and deblocking.
    "tune": "fastdecode",
    # With macroblock-tree rate control one encode in some twenty differs from the others.
    "x264-params": "mbtree=0",
}


@dataclass(frozen=True)
class Encoding:
    """Settings of a video's storage.

    Args:
        storage: ``original`` keeps the file; ``h264`` encodes it with a key frame every 8 frames;
            ``jpeg`` stores every frame as a picture.
        size: (H, W) of the stored frames; None keeps the video's.
        fps: frames kept per second: those shown at 0, 1/fps, 2/fps … by the time stamps. None
            keeps all; so does more than the video has, unless its rate varies.

    Raises:
        DataError: if a value is out of range, or ``original`` is asked to change anything.
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
            raise DataError(f"--size {self.size[0]} {self.size[1]}: h264 needs even numbers")
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise DataError(f"--fps {self.fps} must be more than 0; leave it out to keep all")

    def members(
        self, name: str, video: bytes, annotation: bytes | None, num_frames: int | None
    ) -> dict[str, bytes]:
        """A sample's members, by extension. Every frame of the video is decoded on the way.

        Args:
            name: the video's file name.
            video: its content.
            annotation: CLEVRER's JSON; its frame numbers are changed along with ``fps``.
            num_frames: how many frames the video must hold; None takes any number.

        Raises:
            DecodingError: if the video is broken or of another length, its time stamps leave a gap
                that ``fps`` would fill with repeats without end, or the annotation is no JSON.
        """
        info = probe_video(video)
        if num_frames is not None and info.num_frames != num_frames:
            raise DecodingError(f"{info.num_frames} frames where {num_frames} are asked for")
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
            # What tells which video this is, once it has other bytes.
            facts = {**measures, "storage": self.storage, "source": content_hash(video)}
            known = {name: value for name, value in facts.items() if value is not None}
            members[MEASURES] = json.dumps(known).encode()
        if annotation is not None:
            members[ANNOTATION] = renumbered(annotation, kept, info.num_frames)
        return members


def kept_frames(info: VideoInfo, fps: float | None) -> list[int]:
    """Numbers of the frames that stay at ``fps`` frames per second: those shown at each time.

    Raises:
        DecodingError: if a varying rate would repeat frames more than a hundredfold.
    """
    if fps is not None and info.times is not None:
        seconds = info.times[-1]
        if seconds * fps > MOST_REPEATS * info.num_frames:
            raise DecodingError(
                f"its time stamps place {info.num_frames} frames over {seconds:g} s; --fps {fps:g} "
                f"would repeat them more than {MOST_REPEATS} times; lower it or fix the stamps"
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
        frames: uint8 RGB of shape (H, W, 3).
        fps: frames per second.
        times: seconds at which the frames begin, where the rate varies; they become time stamps.
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
