"""Prediction of the responses of recorded neurons to video.

This is Poisson regression on counts (or non-negative calcium activity), as in Lurz et al. 2021
(ICLR, "Generalization in data-driven models of primary visual cortex") and Sensorium 2023.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ssl_vivit.data.sessions.facts import SessionFacts
from ssl_vivit.data.to_device import to_device
from ssl_vivit.encoders import ViViT
from ssl_vivit.encoders.intermediates import freeze_unread
from ssl_vivit.errors import NeuralModelError
from ssl_vivit.neural.cores.vivit_core import core_of
from ssl_vivit.neural.model import NeuralModel
from ssl_vivit.neural.readout.gaussian import GaussianReadout
from ssl_vivit.objectives.config import NeuralPredictionConfig
from ssl_vivit.objectives.contract import Objective, Step
from ssl_vivit.objectives.named_draws import standard_normal, uniform


class NeuralPrediction(Objective):
    """Poisson loss of a model of neurons over known responses, with penalties of its readouts.

    The loss is the mean over all known responses of the global batch, independent of their
    distribution over processes. The penalties of a session are weighted by the session's fraction
    of these responses. Thus the ratio of a session's loss and its penalties does not depend on how
    sessions are batched.

    With ``session_shares`` all sessions have equal weight. The mean loss over the known responses
    of a session, and its penalties, are multiplied by w, and then summed over the sessions of the
    batch. The weight is w = b / (B p S): b of the B windows of the batch are from this session, p
    is the session's fraction of the windows of an epoch, and S is the number of sessions. The mean
    of w over an epoch is 1 / S for any distribution over batches.

    Sessions that are not in a batch get gradients of exactly zero, since DistributedDataParallel
    expects a gradient for every parameter. An optimiser still changes their readouts by momentum
    and weight decay. The effect of Adam's momentum decays within about 1 / (1 − beta1) steps.

    Args:
        model: the model of neurons.
        config: settings. None means the defaults.
        facts: ``SessionFacts`` of each session of the model, for mean responses and export.
        session_shares: for the name of each session, its fraction of the training windows; gives
            sessions equal weight. None gives all known responses equal weight.

    Raises:
        ValueError: if a setting is out of range, a penalty is unknown, or ``facts`` or
            ``session_shares`` are for other sessions.
    """

    export_name = "model"

    # Declares the type of the buffer for type checkers.
    passes: Tensor

    def __init__(
        self,
        model: NeuralModel,
        config: NeuralPredictionConfig | None = None,
        *,
        facts: Sequence[SessionFacts],
        session_shares: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.config = config or NeuralPredictionConfig()
        self.facts = list(facts)
        self.session_shares = None if session_shares is None else dict(session_shares)
        self.model = model
        self._check()
        for module in model.modules():
            if isinstance(module, ViViT):
                module.freeze_pooling()
        if model.block_reader is not None:
            assert isinstance(model.encoder, ViViT)
            freeze_unread(model.encoder, model.block_reader.blocks[-1])
        means = [torch.tensor(fact.mean_response, dtype=torch.float64) for fact in self.facts]
        for index, mean in enumerate(means):
            self.register_buffer(f"mean_response_{index}", mean, persistent=False)
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    @property
    def encoder(self) -> nn.Module:
        """The model's encoder of video: a ViViT or a baseline."""
        return self.model.encoder

    def to_compile(self) -> nn.Module:
        """Return the model, whose ``compile`` compiles the encoder and a recurrent modulator.

        Raises:
            NeuralModelError: if readouts use blocks of the encoder other than the last one.
        """
        if self.model.block_reader is not None:
            raise NeuralModelError(
                "training.compile supports only an encoder whose last block is read; remove "
                "--training.compile or --model.layers"
            )
        return self.model

    def forward(self, batch: dict[str, Any]) -> Step:
        """Compute the loss of a batch.

        Args:
            batch: dictionary with ``parts``, a list of one dictionary for each session. It has
                ``session`` (the name), ``video`` (b, C, T, H, W), ``behaviour`` (b, T, k) or None,
                ``pupil_centre`` (b, T, 2) or None, and ``responses`` (b, T, neurons), NaN if
                unknown. Loaders add ``draw``, a tuple of names for each of the b clips. In training
                these names seed the patch dropout of the encoder and the random readout positions.
                Without ``draw``, torch's generator is used.

        Returns:
            Loss and metrics. The metrics are the Poisson loss, bits per spike relative to each
            neuron's mean response in the training trials (0 if there are no spikes), and the
            weighted penalties.
        """
        parts = batch["parts"]
        if self.training:
            self._check_windows(parts)
            self._anneal()
        all_rates = predict_parts(self.model, parts)
        absent = self._zero_of_absent_rates(parts)
        with torch.autocast(all_rates[0].device.type, enabled=False):
            step = self._step(parts, [_full(rates) for rates in all_rates])
            return step._replace(loss=step.loss + absent)

    def begin_step(self, step: int) -> None:
        """Clamp the positions of Gaussian readouts to [−1, 1], the extent of the feature map.

        The forward pass of readouts clamps positions as well. With FSDP2 that changes only the
        gathered copy of the weights, so the sharded parameters are clamped here.
        """
        with torch.no_grad():
            for readout in self.model.readouts.values():
                mean = getattr(readout, "mean", None)
                if isinstance(mean, nn.Parameter) and mean.requires_grad:
                    mean.clamp_(-1, 1)

    def export(self, directory: Path, *, training: dict[str, Any]) -> None:
        """Export the model, with the ``SessionFacts`` of its sessions, to a directory."""
        from ssl_vivit.neural.checkpoint import save_neural_model

        card = {"objective": "Poisson loss on recorded responses", **training}
        save_neural_model(self.model, directory, self.facts, training=card)

    def _step(self, parts: list[dict[str, Any]], all_rates: list[Tensor]) -> Step:
        data, penalty = all_rates[0].new_zeros(()), all_rates[0].new_zeros(())
        gain, spikes = data.new_zeros((), dtype=torch.float64), data.new_zeros(())
        known = [~part["responses"].isnan() for part in parts]
        counts = self._counts(parts, known)
        for part, mask, rates in zip(parts, known, all_rates, strict=True):
            session = part["session"]
            count = counts[session]
            responses = part["responses"].to(rates.dtype).masked_fill(~mask, 0)
            loss = poisson_sum(rates, responses, mask, self.config.eps)
            data = data + loss / count
            penalty = penalty + self._penalty(session) * (mask.sum() / count)
            with torch.no_grad():
                null = self._mean_response(session).to(rates.dtype).expand_as(rates)
                worse = poisson_sum(null, responses, mask, self.config.eps)
                gain = gain + worse.double() - loss.double()
                spikes = spikes + responses.sum()
        bits = torch.where(spikes > 0, gain / (spikes * math.log(2)), 0.0)
        loss = data + penalty + self._zero_of_absent_sessions({part["session"] for part in parts})
        metrics = {"poisson": data.detach(), "bps": bits}
        if self.config.regularisation:
            metrics["regularisation"] = penalty.detach()
        return Step(loss, metrics)

    def _counts(self, parts: list[dict[str, Any]], known: list[Tensor]) -> dict[str, Tensor]:
        """Return, for each session, the number by which its summed loss is divided.

        Without ``session_shares`` this is the number of known responses in the whole batch. With
        ``session_shares`` it is the number of the session's known responses, divided by the weight
        of the session. All numbers are means over processes, since gradients are averaged over
        processes.

        Args:
            parts: the batch's data of each session.
            known: boolean masks (b, T, neurons) of the known responses of each session.
        """
        if self.session_shares is None:
            count = self._over_processes(sum(mask.sum() for mask in known))  # type: ignore[arg-type]
            return dict.fromkeys(self.model.sessions, count.clamp(min=1.0).to(torch.float32))
        names = list(self.model.sessions)
        numbers = torch.zeros(len(names), 2, dtype=torch.float64, device=known[0].device)
        for part, mask in zip(parts, known, strict=True):
            place = names.index(part["session"])
            numbers[place, 0] += mask.sum()
            numbers[place, 1] += len(mask)
        responses, windows = self._over_processes(numbers).unbind(1)
        shares = to_device(
            torch.tensor([self.session_shares[name] for name in names], dtype=windows.dtype),
            windows.device,
        )
        weights = windows / (windows.sum() * shares * len(names))
        counts = (responses.clamp(min=1.0) / weights).to(torch.float32)
        return dict(zip(names, counts.unbind(), strict=True))

    def _over_processes(self, number: Tensor) -> Tensor:
        number = number.double()
        # Do not communicate in evaluation, where only one process may call this.
        if self.training and dist.is_available() and dist.is_initialized():
            dist.all_reduce(number)
            number = number / dist.get_world_size()
        return number

    def _penalty(self, session: str) -> Tensor:
        terms = _terms(self.model.readout(session))
        weights = self.config.regularisation
        weighted = [weights[name] * term for name, term in terms.items() if weights.get(name)]
        return torch.stack(weighted).sum() if weighted else self.passes.new_zeros(()).float()

    def _zero_of_absent_sessions(self, present: set[str]) -> Tensor | float:
        """Return zero, computed so that readouts of sessions not in the batch get zero gradients."""
        absent = [
            parameter.flatten()[:1].sum() * 0
            for session in self.model.sessions
            if session not in present
            for parameter in self.model.readout(session).parameters()
            if parameter.requires_grad
        ]
        return torch.stack(absent).sum() if absent else 0.0

    def _zero_of_absent_rates(self, parts: list[dict[str, Any]]) -> Tensor | float:
        """Return zero, after calling the core once for each frame rate that is not in the batch.

        If FSDP2 shards the weights of the core, all processes must call the core equally often;
        otherwise a process would wait forever.
        """
        if not (self.training and is_sharded(self)):
            return 0.0
        rates = self.model.frame_rates
        present = {rates[part["session"]] for part in parts}
        absent = {rates[name]: name for name in self.model.sessions if rates[name] not in present}
        video, behaviour = parts[0]["video"][:1], parts[0].get("behaviour")
        maps = [
            self.model.core(video, None if behaviour is None else behaviour[:1], session)
            for session in absent.values()
        ]
        return torch.stack([_full(map).sum() for map in maps]).sum() * 0 if maps else 0.0

    def _mean_response(self, session: str) -> Tensor:
        index = [fact.name for fact in self.facts].index(session)
        return getattr(self, f"mean_response_{index}")

    def _check_windows(self, parts: list[dict[str, Any]]) -> None:
        """Raise NeuralModelError for windows shorter than one time step of the encoder's tokens.

        Such windows would give no gradient.
        """
        stride = core_of(self.model.encoder).temporal_stride
        for part in parts:
            frames = part["video"].shape[2]
            resampling = self.model.frame_rates[part["session"]]
            shown = frames if resampling is None else len(resampling.shown(frames))
            if shown < stride:
                raise NeuralModelError(
                    f"windows of {frames} frames of session {part['session']!r} are shorter than "
                    f"one time step of the encoder, which has {stride} frames; raise data.window"
                )

    def _anneal(self) -> None:
        if self.config.spread_passes:
            left = (1 - self.passes / self.config.spread_passes).clamp(min=0)
            # Compute on the device, since reading the number would wait for the GPU at every step.
            scale = self.config.spread_start**left
            for readout in self.model.readouts.values():
                if hasattr(readout, "spread_scale"):
                    readout.spread_scale = scale  # type: ignore[assignment]
        self.passes += 1

    def _check(self) -> None:
        config, sessions = self.config, list(self.model.sessions)
        names = [fact.name for fact in self.facts]
        if sorted(names) != sorted(sessions):
            raise ValueError(
                f"SessionFacts are of sessions {', '.join(names) or 'none'}, but the model has "
                f"{', '.join(sessions)}; give SessionFacts of each of these"
            )
        if self.session_shares is not None and self.session_shares.keys() != {*sessions}:
            raise ValueError(
                f"session_shares are of sessions {', '.join(self.session_shares) or 'none'}, but "
                f"the model has {', '.join(sessions)}; give the share of each of these"
            )
        terms = {name for readout in self.model.readouts.values() for name in _terms(readout)}
        for name, weight in config.regularisation.items():
            if name not in terms:
                raise ValueError(
                    f"objective.regularisation has the unknown penalty {name!r}; these readouts "
                    f"have {', '.join(sorted(terms)) or 'no penalty'}"
                )
            if not weight >= 0:
                raise ValueError(f"objective.regularisation.{name} {weight} must not be negative")


