"""Chosen frames of a video file as RGB arrays.

- Frames are numbered in presentation order, whatever the order or the gaps of their timestamps.
- Only the groups of pictures that hold a wanted frame are decoded, only wanted frames become RGB.
- Rotation and mirroring flags are honoured; sizes are those a player shows.
- One thread a call: the loader's workers are the parallelism.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import av
import numpy as np
from av.video.reformatter import ColorRange, Interpolation

from ssl_vivit.errors import DecodingError

Source = bytes | str | Path
Decoder = Literal["auto", "pyav", "torchcodec"]

# Playlists and concatenations name other files and addresses, which a video must not make us read.
_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,flv,ogg,asf,ivf,gif,"
    "h264,hevc,mjpeg,jpeg_pipe,yuv4mpegpipe"
)
# Decoders that drop a packet by `skip_frame` as it stands when that packet is sent.
_SKIPPING_CODECS = ("h264", "hevc")


class VideoInfo(NamedTuple):
    """A video's number of frames, displayed size in pixels, and frames per second."""

    num_frames: int
    height: int
    width: int
    fps: float


def decode_frames(
    source: Source,
    indices: Sequence[int],
    size: tuple[int, int] | None = None,
    *,
    decoder: Decoder = "auto",
) -> np.ndarray:
    """Decode the listed frames.

    The compressed video is held in memory meanwhile.

    Args:
        source: the file's bytes or its path.
        indices: frame numbers in presentation order; any order, repeats allowed.
        size: (H, W) to resize to, by area averaging where that shrinks both sides and bicubic
            otherwise; None keeps the displayed size.
        decoder: ``auto`` takes torchcodec for frames at their own size if it loads, else PyAV,
            which resizes while it converts.

    Returns:
        uint8 RGB of shape (len(indices), H, W, 3), in the order of ``indices``.

    Raises:
        DecodingError: if the file is no video or a listed frame is missing or broken; the
            message says which frame of how many.
    """
    wanted = [int(i) for i in indices]
    if size is None and (decoder == "torchcodec" or (decoder == "auto" and _torchcodec())):
        return _decode_by_torchcodec(source, wanted)
    try:
        with _open(source) as container:
            packets = list(_packets(container))
            order = _presentation_order(packets)
            total = sum(not packet.is_discard for packet in packets)
            _check_indices(wanted, total)
            kept: dict[int, np.ndarray] | None = None
            if order is not None:
                codec = container.streams.video[0].codec_context
                kept = _decode_groups(codec, packets, order, set(wanted), size)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise DecodingError(f"no readable video: {_reason(error)}") from error
    if kept is None:
        kept = _decode_in_sequence(source, set(wanted), size, total)
    if not wanted:
        height, width = size or probe_video(source)[1:3]
        return np.empty((0, height, width, 3), np.uint8)
    return np.stack([kept[i] for i in wanted])


def decode_jpegs(pictures: Sequence[bytes], size: tuple[int, int] | None = None) -> np.ndarray:
    """Decode JPEG pictures.

    Args:
        pictures: each one file's bytes, one or more.
        size: (H, W) of the result; a picture of another size is resized. None keeps their own.

    Returns:
        uint8 RGB of shape (len(pictures), H, W, 3).

    Raises:
        DecodingError: if one is no JPEG picture, or they differ in size and none is given.
    """
    codec = av.CodecContext.create("mjpeg", "r")
    codec.thread_count = 1
    frames = None
    for i, picture in enumerate(pictures):
        try:
            (frame,) = codec.decode(av.Packet(picture))
        except (av.FFmpegError, ValueError) as error:
            raise DecodingError(f"broken JPEG picture: {_reason(error)}") from error
        own = (frame.height, frame.width)
        if frames is None:
            shape = size or own
            frames = np.empty((len(pictures), *shape, 3), np.uint8)
        if size is None and own != shape:
            raise DecodingError(
                f"frames of {shape[0]}×{shape[1]} and of {own[0]}×{own[1]} pixels in one video"
            )
        frames[i] = _rgb(frame, None if own == shape else shape)
    assert frames is not None
    return frames


