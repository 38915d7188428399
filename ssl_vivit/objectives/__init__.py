"""Training objectives: modules that compute loss and metrics of a batch."""

from typing import TYPE_CHECKING

from ssl_vivit.lazy_names import lazy_names

if TYPE_CHECKING:
    from ssl_vivit.objectives.config import (
        MaskedTubeletsConfig,
        NeuralPredictionConfig,
        SimCLRConfig,
        TuningConfig,
    )
    from ssl_vivit.objectives.contract import Objective, Step
    from ssl_vivit.objectives.held_out_neurons import HeldOutNeurons
    from ssl_vivit.objectives.masked_tubelets import MaskedTubelets, check_masks
    from ssl_vivit.objectives.neural_prediction import NeuralPrediction
    from ssl_vivit.objectives.simclr import SimCLR
    from ssl_vivit.objectives.tuning import TunedNeuralPrediction

__all__ = [
    "HeldOutNeurons",
    "MaskedTubelets",
    "MaskedTubeletsConfig",
    "NeuralPrediction",
    "NeuralPredictionConfig",
    "Objective",
    "SimCLR",
    "SimCLRConfig",
    "Step",
    "TunedNeuralPrediction",
    "TuningConfig",
    "check_masks",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "HeldOutNeurons": "ssl_vivit.objectives.held_out_neurons",
        "MaskedTubelets": "ssl_vivit.objectives.masked_tubelets",
        "MaskedTubeletsConfig": "ssl_vivit.objectives.config",
        "NeuralPrediction": "ssl_vivit.objectives.neural_prediction",
        "NeuralPredictionConfig": "ssl_vivit.objectives.config",
        "Objective": "ssl_vivit.objectives.contract",
        "SimCLR": "ssl_vivit.objectives.simclr",
        "SimCLRConfig": "ssl_vivit.objectives.config",
        "Step": "ssl_vivit.objectives.contract",
        "TunedNeuralPrediction": "ssl_vivit.objectives.tuning",
        "TuningConfig": "ssl_vivit.objectives.config",
        "check_masks": "ssl_vivit.objectives.masked_tubelets",
    },
)
