"""An encoder for the screen of recorded sessions: exported or fresh, grey, causal, of their size."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from ssl_vivit.encoders import ViViT, ViViTConfig, load_encoder
from ssl_vivit.encoders.adapt import GEOMETRY
from ssl_vivit.encoders.named_sizes import named_config
from ssl_vivit.neural.errors import NeuralModelError
from ssl_vivit.neural.frame_rates import FrameRates, match_fps

if TYPE_CHECKING:
    from ssl_vivit.data.session_files import SessionFacts

FRESH = "vivit_neural_small"
# What weights do not depend on: a config beside an exported encoder may set it.
REGULARISATION = ("patch_dropout", "attention_dropout", "mlp_dropout", "drop_path")
# Of an exported encoder these are fitted to the sessions, so a config's own values do not clash.
_FITTED = (*GEOMETRY, *REGULARISATION, "interpolate_positions")


@dataclass(frozen=True)
class NeuralEncoderChoice:
    """Which encoder the model of neurons stands on.

    Args:
        path: an exported directory or a name on the hub, which fixes the architecture.
        name: a named size for a fresh encoder; null is vivit_neural_small. Beside ``path`` it must
            be what the directory holds.
        overrides: settings of ViViTConfig that differ. Beside ``path``: its geometry
            (``tubelet_size [4, 4, 4]``) and dropout (``drop_path 0.1``).
        match_fps: show an exported encoder the stimulus at the frame rate that it was trained at;
            otherwise a recorded frame is one of its frames.
        grad_checkpointing: recompute activations in the backward pass: less memory, more time.
    """

    path: str | None = None
    name: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    match_fps: bool = True
    grad_checkpointing: bool = False


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
    choice: NeuralEncoderChoice, facts: Sequence[SessionFacts], longest: int
) -> FittedEncoder:
    """Open or make the encoder, for the frame size and the longest trial of the sessions.

    Args:
        choice: which encoder.
        facts: of the sessions, which have one frame size.
        longest: frames of the longest trial.

    Raises:
        NeuralModelError: for a config that names another architecture than the directory holds,
            and where there is no encoder at ``path``.
        ValueError: for settings that do not fit.
    """
    fitted = _fresh(choice, facts, longest) if choice.path is None else None
    fitted = fitted or _exported(choice, choice.path or "", facts, longest)
    fitted.encoder.set_grad_checkpointing(choice.grad_checkpointing)
    return fitted


def _fresh(
    choice: NeuralEncoderChoice, facts: Sequence[SessionFacts], longest: int
) -> FittedEncoder:
    screen = {"in_channels": 1, "image_size": facts[0].frame_size, "temporal_causal": True}
    wrong = {
        name: choice.overrides[name]
        for name in ("in_channels", "image_size", "temporal_causal")
        if _plain(choice.overrides.get(name, screen[name])) != _plain(screen[name])
    }
    if wrong:
        told = ", ".join(f"{name} {value}" for name, value in wrong.items())
        raise NeuralModelError(
            f"encoder.overrides has {told}; the sessions' video is grey, "
            f"{'×'.join(map(str, facts[0].frame_size))}, and rates are causal: leave it out"
        )
    name, settings = choice.name or FRESH, screen | choice.overrides
    config = named_config(name, **settings)
    if "num_frames" not in choice.overrides:
        stride = config.kernel_stride[0]
        config = named_config(name, **settings, num_frames=-(-longest // stride) * stride)
    if _learned_in_time(config) and longest > config.num_frames:
        raise NeuralModelError(
            f"encoder.overrides.num_frames {config.num_frames} is shorter than the longest trial, "
            f"{longest} frames, and learned positions are never stretched in time: leave it out"
        )
    return FittedEncoder(ViViT(config), dict.fromkeys([fact.name for fact in facts]), [])


def _exported(
    choice: NeuralEncoderChoice, path: str, facts: Sequence[SessionFacts], longest: int
) -> FittedEncoder:
    try:
        stored = load_encoder(path).config
    except FileNotFoundError as error:
        raise NeuralModelError(f"--encoder {path}: {error}") from None
    _refuse_another(choice, path, stored)
    changes = _changes(stored, choice.overrides, facts[0].frame_size)
    dropouts = {name: choice.overrides[name] for name in REGULARISATION if name in choice.overrides}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        encoder = load_encoder(path, **changes, **dropouts)
    notes = [f"{path}: {message.message}" for message in caught]
    if changes:
        told = ", ".join(
            f"{name} {_shown(getattr(stored, name))} → {_shown(value)}"
            for name, value in changes.items()
        )
        notes.insert(0, f"{path} is fitted to the sessions: {told}")
    rates = {
        fact.name: match_fps(encoder.preprocessing, fact.frames_per_second, fact.name)
        if choice.match_fps
        else None
        for fact in facts
    }
    notes += [
        f"{name}: {rate.recorded:g} frames per second are shown to the encoder at {rate.encoder:g}, "
        f"as in its pretraining; rates stay at {rate.recorded:g} Hz"
        for name, rate in rates.items()
        if rate is not None
    ]
    shown = max(longest if r is None else len(r.shown(longest)) for r in rates.values())
    _refuse_longer(encoder.config, path, shown)
    return FittedEncoder(encoder, rates, notes)


def _refuse_longer(config: ViViTConfig, path: str, shown: int) -> None:
    if _learned_in_time(config) and shown > config.num_frames:
        raise NeuralModelError(
            f"--encoder {path} has learned positions for {config.num_frames} frames and would be "
            f"shown {shown}, the longest trial; causal tables are never stretched: pretrain with "
            "--encoder.overrides.temporal_positions rotary, as the presets for neurons do"
        )


def _learned_in_time(config: ViViTConfig) -> bool:
    return "learned" in (config.temporal_positions, config.joint_positions)


def _refuse_another(choice: NeuralEncoderChoice, path: str, stored: ViViTConfig) -> None:
    """A config may repeat what the directory holds, and say nothing else about it."""
    found = stored.to_dict()
    if choice.name is not None:
        asked = named_config(choice.name, **choice.overrides).to_dict()
    else:
        asked = found | choice.overrides
        ViViTConfig.from_dict(asked)
    differing = [
        f"{name} {_shown(found[name])} (asked for: {_shown(asked[name])})"
        for name in found
        if name not in _FITTED and _plain(asked[name]) != _plain(found[name])
    ]
    if differing:
        asked_for = f"encoder.name {choice.name}" if choice.name else "encoder.overrides"
        raise NeuralModelError(
            f"--encoder {path} fixes the architecture, and {asked_for} is another: "
            f"{', '.join(differing[:4])}{' …' if len(differing) > 4 else ''}; set encoder.name "
            "null and leave those overrides out"
        )


def _changes(
    stored: ViViTConfig, overrides: dict[str, Any], size: tuple[int, int]
) -> dict[str, Any]:
    """The geometry that differs from the stored one, so that sessions' video goes through."""
    wanted: dict[str, Any] = {"in_channels": 1, "image_size": size, "temporal_causal": True}
    if "tubelet_size" not in overrides:
        tubelet = (stored.tubelet_size[0], *fitting_patch(stored, size))
        if tubelet != stored.tubelet_size:
            wanted["tubelet_size"] = tubelet
    wanted |= {name: overrides[name] for name in GEOMETRY if name in overrides}
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in wanted.items()
        if _plain(value) != _plain(getattr(stored, name))
    }


def fitting_patch(stored: ViViTConfig, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of tubelets that divide frames of another size.

    Where the stored ones do not, those that come closest to the stored number of tokens along each
    axis, rather more than fewer.
    """
    _, *patch = stored.tubelet_size
    if stored.tubelet_stride != stored.tubelet_size or stored.remainder == "crop":
        return patch[0], patch[1]
    fitted = []
    for length, old, tokens in zip(size, patch, stored.grid[1:], strict=True):
        if length % old == 0:
            fitted.append(old)
            continue
        divisors = [d for d in range(1, length + 1) if length % d == 0]
        fitted.append(min(divisors, key=lambda d: (abs(length // d - tokens), d)))
    return fitted[0], fitted[1]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    return "×".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
