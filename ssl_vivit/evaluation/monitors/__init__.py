"""Jobs that watch a training run: curves, figures, probes, early warnings."""
