"""Functions that save and load models of neurons; they call methods of :class:`NeuralPredictor`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssl_vivit.data.sessions.facts import SessionFacts
from ssl_vivit.neural.model import NeuralModel
from ssl_vivit.neural.prediction import NeuralPredictor


def save_neural_model(
    model: NeuralModel,
    directory: str | Path,
    facts: Sequence[SessionFacts],
    *,
    training: Mapping[str, Any] | None = None,
) -> None:
    """Export a model with the ``SessionFacts`` of its sessions.

    For the arguments see :class:`NeuralPredictor` and :meth:`NeuralPredictor.save_pretrained`.

    Raises:
        NeuralModelError: if the facts describe other sessions or neurons than the model's.
    """
    NeuralPredictor(model, facts).save_pretrained(directory, training=training)


def load_neural_model(path: str | Path, **options: Any) -> NeuralPredictor:
    """Load an exported model with the arguments of :meth:`NeuralPredictor.from_pretrained`."""
    return NeuralPredictor.from_pretrained(path, **options)
