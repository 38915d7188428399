"""Indexes of webdataset tars that come from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ssl_vivit.data.video.shards.index import build_index, index_path, save_index
from ssl_vivit.data.video.shards.store import find_shards, is_remote
from ssl_vivit.errors import DataError


def index(shards: str | Sequence[str]) -> dict[str, dict[str, str]]:
    """Write the index beside each tar; the tars stay as they are.

    Args:
        shards: local paths, globs or brace patterns.

    Returns:
        Shard → key → reason, of samples that are left out as unreadable.

    Raises:
        DataError: if a shard is remote, no whole tar, or holds no video.
    """
    left_out = {}
    for shard in find_shards(shards):
        if is_remote(shard):
            raise DataError(f"{shard} is remote; index a local copy and upload the index beside it")
        made = build_index(Path(shard))
        save_index(made, Path(index_path(shard)))
        left_out[shard] = made["left_out"]
    return left_out