def iterate_frames(source: Source, size: tuple[int, int] | None = None) -> Iterator[np.ndarray]:
    """Decode a whole video, frame by frame, in presentation order.

    Args:
        source: the file's bytes or its path.
        size: (H, W) to resize to, as in :func:`decode_frames`.

    Yields:
        uint8 RGB of shape (H, W, 3).

    Raises:
        DecodingError: at the first broken frame, and at the end if the file announces more
            frames than it holds.
    """
    announced = probe_video(source).num_frames
    count = 0
    for frame in _frames_in_sequence(source, announced):
        yield _rgb(frame, size)
        count += 1
    if count < announced:
        raise DecodingError(f"breaks after {count} of {announced} frames")


def probe_video(source: Source) -> VideoInfo:
    """Read a video's measures; decodes its first frame only.

    Args:
        source: the file's bytes or its path.

    Raises:
        DecodingError: if the file is no video or its first frame is broken.
    """
    try:
        with _open(source) as container:
            stream = container.streams.video[0]
            packets = list(_packets(container))
            total = sum(not packet.is_discard for packet in packets)
            rate = stream.average_rate or stream.guessed_rate
            order = _presentation_order(packets)
            if not rate and order and len(order) > 1:
                rate = (len(order) - 1) / ((order[-1] - order[0]) * stream.time_base)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise DecodingError(f"no readable video: {_reason(error)}") from error
    if total == 0:
        raise DecodingError("no readable video: holds no frames")
    first = next(_frames_in_sequence(source, total), None)
    if first is None:
        raise DecodingError(f"breaks after 0 of {total} frames")
    height, width = first.height, first.width
    if _orientation(first)[0]:
        height, width = width, height
    return VideoInfo(total, height, width, float(rate or 0.0))


@contextmanager
def _open(source: Source) -> Iterator[Any]:
    """Open through a file object, so that no part of a name is taken as a protocol."""
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
        options = {"format_whitelist": _CONTAINERS}
        with av.open(file, options=options, metadata_errors="ignore") as container:
            if not container.streams.video:
                raise ValueError("holds no video stream")
            container.streams.video[0].codec_context.thread_count = 1
            yield container


def _packets(container: Any) -> Iterator[Any]:
    # The last, empty packet stands for the end of the stream.
    return (p for p in container.demux(container.streams.video[0]) if p.size)


def _presentation_order(packets: Sequence[Any]) -> list[int] | None:
    """Timestamps of the shown frames, sorted; None where they do not tell the frames apart."""
    times = [packet.pts for packet in packets if not packet.is_discard]
    if None in times or len(set(times)) != len(times):
        return None
    return sorted(times)


def _decode_groups(
    codec: Any,
    packets: Sequence[Any],
    order: Sequence[int],
    wanted: set[int],
    size: tuple[int, int] | None,
) -> dict[int, np.ndarray] | None:
    """Decode from the last key frame before each wanted frame; None if not all came out of it."""
    number = {order[i]: i for i in wanted}
    position = {p.pts: at for at, p in enumerate(packets) if p.pts in number and not p.is_discard}
    keys = [at for at, p in enumerate(packets) if p.is_keyframe and p.pts is not None]
    last_of_group: dict[int, int] = {}
    for time, at in position.items():
        # Pictures that lead a key frame on the screen hang on the group before it.
        before = [key for key in keys if key <= at and packets[key].pts <= time]
        start = before[-1] if before else 0
        last_of_group[start] = max(at, last_of_group.get(start, at))
    kept: dict[int, np.ndarray] = {}
    skipping = codec.name in _SKIPPING_CODECS
    for start, last in sorted(last_of_group.items()):
        codec.flush_buffers()
        try:
            for packet in [*packets[start : last + 1], None]:
                if skipping and packet is not None:
                    codec.skip_frame = "DEFAULT" if packet.pts in number else "NONREF"
                for frame in codec.decode(packet):
                    if frame.pts in number and not frame.is_corrupt:
                        kept[number[frame.pts]] = _rgb(frame, size)
        except av.FFmpegError:
            return None
    return kept if kept.keys() == wanted else None


