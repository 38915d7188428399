"""Keys of videos in shards, made from their file names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath


def sample_keys(files: Sequence[str]) -> list[str]:
    """Return a unique key for each video, in the order of ``files``.

    The key is the file name without its ending. If several files would have equal keys, their keys
    contain the names of the folders, and a number if they are still equal. Characters other than
    letters, digits, ``_`` and ``-`` become ``_``.

    Args:
        files: paths of all videos of the shards, with forward slashes.
    """
    short = [safe_name(PurePosixPath(file).stem) for file in files]
    long = [safe_name(str(PurePosixPath(file).with_suffix(""))) for file in files]
    often = Counter(short)
    keys: dict[str, None] = {}
    for stem, path in zip(short, long, strict=True):
        wished = stem if often[stem] == 1 else path
        key, copies = wished, 1
        while key in keys:
            copies += 1
            key = f"{wished}_{copies}"
        keys[key] = None
    return list(keys)


def safe_name(name: str) -> str:
    """Replace each run of characters other than letters, digits, ``_`` and ``-`` by one ``_``.

    ``_`` at the start and end is removed, and an empty result becomes "video". The result is valid
    in keys of samples and in file names of shards.
    """
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_") or "video"
