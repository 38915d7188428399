"""Models of neurons as directories: nothing else is needed to predict, and nothing executes.

model/
  model.safetensors   weights, without an encoder's
  config.json         the parts, the sessions with their unit ids, statistics and split
  encoder/            the encoder as an export of its own, where the core is a ViViT
  README.md           model card
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ssl_vivit.data.sessions.files import SessionFacts
from ssl_vivit.encoders import ViViT, load_encoder, save_pretrained
from ssl_vivit.encoders.staging import check_export_place, staged
from ssl_vivit.errors import DataError, NeuralModelError
from ssl_vivit.neural.adapters import StimulusAdapter
from ssl_vivit.neural.cores.core import build_core, core_of
from ssl_vivit.neural.cores.frame_rates import FrameRates
from ssl_vivit.neural.cores.pooled_pixels import AppendedBehaviour
from ssl_vivit.neural.model import NeuralModel
from ssl_vivit.neural.model_card import neural_model_card
from ssl_vivit.neural.modulators import ConvGRU, FiLM
from ssl_vivit.neural.prediction import NeuralPredictor, facts_in_order
from ssl_vivit.neural.readout.gaussian import GaussianReadout
from ssl_vivit.neural.readout.linear import LinearReadout

FORMAT = 1
WEIGHTS, CONFIG, CARD, ENCODER = "model.safetensors", "config.json", "README.md", "encoder"
# Under which name a run keeps its model.
IN_A_RUN = "model"

Builder = Callable[[dict[str, Any]], nn.Module]
ADAPTERS: dict[str, Builder] = dict.fromkeys(("scale", "affine"), StimulusAdapter.from_config)
MODULATORS: dict[str, Builder] = {
    "convgru": ConvGRU.from_config,
    "film": FiLM.from_config,
    "appended": AppendedBehaviour.from_config,
}


def save_neural_model(
    model: NeuralModel,
    directory: str | Path,
    facts: Sequence[SessionFacts],
    *,
    training: dict[str, Any] | None = None,
) -> None:
    """Write a model of neurons to a directory that :func:`load_neural_model` rebuilds it from.

    The directory appears whole or not at all. An older model of that name is replaced, other files
    in it stay; what is no model of neurons is never touched.

    Args:
        model: the model.
        directory: where to; parents are made.
        facts: of its sessions.
        training: facts of the run, for the model card.

    Raises:
        NeuralModelError: if the facts are of other sessions or neurons than the model's.
        ValueError: if something else stands there, or nothing can be written there.
    """
    directory = Path(directory)
    check_export_place(directory, CONFIG, "sessions", "model of neurons")
    facts = facts_in_order(model, facts)
    training = json.loads(json.dumps(training or {}, default=str))
    config = {
        "format": FORMAT,
        "core": core_of(model.encoder).to_config(),
        "adapter": _described(model.adapter),
        "modulator": _described(model.modulator),
        "readouts": {name: _readout_config(readout) for name, readout in model.readouts.items()},
        "nonlinearity": model.nonlinearity,
        "frame_stream": model.frame_stream is not None,
        "stream_filters": None if model.frame_stream is None else model.frame_stream.hidden,
        "frame_rates": {
            name: None if rates is None else dataclasses.asdict(rates)
            for name, rates in model.frame_rates.items()
        },
        "sessions": [each.to_json() for each in facts],
        "training": training,
    }
    with staged(directory, (WEIGHTS, CONFIG, CARD, ENCODER)) as staging:
        if isinstance(model.encoder, ViViT):
            prepared = _preprocessing(model, facts[0])
            save_pretrained(model.encoder, staging / ENCODER, preprocessing=prepared, card=training)
        weights = {name: v.detach().cpu().contiguous() for name, v in _own_state(model).items()}
        save_file(weights, staging / WEIGHTS, metadata={"format": "pt"})
        (staging / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        (staging / CARD).write_text(neural_model_card(model, facts, training))


def load_neural_model(path: str | Path) -> NeuralPredictor:
    """Rebuild a model of neurons from its directory alone, in eval mode.

    Args:
        path: a directory written by :func:`save_neural_model`, or a run's that holds it as
            ``model``.

    Raises:
        FileNotFoundError: if there is no model at that path.
        NeuralModelError: for files that cannot be read or do not fit each other.
    """
    path = Path(path)
    if not (path / WEIGHTS).is_file() and (path / IN_A_RUN / WEIGHTS).is_file():
        path = path / IN_A_RUN
    saved = _read_config(path)
    try:
        facts = [SessionFacts.from_json(each) for each in saved["sessions"]]
        model = _build(path, saved)
    except (KeyError, TypeError, AttributeError, DataError) as error:
        raise NeuralModelError(
            f"{path / CONFIG} describes no model of neurons ({type(error).__name__}: {error}); "
            "export it again"
        ) from None
    _load_weights(model, path / WEIGHTS)
    return NeuralPredictor(model, facts).eval()


def _build(path: Path, saved: dict[str, Any]) -> NeuralModel:
    core = saved["core"]
    return NeuralModel(
        _load_encoder(path / ENCODER) if core["kind"] == "vivit" else build_core(core),
        _rebuilt(saved["adapter"], ADAPTERS, "adapter"),
        _rebuilt(saved["modulator"], MODULATORS, "modulator"),
        {name: _rebuilt_readout(config) for name, config in saved["readouts"].items()},
        nonlinearity=saved["nonlinearity"],
        frame_stream=saved["frame_stream"],
        stream_filters=saved["stream_filters"] or 1,
        frame_rates={
            name: None if rates is None else FrameRates(**rates)
            for name, rates in saved["frame_rates"].items()
        },
    )


def _load_encoder(path: Path) -> ViViT:
    try:
        return load_encoder(path)
    except (FileNotFoundError, ValueError) as error:
        raise NeuralModelError(f"the model's encoder cannot be read: {error}") from None


def _described(part: nn.Module | None) -> dict[str, Any] | None:
    return None if part is None else part.to_config()  # type: ignore[operator]


def _rebuilt(
    config: dict[str, Any] | None, builders: dict[str, Builder], what: str
) -> nn.Module | None:
    if config is None:
        return None
    if config["kind"] not in builders:
        raise NeuralModelError(
            f"{what} kind {config['kind']!r} is unknown; known: {', '.join(builders)}"
        )
    return builders[config["kind"]](config)


def _readout_config(readout: nn.Module) -> dict[str, Any]:
    if not isinstance(readout, GaussianReadout):
        return readout.to_config()  # type: ignore[operator]
    cortex = readout.cortical_map
    return {
        "kind": "gaussian",
        "neurons": readout.neurons,
        "channels": readout.channels,
        "cortical_axes": None if cortex is None else cortex.coordinates.shape[1],
        **dataclasses.asdict(readout.config),
    }


def _rebuilt_readout(config: dict[str, Any]) -> nn.Module:
    if config["kind"] == "linear":
        return LinearReadout.from_config(config)
    if config["kind"] != "gaussian":
        raise NeuralModelError(
            f"readout kind {config['kind']!r} is unknown; known: gaussian, linear"
        )
    names = ("kind", "neurons", "channels", "cortical_axes")
    settings = {name: value for name, value in config.items() if name not in names}
    neurons, axes = config["neurons"], config["cortical_axes"]
    # They come with the weights; until then they only have to differ.
    coordinates = None if axes is None else torch.arange(1.0 * neurons * axes).view(neurons, axes)
    return GaussianReadout(neurons, config["channels"], coordinates=coordinates, **settings)


def _preprocessing(model: NeuralModel, facts: SessionFacts) -> dict[str, Any]:
    """How an encoder gets its video from now on, in the words of an encoder's own export."""
    rates = model.frame_rates[facts.name]
    return {
        "pixel_range": [0.0, 1.0],
        "channels": "luma",
        "mean": [facts.video_mean],
        "std": [facts.video_std],
        "fps": facts.frames_per_second if rates is None else rates.encoder,
        "frame_stride": 1,
        "resize": list(facts.frame_size),
    }


