"""Most exciting stimuli of neurons. Command: ``python -m ssl_vivit.evaluation.stimuli``."""

from ssl_vivit.evaluation.stimuli.ascent import Ascent, AscentConfig, ascend
from ssl_vivit.evaluation.stimuli.constraints import Constraints
from ssl_vivit.evaluation.stimuli.presentation import Presentation

__all__ = ["Ascent", "AscentConfig", "Constraints", "Presentation", "ascend"]
