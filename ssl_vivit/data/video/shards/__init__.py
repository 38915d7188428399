"""Indexed webdataset shards of videos: building, finding, downloading and reading them."""

from ssl_vivit.data.video.shards.shard_set import STORAGES, ShardSet

__all__ = ["STORAGES", "ShardSet"]
