"""Combine the settings of ``training`` with settings that Accelerate was given before ``fit``.

Accelerate's settings come from the launcher, through environment variables, or from an
``Accelerator`` that the program made. A setting of Accelerate is used only if ``training`` leaves
it at its default. A printed line names each setting of Accelerate that is not used.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DynamoBackend, TorchDynamoPlugin

from ssl_vivit.errors import RunError
from ssl_vivit.training.config import TrainingConfig

_STEPS = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"


def resolve_settings(
    config: TrainingConfig, device: torch.device
) -> tuple[TrainingConfig, list[str]]:
    """Choose precision, accumulation and compilation from ``training`` and Accelerate's settings.

    Args:
        config: settings of ``training`` as the user gave them.
        device: the device of training.

    Returns:
        The config with the chosen precision (``fp32``, ``bf16`` or ``fp16``, never ``auto``) and
        accumulation; and lines to print: one for each setting of Accelerate that is not used, and
        one if Accelerate's precision is used.

    Raises:
        RunError: if the device does not support the precision, or if Accelerate's precision is not
            one of bf16, fp16 and no.
    """
    state = AcceleratorState._shared_state
    source = "the Accelerator's" if state else "the launcher's"
    precision, lines = _precision(config, device, source)
    accumulation = _accumulation()
    if config.accumulation == 1:
        config = replace(config, accumulation=accumulation)
    elif accumulation not in (1, config.accumulation):
        lines.append(
            f"training.accumulation {config.accumulation} overrides {source} "
            f"gradient_accumulation_steps {accumulation}"
        )
    backend = dynamo_plugin().backend
    if config.compile and backend != DynamoBackend.NO:
        lines.append(f"training.compile true overrides {source} dynamo_backend {backend.value}")
    return replace(config, precision=precision), lines  # type: ignore[arg-type]


def dynamo_plugin() -> TorchDynamoPlugin:
    """Return Accelerate's settings of torch.compile.

    Raises:
        RunError: if ACCELERATE_DYNAMO_BACKEND names an unknown backend.
    """
    held: Any = AcceleratorState._shared_state.get("dynamo_plugin")
    try:
        return held or TorchDynamoPlugin()
    except ValueError as error:
        raise RunError(f"ACCELERATE_DYNAMO_BACKEND: {error}") from None


def _precision(config: TrainingConfig, device: torch.device, source: str) -> tuple[str, list[str]]:
    held = AcceleratorState._shared_state.get("_mixed_precision")
    asked = str(held or os.environ.get("ACCELERATE_MIXED_PRECISION") or "").lower()
    on_gpu = device.type == "cuda"
    has_bf16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    lines = []
    chosen, setting = config.precision, f"training.precision {config.precision}"
    if chosen != "auto":
        if asked not in ("", "no", chosen):
            lines.append(f"training.precision {chosen} overrides {source} mixed_precision {asked}")
    elif asked in ("", "no"):
        chosen = "bf16" if has_bf16 else "fp32"
        if asked and has_bf16:
            # The launcher passes "no" also if the user chose nothing, so "no" does not ask for
            # fp32.
            lines.append(
                f"training.precision auto uses bf16 on this GPU and ignores {source} "
                "mixed_precision no, which is also the default of Accelerate; for fp32, set "
                "--training.precision fp32"
            )
    elif asked in ("bf16", "fp16"):
        chosen, setting = asked, f"{source} mixed_precision {asked}"  # type: ignore[assignment]
        lines.append(f"training.precision auto uses {setting}")
    else:
        raise RunError(
            f"{source} mixed_precision {asked} is not supported; set it to bf16, fp16 or no, or "
            "set "
            "--training.precision"
        )
    if chosen == "bf16" and on_gpu and not has_bf16:
        raise RunError(f"{setting}: this GPU does not support bfloat16; use fp16 or fp32")
    if chosen == "fp16" and not on_gpu:
        raise RunError(f"{setting} needs a GPU; on this device use auto, fp32 or bf16")
    return chosen, lines


def _accumulation() -> int:
    if AcceleratorState._shared_state:
        held: dict[str, Any] = GradientState._shared_state.get("plugin_kwargs", {})
        return held.get("num_steps") or 1
    asked = os.environ.get(_STEPS, "1")
    if not asked.isdecimal() or int(asked) < 1:
        raise RunError(f"{_STEPS} is {asked}; it must be a whole number of 1 or more")
    return int(asked)
