"""Simulate recordings of visual cortex: ``python -m data_prep.synthetic_neural``."""

from ssl_vivit.lazy_names import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "SimulationConfig": "data_prep.synthetic_neural.settings",
        "simulate": "data_prep.synthetic_neural.simulation",
    },
)