def is_sharded(module: nn.Module) -> bool:
    """Return whether FSDP2 shards weights of the module."""
    return any(hasattr(part, "unshard") for part in module.modules())


def predict_parts(model: NeuralModel, parts: Sequence[dict[str, Any]]) -> list[Tensor]:
    """Predict the rates (b, T, neurons) for each session of a batch.

    Sessions share one call of the core if their videos have equal sizes and their stimuli are
    resampled to the encoder's frame rate in the same way. If several clips of a session show one
    movie, the movie is encoded once, so these clips share the encoder's dropout. If the names of
    clips seed patch dropout, each clip is encoded separately.

    Args:
        model: the model of neurons.
        parts: a dictionary with the data of each session, see :meth:`NeuralPrediction.forward`. Its
            optional ``shows`` gives, for each clip, the index of the first clip with that movie.
    """
    encoder = model.encoder
    drops_patches = isinstance(encoder, ViViT) and encoder.drops_patches
    alike: dict[tuple[Any, ...], list[int]] = {}
    for index, part in enumerate(parts):
        behaviour = part.get("behaviour")
        channels = None if behaviour is None else behaviour.shape[-1]
        resampling = model.frame_rates[part["session"]]
        alike.setdefault((part["video"].shape[1:], resampling, channels), []).append(index)
    rates: dict[int, Tensor] = {}
    for (*_, channels), indices in alike.items():
        together = [parts[index] for index in indices]
        named = drops_patches and all("draw" in part for part in together)
        shows = [None if named else part.get("shows") for part in together]
        video, clips = _distinct([(p["video"], s) for p, s in zip(together, shows, strict=True)])
        patch_draw = _patch_draw(encoder, together) if named else None
        behaviour = None if channels is None else torch.cat([p["behaviour"] for p in together])
        maps = model.core(video, behaviour, together[0]["session"], clips, patch_draw)
        each = maps.split([len(part["video"]) for part in together])
        for index, part, map in zip(indices, together, each, strict=True):
            noise = _position_noise(model.readout(part["session"]), part, map.device)
            rates[index] = model.read(map, part["session"], part.get("pupil_centre"), noise)
    return [rates[index] for index in range(len(parts))]


