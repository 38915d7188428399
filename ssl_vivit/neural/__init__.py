"""Models of neurons: from an encoder's tokens to rates, and how well they predict."""

from ssl_vivit.neural.adapters import StimulusAdapter
from ssl_vivit.neural.checkpoint import load_neural_model, save_neural_model
from ssl_vivit.neural.model import NeuralModel
from ssl_vivit.neural.modulators import ConvGRU, FiLM
from ssl_vivit.neural.prediction import NeuralPredictor
from ssl_vivit.neural.readout.gaussian import GaussianReadout, ReadoutConfig
from ssl_vivit.neural.scoring.metrics import bits_per_spike, single_trial_correlation

__all__ = [
    "ConvGRU",
    "FiLM",
    "GaussianReadout",
    "NeuralModel",
    "NeuralPredictor",
    "ReadoutConfig",
    "StimulusAdapter",
    "bits_per_spike",
    "load_neural_model",
    "save_neural_model",
    "single_trial_correlation",
]
