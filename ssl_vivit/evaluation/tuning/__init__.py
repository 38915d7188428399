"""Tuning of a model's neurons to gratings. Command: ``python -m ssl_vivit.evaluation.tuning``."""

from ssl_vivit.evaluation.tuning.curves import TuningCurves, measure_curves
from ssl_vivit.evaluation.tuning.gratings import Grating, Protocol
from ssl_vivit.evaluation.tuning.units import measure_units

__all__ = ["Grating", "Protocol", "TuningCurves", "measure_curves", "measure_units"]