def _decode_in_sequence(
    source: Source, wanted: set[int], size: tuple[int, int] | None, total: int
) -> dict[int, np.ndarray]:
    kept = {}
    for i, frame in enumerate(_frames_in_sequence(source, total)):
        if i in wanted:
            kept[i] = _rgb(frame, size)
            if len(kept) == len(wanted):
                break
    if missing := wanted - kept.keys():
        raise DecodingError(f"frame {min(missing)} of {total} is missing")
    return kept


def _frames_in_sequence(source: Source, total: int) -> Iterator[Any]:
    count = 0
    try:
        with _open(source) as container:
            for frame in container.decode(video=0):
                if frame.is_corrupt:
                    raise DecodingError(f"breaks after {count} of {total} frames: corrupt frame")
                yield frame
                count += 1
    except (av.FFmpegError, OSError, ValueError) as error:
        message = f"breaks after {count} of {total} frames: {_reason(error)}"
        raise DecodingError(message) from error


def _rgb(frame: Any, size: tuple[int, int] | None) -> np.ndarray:
    transposed, flip_rows, flip_columns = _orientation(frame)
    height, width = size or (None, None)
    if transposed:
        height, width = width, height
    if size is None:
        interpolation = Interpolation.BILINEAR  # of the colour planes, where these are smaller
    elif height <= frame.height and width <= frame.width:
        interpolation = Interpolation.AREA
    else:
        interpolation = Interpolation.BICUBIC
    pixels = frame.to_ndarray(
        format="rgb24",
        height=height,
        width=width,
        interpolation=interpolation,
        src_color_range=frame.color_range or ColorRange.MPEG,
        threads=1,
    )
    if transposed:
        pixels = pixels.swapaxes(0, 1)
    return pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]


def _orientation(frame: Any) -> tuple[bool, bool, bool]:
    """(transpose, flip rows, flip columns), in this order, from the display matrix.

    The matrix (a, b, u, c, d, v, x, y, w) maps x' = a·x + c·y, y' = b·x + d·y, y pointing down
    (libavutil/display.h). Angles other than quarter turns are shown as the nearest of them.
    """
    if not frame.rotation and "DISPLAYMATRIX" not in frame.side_data:
        return False, False, False
    a, b, _, c, d = np.frombuffer(bytes(frame.side_data["DISPLAYMATRIX"]), "<i4")[:5].tolist()
    if abs(b) > abs(a):
        return True, b < 0, c < 0
    return False, d < 0, a < 0


def _check_indices(wanted: Sequence[int], total: int) -> None:
    for i in wanted:
        if not 0 <= i < total:
            raise DecodingError(f"frame {i} of {total} is missing")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


@functools.cache
def _torchcodec() -> Any:
    """torchcodec's decoder class, or None if the package or its FFmpeg does not load."""
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, RuntimeError, OSError):
        return None
    return VideoDecoder


def _decode_by_torchcodec(source: Source, indices: Sequence[int]) -> np.ndarray:
    video_decoder = _torchcodec()
    if video_decoder is None:
        raise DecodingError("decoder torchcodec does not load; install it or choose pyav")
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        with _open(data):  # refuses playlists, which torchcodec would follow
            pass
        video = video_decoder(data, dimension_order="NHWC", num_ffmpeg_threads=1)
        _check_indices(indices, len(video))
        return video.get_frames_at(indices=list(indices)).data.numpy()
    except (OSError, RuntimeError, ValueError, IndexError) as error:
        reason = str(error).partition("\n")[0]
        raise DecodingError(f"no readable video: {reason}") from error
