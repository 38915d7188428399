"""What a model is trained for: modules that turn a batch into a loss and what to log."""

from ssl_vivit.objectives.masked_tubelets import MaskedTubelets, MaskedTubeletsConfig
from ssl_vivit.objectives.neural_prediction import NeuralPrediction, NeuralPredictionConfig
from ssl_vivit.objectives.simclr import SimCLR, SimCLRConfig
from ssl_vivit.objectives.step import Objective, Step

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
