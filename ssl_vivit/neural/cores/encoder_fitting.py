"""An encoder for the screen of recorded sessions: exported or fresh, grey, causal, of their size."""

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
# Weights do not depend on these, so a config that describes a fresh encoder may set them for an
# exported one, too.
REGULARISATION = ("patch_dropout", "attention_dropout", "mlp_dropout", "drop_path")

LEAST_PATCH = 4


class FittedEncoder(NamedTuple):
    """An encoder that takes the sessions' video.

    Attributes:
        encoder: grey, causal, of the sessions' frame size.
        frame_rates: session → how its stimulus is resampled in time; None where it is not.
        notes: what was changed in an exported encoder, a line each.
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
    """Open or make the encoder, for the frame size and the training windows of the sessions.

    An encoder with a learned table of positions in time gets a table for the training window; longer
    trials are encoded in overlapping windows (:class:`ssl_vivit.neural.cores.vivit_core.ViViTCore`).

    Args:
        choice: which encoder.
        facts: of the sessions, which have one frame size.
        longest: frames of the longest trial.
        window: frames of a training window; None is ``longest``.

    Raises:
        NeuralModelError: where there is no encoder at ``path``, and for settings that the sessions
            do not allow.
        ValueError: for settings that do not fit.
    """
    window = min(window or longest, longest)
    if choice.path is None:
        fitted = _fresh(choice, facts, longest, window)
    else:
        fitted = _exported(choice, choice.path, facts, longest, window)
    fitted.encoder.set_grad_checkpointing(choice.grad_checkpointing)
    return fitted


def pixel_statistics(path: str) -> tuple[float, float] | None:
    """Mean and standard deviation by which an exported encoder's grey pixels, 0 to 1, are normalised.

    Args:
        path: an exported directory or a name on the hub.

    Returns:
        None where the directory does not say.

    Raises:
        NeuralModelError: if there is no encoder.
    """
    prepared = _open(path, in_channels=1).preprocessing
    if prepared is None or not prepared.normalised:
        return None
    (mean,), (std,) = prepared.statistics(channels=1)
    return mean, std


def ignored_settings(choice: NeuralEncoderChoice, preset: NeuralEncoderChoice) -> list[str]:
    """A line about the settings of a fresh encoder that were given beside an exported one.

    Args:
        choice: with a ``path``.
        preset: settings that hold where none are given, and so are not named.

    Returns:
        The line, which also names the rates of dropout that the exported encoder takes; nothing
        where there is nothing to say.
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
    kept = f"{', '.join(dropout)} of encoder.overrides {'holds' if len(dropout) == 1 else 'hold'}"
    if not given:
        return [f"{kept} for --encoder {choice.path}"] if dropout else []
    return [
        f"ignored beside --encoder {choice.path}, whose architecture holds: {', '.join(given)}"
        f"{f'; {kept}' if dropout else ''} (encoder.geometry changes tubelets)"
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
            f"encoder.weights {choice.weights} is a setting of an exported encoder; give --encoder "
            "DIR, or leave it out"
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
            f"encoder.weights fresh: {path} gives its architecture and preprocessing, and its weights "
            "are drawn anew"
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
                f"{'resampled' if steps > before else 'cropped'} to the {steps} of a training window"
            )
        if _steps(encoder.config, longest, rates) > steps:
            notes.append(_bounded(encoder.config))
    if choice.weights == "fresh":
        fresh = ViViT(encoder.config)
        fresh.preprocessing = encoder.preprocessing
        encoder = fresh
    return FittedEncoder(encoder, rates, notes)


