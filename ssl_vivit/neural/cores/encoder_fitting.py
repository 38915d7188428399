"""Open or build a causal ViViT encoder for the grey video and the frame size of sessions."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ssl_vivit.encoders import ViViT, ViViTConfig, load_encoder
from ssl_vivit.encoders.adapt import GEOMETRY, adapt, adapted_config, resample_kernel
from ssl_vivit.encoders.config import unknown_name
from ssl_vivit.encoders.named_sizes import named_config
from ssl_vivit.errors import NeuralModelError
from ssl_vivit.neural.config import NeuralEncoderChoice
from ssl_vivit.neural.cores.frame_rates import FrameRates, match_fps

if TYPE_CHECKING:
    from ssl_vivit.data.sessions.facts import SessionFacts

FRESH = "vivit_neural_small"
# Settings on which weights do not depend, so they apply to exported and to fresh encoders.
REGULARISATION = ("patch_dropout", "attention_dropout", "mlp_dropout", "drop_path")

LEAST_PATCH = 4


class FittedEncoder(NamedTuple):
    """An encoder that accepts the sessions' video.

    Attributes:
        encoder: causal encoder for one-channel video of the sessions' frame size.
        frame_rates: session → resampling of its stimulus in time. None if it is not resampled.
        notes: changes to an exported encoder, one line each.
    """

    encoder: ViViT
    frame_rates: dict[str, FrameRates | None]
    notes: list[str]


def fit_encoder(
    choice: NeuralEncoderChoice,
    facts: Sequence[SessionFacts],
    longest: int,
    window: int | None = None,
) -> FittedEncoder:
    """Open or build the encoder, for the frame size and the training windows of the sessions.

    A learned table of positions in time is made as long as the training window. Longer trials are
    encoded in overlapping windows (:class:`ssl_vivit.neural.cores.vivit_core.ViViTCore`).

    Args:
        choice: choice of the encoder.
        facts: ``SessionFacts`` of the sessions, which must have one frame size.
        longest: number of frames of the longest trial.
        window: number of frames of a training window. None means ``longest``.

    Raises:
        NeuralModelError: if there is no encoder at ``choice.path``, or settings do not suit the
            sessions.
        ValueError: if settings contradict each other.
    """
    window = min(window or longest, longest)
    if choice.path is None:
        fitted = _fresh(choice, facts, longest, window)
    else:
        fitted = _exported(choice, choice.path, facts, longest, window)
    fitted.encoder.set_grad_checkpointing(choice.grad_checkpointing)
    return fitted


def pixel_statistics(path: str) -> tuple[float, float] | None:
    """Return the mean and standard deviation with which an exported encoder normalises grey pixels.

    Args:
        path: an exported directory or a name on the hub.

    Returns:
        (mean, standard deviation) for pixels scaled to [0, 1], or None if the directory does not
        contain them.

    Raises:
        NeuralModelError: if there is no encoder.
    """
    prepared = _open(path, in_channels=1).preprocessing
    if prepared is None or not prepared.normalised:
        return None
    (mean,), (std,) = prepared.statistics(channels=1)
    return mean, std


def ignored_settings(choice: NeuralEncoderChoice, preset: NeuralEncoderChoice) -> list[str]:
    """Report settings of a fresh encoder that have no effect because an exported one is given.

    Args:
        choice: choice of an exported encoder, with ``path``.
        preset: settings of the preset, which are not reported because the user did not give them.

    Returns:
        A list with one line of text, or an empty list. The line also names the dropout rates of
        ``choice.overrides``, which do apply to the exported encoder.
    """
    older = () if choice.name else GEOMETRY
    given = [] if choice.name in (None, preset.name) else [f"encoder.name {choice.name}"]
    given += [
        f"encoder.overrides.{name}"
        for name, value in choice.overrides.items()
        if name not in (*REGULARISATION, *older)
        and (name not in preset.overrides or preset.overrides[name] != value)
    ]
    dropout = [f"{name} {choice.overrides[name]}" for name in REGULARISATION
               if name in choice.overrides]  # fmt: skip
    kept = (
        f"{', '.join(dropout)} of encoder.overrides {'applies' if len(dropout) == 1 else 'apply'}"
    )
    if not given:
        return [f"{kept} to --encoder {choice.path}"] if dropout else []
    return [
        f"ignored, since --encoder {choice.path} sets the architecture: {', '.join(given)}"
        f"{f'; {kept}' if dropout else ''} (to change tubelets, set encoder.geometry)"
    ]


def _open(path: str, **overrides: Any) -> ViViT:
    try:
        return load_encoder(path, **overrides)
    except FileNotFoundError as error:
        raise NeuralModelError(f"--encoder: {error}") from None


def _fresh(
    choice: NeuralEncoderChoice, facts: Sequence[SessionFacts], longest: int, window: int
) -> FittedEncoder:
    if choice.weights != "pretrained":
        raise NeuralModelError(
            f"encoder.weights {choice.weights} needs an exported encoder; give --encoder DIR, or "
            "remove encoder.weights"
        )
    _refuse_another_screen("overrides", choice.overrides, facts[0].frame_size)
    settings = _screen(facts[0].frame_size) | choice.overrides
    config = named_config(choice.name or FRESH, **settings)
    if "num_frames" not in choice.overrides:
        frames = window if _learned_in_time(config) else longest
        stride = config.kernel_stride[0]
        settings["num_frames"] = -(-frames // stride) * stride
        config = named_config(choice.name or FRESH, **settings)
    notes = [_bounded(config)] if _learned_in_time(config) and longest > config.num_frames else []
    return FittedEncoder(ViViT(config), dict.fromkeys([fact.name for fact in facts]), notes)


def _exported(
    choice: NeuralEncoderChoice, path: str, facts: Sequence[SessionFacts], longest: int, window: int
) -> FittedEncoder:
    geometry = _geometry(choice)
    _refuse_another_screen("geometry", geometry, facts[0].frame_size)
    dropout = {name: choice.overrides[name] for name in REGULARISATION if name in choice.overrides}
    stored = _open(path, **dropout)
    changes = _changes(stored.config, geometry, facts[0].frame_size)
    encoder, warned = _adapted(stored, changes)
    notes = []
    if choice.weights == "fresh":
        notes.append(
            f"encoder.weights fresh: the architecture and preprocessing of {path} are used, with "
            "random weights"
        )
    notes += [*_change_notes(stored, encoder), *warned]
    rates, told = _frame_rates(choice, encoder, facts)
    notes += told
    if _learned_in_time(encoder.config):
        steps = _steps(encoder.config, window, rates)
        before, stride = encoder.config.grid.t, encoder.config.kernel_stride[0]
        if steps != before:
            encoder = adapt(encoder, num_frames=steps * stride)
            notes.append(
                f"temporal positions: the learned table of {before} time steps is "
                f"{'resampled' if steps > before else 'cropped'} to the {steps} of a training "
                "window"
            )
        if _steps(encoder.config, longest, rates) > steps:
            notes.append(_bounded(encoder.config))
    if choice.weights == "fresh":
        fresh = ViViT(encoder.config)
        fresh.preprocessing = encoder.preprocessing
        encoder = fresh
    return FittedEncoder(encoder, rates, notes)


def _adapted(stored: ViViT, changes: dict[str, Any]) -> tuple[ViViT, list[str]]:
    """Return the encoder with the changed geometry, and the texts of warnings of :func:`adapt`.

    Warnings about causality and messages to the log are dropped. :func:`_change_notes` reports
    causality and the energy of the resampled kernel instead.
    """
    log = logging.getLogger(adapt.__module__)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            encoder = adapt(stored, **changes)
    finally:
        log.setLevel(level)
    messages = [str(warning.message) for warning in caught]
    return encoder, [line for line in messages if not line.startswith("temporal_causal")]


def _geometry(choice: NeuralEncoderChoice) -> dict[str, Any]:
    for name in choice.geometry:
        if name not in GEOMETRY:
            raise NeuralModelError(unknown_name("encoder.geometry", name, list(GEOMETRY)))
    # In configs of older versions, overrides without a name gave the geometry of an exported
    # encoder.
    older = {} if choice.name else {k: v for k, v in choice.overrides.items() if k in GEOMETRY}
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in (older | choice.geometry).items()
    }


def _screen(size: tuple[int, int]) -> dict[str, Any]:
    return {"in_channels": 1, "image_size": size, "temporal_causal": True}


def _refuse_another_screen(where: str, given: dict[str, Any], size: tuple[int, int]) -> None:
    wrong = {
        name: given[name]
        for name, value in _screen(size).items()
        if _plain(given.get(name, value)) != _plain(value)
    }
    if wrong:
        told = ", ".join(f"{name} {value}" for name, value in wrong.items())
        raise NeuralModelError(
            f"encoder.{where} has {told}, which the sessions do not allow: their video is grey, "
            f"{_shown(size)}, and the model must be causal; remove the setting"
        )


def _learned_in_time(config: ViViTConfig) -> bool:
    return "learned" in (config.temporal_positions, config.joint_positions)


def _bounded(config: ViViTConfig) -> str:
    steps, overlap = config.grid.t, config.grid.t - max(config.grid.t // 2, 1)
    return (
        f"context: the encoder has learned positions for {steps} time steps, so longer trials are "
        f"encoded in windows of {steps} steps that overlap by {overlap}; each frame is read from "
        "the window that contains most frames before it, and never depends on a later frame"
    )


def _steps(config: ViViTConfig, frames: int, rates: dict[str, FrameRates | None]) -> int:
    """Return the number of time steps of tokens in ``frames`` recorded frames; at least 1.

    If sessions are resampled to different numbers of frames, the largest number is used.
    """
    shown = max(frames if r is None else len(r.shown(frames)) for r in rates.values())
    return max(shown // config.kernel_stride[0], 1)


def _changes(
    stored: ViViTConfig, geometry: dict[str, Any], size: tuple[int, int]
) -> dict[str, Any]:
    """Return the settings of an exported encoder that must change to fit the sessions."""
    wanted = _screen(size)
    if "tubelet_size" not in geometry:
        wanted |= _scaled_tubelets(stored, size)
    wanted |= geometry
    if stored.remainder == "error":
        wanted.setdefault("remainder", "pad")
    fitted = adapted_config(stored, wanted)
    overlaps = fitted.kernel_size[0] > fitted.kernel_stride[0]
    if overlaps and "temporal_padding" not in geometry:
        wanted["temporal_padding"] = "causal"
    return {
        name: value
        for name, value in wanted.items()
        if _plain(value) != _plain(getattr(stored, name))
    }


def _scaled_tubelets(stored: ViViTConfig, size: tuple[int, int]) -> dict[str, Any]:
    """Return tubelet size and stride, scaled in space like the frame; {} if they do not change."""
    assert stored.tubelet_stride is not None
    patch = fitting_patch(stored, size)
    if patch == stored.tubelet_size[1:]:
        return {}
    strides = [
        max(1, min(new, round(stride * new / old)))
        for old, new, stride in zip(
            stored.tubelet_size[1:], patch, stored.tubelet_stride[1:], strict=True
        )
    ]
    return {
        "tubelet_size": (stored.tubelet_size[0], *patch),
        "tubelet_stride": (stored.tubelet_stride[0], *strides),
    }


def fitting_patch(stored: ViViTConfig, size: tuple[int, int]) -> tuple[int, int]:
    """Return height and width of tubelets for frames of another size.

    Tubelets are scaled like the frame, by one factor for both axes. The number of tokens, and the
    part of the frame that each token covers, then stay about as in pretraining. Tubelets are not
    made smaller than 4 pixels, because resampling to fewer pixels destroys most of the kernel.

    Args:
        stored: the encoder's config.
        size: (H, W) of the frames.

    Returns:
        (height, width) in pixels.
    """
    (height, width), (_, *patch) = stored.image_size, stored.tubelet_size
    factor = math.sqrt(size[0] * size[1] / (height * width))
    down, across = (max(min(length, LEAST_PATCH), round(length * factor)) for length in patch)
    return down, across


def _change_notes(stored: ViViT, fitted: ViViT) -> list[str]:
    """Describe each change to an exported encoder and its cost, one line for each."""
    old, new = stored.config, fitted.config
    notes = []
    if old.in_channels != new.in_channels:
        notes.append(f"in_channels {old.in_channels} → {new.in_channels}: exact for grey video")
    if old.image_size != new.image_size:
        notes.append(
            f"image_size {_shown(old.image_size)} → {_shown(new.image_size)}: "
            f"{new.grid.h}×{new.grid.w} tokens per time step instead of {old.grid.h}×{old.grid.w}"
        )
    if old.kernel_size != new.kernel_size:
        _, kept = resample_kernel(stored.tubelets.weight.detach(), new.kernel_size)
        notes.append(
            f"tubelet_size {_shown(old.tubelet_size)} → {_shown(new.tubelet_size)}: the resampled "
            f"kernel keeps {kept:.0%} of its energy (responses to natural video keep more)"
        )
    if old.kernel_stride != new.kernel_stride and new.kernel_stride != new.kernel_size:
        notes.append(
            f"tubelet_stride {_shown(old.kernel_stride)} → {_shown(new.kernel_stride)}: tubelets "
            "overlap; positions are still counted in tokens"
        )
    if old.temporal_padding != new.temporal_padding:
        notes.append(
            f"temporal_padding {old.temporal_padding} → {new.temporal_padding}: no token sees "
            "frames after its own"
        )
    _, *padding = new.padding_of(new.num_frames, *new.image_size)
    if any(sum(pair) for pair in padding):
        notes.append(
            f"border: the frame is padded with zeros to whole tubelets, by {sum(padding[0])} "
            f"pixels in height and {sum(padding[1])} in width (remainder {new.remainder})"
        )
    if old.grid[1:] != new.grid[1:] and "learned" in (old.spatial_positions, old.joint_positions):
        notes.append(
            f"spatial positions: the learned table of {old.grid.h}×{old.grid.w} is interpolated to "
            f"{new.grid.h}×{new.grid.w}"
        )
    if old.temporal_causal != new.temporal_causal:
        notes.append(
            f"temporal_causal {old.temporal_causal} → {new.temporal_causal}: attention over time "
            "was trained with later frames and now sees none; expect worse features until it is "
            "fine-tuned"
        )
    return notes


def _frame_rates(
    choice: NeuralEncoderChoice, encoder: ViViT, facts: Sequence[SessionFacts]
) -> tuple[dict[str, FrameRates | None], list[str]]:
    """Return the resampling of each session's stimulus, or None for sessions without resampling.

    The second result has one note for each session whose frame rate is not the encoder's.
    """
    rates: dict[str, FrameRates | None] = {}
    notes = []
    for fact in facts:
        found = match_fps(encoder.preprocessing, fact.frames_per_second)
        rates[fact.name] = found if choice.match_fps else None
        if found is None:
            continue
        if choice.match_fps:
            notes.append(
                f"{fact.name}: {found.recorded:g} frames per second are shown to the encoder at "
                f"{found.encoder:g}, as in its pretraining; rates stay at {found.recorded:g} Hz"
            )
        else:
            notes.append(
                f"{fact.name}: {found.recorded:g} frames per second are shown to an encoder that "
                f"was trained at {found.encoder:g} (encoder.match_fps false)"
            )
    return rates, notes


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    return "×".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
