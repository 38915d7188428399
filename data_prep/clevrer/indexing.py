"""Write indexes of webdataset tars made by other programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ssl_vivit.data.video.shards.build import build_index
from ssl_vivit.data.video.shards.index import index_path, refuse_other_file, save_index
from ssl_vivit.data.video.shards.store import find_shards, is_remote
from ssl_vivit.errors import DataError


def index(shards: str | Sequence[str]) -> dict[str, dict[str, str]]:
    """Write an index beside each tar; the tars are not changed.

    Args:
        shards: local paths, globs or brace patterns.

    Returns:
        For each shard, the names of members that cannot be used and the reason.

    Raises:
        DataError: if a shard is remote, is not a complete tar or contains no video, or if another
            file has the name of its index.
    """
    left_out = {}
    for shard in find_shards(shards):
        if is_remote(shard):
            raise DataError(f"{shard} is remote; index a local copy and upload the index beside it")
        refuse_other_file(Path(index_path(shard)))
        made = build_index(Path(shard))
        save_index(made, Path(index_path(shard)))
        left_out[shard] = made["left_out"]
    return left_out
