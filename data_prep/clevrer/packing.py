"""Pack videos into shards with indexes: in parallel, resumable and reproducible to the byte."""

from __future__ import annotations

import errno
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm
from webdataset import TarWriter

from data_prep.clevrer.settings import CLEVRER_FRAMES, DEFAULT_STORAGE, Storage
from data_prep.clevrer.storage import Encoding
from data_prep.clevrer.video_sources import Sample, VideoSource, open_source
from data_prep.output_files import refuse_other_settings, writing
from data_prep.worker_pool import in_workers, usable_cores
from ssl_vivit.data.video.broken_videos import BROKEN_LIMIT
from ssl_vivit.data.video.decoding import probe_video
from ssl_vivit.data.video.shards.build import build_index
from ssl_vivit.data.video.shards.index import (
    ANNOTATION,
    content_hash,
    index_path,
    parse_index,
    refuse_other_file,
    save_index,
)
from ssl_vivit.errors import DataError, DecodingError
from ssl_vivit.files import temporary_beside, write_json
from ssl_vivit.nested_text import read_json_text


@dataclass(frozen=True)
class PackReport:
    """Result of :func:`pack`.

    Attributes:
        shards: paths of the tars.
        packed: number of samples in the shards.
        annotated: number of samples with an annotation.
        skipped: reason for each video that was not packed, by file name.
        too_many_skipped: True if more than 1 % of CLEVRER's videos were skipped, which suggests a
            damaged archive.
        passed_over: number of files that were not read, by kind of file (the ending of the name,
            or for example ``hidden``).
        sizes: sizes (H, W) of stored frames in pixels, each once, ascending.
        rates: known frame rates of the stored videos, each once, ascending.
    """

    shards: list[Path]
    packed: int
    annotated: int
    skipped: dict[str, str]
    too_many_skipped: bool
    passed_over: Counter[str]
    sizes: list[tuple[int, int]]
    rates: list[float]


@dataclass(frozen=True)
class _Job:
    shard: Path
    samples: Sequence[Sample]
    encoding: Encoding
    num_frames: int | None
    source_size: tuple[int, int] | None


def pack(
    videos: str | Path,
    out: str | Path,
    annotations: str | Path | None = None,
    *,
    prefix: str | None = None,
    storage: Storage = DEFAULT_STORAGE,
    size: tuple[int, int] | None = None,
    fps: float | None = None,
    frames: int | None = None,
    samples_per_shard: int = 256,
    workers: int | None = None,
    progress: bool = True,
) -> PackReport:
    """Pack videos into ``out/PREFIX-000000.tar`` …, each with its index.

    Broken videos, and videos of an unexpected length or size, are skipped and reported. A second
    run keeps complete shards and packs the missing ones.

    Args:
        videos: zip archive or folder of videos.
        out: folder of the shards; created if missing.
        annotations: zip archive or folder of CLEVRER's annotations, matched by video number.
        prefix: prefix of the shards' names; None uses the archive's name (``clevrer-train`` …).
        storage: see :class:`~data_prep.clevrer.storage.Encoding`.
        size: (H, W) of the stored frames; None keeps the size.
        fps: frames kept per second; None keeps all.
        frames: number of frames that each video must have. With None, videos with CLEVRER's names
            must have 128 frames, and other videos may have any number. All videos with CLEVRER's
            names must have one frame size.
        samples_per_shard: number of videos per shard, including skipped ones.
        workers: number of processes; None is one per usable core, and at most one per shard.
            Several processes are spawned, so a script must call this under ``if __name__ ==
            "__main__"``.
        progress: show a progress bar.

    Raises:
        DataError: if the source or a setting cannot be used, the folder contains shards with this
            prefix and other settings, or no video could be packed.
    """
    encoding = Encoding(storage, size, fps)
    for option, value in (("frames", frames), ("samples-per-shard", samples_per_shard)):
        if value is not None and value < 1:
            raise DataError(f"--{option} {value} must be at least 1")
    if workers is not None and workers < 1:
        raise DataError(f"--workers {workers} must be at least 1")
    source = open_source(videos, annotations)
    out = Path(out)
    prefix = prefix or source.prefix
    # A prefix with characters of globs or brace patterns could not be matched by patterns.
    if not re.fullmatch(r"[\w-][\w.-]*", prefix):
        raise DataError(
            f"--prefix {prefix!r} may contain only letters, digits, '-', '_' and '.'; give the "
            "folder by --out"
        )
    if source.is_clevrer and frames is None:
        frames = CLEVRER_FRAMES
    _check_or_save_settings(out, prefix, source, encoding, frames, samples_per_shard)
    groups = [
        source.samples[at : at + samples_per_shard]
        for at in range(0, len(source.samples), samples_per_shard)
    ]
    source_size = _first_size(source.samples) if source.is_clevrer else None
    jobs = [
        _Job(out / f"{prefix}-{number:06d}.tar", group, encoding, frames, source_size)
        for number, group in enumerate(groups)
    ]
    reports = _run(jobs, workers or usable_cores(), progress)
    written = [job.shard for job, report in zip(jobs, reports, strict=True) if report["packed"]]
    skipped = {name: why for report in reports for name, why in report["skipped"].items()}
    if not written:
        # Remove the manifest, so that another run may use other settings.
        _manifest(out, prefix).unlink(missing_ok=True)
        name, why = next(iter(skipped.items()))
        others = f" (and {len(skipped) - 1} more)" if len(skipped) > 1 else ""
        hint = "; --frames N packs videos of N frames" if "asked for" in why else ""
        raise DataError(f"nothing was packed: {name}: {why}{others}{hint}")
    return PackReport(
        written,
        sum(report["packed"] for report in reports),
        sum(report["annotated"] for report in reports),
        skipped,
        source.is_clevrer and len(skipped) > BROKEN_LIMIT * len(source.samples),
        source.passed_over,
        sorted(set().union(*(report["sizes"] for report in reports))),
        sorted(set().union(*(report["rates"] for report in reports)) - {0.0}),
    )


