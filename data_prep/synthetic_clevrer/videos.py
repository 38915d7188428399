"""Render videos of synthetic scenes with annotations, in CLEVRER's folders and files."""

import functools
import json
import math
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from tqdm import tqdm

from data_prep.contact_sheet import labelled_sheet
from data_prep.output_files import picture_file, refuse_other_settings, writing
from data_prep.synthetic_clevrer.camera import Camera
from data_prep.synthetic_clevrer.motion import annotation, simulate
from data_prep.synthetic_clevrer.rendering import Renderer
from data_prep.synthetic_clevrer.scenes import draw_scene
from data_prep.worker_pool import in_workers, usable_cores
from ssl_vivit.errors import DataError
from ssl_vivit.files import replaced_file, write_json, write_text
from ssl_vivit.nested_text import read_json_text

FOLDER_SIZE = 1000
MANIFEST = "synthetic_clevrer.json"
RENDERING = 1
"""Version of the renderer; increase it if a change alters the video of a seed and number."""
# Disable macroblock-tree rate control, whose output is not always reproducible.
QUALITY = {"crf": "20", "preset": "veryfast", "x264-params": "mbtree=0"}


def video_path(out: str | Path, index: int) -> Path:
    """Return the path of video number `index`, as in CLEVRER's video archives."""
    return Path(out) / f"video_{_folder(index)}" / f"video_{index:05d}.mp4"


def annotation_path(out: str | Path, index: int) -> Path:
    """Return the path of annotation number `index`, as in CLEVRER's annotation archives."""
    return Path(out) / f"annotation_{_folder(index)}" / f"annotation_{index:05d}.json"


def _folder(index: int) -> str:
    first = index // FOLDER_SIZE * FOLDER_SIZE
    return f"{first:05d}-{first + FOLDER_SIZE:05d}"


def render(
    out: str | Path,
    num_videos: int,
    *,
    size: tuple[int, int] = (320, 480),
    num_frames: int = 128,
    fps: float = 25,
    seed: int = 0,
    start_index: int = 0,
    workers: int | None = None,
    progress: bool = True,
) -> list[Path]:
    """Render missing videos and their annotations.

    Args:
        out: folder of the videos; created if missing.
        num_videos: number of videos.
        size: (height, width) in pixels, both even. If it is not 3:2, frames show a centred crop of
            CLEVRER's view.
        num_frames: number of frames per video. A shorter video is the start of a longer one.
        fps: frames per second.
        seed: random seed; a scene depends only on the seed and the video's number.
        start_index: number of the first video.
        workers: number of processes; None is one per usable core, at most one per four videos.
        progress: show a progress bar.

    Returns:
        Paths of all videos in order, including existing ones.

    Raises:
        DataError: if a setting is invalid, or `out` contains videos with other settings or cannot
            be written.
    """
    out = Path(out)
    _check(num_videos, size, num_frames, fps, seed, start_index, workers)
    settings = {
        "rendering": RENDERING,
        "size": list(size),
        "num_frames": num_frames,
        "fps": float(fps),
        "seed": seed,
    }
    with writing(f"--out {out}"):
        _check_or_save_settings(out, settings)
    indices = range(start_index, start_index + num_videos)
    missing = [i for i in indices if not _is_complete(out, i)]
    if workers is None:
        workers = min(usable_cores(), math.ceil(len(missing) / 4))
    jobs = [(out, index, size, num_frames, fps, seed) for index in missing]
    bar = tqdm(
        total=num_videos,
        initial=num_videos - len(missing),
        desc="rendering",
        unit="video",
        disable=not progress,
    )
    with writing(f"--out {out}"), bar:
        if min(workers, len(jobs)) <= 1:
            for job in jobs:
                _render_one(*job)
                bar.update()
        else:
            in_workers(_render_one, jobs, workers, lambda place: bar.update())
    return [video_path(out, i) for i in indices]


