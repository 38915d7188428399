"""A trained model of neurons with the facts of its sessions; it predicts rates from raw inputs.

Files of an exported model:

model/
  model.safetensors   weights of all parts except a ViViT encoder
  config.json         settings of the parts; unit ids, statistics and split of the sessions
  encoder/            exported encoder, if the core is a ViViT
  README.md           model card
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_vivit.data.sessions.facts import SessionFacts
from ssl_vivit.encoders.vivit import ENCODER, ViViT
from ssl_vivit.errors import ExportError, NeuralModelError
from ssl_vivit.evaluation_mode import evaluation_mode
from ssl_vivit.exported.directory import (
    CONFIG,
    WEIGHTS,
    Format,
    built_from,
    is_kind,
    read_config,
    write_directory,
)
from ssl_vivit.exported.hub import HubModel, locate
from ssl_vivit.neural.live import NeuralStream, attention_steps
from ssl_vivit.neural.model import NeuralModel
from ssl_vivit.neural.model_card import neural_model_card
from ssl_vivit.neural.model_settings import build_from_settings, settings_of
from ssl_vivit.neural.recorded_inputs import Array, check_rate, recorded_inputs
from ssl_vivit.preprocessing import Preprocessing

_ENCODER = "encoder"
MODEL_OF_NEURONS = Format("model of neurons", "sessions", inside_runs=("model",), parts=(_ENCODER,))


class NeuralPredictor(nn.Module, HubModel):
    """A model of neurons that accepts stimuli and behaviour in recorded units.

    Args:
        model: the model.
        facts: ``SessionFacts`` of its sessions, in any order.

    Attributes:
        facts: ``SessionFacts`` of the sessions, in the model's order.
        sessions: names of the sessions.

    Raises:
        NeuralModelError: if the facts describe other sessions or neurons than the model's.
    """

    export_format = MODEL_OF_NEURONS

    def __init__(self, model: NeuralModel, facts: Sequence[SessionFacts]) -> None:
        super().__init__()
        self.model = model
        self.facts = facts_in_order(model, facts)

    @property
    def sessions(self) -> tuple[str, ...]:
        """Names of the sessions whose neurons are predicted."""
        return tuple(self.model.sessions)

    @torch.no_grad()
    def predict(
        self,
        video: Array | Sequence[Array],
        behaviour: Array | Sequence[Array] | None = None,
        session: str | None = None,
        pupil_centre: Array | Sequence[Array] | None = None,
        *,
        frames_per_second: float | None = None,
        context: float | None = None,
    ) -> Float[Tensor, "B T neurons"] | list[Float[Tensor, "T neurons"]]:
        """Return the expected responses in every frame, given this frame and all frames before it.

        The model runs in evaluation mode and is returned to its mode afterwards. Frames at the end
        of a trial count as padding if one of the inputs consists only of NaN in them. Their rates
        are NaN.

        Args:
            video: (B, T, H, W) or (B, 1, T, H, W) pixels, uint8 or numbers from 0 to 255. Or a list
                of trials (T, H, W) or (1, T, H, W), which may differ in length.
            behaviour: (B, T, K) all recorded channels, in recorded units. A list of (T, K) if
                ``video`` is a list. None means the session's mean.
            session: name of the session whose neurons are predicted. None if the model has one
                session.
            pupil_centre: (B, T, 2) in recorded units. A list of (T, 2) if ``video`` is a list. None
                leaves receptive fields unshifted.
            frames_per_second: frame rate of the inputs. It is only checked, and must equal that of
                the session. None skips the check.
            context: how many seconds attention over time looks back in each layer of a ViViT.
                Recurrent state is not limited. None means all frames so far. See :meth:`stream`.

        Returns:
            (B, T, neurons), which is empty if there are no trials or no frames. A list of
            (T, neurons) if ``video`` is a list.

        Raises:
            NeuralModelError: for an unknown session, inputs that the session did not record,
                numbers before the padding that are not finite, another frame rate than the
                session's, or a context that is not positive. Also if a context is given and the
                video is longer than the encoder's learned positions in time.
        """
        session = self.model.session_named(session)
        facts = self.facts[self.sessions.index(session)]
        if frames_per_second is not None:
            check_rate(frames_per_second, facts)
        steps = attention_steps(self.model, facts, context)
        with evaluation_mode(self.model), self.model.attention_window(steps):
            if not isinstance(video, list | tuple):
                return self._rates(facts, video, behaviour, pupil_centre)
            trials = zip(
                video,
                _one_for_each(behaviour, "behaviour", len(video)),
                _one_for_each(pupil_centre, "pupil_centre", len(video)),
                strict=True,
            )
            return [
                self._rates(facts, *(_as_batch(part) for part in parts), trial=trial)[0]
                for trial, parts in enumerate(trials)
            ]

    def _rates(
        self, facts: SessionFacts, *inputs: Any, trial: int = 0
    ) -> Float[Tensor, "B T neurons"]:
        """Return the rates in trials of equal length.

        ``trial`` is the number that error messages give to the first of these trials.
        """
        like = next(self.parameters())
        given = recorded_inputs(facts, *inputs, like=like, first_trial=trial)
        if not given.recorded.numel():
            return like.new_zeros((*given.recorded.shape, len(facts.unit_ids)))
        rates = self.model(given.video, given.behaviour, facts.name, given.pupil_centre)
        return rates.masked_fill(~given.recorded[..., None], torch.nan)

    forward = predict

    def stream(
        self,
        session: str | None = None,
        *,
        context: float | None = None,
        units: Sequence[int] | None = None,
    ) -> NeuralStream:
        """Open a stream, which receives one frame at a time and returns the rates in this frame.

        Without ``context``, memory grows with each token, by its keys and values in every layer
        with attention over time. ``context`` limits this memory. The limit applies to each layer,
        so several layers together look back further, and recurrent state is carried through all
        frames. Rates therefore equal those of ``predict(…, context=…)`` and not those of a clip of
        this length.

        Args:
            session: name of the session whose neurons are predicted. None if the model has one
                session.
            context: how many seconds attention looks back in each layer, rounded to whole tokens.
                None means all frames so far.
            units: ids of the neurons whose rates are returned. None means all neurons.

        Raises:
            NeuralModelError: if the session or a unit is unknown, or ``context`` is not positive.
        """
        session = self.model.session_named(session)
        facts = self.facts[self.sessions.index(session)]
        return NeuralStream(self.model, facts, context=context, units=units)

    def save_pretrained(
        self, directory: str | Path, *, training: Mapping[str, Any] | None = None
    ) -> None:
        """Export the model to a directory, for :meth:`from_pretrained`.

        The directory is written atomically. An older model in ``directory`` is replaced, and other
        files there are kept. A directory that holds something other than a model of neurons is
        refused.

        Args:
            directory: directory to write; its parents are created.
            training: values that describe the training run, by name, for the model card.

        Raises:
            ValueError: if ``directory`` holds something else, or cannot be written.
        """
        training = json.loads(json.dumps(training or {}, default=str))
        weights, parts = self.model.state_dict(), {}
        if isinstance(self.model.encoder, ViViT):
            encoder, prepared = self.model.encoder, self._preprocessing()
            weights = {k: v for k, v in weights.items() if not k.startswith("encoder.")}
            parts[_ENCODER] = lambda place: encoder.save_pretrained(
                place, preprocessing=prepared, card=training
            )
        sessions = [each.to_json() for each in self.facts]
        write_directory(
            directory,
            MODEL_OF_NEURONS,
            {**settings_of(self.model), "sessions": sessions, "training": training},
            {WEIGHTS: weights},
            neural_model_card(self.model, self.facts, training),
            parts,
        )

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, revision: str | None = None, token: str | bool | None = None
    ) -> NeuralPredictor:
        """Load an exported model in eval mode.

        Args:
            path: a directory written by :meth:`save_pretrained`, the directory of a run that
                contains it as ``model``, or ``"org/name"`` on the hub.
            revision: branch, tag or commit on the hub.
            token: access token for private models on the hub.

        Raises:
            FileNotFoundError: if there is no model at ``path``.
            NeuralModelError: if files cannot be read or do not fit each other.
        """
        path = locate(path, MODEL_OF_NEURONS, revision=revision, token=token)
        if not (path / WEIGHTS).is_file() and (path / "model" / WEIGHTS).is_file():
            path = path / "model"
        if is_kind(path, ENCODER):
            raise NeuralModelError(
                f"{path} holds an encoder and no model of neurons; fine-tune it with "
                f"recipes/finetune_neural.py --encoder {path}"
            )
        try:
            saved = read_config(path, MODEL_OF_NEURONS)
            facts = [SessionFacts.from_json(each) for each in saved["sessions"]]
            encoder = _load_encoder(path) if saved["core"]["kind"] == "vivit" else None
            model = built_from(
                path / WEIGHTS,
                "model of config.json",
                lambda: build_from_settings(saved, encoder),
                outside=() if encoder is None else ("encoder.",),
            )
            return cls(model, facts).eval()
        except NeuralModelError:
            raise
        except ExportError as error:
            raise NeuralModelError(str(error)) from None
        except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
            raise NeuralModelError(
                f"{path / CONFIG} describes no model of neurons ({type(error).__name__}: {error}); "
                "export the model again"
            ) from None

    def _preprocessing(self) -> Preprocessing:
        """Return the preprocessing of recorded frames, which is exported with the encoder."""
        facts = self.facts[0]
        rates = self.model.frame_rates[facts.name]
        return Preprocessing(
            pixel_range=(0.0, 1.0),
            channels="luma",
            mean=(facts.video_mean,),
            std=(facts.video_std,),
            fps=facts.frames_per_second if rates is None else rates.encoder,
            frame_stride=1,
            resize=facts.frame_size,
        )


def _load_encoder(path: Path) -> ViViT:
    try:
        return ViViT.from_pretrained(path / _ENCODER)
    except (FileNotFoundError, ValueError) as error:
        raise NeuralModelError(f"the model's encoder cannot be read: {error}") from None


def facts_in_order(model: NeuralModel, facts: Sequence[SessionFacts]) -> list[SessionFacts]:
    """Return the ``SessionFacts`` of a model's sessions, in the order of ``model.sessions``.

    Raises:
        NeuralModelError: if the facts describe other sessions or other numbers of neurons.
    """
    by_name = {each.name: each for each in facts}
    if by_name.keys() != set(model.sessions) or len(by_name) != len(facts):
        raise NeuralModelError(
            f"the model has sessions {', '.join(model.sessions)}, but the "
            f"SessionFacts are of {', '.join(each.name for each in facts) or 'no session'}; give "
            "the SessionFacts of each session"
        )
    ordered = [by_name[name] for name in model.sessions]
    for each in ordered:
        neurons = getattr(model.readouts[each.name], "neurons", len(each.unit_ids))
        if neurons != len(each.unit_ids):
            raise NeuralModelError(
                f"SessionFacts of {each.name!r} have {len(each.unit_ids)} neurons, but its readout "
                f"has {neurons}; give the SessionFacts with which the model was built"
            )
    return ordered


def _one_for_each(part: Any, name: str, trials: int) -> Sequence[Array | None]:
    """Return one input for each trial: the elements of ``part``, or Nones if ``part`` is None.

    Args:
        part: behaviour or pupil centre for a list of videos.
        name: name of the argument, for messages.
        trials: number of videos.

    Raises:
        NeuralModelError: if ``part`` is not a list with ``trials`` elements.
    """
    if part is None:
        return [None] * trials
    if not isinstance(part, list | tuple) or len(part) != trials:
        raise NeuralModelError(
            f"video is a list of {trials} trials; give {name} as a list of arrays (T, …), one for "
            "each trial"
        )
    return part


def _as_batch(part: Any) -> Any:
    """Add a batch axis of size 1 to the input of one trial. None is returned unchanged."""
    return None if part is None else (part if isinstance(part, Tensor) else np.asarray(part))[None]
