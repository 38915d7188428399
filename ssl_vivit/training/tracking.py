"""Earlier name of :mod:`ssl_vivit.training.metrics.tracking`, kept for existing code."""

from ssl_vivit.training.metrics.tracking import Tracking, cut_off, read_metrics, wandb_mode

__all__ = ["Tracking", "cut_off", "read_metrics", "wandb_mode"]
