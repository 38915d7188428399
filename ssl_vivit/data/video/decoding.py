"""Decode chosen frames of a video file to RGB arrays.

- Frames are numbered in presentation order, even if timestamps are unordered or have gaps. The
  numbers are equal to those from decoding the whole video.
- Only groups of pictures with a wanted frame are decoded, and only wanted frames are converted to
  RGB.
- Rotation and mirroring flags are applied. Frames have the stored number of pixels. Pixels that are
  not square are not stretched.
- Size and pixel format must not change within a video.
- A call uses one thread, since the loader runs several workers.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import av
import numpy as np
from av.format import Flags
from av.stream import Disposition
from av.video.reformatter import ColorRange, Interpolation

from ssl_vivit.data.video.frame_times import rate_and_times
from ssl_vivit.errors import DecodingError

Source = bytes | str | Path
Decoder = Literal["auto", "pyav", "torchcodec"]

# FFmpeg's demuxers of videos. Playlists and concatenations are excluded for safety, as they could
# make us read other files and addresses. Text and single pictures are not videos.
_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegvideo,mpegts,m4v,flv,ogg,asf,ivf,gif,"
    "apng,nut,mxf,gxf,dv,rm,wtv,obu,h261,h263,h264,hevc,vvc,vc1,mjpeg,yuv4mpegpipe"
)
# Most pixels of a frame, 8192 × 8192. Without a limit FFmpeg would allocate what a header claims.
MOST_PIXELS = 1 << 26
_LIMIT = {"max_pixels": str(MOST_PIXELS)}
# Decoders that apply the value of `skip_frame` at the time when a packet is sent.
_SKIPPING_CODECS = ("h264", "hevc")
# Pictures that accompany a video or a song: cover and thumbnails.
_COVER = Disposition.attached_pic | Disposition.timed_thumbnails


class VideoInfo(NamedTuple):
    """Number, size and times of the frames of a video.

    Attributes:
        num_frames: number of frames that are shown.
        height: height of the stored picture in pixels, after rotation. Pixels that are not square
            (a sample aspect ratio other than 1) are not stretched.
        width: width of the stored picture in pixels, after rotation.
        fps: frames per second by the timestamps, the mean if the rate varies; 0 if unknown.
        times: time in seconds from the first frame to each frame, if the rate varies. None if frame
            i begins at i / fps within half a frame, or the file has no timestamps.
    """

    num_frames: int
    height: int
    width: int
    fps: float
    times: tuple[float, ...] | None = None


class _Layout(NamedTuple):
    """Presentation timestamps of the shown frames, read from the packets.

    Attributes:
        stamps: timestamps of the frames in ascending order. None if a timestamp is missing or
            occurs twice, or the container stores no timestamps.
        order: equal to ``stamps`` if the frame of each packet is known by its timestamp, else None.
            Without ``order``, frames can only be numbered by decoding the video from the start.
    """

    stamps: list[int] | None
    order: list[int] | None

    @property
    def total(self) -> int | None:
        """Number of shown frames; None if it is known only after decoding."""
        return None if self.order is None else len(self.order)


def decode_frames(
    source: Source,
    indices: Sequence[int],
    size: tuple[int, int] | None = None,
    *,
    decoder: Decoder = "auto",
) -> np.ndarray:
    """Decode chosen frames of a video.

    The compressed video is kept in memory during the call.

    Args:
        source: bytes or path of the file.
        indices: frame numbers in presentation order. They may be in any order and repeat.
        size: (H, W) to which frames are resized: by area averaging if both sides shrink, else
            bicubically. None keeps the stored size.
        decoder: ``auto`` uses torchcodec, if it can be imported, for frames at their stored size.
            In all other cases it uses PyAV, which resizes during conversion. Videos without usable
            timestamps are always decoded by PyAV.

    Returns:
        uint8 RGB of shape (len(indices), H, W, 3), in the order of ``indices``.

    Raises:
        DecodingError: if the file is not a video, or a chosen frame is missing, broken, or has
            another size or pixel format than the first frame; the message gives the number of the
            frame.
    """
    wanted = [int(i) for i in indices]
    by_torchcodec = size is None and decoder != "pyav" and _has_torchcodec(decoder)
    try:
        with _open(source) as (container, stream):
            packets = list(_packets(container, stream))
            layout = _layout(source, container, stream, packets)
            order = layout.order
            _check_indices(wanted, layout.total)
            kept: dict[int, np.ndarray] | None = None
            if order is not None and wanted:
                if by_torchcodec:
                    frames = _decode_by_torchcodec(source, stream, wanted, order)
                    if frames is not None:
                        return frames
                kept = _decode_groups(stream, packets, order, set(wanted), size)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise DecodingError(f"no readable video: {_reason(error)}") from error
    if not wanted:
        height, width = size or probe_video(source)[1:3]
        return np.empty((0, height, width, 3), np.uint8)
    if kept is None:
        kept = _decode_in_sequence(source, set(wanted), size, layout)
    return np.stack([kept[i] for i in wanted])


def decode_jpegs(pictures: Sequence[bytes], size: tuple[int, int] | None = None) -> np.ndarray:
    """Decode JPEG pictures.

    Args:
        pictures: bytes of one or more JPEG files.
        size: (H, W) of the result. Pictures of another size are resized. None keeps their size.

    Returns:
        uint8 RGB of shape (len(pictures), H, W, 3).

    Raises:
        DecodingError: if a file is not a JPEG picture, or pictures differ in size and ``size`` is
            None.
    """
    codec = av.CodecContext.create("mjpeg", "r")
    codec.thread_count = 1
    codec.options = _LIMIT
    frames = None
    for i, picture in enumerate(pictures):
        try:
            (frame,) = codec.decode(av.Packet(picture))
        except (av.FFmpegError, ValueError) as error:
            raise DecodingError(f"broken JPEG picture: {_reason(error, 'a picture')}") from error
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
        source: bytes or path of the file.
        size: (H, W) to which frames are resized, as in :func:`decode_frames`.

    Yields:
        uint8 RGB of shape (H, W, 3).

    Raises:
        DecodingError: at the first frame that is broken, missing, or has another size or pixel
            format.
    """
    layout = _layout_of(source)
    order, total, count = layout.order, layout.total, 0
    for frame in _frames_in_sequence(source, total):
        if order is not None and (count == total or frame.pts != order[count]):
            raise DecodingError(f"frame {count} of {total} is missing or out of order")
        yield _rgb(frame, size)
        count += 1
    if total is not None and count < total:
        raise DecodingError(f"breaks after {count} of {total} frames")


