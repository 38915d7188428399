"""Copies of batches to a GPU that neither the host nor the training step waits for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor from the host to a device; the host does not wait for the copy.

    Memory is pinned for copies to a GPU. From pageable memory the driver may wait for all work of
    the stream first.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class Preparation:
    """Prepares batches on a CUDA stream of its own, beside the training step that is running.

    The host launches a training step without waiting for its end. While the GPU works on it, the
    host copies and augments the next batch on this stream. On a CPU batches are prepared directly.

    Args:
        device: where batches are prepared.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def run(self, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Make a batch. The current stream waits for its tensors before its next kernel.

        Args:
            make: copies a batch to the device and augments it.
        """
        if self._stream is None:
            return make()
        with torch.cuda.stream(self._stream):
            batch = make()
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        for tensor in _tensors(batch):
            # Their memory is given back once the current stream has used it, too.
            tensor.record_stream(current)
        return batch


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [tensor for each in inner for tensor in _tensors(each)]
