"""Data loading. Nothing is imported here, so that packing of shards does not load torch."""