def _patch_draw(encoder: nn.Module, parts: Sequence[dict[str, Any]]) -> Float[Tensor, "b n"]:
    """Return random numbers (b, n) for the patch dropout of b clips with n spatial positions.

    The numbers of a clip are seeded by its names in ``draw``.

    Args:
        encoder: a ViViT.
        parts: the batch's data of each session; the clips of all sessions are joined.
    """
    assert isinstance(encoder, ViViT)
    video = parts[0]["video"]
    names = [(*names, "patches") for part in parts for names in part["draw"]]
    grid = encoder.config.grid_of(encoder.config.kernel_stride[0], *video.shape[3:])
    return to_device(uniform(names, grid.n), video.device)


def _position_noise(
    readout: nn.Module, part: dict[str, Any], device: torch.device
) -> Float[Tensor, "b neurons 2"] | None:
    """Return standard normal noise (b, neurons, 2) for readout positions; None if unused.

    The noise of a clip is seeded by its names in ``draw``. Noise is unused if there is no ``draw``,
    or if the readout has no random positions.
    """
    if "draw" not in part or not (isinstance(readout, GaussianReadout) and readout.draws_positions):
        return None
    names = [(*names, "positions") for names in part["draw"]]
    return to_device(standard_normal(names, readout.neurons, 2), device)