def probe_video(source: Source) -> VideoInfo:
    """Read number, size and times of a video's frames.

    Only the first frame is decoded, or the whole video if its timestamps do not identify frames.

    Args:
        source: bytes or path of the file.

    Raises:
        DecodingError: if the file is not a video, or its first frame is broken.
    """
    try:
        with _open(source) as (container, stream):
            layout = _layout(source, container, stream, _packets(container, stream))
            rate = float(stream.average_rate or stream.guessed_rate or 0)
            guess = float(stream.guessed_rate or rate)
            base = stream.time_base
    except (av.FFmpegError, OSError, ValueError) as error:
        raise DecodingError(f"no readable video: {_reason(error)}") from error
    total = layout.total
    frames = _frames_in_sequence(source, total)
    first = next(frames, None)
    if first is None:
        raise DecodingError(
            f"breaks after 0 of {total} frames" if total else "no readable video: holds no frames"
        )
    if total is None:
        total = 1 + sum(1 for _ in frames)
    height, width = _shown_size(first)
    if layout.stamps is None or len(layout.stamps) != total:
        return VideoInfo(total, height, width, guess)
    seconds = np.array(layout.stamps, dtype=np.float64) * float(base)
    return VideoInfo(total, height, width, *rate_and_times(seconds, rate))


@contextmanager
def _open(source: Source) -> Iterator[tuple[Any, Any]]:
    """Open a video and yield its container and video stream.

    The video is opened as a file object, so that FFmpeg does not interpret part of the name as a
    protocol.
    """
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
        # The limit also applies to the frames that FFmpeg decodes to detect the pixel format.
        options = {"format_whitelist": _CONTAINERS, **_LIMIT}
        with av.open(file, options=options, metadata_errors="ignore") as container:
            films = [s for s in container.streams.video if not s.disposition & _COVER]
            if not films:
                raise ValueError("holds no video stream")
            codec = films[0].codec_context
            if codec is None:
                raise ValueError("its codec is unknown")
            if not (codec.width and codec.height and codec.pix_fmt):
                raise ValueError("no frame can be decoded, or one has too many pixels")
            if codec.width * codec.height > MOST_PIXELS:
                raise ValueError(
                    f"its header states frames of {codec.height}×{codec.width} pixels; at most "
                    f"{MOST_PIXELS:,} pixels are supported"
                )
            codec.thread_count = 1
            codec.options = _LIMIT
            yield container, films[0]


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    # The last packet, at the end of the stream, is empty.
    return (p for p in container.demux(stream) if p.size)