def _check_or_save_settings(
    out: Path,
    prefix: str,
    source: VideoSource,
    encoding: Encoding,
    frames: int | None,
    samples_per_shard: int,
) -> None:
    """Save settings and source digest of the shards with a prefix, or compare with saved ones.

    Raises:
        DataError: if ``out`` contains shards with this prefix and other settings or sources.
    """
    settings: dict[str, Any] = {
        **asdict(encoding),
        "frames": frames,
        "samples_per_shard": samples_per_shard,
        "videos": source.digest(),
    }
    manifest = _manifest(out, prefix)
    if out.exists() and not out.is_dir():
        raise DataError(f"--out {out} is a file; give a folder")
    with writing(f"--out {out}"):
        if manifest.exists():
            _refuse_other_settings(manifest, prefix, json.loads(json.dumps(settings)))
        elif any(out.glob(f"{prefix}-*.tar")):
            raise DataError(
                f"{out} contains shards {prefix}-*.tar that this command did not write; choose "
                "another --out or --prefix"
            )
        else:
            write_json(manifest, settings, indent=1)


def _manifest(out: Path, prefix: str) -> Path:
    return out / f"{prefix}.manifest.json"


def _refuse_other_settings(manifest: Path, prefix: str, settings: dict[str, Any]) -> None:
    try:
        found = read_json_text(manifest.read_text())
    except ValueError as error:
        raise DataError(f"{manifest} is damaged; remove it and {prefix}-*") from error
    fix = f"choose another --out or --prefix, or remove {prefix}-* and {manifest.name}"
    what = f"{manifest.parent} contains {prefix} shards"
    if found.get("videos") != settings["videos"]:
        raise DataError(f"{what} of other videos or annotations; {fix}")
    refuse_other_settings(f"{what} packed", found, settings, fix)


def _first_size(samples: Sequence[Sample]) -> tuple[int, int] | None:
    """Return (H, W) of the first readable video. All videos must have this size."""
    for sample in samples:
        try:
            info = probe_video(sample.video.read())
        except (DecodingError, OSError):
            continue
        return info.height, info.width
    return None


def _run(jobs: Sequence[_Job], workers: int, progress: bool) -> list[dict[str, Any]]:
    begun = progress and any(job.shard.exists() for job in jobs)
    with tqdm(jobs, desc="checking shards", unit="shard", leave=False, disable=not begun) as bar:
        reports = [_report_if_complete(job) for job in bar]
    missing = [place for place, report in enumerate(reports) if report is None]
    left = [jobs[place] for place in missing]
    if left:
        total = sum(len(job.samples) for job in left)
        with tqdm(total=total, desc="pack", unit="video", disable=not progress) as bar:
            if min(workers, len(left)) == 1:
                made = [_pack_shard(job, bar.update) for job in left]
            else:
                made = in_workers(
                    _pack_shard,
                    [(job,) for job in left],
                    workers,
                    lambda place: bar.update(len(left[place].samples)),
                )
        for place, report in zip(missing, made, strict=True):
            reports[place] = report
    return [report for report in reports if report is not None]


