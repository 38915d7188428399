"""A record of the videos that an encoder was trained on, so that none of them is tested on."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ssl_vivit.data.randomness import name_fraction
from ssl_vivit.data.video.loader import DataConfig
from ssl_vivit.data.video.shards import ShardSet
from ssl_vivit.data.video.video_folder import VideoFolder
from ssl_vivit.data.video.videos import Videos

_NOT_KNOWN = "-"


def pretraining_data(
    config: DataConfig,
    videos: Videos,
    indices: Sequence[int] | np.ndarray,
    seed: int,
) -> dict[str, Any]:
    """Return a record of the videos that a run was trained on, as JSON values.

    Args:
        config: settings of the data: the shards, and the share of videos that is held out.
        videos: opened shards, or a folder of videos. Files of a folder are read to hash them.
        indices: the videos of the training part.
        seed: seed of the run. The held-out videos do not depend on it.

    Returns:
        A dictionary with the number of ``videos``, the ``shards`` as the config names them, the
        share ``held_out``, the ``seed``, the sorted hashes of the original files as ``sources``
        (where they are known), and ``contents``: for each shard a checksum of its annotations,
        followed by its file name.
    """
    assert isinstance(videos, ShardSet | VideoFolder)  # others do not know their sources
    shards = config.shards
    return {
        "videos": len(indices),
        "shards": shards if shards is None or isinstance(shards, str) else list(shards),
        "held_out": config.held_out,
        "seed": seed,
        "sources": sorted(source for i in indices if (source := videos.source(int(i)))),
        "contents": [f"{checksum}  {name}" for checksum, name in _contents(videos)],
    }


def trained_on(
    record: Mapping[str, Any],
    videos: ShardSet | VideoFolder,
    indices: Sequence[int] | np.ndarray,
) -> int:
    """Count the videos that a recorded run may have trained on.

    The hash of the file that a video was packed from tells, however it was packed. Where the
    record or the video lacks it, as in shards of earlier versions, names tell: those videos count
    that lie in shards of the same name and annotations (of the same name where a shard has none)
    and that the run did not hold out.

    Args:
        record: of :func:`pretraining_data`.
        videos: shards, opened, or a folder of videos, of which the files are read.
        indices: the videos in question.
    """
    hashes = set(record.get("sources", ()))
    complete = len(record.get("sources", ())) == record["videos"]
    same_names = _in_shards_of_the_same_names(record, videos)
    count = 0
    for i in map(int, indices):
        source = videos.source(i)
        if source in hashes:
            count += 1
        elif source is None or not complete:
            count += same_names[i] and name_fraction(videos.keys[i]) >= record["held_out"]
    return int(count)


def _in_shards_of_the_same_names(
    record: Mapping[str, Any], videos: ShardSet | VideoFolder
) -> np.ndarray:
    """Mark the videos whose shard has the name and annotations of a recorded shard: bool."""
    if not isinstance(videos, ShardSet):
        return np.zeros(len(videos), bool)
    known: dict[str, set[str]] = {}
    for line in record["contents"]:
        checksum, _, name = line.partition("  ")
        known.setdefault(name, set()).add(checksum)
    shared = np.array(
        [
            name in known and bool({checksum, _NOT_KNOWN} & known[name] or checksum == _NOT_KNOWN)
            for checksum, name in _contents(videos)
        ]
    )
    return shared[videos.shard_of]


def _contents(videos: ShardSet | VideoFolder) -> list[tuple[str, str]]:
    """Checksum and file name of each shard; a folder has none."""
    if not isinstance(videos, ShardSet):
        return []
    crcs = videos.annotation_crcs
    found = []
    for number, shard in enumerate(videos.shards):
        own = np.flatnonzero(videos.shard_of == number)
        checksum = _NOT_KNOWN
        if videos.has_annotation[own].all():
            # Annotations are the same bytes however the frames are packed.
            keys = "\n".join(videos.keys[i] for i in own).encode()
            checksum = f"{zlib.crc32(crcs[own].astype('<u4').tobytes(), zlib.crc32(keys)):08x}"
        found.append((checksum, shard.rstrip("/").rsplit("/", 1)[-1]))
    return found