def _layout_of(source: Source) -> _Layout:
    try:
        with _open(source) as (container, stream):
            return _layout(source, container, stream, _packets(container, stream))
    except (av.FFmpegError, OSError, ValueError) as error:
        raise DecodingError(f"no readable video: {_reason(error)}") from error


def _layout(source: Source, container: Any, stream: Any, packets: Iterable[Any]) -> _Layout:
    heads = [(p.pts, p.is_keyframe, p.is_discard) for p in packets]
    stamps = [pts for pts, _, hidden in heads if not hidden]
    if None in stamps or container.format.flags & Flags.no_timestamps.value:
        return _Layout(None, None)
    # Some containers do not store presentation times (AVI, GXF). FFmpeg then gives decoding order,
    # even if the codec reorders frames.
    decoding_order = all(first <= second for first, second in pairwise(stamps))
    reorders = stream.codec_context.has_b_frames and not all(key for _, key, _ in heads)
    stamps.sort()
    if len(set(stamps)) < len(stamps):  # as in videos joined by `cat`
        return _Layout(None, None)
    if len(stamps) > 1 and decoding_order and reorders:
        return _Layout(stamps, None)
    if stamps and not (heads[0][1] and heads[0][0] <= stamps[0]):
        # In a video that was cut, frames before the first complete one are never shown.
        first = next(_frames_in_sequence(source, None), None)
        if first is not None:
            stamps = [pts for pts in stamps if pts >= first.pts]
    return _Layout(stamps, stamps)


def _decode_groups(
    stream: Any,
    packets: Sequence[Any],
    order: Sequence[int],
    wanted: set[int],
    size: tuple[int, int] | None,
) -> dict[int, np.ndarray] | None:
    """Decode wanted frames with PyAV, starting at the last key frame at or before each of them.

    Returns:
        Dictionary from each frame number to the RGB frame, uint8 (H, W, 3). None if not all of the
        wanted frames were decoded.
    """
    number = {order[i]: i for i in wanted}
    position = {p.pts: at for at, p in enumerate(packets) if p.pts in number and not p.is_discard}
    keys = [at for at, p in enumerate(packets) if p.is_keyframe and p.pts is not None]
    last_of_group: dict[int, int] = {}
    for time, at in position.items():
        # Frames that are shown before a key frame but stored after it depend on the group before
        # it.
        before = [key for key in keys if key <= at and packets[key].pts <= time]
        start = before[-1] if before else 0
        last_of_group[start] = max(at, last_of_group.get(start, at))
    kept: dict[int, np.ndarray] = {}
    codec, picture = stream.codec_context, _Picture.declared(stream)
    skipping = codec.name in _SKIPPING_CODECS
    for start, last in sorted(last_of_group.items()):
        codec.flush_buffers()
        try:
            for packet in [*packets[start : last + 1], None]:
                if skipping and packet is not None:
                    codec.skip_frame = "DEFAULT" if packet.pts in number else "NONREF"
                for frame in codec.decode(packet):
                    if frame.pts in number and not frame.is_corrupt:
                        picture.check(frame, number[frame.pts], len(order))
                        kept[number[frame.pts]] = _rgb(frame, size)
        except av.FFmpegError:
            return None
    return kept if kept.keys() == wanted else None


def _decode_in_sequence(
    source: Source, wanted: set[int], size: tuple[int, int] | None, layout: _Layout
) -> dict[int, np.ndarray]:
    kept: dict[int, np.ndarray] = {}
    numbers = {pts: i for i, pts in enumerate(layout.order or ())}
    count = 0
    for frame in _frames_in_sequence(source, layout.total):
        number = count if layout.order is None else numbers.get(frame.pts, -1)
        count += 1
        if number in wanted:
            kept[number] = _rgb(frame, size)
            if len(kept) == len(wanted):
                break
    if missing := wanted - kept.keys():
        raise DecodingError(f"frame {min(missing)} of {layout.total or count} is missing")
    return kept