def _distinct(
    videos: Sequence[tuple[Tensor, list[int] | None]],
) -> tuple[Tensor, list[int] | None]:
    """Return the distinct videos of all sessions, and for each clip its index among them.

    The second value is None if all videos are distinct.

    Args:
        videos: for each session, its clips and ``shows`` (for each clip, the index of the first
            clip with the same movie; None if all movies of the session are distinct).
    """
    places: list[int] = []
    for video, shows in videos:
        start = len(places)
        places += [start + place for place in shows or range(len(video))]
    together = torch.cat([video for video, _ in videos])
    kept = sorted(set(places))
    if len(kept) == len(places):
        return together, None
    chosen = to_device(torch.tensor(kept), together.device)
    return together[chosen], [kept.index(place) for place in places]


def poisson_sum(
    rates: Float[Tensor, "b T neurons"],
    responses: Float[Tensor, "b T neurons"],
    known: Bool[Tensor, "b T neurons"],
    eps: float,
) -> Float[Tensor, ""]:
    """Sum the negative Poisson log likelihood of known responses, without the factorial term.

    Args:
        rates: expected responses, which must be positive.
        responses: responses, with any finite value if unknown.
        known: mask of known responses.
        eps: small number that is added to rates inside the logarithm.
    """
    terms = rates - responses * torch.log(rates + eps)
    return terms.masked_fill(~known, 0).sum()


def _terms(readout: nn.Module) -> dict[str, Tensor]:
    return readout.regularisation()  # type: ignore[operator]


def _full(rates: Tensor) -> Tensor:
    return rates.float() if rates.dtype in (torch.float16, torch.bfloat16) else rates
