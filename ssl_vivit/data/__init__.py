"""Files → batches. Nothing is imported here: packing shards should not wait for torch."""
