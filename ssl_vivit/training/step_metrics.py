"""Earlier name of :mod:`ssl_vivit.training.metrics.step_metrics`, kept for existing code."""

from ssl_vivit.training.metrics.step_metrics import StepMetrics, clips_of

__all__ = ["StepMetrics", "clips_of"]