def _adapted(stored: ViViT, changes: dict[str, Any]) -> tuple[ViViT, list[str]]:
    """The encoder at the new geometry, and what :func:`adapt` warns of beside causality.

    :func:`_change_notes` describes causality and the kernel's energy, so they are not logged.
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
    # Without a name, overrides describe no fresh encoder; configs of older versions gave the
    # geometry there.
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
            f"encoder.{where} has {told}; the sessions' video is grey, {_shown(size)}, and rates are "
            "causal: leave it out"
        )


def _learned_in_time(config: ViViTConfig) -> bool:
    return "learned" in (config.temporal_positions, config.joint_positions)


def _bounded(config: ViViTConfig) -> str:
    steps, overlap = config.grid.t, config.grid.t - max(config.grid.t // 2, 1)
    return (
        f"context: learned positions in time hold for {steps} time steps, so longer trials are "
        f"encoded in windows of {steps} that overlap by {overlap}; each frame is read from the "
        "window that shows it the longest past, and never depends on a later frame"
    )


def _steps(config: ViViTConfig, frames: int, rates: dict[str, FrameRates | None]) -> int:
    """The largest number of whole time steps that a session's frames make at its frame rate, or 1."""
    shown = max(frames if r is None else len(r.shown(frames)) for r in rates.values())
    return max(shown // config.kernel_stride[0], 1)


def _changes(
    stored: ViViTConfig, geometry: dict[str, Any], size: tuple[int, int]
) -> dict[str, Any]:
    """Geometry in which the encoder for the sessions differs from the stored one."""
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
    """Size and stride of tubelets, scaled in space as the frame is; nothing where neither changes."""
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
    """Height and width of tubelets for frames of another size.

    Tubelets are scaled as the frame is, by one factor for both axes, so that a screen shows the
    encoder about as many tokens of about the same content as its pretraining did. They are not made
    smaller than 4 pixels, as little of a kernel is left then.

    Args:
        stored: the encoder's config.
        size: (H, W) of the frames.
    """
    (height, width), (_, *patch) = stored.image_size, stored.tubelet_size
    factor = math.sqrt(size[0] * size[1] / (height * width))
    down, across = (max(min(length, LEAST_PATCH), round(length * factor)) for length in patch)
    return down, across


def _change_notes(stored: ViViT, fitted: ViViT) -> list[str]:
    """A line for each change that fitting made to an exported encoder, with its cost."""
    old, new = stored.config, fitted.config
    notes = []
    if old.in_channels != new.in_channels:
        notes.append(f"in_channels {old.in_channels} → {new.in_channels}: exact for grey video")
    if old.image_size != new.image_size:
        notes.append(
            f"image_size {_shown(old.image_size)} → {_shown(new.image_size)}: "
            f"{new.grid.h}×{new.grid.w} tokens a time step in place of {old.grid.h}×{old.grid.w}"
        )
    if old.kernel_size != new.kernel_size:
        _, kept = resample_kernel(stored.tubelets.weight.detach(), new.kernel_size)
        notes.append(
            f"tubelet_size {_shown(old.tubelet_size)} → {_shown(new.tubelet_size)}: the resampled "
            f"kernel keeps {kept:.0%} of its energy (natural video loses less than that)"
        )
    if old.kernel_stride != new.kernel_stride and new.kernel_stride != new.kernel_size:
        notes.append(
            f"tubelet_stride {_shown(old.kernel_stride)} → {_shown(new.kernel_stride)}: tubelets "
            "overlap, and positions count tokens as before"
        )
    if old.temporal_padding != new.temporal_padding:
        notes.append(
            f"temporal_padding {old.temporal_padding} → {new.temporal_padding}: tokens end at their "
            "own frames"
        )
    _, *padding = new.padding_of(new.num_frames, *new.image_size)
    if any(sum(pair) for pair in padding):
        notes.append(
            f"border: zeros complete the outermost tubelets, {sum(padding[0])} pixels in height and "
            f"{sum(padding[1])} in width (remainder {new.remainder})"
        )
    if old.grid[1:] != new.grid[1:] and "learned" in (old.spatial_positions, old.joint_positions):
        notes.append(
            f"spatial positions: the learned table of {old.grid.h}×{old.grid.w} is interpolated to "
            f"{new.grid.h}×{new.grid.w}"
        )
    if old.temporal_causal != new.temporal_causal:
        notes.append(
            f"temporal_causal {old.temporal_causal} → {new.temporal_causal}: attention over time was "
            "trained to use later frames and now sees none; expect worse features until it is fine-tuned"
        )
    return notes


def _frame_rates(
    choice: NeuralEncoderChoice, encoder: ViViT, facts: Sequence[SessionFacts]
) -> tuple[dict[str, FrameRates | None], list[str]]:
    """Resampling of each session's stimulus, and a line for each whose rate is not the encoder's."""
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
                f"{fact.name}: {found.recorded:g} frames per second are shown to an encoder that was "
                f"trained at {found.encoder:g} (encoder.match_fps false)"
            )
    return rates, notes


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    return "×".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
