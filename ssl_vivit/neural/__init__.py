"""Models of recorded neurons: they predict firing rates from video and behaviour."""

from typing import TYPE_CHECKING

from ssl_vivit.lazy_names import lazy_names

if TYPE_CHECKING:
    from ssl_vivit.neural.adapters import StimulusAdapter
    from ssl_vivit.neural.building import build_neural_model
    from ssl_vivit.neural.checkpoint import load_neural_model, save_neural_model
    from ssl_vivit.neural.live import NeuralStream
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
    "NeuralStream",
    "ReadoutConfig",
    "StimulusAdapter",
    "bits_per_spike",
    "build_neural_model",
    "load_neural_model",
    "save_neural_model",
    "single_trial_correlation",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ConvGRU": "ssl_vivit.neural.modulators",
        "FiLM": "ssl_vivit.neural.modulators",
        "GaussianReadout": "ssl_vivit.neural.readout.gaussian",
        "NeuralModel": "ssl_vivit.neural.model",
        "NeuralPredictor": "ssl_vivit.neural.prediction",
        "NeuralStream": "ssl_vivit.neural.live",
        "ReadoutConfig": "ssl_vivit.neural.readout.gaussian",
        "StimulusAdapter": "ssl_vivit.neural.adapters",
        "bits_per_spike": "ssl_vivit.neural.scoring.metrics",
        "build_neural_model": "ssl_vivit.neural.building",
        "load_neural_model": "ssl_vivit.neural.checkpoint",
        "save_neural_model": "ssl_vivit.neural.checkpoint",
        "single_trial_correlation": "ssl_vivit.neural.scoring.metrics",
    },
)
