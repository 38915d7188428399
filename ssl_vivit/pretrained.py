"""Load an exported model whose type the caller does not know."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from ssl_vivit.encoders.classifier import VideoClassifier
from ssl_vivit.encoders.vivit import ENCODER, ViViT
from ssl_vivit.exported.directory import Format, read_config
from ssl_vivit.exported.hub import locate
from ssl_vivit.neural.prediction import MODEL_OF_NEURONS, NeuralPredictor

# Key of config.json → function that loads a directory with this key. The first key found decides.
LOADERS: dict[str, Callable[..., nn.Module]] = {
    "sessions": NeuralPredictor.from_pretrained,
    "classifier": VideoClassifier.from_pretrained,
    "encoder": ViViT.from_pretrained,
}
_ANY = Format(
    "exported model",
    "format",
    inside_runs=(*MODEL_OF_NEURONS.inside_runs, *ENCODER.inside_runs),
    files=ENCODER.files,
    parts=MODEL_OF_NEURONS.parts,
)


def load_pretrained(
    path: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    **options: Any,
) -> nn.Module:
    """Load an exported model of any type: an encoder, a classifier or a model of neurons.

    Args:
        path: an exported directory, or ``"org/name"`` on the hub.
        revision: branch, tag or commit on the hub.
        token: access token for private models on the hub.
        options: further arguments of ``from_pretrained`` of the class that is loaded.

    Returns:
        A :class:`ViViT`, :class:`VideoClassifier` or :class:`NeuralPredictor` in eval mode.

    Raises:
        FileNotFoundError: if there is no exported model.
        ValueError: for files that cannot be read or do not fit each other.
    """
    path = locate(path, _ANY, revision=revision, token=token)
    saved = read_config(path, _ANY)
    load = next((load for key, load in LOADERS.items() if saved.get(key) is not None), None)
    return (load or ViViT.from_pretrained)(path, **options)