def _pack_shard(job: _Job, advance: Any = lambda count: None) -> dict[str, Any]:
    refuse_other_file(Path(index_path(str(job.shard))))
    skipped: dict[str, str] = {}
    try:
        with temporary_beside(job.shard) as temporary:
            with open(temporary, "wb") as file, TarWriter(file, encoder=False, mtime=0) as tar:
                for sample in job.samples:
                    try:
                        members = _members(job, sample)
                    except (DecodingError, _Unreadable) as error:
                        skipped[sample.video.name] = str(error)
                    else:
                        tar.write({"__key__": sample.key, **members})
                    advance(1)
            if len(skipped) == len(job.samples):
                return _report({"samples": [], "left_out": skipped})
            index = build_index(temporary, job.encoding.storage)
            index["left_out"] |= skipped
            # Write the index first: a tar without an index would be an unreadable shard.
            save_index(index, Path(index_path(str(job.shard))))
            os.replace(temporary, job.shard)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise DataError(
                f"no space left for {job.shard}; complete shards are kept; free space and run the "
                "command again"
            ) from error
        raise DataError(f"{job.shard} cannot be written: {error}") from error
    return _report(index)


class _Unreadable(Exception):
    """Raised for a source file that cannot be read."""


def _members(job: _Job, sample: Sample) -> dict[str, bytes]:
    try:
        video = sample.video.read()
        annotation = sample.annotation.read() if sample.annotation else None
    except (OSError, MemoryError) as error:
        raise _Unreadable(
            f"cannot be read: {str(error) or 'it is larger than the memory'}"
        ) from error
    if job.source_size is not None:
        info = probe_video(video)
        if (info.height, info.width) != job.source_size:
            raise DecodingError(
                f"has {info.height}×{info.width} pixels, but the other videos have "
                f"{job.source_size[0]}×{job.source_size[1]}"
            )
    try:
        return job.encoding.members(sample.video.name, video, annotation, job.num_frames)
    except (OSError, ValueError, MemoryError) as error:
        # Raised by an encoder, which writes to memory, for a picture that it does not support.
        raise _Unreadable(
            f"cannot be stored: {str(error) or 'it is larger than the memory'}"
        ) from error


def _report_if_complete(job: _Job) -> dict[str, Any] | None:
    index_file = Path(index_path(str(job.shard)))
    if not (job.shard.is_file() and index_file.is_file()):
        return None
    try:
        index = parse_index(index_file.read_bytes(), str(index_file))
    except DataError:
        return None
    if job.shard.stat().st_size != index["bytes"] or _has_changed(job, index):
        return None
    return _report(index)


def _has_changed(job: _Job, index: dict[str, Any]) -> bool:
    """Return True if a source file has changed since its shard was written.

    Files with a newer time stamp than the shard's are compared by content; others count as
    unchanged.
    """
    written = job.shard.stat().st_mtime_ns
    stored = {sample["key"]: sample for sample in index["samples"]}
    for sample in job.samples:
        packed = stored.get(sample.key)
        try:
            if sample.video.changed_at() > written and (
                packed is None  # it was skipped, and may have been repaired since
                or packed.get("source") not in (None, content_hash(sample.video.read()))
            ):
                return True
            note = sample.annotation
            if packed is not None and note is not None and note.changed_at() > written:
                members = packed["members"]
                # With --fps the stored annotation differs from the file.
                if job.encoding.fps is not None or ANNOTATION not in members:
                    return True
                if zlib.crc32(note.read()) != members[ANNOTATION][2]:
                    return True
        except OSError:  # a broken link, or a removed file
            if packed is not None:
                return True
    return False


def _report(index: dict[str, Any]) -> dict[str, Any]:
    return {
        "packed": len(index["samples"]),
        "annotated": sum(ANNOTATION in sample["members"] for sample in index["samples"]),
        "skipped": index.get("left_out", {}),
        "sizes": {(sample["height"], sample["width"]) for sample in index["samples"]},
        "rates": {float(sample["fps"]) for sample in index["samples"]},
    }
