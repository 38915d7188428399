"""Encoders as directories: weights, config and a model card, and nothing that executes.

encoder/
  model.safetensors        weights
  config.json              the ViViTConfig, how pixels were prepared, and of which run the weights are
  README.md                model card
  classifier.safetensors   head and representation layer, where a classifier was saved
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ssl_vivit.encoders.adapt import GEOMETRY, adapt
from ssl_vivit.encoders.classifier import VideoClassifier
from ssl_vivit.encoders.config import ViViTConfig
from ssl_vivit.encoders.hub import FILES, locate
from ssl_vivit.encoders.model_card import model_card
from ssl_vivit.encoders.staging import check_export_place, staged
from ssl_vivit.encoders.vivit import ViViT

FORMAT = 1
WEIGHTS, CONFIG, CARD, HEAD = FILES
# Where runs, and models of neurons, keep their encoder.
_IN_A_RUN = ("encoder", "model/encoder")


def save_pretrained(
    encoder: ViViT,
    directory: str | Path,
    *,
    preprocessing: dict[str, Any] | None = None,
    card: dict[str, Any] | None = None,
) -> None:
    """Write an encoder to a directory that :func:`load_encoder` rebuilds it from.

    The directory appears whole or not at all. An older export of that name is replaced, other
    files in it stay; what is no export is never touched.

    Args:
        encoder: the encoder.
        directory: where to; parents are made.
        preprocessing: pixel range, mean, std, frames per second, frame stride and resize; None
            keeps the encoder's own.
        card: facts of the run that made the weights, name → value (objective, data, steps,
            versions): rows of the model card, and ``training`` in config.json, which becomes the
            loaded encoder's ``provenance``. An earlier run's, from which the encoder was loaded,
            are kept as its ``before``.

    Raises:
        ValueError: if something else stands there, or nothing can be written there.
    """
    _write(encoder, None, Path(directory), preprocessing, card or {})


def save_classifier(
    model: VideoClassifier,
    directory: str | Path,
    *,
    preprocessing: dict[str, Any] | None = None,
    card: dict[str, Any] | None = None,
) -> None:
    """Write a classifier to a directory that :func:`load_classifier` rebuilds it from.

    :func:`load_encoder` opens the same directory, for the encoder alone. Arguments and promise as
    of :func:`save_pretrained`.
    """
    _write(model.encoder, model, Path(directory), preprocessing, card or {})


def check_place(directory: str | Path) -> None:
    """Refuse a place where no export can be made without harm.

    Raises:
        ValueError: if something stands there that is no export, or nothing can be written there.
    """
    check_export_place(directory, CONFIG, "encoder", "exported encoder")


def _write(
    encoder: ViViT,
    classifier: VideoClassifier | None,
    directory: Path,
    preprocessing: dict[str, Any] | None,
    card: dict[str, Any],
) -> None:
    check_place(directory)
    preprocessing = preprocessing or encoder.preprocessing
    config: dict[str, Any] = {
        "format": FORMAT,
        "encoder": encoder.config.to_dict(),
        "preprocessing": preprocessing,
        "training": _training(encoder, card),
    }
    with staged(directory, FILES) as staging:
        _save_weights(encoder.state_dict(), staging / WEIGHTS)
        if classifier is not None:
            config["classifier"] = _classifier_settings(classifier)
            _save_weights(_head_of(classifier), staging / HEAD)
        (staging / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        (staging / CARD).write_text(
            model_card(encoder.config, preprocessing, config.get("classifier"), card)
        )


def _training(encoder: ViViT, card: dict[str, Any]) -> dict[str, Any] | None:
    """Facts of the run, and of the one before it."""
    if not card:
        return encoder.provenance
    facts = json.loads(json.dumps(card, default=str))  # a card may hold anything that has words
    return facts if encoder.provenance is None else {**facts, "before": encoder.provenance}


def _save_weights(state: dict[str, Tensor], file: Path) -> None:
    save_file(
        {name: value.detach().cpu().contiguous() for name, value in state.items()},
        file,
        metadata={"format": "pt"},
    )


def _head_of(classifier: VideoClassifier) -> dict[str, Tensor]:
    """The classifier's own weights, without its encoder's."""
    return {
        name: value
        for name, value in classifier.state_dict().items()
        if not name.startswith("encoder.")
    }


def _classifier_settings(classifier: VideoClassifier) -> dict[str, Any]:
    layer = classifier.representation
    return {
        "num_classes": classifier.num_classes,
        "representation_size": None if layer is None else layer.out_features,
        "drop_rate": classifier.head_drop.p,
    }


def load_encoder(
    path: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    **overrides: Any,
) -> ViViT:
    """Rebuild an exported encoder from its directory or hub name alone, in eval mode.

    Weights keep the precision that they were saved in.

    Args:
        path: a directory written by :func:`save_pretrained`, or ``"org/name"`` on the Hugging
            Face hub; an existing directory wins.
        revision: branch, tag or commit on the hub.
        token: for private models of the hub.
        overrides: settings of :class:`ViViTConfig` to change. Weights and positions are fitted to
            another geometry by :func:`ssl_vivit.encoders.adapt.adapt`; others must be settings
            that the weights do not depend on, such as ``drop_path``.

    Raises:
        FileNotFoundError: if there is no encoder at that path.
        ValueError: for unreadable or incomplete files, overrides that the weights do not fit, or
            a hub that cannot be reached or does not have it.
    """
    path = locate(path, revision=revision, token=token)
    return _load_encoder(path, _read_config(path), overrides)


def load_classifier(
    path: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    drop_rate: float | None = None,
    **overrides: Any,
) -> VideoClassifier:
    """Rebuild an exported classifier from its directory or hub name alone, in eval mode.

    Weights keep the precision that they were saved in.

    Args:
        path: a directory written by :func:`save_classifier`, or ``"org/name"`` on the hub.
        revision: branch, tag or commit on the hub.
        token: for private models of the hub.
        drop_rate: dropout before the head; None keeps the saved one.
        overrides: settings of the encoder, as for :func:`load_encoder`.

    Raises:
        FileNotFoundError: if there is no encoder at that path.
        ValueError: as of :func:`load_encoder`, and where the directory holds no classifier.
    """
    path = locate(path, revision=revision, token=token)
    saved = _read_config(path)
    if not isinstance(saved.get("classifier"), dict):
        raise ValueError(
            f"{path} holds an encoder without a classifier; give a fresh one its head by "
            "VideoClassifier(load_encoder(path), num_classes)"
        )
    settings = saved["classifier"] | ({} if drop_rate is None else {"drop_rate": drop_rate})
    encoder = _load_encoder(path, saved, overrides)
    try:
        model = VideoClassifier(encoder, **settings)
    except TypeError as error:
        raise ValueError(f"{path / CONFIG} describes no classifier: {error}") from None
    weights = _read_weights(path / HEAD)
    _check_weights(_head_of(model), weights, path / HEAD, "classifier of config.json")
    model.to(encoder.tubelets.weight.dtype).load_state_dict(weights, strict=False)
    return model.eval()


def _read_config(path: Path) -> dict[str, Any]:
    for name in (CONFIG, WEIGHTS):
        if not (path / name).is_file():
            inside = [path / place for place in _IN_A_RUN if (path / place / CONFIG).is_file()]
            mend = (
                f"{inside[0]} is one"
                if inside
                else "give the directory that a run writes as RUN/encoder"
            )
            raise FileNotFoundError(f"{path} is no exported encoder: {name} is missing; {mend}")
    file = path / CONFIG
    try:
        saved = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is not readable as JSON: {error}") from None
    if isinstance(saved, dict) and ("model_type" in saved or "architectures" in saved):
        raise ValueError(
            f"{file} is a config of transformers ({saved.get('model_type', 'unnamed')}); turn the "
            "checkpoint into an encoder directory by `python -m ssl_vivit.encoders.imports`"
        )
    if (
        not isinstance(saved, dict)
        or saved.get("format") != FORMAT
        or not isinstance(saved.get("encoder"), dict)
    ):
        raise ValueError(
            f"{file} is not of encoder format {FORMAT}; it was written by another program "
            "or a newer version of ssl_vivit"
        )
    return saved


def _load_encoder(path: Path, saved: dict[str, Any], overrides: dict[str, Any]) -> ViViT:
    geometry = {name: value for name, value in overrides.items() if name in GEOMETRY}
    others = {name: value for name, value in overrides.items() if name not in GEOMETRY}
    config = ViViTConfig.from_dict(saved["encoder"] | others)
    encoder = ViViT(config)
    weights = _read_weights(path / WEIGHTS)
    cause = f"encoder with {', '.join(others)} overridden" if others else "encoder of config.json"
    _check_weights(encoder.state_dict(), weights, path / WEIGHTS, cause)
    encoder.to(weights["tubelets.weight"].dtype).load_state_dict(weights)
    encoder.preprocessing = saved.get("preprocessing")
    encoder.provenance = saved.get("training")
    if geometry:
        encoder = adapt(encoder, **geometry)
    return encoder.eval()


def _read_weights(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; export the model again")
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is damaged ({error}); export the encoder again") from None


def _check_weights(
    own: dict[str, Tensor], weights: dict[str, Tensor], file: Path, what: str
) -> None:
    wrong = [
        f"{name} {tuple(weights[name].shape)} ≠ {tuple(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    wrong += [f"{name} missing" for name in own if name not in weights]
    wrong += [f"{name} unexpected" for name in weights if name not in own]
    if wrong:
        shown = ", ".join(wrong[:10]) + (f" and {len(wrong) - 10} more" if len(wrong) > 10 else "")
        raise ValueError(f"{file} does not fit the {what}: {shown}")
