"""Probes: how well an encoder's features predict CLEVRER's labels."""
