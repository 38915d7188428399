"""What a model is trained for: modules that turn a batch into a loss and what to log."""

from typing import TYPE_CHECKING

from ssl_vivit.lazy_names import lazy_names

if TYPE_CHECKING:
    from ssl_vivit.objectives.config import (
        MaskedTubeletsConfig,
        NeuralPredictionConfig,
        SimCLRConfig,
    )
    from ssl_vivit.objectives.contract import Objective, Step
    from ssl_vivit.objectives.masked_tubelets import MaskedTubelets
    from ssl_vivit.objectives.neural_prediction import NeuralPrediction
    from ssl_vivit.objectives.simclr import SimCLR

__all__ = [
    "MaskedTubelets",
    "MaskedTubeletsConfig",
    "NeuralPrediction",
    "NeuralPredictionConfig",
    "Objective",
    "SimCLR",
    "SimCLRConfig",
    "Step",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "MaskedTubelets": "ssl_vivit.objectives.masked_tubelets",
        "MaskedTubeletsConfig": "ssl_vivit.objectives.config",
        "NeuralPrediction": "ssl_vivit.objectives.neural_prediction",
        "NeuralPredictionConfig": "ssl_vivit.objectives.config",
        "Objective": "ssl_vivit.objectives.contract",
        "SimCLR": "ssl_vivit.objectives.simclr",
        "SimCLRConfig": "ssl_vivit.objectives.config",
        "Step": "ssl_vivit.objectives.contract",
    },
)
