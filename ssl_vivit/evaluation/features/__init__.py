"""Features of videos from an exported encoder."""