def _own_state(model: NeuralModel) -> dict[str, Tensor]:
    """Weights that no encoder's directory holds."""
    inside = isinstance(model.encoder, ViViT)
    return {
        name: value
        for name, value in model.state_dict().items()
        if not (inside and name.startswith("encoder."))
    }


def _read_config(path: Path) -> dict[str, Any]:
    for name in (CONFIG, WEIGHTS):
        if not (path / name).is_file():
            raise FileNotFoundError(
                f"{path} is no model of neurons: {name} is missing; give the directory that a run "
                f"writes as RUN/{IN_A_RUN}"
            )
    try:
        saved = json.loads((path / CONFIG).read_text())
    except ValueError as error:
        raise NeuralModelError(f"{path / CONFIG} is not readable as JSON: {error}") from None
    if isinstance(saved, dict) and "encoder" in saved and "sessions" not in saved:
        raise NeuralModelError(
            f"{path} holds an encoder and no model of neurons; fine-tune it by "
            f"recipes/finetune_neural.py --encoder {path}"
        )
    if not isinstance(saved, dict) or saved.get("format") != FORMAT or "sessions" not in saved:
        raise NeuralModelError(
            f"{path / CONFIG} is not of neural model format {FORMAT}; it was written by another "
            "program or a newer version of ssl_vivit"
        )
    return saved


def _load_weights(model: NeuralModel, file: Path) -> None:
    try:
        weights = load_file(file)
    except (SafetensorError, OSError) as error:
        raise NeuralModelError(f"{file} is damaged ({error}); export the model again") from None
    own = _own_state(model)
    wrong = [
        f"{name} {tuple(weights[name].shape)} ≠ {tuple(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    wrong += [f"{name} missing" for name in own if name not in weights]
    wrong += [f"{name} unexpected" for name in weights if name not in own]
    if wrong:
        shown = ", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise NeuralModelError(f"{file} does not fit config.json beside it: {shown}")
    # Assigned, so that weights keep the precision that they were saved in; cloned, since where a
    # tensor begins in memory decides how its products are rounded.
    cloned = {name: value.clone() for name, value in weights.items()}
    model.load_state_dict(cloned, strict=False, assign=True)
