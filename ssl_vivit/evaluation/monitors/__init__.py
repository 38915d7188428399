"""Monitors of a training run: curves, figures, probes, warnings of collapse."""
