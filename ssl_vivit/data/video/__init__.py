"""Videos and shards, loaded as clips and batches of clips."""
