"""A trained model of neurons with the facts of its sessions: recorded pixels → rates.

Its directory:

model/
  model.safetensors   weights, without an encoder's
  config.json         settings of the parts; unit ids, statistics and split of the sessions
  encoder/            the encoder as an export of its own, where the core is a ViViT
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
    """A model of neurons that takes stimuli and behaviour as they were recorded.

    Args:
        model: the model.
        facts: of its sessions, in the model's order.

    Attributes:
        sessions: names.

    Raises:
        NeuralModelError: if the facts are of other sessions or neurons than the model's.
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
        """Expected responses in every frame, each of that frame and those before it alone.

        The model predicts as in evaluation, whatever mode it is in. Frames at the end of a trial in
        which an input is NaN throughout are padding; their rates are NaN.

        Args:
            video: (B, T, H, W) or (B, 1, T, H, W) pixels, uint8 or numbers from 0 to 255. A list
                holds trials (T, H, W) or (1, T, H, W), which may differ in length.
            behaviour: (B, T, K) with all recorded channels, in recorded units; a list of (T, K)
                beside a list of videos. None stands for the session's mean.
            session: whose neurons; None where the model has one session.
            pupil_centre: (B, T, 2) in recorded units; a list of (T, 2) beside a list of videos.
                None leaves receptive fields in place.
            frames_per_second: of what is given; refused if it is not the session's.
            context: seconds that attention over time looks back on, in each layer of a ViViT;
                recurrent state is carried on. None is all. See :meth:`stream`.

        Returns:
            (B, T, neurons), empty for no trials or no frames; a list of (T, neurons) for a list.

        Raises:
            NeuralModelError: for an unknown session, inputs that it did not record, numbers
                that are not finite before the padding, a context that is not positive, and one
                beyond the end of learned positions in time.
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
                self._rates(facts, *(_alone(part) for part in parts), trial=trial)[0]
                for trial, parts in enumerate(trials)
            ]

    def _rates(
        self, facts: SessionFacts, *inputs: Any, trial: int = 0
    ) -> Float[Tensor, "B T neurons"]:
        """Rates of trials of one length, of which ``trial`` is the first's number."""
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
        """Open a stream that is fed one frame at a time and returns its rates.

        Without ``context`` memory grows with each token: by its keys and values in every layer that
        attends over time. A context bounds it. Attention of a layer then looks back that far, the
        next layer that far again, and recurrent state is carried through all frames, so that rates
        are those of ``predict(…, context=…)`` and not of a clip of that length.

        Args:
            session: whose neurons; None where the model has one session.
            context: seconds, rounded to whole tokens; None is all.
            units: ids of the neurons whose rates are wanted; None is all.

        Raises:
            NeuralModelError: for an unknown session or unit, and a context that is not positive.
        """
        session = self.model.session_named(session)
        facts = self.facts[self.sessions.index(session)]
        return NeuralStream(self.model, facts, context=context, units=units)

    def save_pretrained(
        self, directory: str | Path, *, training: Mapping[str, Any] | None = None
    ) -> None:
        """Write the model to a directory that :meth:`from_pretrained` rebuilds it from.

        The directory appears whole or not at all. An older model of that name is replaced, other
        files in it stay; a directory that is no model of neurons is never touched.

        Args:
            directory: where to; parents are made.
            training: facts of the run, for the model card.

        Raises:
            ValueError: if something else stands there, or nothing can be written there.
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
        """Rebuild a model from its directory or hub name alone, in eval mode.

        Args:
            path: a directory written by :meth:`save_pretrained`, a run's that holds it as
                ``model``, or ``"org/name"`` on the hub.
            revision: branch, tag or commit on the hub.
            token: for private models of the hub.

        Raises:
            FileNotFoundError: if there is no model at that path.
            NeuralModelError: for files that cannot be read or do not fit each other.
        """
        path = locate(path, MODEL_OF_NEURONS, revision=revision, token=token)
        if not (path / WEIGHTS).is_file() and (path / "model" / WEIGHTS).is_file():
            path = path / "model"
        if is_kind(path, ENCODER):
            raise NeuralModelError(
                f"{path} holds an encoder and no model of neurons; fine-tune it by "
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
                "export it again"
            ) from None

    def _preprocessing(self) -> Preprocessing:
        """Steps from frames to the encoder's video."""
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
    """The facts of a model's sessions, in its order.

    Raises:
        NeuralModelError: if they are of other sessions or counts of neurons.
    """
    by_name = {each.name: each for each in facts}
    if by_name.keys() != set(model.sessions) or len(by_name) != len(facts):
        raise NeuralModelError(
            f"the model reads sessions {', '.join(model.sessions)}; the facts are of "
            f"{', '.join(each.name for each in facts) or 'none'}"
        )
    ordered = [by_name[name] for name in model.sessions]
    for each in ordered:
        neurons = getattr(model.readouts[each.name], "neurons", len(each.unit_ids))
        if neurons != len(each.unit_ids):
            raise NeuralModelError(
                f"session {each.name!r} has {len(each.unit_ids)} neurons and its readout {neurons}"
            )
    return ordered


def _one_for_each(part: Any, name: str, trials: int) -> Sequence[Array | None]:
    """An input of each trial of a list."""
    if part is None:
        return [None] * trials
    if not isinstance(part, list | tuple) or len(part) != trials:
        raise NeuralModelError(
            f"video is a list of {trials} trials; give {name} as a list of as many arrays (T, …)"
        )
    return part


def _alone(part: Any) -> Any:
    """One trial's input as a batch of one."""
    return None if part is None else (part if isinstance(part, Tensor) else np.asarray(part))[None]