def _check(
    num_videos: int,
    size: tuple[int, int],
    num_frames: int,
    fps: float,
    seed: int,
    start_index: int,
    workers: int | None,
) -> None:
    for option, value, least in (
        ("num-videos", num_videos, 1),
        ("num-frames", num_frames, 1),
        ("seed", seed, 0),
        ("start-index", start_index, 0),
        ("workers", 1 if workers is None else workers, 1),
    ):
        if value < least:
            raise DataError(f"--{option} is {value}; it must be at least {least}")
    if not 1 <= fps <= 1000:
        raise DataError(f"--fps is {fps:g}; it must lie between 1 and 1000")
    height, width = size
    if height < 16 or width < 16 or height % 2 or width % 2:
        even = (max(16, height + height % 2), max(16, width + width % 2))
        raise DataError(
            f"--size {height} {width} does not fit the video format (yuv420p): height and width "
            f"must be even and at least 16; use --size {even[0]} {even[1]}"
        )


def _check_or_save_settings(out: Path, settings: dict) -> None:
    """Save the settings in a new folder; raise if the folder has videos with other settings."""
    manifest = out / MANIFEST
    if out.exists() and not out.is_dir():
        raise DataError(f"--out {out} is a file; give a folder")
    if manifest.exists():
        try:
            found = read_json_text(manifest.read_text())
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise DataError(f"{manifest} cannot be read; choose another --out")
        if found.get("rendering") != RENDERING:
            raise DataError(
                f"--out {out} contains videos of another version of the renderer; choose another "
                "--out"
            )
        refuse_other_settings(
            f"--out {out} contains videos rendered",
            found,
            settings,
            "choose another --out, or the settings of the existing videos",
        )
        return
    if any(out.glob("video_*")) or any(out.glob("annotation_*")):
        raise DataError(
            f"--out {out} contains videos or annotations that this command did not make; choose "
            "another --out"
        )
    out.mkdir(parents=True, exist_ok=True)
    write_json(manifest, settings)


def _is_complete(out: Path, index: int) -> bool:
    # Files are written atomically, and the video after the annotation.
    return video_path(out, index).exists() and annotation_path(out, index).exists()


@functools.lru_cache(maxsize=1)
def _renderer(size: tuple[int, int]) -> Renderer:
    """Return this process's renderer, which is cached because it is slow to create."""
    return Renderer(Camera(*size))


def _render_one(
    out: Path, index: int, size: tuple[int, int], num_frames: int, fps: float, seed: int
) -> None:
    renderer = _renderer(size)
    objects = draw_scene(seed, index)
    motion = simulate(objects, num_frames, fps)
    text = json.dumps(annotation(index, objects, motion, renderer.camera))
    write_text(annotation_path(out, index), text)
    frames = (
        renderer.frame(objects, motion.location[f], motion.orientation[f, :, 2])
        for f in range(num_frames)
    )
    with replaced_file(video_path(out, index)) as part:
        write_video(part, frames, renderer.camera, fps)


def write_video(path: str | Path, frames: Iterable[np.ndarray], camera: Camera, fps: float) -> None:
    """Encode frames as h264 mp4 in yuv420p.

    Args:
        path: file to write, with any ending.
        frames: RGB frames, uint8 (H, W, 3) each.
        camera: camera of the frames, which has their size.
        fps: frames per second.
    """
    with av.open(str(path), "w", format="mp4") as container:
        rate = Fraction(fps).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate, options=dict(QUALITY))
        stream.width, stream.height, stream.pix_fmt = camera.width, camera.height, "yuv420p"
        # One thread: every core has its worker, and the bytes depend on the number of threads.
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def contact_sheet(out: str | Path, path: str | Path, videos: int = 4, frames: int = 6) -> None:
    """Save a picture of evenly spaced frames of the first videos in a folder, one video per row.

    Args:
        out: folder that `render` wrote.
        path: PNG file to write.
        videos: number of videos.
        frames: number of frames of each video.

    Raises:
        DataError: if `out` contains no videos, or `path` cannot be written.
    """
    found = sorted(Path(out).glob("video_*/video_*.mp4"))[:videos]
    if not found:
        raise DataError(f"--out {out} contains no videos; render some first")
    rows = []
    for video in found:
        with av.open(str(video)) as container:
            pictures = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
        chosen = np.linspace(0, len(pictures) - 1, frames).round().astype(int)
        rows.append((video.stem, chosen.tolist(), np.stack([pictures[k] for k in chosen])))
    with picture_file("--contact-sheet", path) as part:
        labelled_sheet(rows).save(part, format="png")
