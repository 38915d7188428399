"""Videos and shards → clips and batches of clips."""
