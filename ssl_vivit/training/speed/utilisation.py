"""Model FLOPs utilisation (Chowdhery et al. 2022, arXiv 2204.02311, App. B)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils.flop_counter import FlopCounterMode

# Peak FLOP/s of dense half-precision matrix products by NVIDIA's data sheets. The first entry whose
# words are all in the device's name is used.
_PEAKS: tuple[tuple[tuple[str, ...], float], ...] = (
    (("B200",), 2250e12),
    (("GH200",), 989e12),
    (("H200",), 989e12),
    (("H100", "PCIe"), 756e12),
    (("H100", "NVL"), 835e12),
    (("H100",), 989e12),
    (("A100",), 312e12),
    (("L40S",), 362e12),
    (("RTX 4090",), 165e12),
    (("A10G",), 70e12),
    (("L4",), 121e12),
)


def peak_flops(device_name: str, precision: str) -> float | None:
    """Return the peak rate of half-precision matrix products of a GPU.

    Args:
        device_name: result of ``torch.cuda.get_device_name``.
        precision: precision of training: fp32, bf16 or fp16.

    Returns:
        Floating-point operations per second; None for an unknown GPU and for float32.
    """
    if precision not in ("bf16", "fp16"):
        return None
    words = device_name.replace("-", " ")
    return next((peak for parts, peak in _PEAKS if all(part in words for part in parts)), None)


class Utilisation:
    """Measures the FLOP/s of training as a fraction of the GPU's peak.

    The matrix products, convolutions and attention of the first step are counted, forward and
    backward. Activations that are recomputed (``encoder.grad_checkpointing``) count twice, so with
    them the result is the hardware and not the model FLOPs utilisation.

    Args:
        peak: peak FLOP/s of the GPU; with None nothing is measured.
    """

    def __init__(self, peak: float | None) -> None:
        self._peak, self._per_clip = peak, None

    @contextmanager
    def counting(self, clips: int) -> Iterator[None]:
        """Count the FLOPs of the first step, which the block runs on ``clips`` clips.

        That step runs uncompiled, since FLOPs inside a compiled graph cannot be counted.
        """
        if self._peak is None or self._per_clip is not None:
            yield
            return
        with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
            yield
        self._per_clip = counter.get_total_flops() / clips

    def share(self, clips_per_second: float) -> float | None:
        """Return the model FLOPs utilisation: FLOP/s as a fraction of the GPU's peak.

        Args:
            clips_per_second: clips per second of one process, that is, of one GPU.

        Returns:
            The fraction. None if the peak is unknown or no step has been counted.
        """
        if self._peak is None or self._per_clip is None:
            return None
        return clips_per_second * self._per_clip / self._peak