def _frames_in_sequence(source: Source, total: int | None) -> Iterator[Any]:
    count, of = 0, "" if total is None else f" of {total}"
    try:
        with _open(source) as (container, stream):
            picture = _Picture.declared(stream)
            for frame in container.decode(stream):
                if frame.is_corrupt:
                    raise DecodingError(f"breaks after {count}{of} frames: corrupt frame")
                picture.check(frame, count, total)
                yield frame
                count += 1
    except (av.FFmpegError, OSError, ValueError) as error:
        raise DecodingError(f"breaks after {count}{of} frames: {_reason(error)}") from error


class _Picture(NamedTuple):
    """Size and pixel format of a video's frames, as FFmpeg detects them from the first frames."""

    height: int
    width: int
    format: str

    @classmethod
    def declared(cls, stream: Any) -> _Picture:
        codec = stream.codec_context
        return cls(codec.height, codec.width, codec.pix_fmt)

    def check(self, frame: Any, number: int, total: int | None) -> None:
        """Raise DecodingError if a frame has another size or pixel format than the first frames.

        Otherwise the decoded video would change its appearance suddenly.
        """
        found = _Picture(frame.height, frame.width, frame.format.name)
        if found != self:
            of = "" if total is None else f" of {total}"
            raise DecodingError(
                f"changes from {self.height}×{self.width} {self.format} to "
                f"{found.height}×{found.width} {found.format} at frame {number}{of}"
            )


def _shown_size(frame: Any) -> tuple[int, int]:
    if _orientation(frame)[0]:
        return frame.width, frame.height
    return frame.height, frame.width


def _rgb(frame: Any, size: tuple[int, int] | None) -> np.ndarray:
    transposed, flip_rows, flip_columns = _orientation(frame)
    height, width = size or (None, None)
    if transposed:
        height, width = width, height
    if size is None:
        interpolation = Interpolation.BILINEAR  # of chroma planes with lower resolution
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
    """Return from the display matrix whether to transpose, then flip vertically and horizontally.

    The matrix (a, b, u, c, d, v, x, y, w) maps x' = a·x + c·y, y' = b·x + d·y, with y pointing down
    (libavutil/display.h). Angles are rounded to quarter turns.
    """
    if not frame.rotation and "DISPLAYMATRIX" not in frame.side_data:
        return False, False, False
    a, b, _, c, d = np.frombuffer(bytes(frame.side_data["DISPLAYMATRIX"]), "<i4")[:5].tolist()
    if abs(b) > abs(a):
        return True, b < 0, c < 0
    return False, d < 0, a < 0


def _check_indices(wanted: Sequence[int], total: int | None) -> None:
    for i in wanted:
        if i < 0 or (total is not None and i >= total):
            of = "" if total is None else f" of {total}"
            raise DecodingError(f"frame {i}{of} is missing")


def _reason(error: Exception, kind: str = "a video") -> str:
    if isinstance(error, av.InvalidDataError):
        return f"the data are damaged or are not {kind}; replace the file or leave it out"
    if isinstance(error, av.ArgumentError):  # also raised for formats outside the whitelist
        return f"unknown video format, or a frame that is invalid or has more than {MOST_PIXELS} pixels"
    return getattr(error, "strerror", None) or str(error)


@functools.cache
def _torchcodec() -> Any:
    """Return torchcodec's decoder class, or None if the package or its FFmpeg cannot be loaded."""
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, RuntimeError, OSError):
        return None
    return VideoDecoder


def _has_torchcodec(decoder: Decoder) -> bool:
    if _torchcodec() is None:
        if decoder == "torchcodec":
            raise DecodingError(
                "decoder torchcodec cannot be loaded; install torchcodec or set decoder to pyav"
            )
        return False
    return True


def _decode_by_torchcodec(
    source: Source, stream: Any, indices: Sequence[int], order: Sequence[int]
) -> np.ndarray | None:
    """Return frames decoded by torchcodec; None if it fails or numbers frames unlike PyAV."""
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    try:
        video = _torchcodec()(
            data, stream_index=stream.index, dimension_order="NHWC", num_ffmpeg_threads=1
        )
        if len(video) != len(order):
            return None
        batch = video.get_frames_at(indices=list(indices))
    except (RuntimeError, ValueError, IndexError):
        return None  # PyAV will raise an error that describes the fault
    begins = np.array([order[i] for i in indices]) * float(stream.time_base)
    if np.abs(batch.pts_seconds.numpy() - begins).max() > 1e-6 * (1 + np.abs(begins).max()):
        return None
    pixels = batch.data.numpy()
    declared = (stream.codec_context.height, stream.codec_context.width)
    return pixels if sorted(pixels.shape[1:3]) == sorted(declared) else None
