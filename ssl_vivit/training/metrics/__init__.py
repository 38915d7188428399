"""Metrics of a run: those of each step, their display, and their files."""
