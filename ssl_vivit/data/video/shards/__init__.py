"""Indexed webdataset shards of videos: the index beside a shard, where shards lie, their samples."""

from ssl_vivit.data.video.shards.shard_set import STORAGES, ShardSet

__all__ = ["STORAGES", "ShardSet"]
