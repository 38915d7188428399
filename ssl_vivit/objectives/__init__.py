"""What a model is trained for: modules that turn a batch into a loss and what to log."""

from ssl_vivit.objectives.contract import Objective, Step
from ssl_vivit.objectives.masked_tubelets import MaskedTubelets, MaskedTubeletsConfig
from ssl_vivit.objectives.neural_prediction import NeuralPrediction, NeuralPredictionConfig
from ssl_vivit.objectives.simclr import SimCLR, SimCLRConfig

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
