"""Probes that measure how well an encoder's features predict labels of videos."""
