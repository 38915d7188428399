"""Fake CUDA tensors, which have a shape and a device but no contents, for tests without a GPU."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

# Operators whose result, or whose shape, the host has to wait for.
_HOST_READS = {
    "_local_scalar_dense", "equal", "masked_select", "nonzero", "unique_consecutive", "_unique2",
}  # fmt: skip


class Waits(TorchDispatchMode):
    """Record operations that would make the host wait for the GPU, with their line in the package."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.pinned: list[Tensor] = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = operator.overloadpacket.__name__
        if name in _HOST_READS and args[0].device.type != "cpu":
            self._note(name)
        out = operator(*args, **kwargs)
        if name == "_to_copy":
            self._copy(args[0], out, kwargs.get("non_blocking", False))
        elif name == "copy_":
            self._copy(args[1], args[0], kwargs.get("non_blocking", len(args) > 2 and args[2]))
        return out

    def _copy(self, source: Tensor, target: Tensor, non_blocking: bool) -> None:
        devices = source.device.type, target.device.type
        if devices[0] == devices[1]:
            return
        pinned = devices != ("cpu", "cuda") or any(source is each for each in self.pinned)
        if not (non_blocking and pinned):
            kind = "a copy of pageable memory" if non_blocking else "a blocking copy"
            self._note(f"{kind} {devices[0]} → {devices[1]} of {tuple(source.shape)}")

    def _note(self, what: str) -> None:
        frames = [f for f in traceback.extract_stack() if "/ssl_vivit/" in f.filename]
        lines = [f"{f.filename.partition('/ssl_vivit/')[2]}:{f.lineno}" for f in frames]
        self.found.append(" at ".join([what, *lines[-1:]]))


class FakeDevice:
    """Fake tensors on a device, and a record of operations that would make the host wait.

    Args:
        device: ``cuda``, where forward passes run, under autocast too; or ``meta``, where backward
            passes run as well, which on fake ``cuda`` tensors ask for the driver.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        # An operator on a real tensor is an error, and so is one on two devices.
        self.mode = FakeTensorMode(allow_non_fake_inputs=False)

    def fake(self, value: Any) -> Any:
        """Replace a tensor, or all tensors of a module or dictionary, by fake tensors."""
        if isinstance(value, dict):
            return {name: self.fake(each) for name, each in value.items()}
        if isinstance(value, list):
            return [self.fake(each) for each in value]
        if isinstance(value, nn.Module):
            for part in value.modules():
                for name, parameter in part._parameters.items():
                    if parameter is not None:
                        fake = nn.Parameter(self.fake(parameter), parameter.requires_grad)
                        part._parameters[name] = fake
                part._buffers.update(self.fake(part._buffers))
            return value
        if not isinstance(value, Tensor):
            return value
        with self.mode:
            return torch.empty_strided(
                value.shape, value.stride(), dtype=value.dtype, device=self.device
            )

    @contextmanager
    def watched(self) -> Iterator[Waits]:
        """Record operations that wait in a block; on CUDA the block runs under bfloat16 autocast."""
        waits = Waits()
        with ExitStack() as stack:
            stack.enter_context(mock.patch.object(torch.Tensor, "pin_memory", _pinning(waits)))
            if self.device == "cuda":
                stack.enter_context(_autocast())
            else:
                # There is no autocast for the device, so none can be switched off there.
                for name, none in (("autocast", nullcontext()), ("is_autocast_enabled", False)):
                    fixed = mock.Mock(return_value=none)
                    stack.enter_context(mock.patch.object(torch, name, fixed))
            stack.enter_context(self.mode)
            stack.enter_context(waits)
            yield waits


def _pinning(waits: Waits):
    def pin_memory(tensor: Tensor) -> Tensor:
        copy = tensor.clone()
        waits.pinned.append(copy)
        return copy

    return pin_memory


@contextmanager
def _autocast() -> Iterator[None]:
    """Return ``torch.autocast("cuda", torch.bfloat16)`` that stays enabled without a GPU."""
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.set_autocast_enabled("cuda", True)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.clear_autocast_cache()
