"""Settings that Accelerate was given before ``fit``, beside those of ``training``.

The launcher (or its file) passes them in the environment; an ``Accelerator`` that a program made
itself holds them in its state. They are followed where ``training`` leaves the choice open, and a line names the precision.
Elsewhere ``training`` wins, and one line says so.
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
    """Decide precision, accumulation and compilation from ``training`` and from Accelerate's settings.

    Args:
        config: as asked for.
        device: that training runs on.

    Returns:
        The config with precision ``fp32``, ``bf16`` or ``fp16`` in place of ``auto``, and with the
        accumulation that holds; a line for each setting of Accelerate that is not followed, and
        one for its precision where that is.

    Raises:
        RunError: if the device has not the precision, or Accelerate was given one that does not
            exist here.
    """
    state = AcceleratorState._shared_state
    source = "the Accelerator's" if state else "the launcher's"
    precision, lines = _precision(config, device, source)
    accumulation = _accumulation()
    if config.accumulation == 1:
        config = replace(config, accumulation=accumulation)
    elif accumulation not in (1, config.accumulation):
        lines.append(
            f"training.accumulation {config.accumulation} wins over {source} "
            f"gradient_accumulation_steps {accumulation}"
        )
    backend = dynamo_plugin().backend
    if config.compile and backend != DynamoBackend.NO:
        lines.append(f"training.compile true wins over {source} dynamo_backend {backend.value}")
    return replace(config, precision=precision), lines  # type: ignore[arg-type]


def dynamo_plugin() -> TorchDynamoPlugin:
    """Accelerate's settings of torch.compile.

    Raises:
        RunError: for a backend that Accelerate does not know.
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
            lines.append(f"training.precision {chosen} wins over {source} mixed_precision {asked}")
    elif asked in ("", "no"):
        chosen = "bf16" if has_bf16 else "fp32"
        if asked and has_bf16:
            # The launcher passes "no" where nobody chose, so it does not tell a wish for fp32.
            lines.append(
                f"training.precision auto takes bf16 on this GPU; {source} mixed_precision no is "
                "also its default and not followed, --training.precision fp32 is"
            )
    elif asked in ("bf16", "fp16"):
        chosen, setting = asked, f"{source} mixed_precision {asked}"  # type: ignore[assignment]
        lines.append(f"training.precision auto takes {setting}")
    else:
        raise RunError(
            f"{source} mixed_precision {asked} is not supported; bf16, fp16 and no are, or set "
            "--training.precision"
        )
    if chosen == "bf16" and on_gpu and not has_bf16:
        raise RunError(f"{setting}: this GPU has no bfloat16; fp16 and fp32 work")
    if chosen == "fp16" and not on_gpu:
        raise RunError(f"{setting} needs a GPU; here auto, fp32 and bf16 work")
    return chosen, lines


def _accumulation() -> int:
    if AcceleratorState._shared_state:
        held: dict[str, Any] = GradientState._shared_state.get("plugin_kwargs", {})
        return held.get("num_steps") or 1
    asked = os.environ.get(_STEPS, "1")
    if not asked.isdecimal() or int(asked) < 1:
        raise RunError(f"{_STEPS} is {asked}; it must be a whole number of 1 or more")
    return int(asked)
