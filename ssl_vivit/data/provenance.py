"""Record of an encoder's training videos, to detect tests on videos that it was trained on."""

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
    """Return a JSON-serialisable record of the videos that a run was trained on.

    Args:
        config: settings of the data: the shards, and the fraction of held-out videos.
        videos: open shards, or a folder of videos, whose files are read and hashed.
        indices: indices of the training videos.
        seed: seed of the run. The choice of held-out videos does not depend on the seed.

    Returns:
        A dictionary with these entries.

        - ``videos``: number of training videos
        - ``shards``: the shards as in the config
        - ``held_out``: fraction of held-out videos
        - ``seed``: seed of the run
        - ``sources``: sorted hashes of the original video files, as far as they are known
        - ``contents``: for each shard, a text with the checksum of the annotations ("-" if
          unknown) and the file name of the shard; empty for a folder
    """
    assert isinstance(videos, ShardSet | VideoFolder)  # other sets of videos have no hashes
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
    """Return the number of given videos on which a recorded run may have been trained.

    A video counts if the hash of its original file is in the record. The hash does not depend on
    how the video is packed in shards. Shards of earlier versions contain no hashes. If the hash of
    the video or of some recorded videos is unknown, a video also counts if both conditions hold:

    - its shard has the name and the annotations of a recorded shard; only the names are compared
      if the annotations of one of the two shards are incomplete;
    - the run did not hold the video out of training.

    Args:
        record: record made by :func:`pretraining_data`.
        videos: open shards, or a folder of videos, whose files are read.
        indices: indices of the videos to compare.
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
    """Return a mask of videos whose shard has the name and annotations of a recorded shard."""
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
    """Return (checksum of the annotations, file name) of each shard; [] for a folder of videos.

    The checksum is "-" if a sample of the shard has no annotation.
    """
    if not isinstance(videos, ShardSet):
        return []
    crcs = videos.annotation_crcs
    found = []
    for number, shard in enumerate(videos.shards):
        own = np.flatnonzero(videos.shard_of == number)
        checksum = _NOT_KNOWN
        if videos.has_annotation[own].all():
            # The bytes of annotations do not depend on how frames are packed.
            keys = "\n".join(videos.keys[i] for i in own).encode()
            checksum = f"{zlib.crc32(crcs[own].astype('<u4').tobytes(), zlib.crc32(keys)):08x}"
        found.append((checksum, shard.rstrip("/").rsplit("/", 1)[-1]))
    return found
