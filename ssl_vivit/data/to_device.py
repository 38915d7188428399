"""Asynchronous copies of batches to a GPU, during the running training step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor from the host to a device without waiting for the copy.

    For a copy to a GPU, the tensor is first moved to pinned memory. A copy from pageable memory
    could wait for all earlier work of the stream.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class Preparation:
    """Prepares batches on a separate CUDA stream, while a training step is running.

    The host launches a training step without waiting for its end. While the GPU computes this
    step, the next batch is copied and augmented on the separate stream. On a CPU, batches are
    prepared directly.

    Args:
        device: device on which batches are prepared.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def run(self, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Prepare a batch; later kernels of the current CUDA stream wait until it is ready.

        Args:
            make: function that copies a batch to the device and augments it.

        Returns:
            The batch that ``make`` returned.
        """
        if self._stream is None:
            return make()
        with torch.cuda.stream(self._stream):
            batch = make()
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        for tensor in _tensors(batch):
            # Do not reuse the memory before the current stream has finished with it.
            tensor.record_stream(current)
        return batch


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [tensor for each in inner for tensor in _tensors(each)]
