"""Memory of a training step, computed from shapes without allocating tensors.

A training step runs on fake tensors, which have no contents, and
``torch.distributed._tools.mem_tracker`` counts all live tensors. Two steps with different batch
sizes separate the fixed part (parameters, the optimiser's moments) from the part of each sample
(activations), so that the memory of any batch size follows. A GPU additionally needs memory for its
context and for fragmentation in the allocator.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import nn
from torch._subclasses import FakeTensorMode

# If the forward and backward pass needs this many times the update's memory, activations dominate.
_MANY = 1.5


class TrainingMemory(NamedTuple):
    """Memory of a training step, in bytes.

    Attributes:
        fixed: memory of the forward and backward pass that does not depend on the batch size:
            parameters, gradients and the optimiser's moments.
        per_sample: memory of each sample of a micro-batch in the forward and backward pass.
        update: peak memory of the optimiser's step, which does not depend on the batch size.
    """

    fixed: float
    per_sample: float
    update: float

    def of(self, samples: int) -> float:
        """Return the peak memory in bytes of a step with ``samples`` samples in a micro-batch."""
        return max(self.update, self.fixed + samples * self.per_sample)

    def largest(self, available: float) -> int:
        """Return the largest micro-batch size that fits in ``available`` bytes of memory.

        Only powers of two are considered. The result is 0 if not even one sample fits.
        """
        samples = 0
        while self.of(max(1, 2 * samples)) <= available:
            samples = max(1, 2 * samples)
        return samples


def training_memory(
    objective: nn.Module, batch: Callable[[int], dict[str, Any]], *, bf16: bool
) -> TrainingMemory:
    """Compute the memory of training steps with AdamW.

    Args:
        objective: an :class:`~ssl_vivit.objectives.Objective` on the meta device. Its forward pass
            must not depend on the contents of tensors.
        batch: function that takes a number of samples and returns a batch on the CPU. It is called
            under ``FakeTensorMode``, in which tensors have no contents.
        bf16: whether the forward pass runs under autocast to bfloat16.
    """
    samples = 2  # contrastive objectives need two or more
    with _fake_weights(objective):
        passes, update = peaks(objective, batch(samples), bf16=bf16)
        # With few samples the peak is at the end of the backward pass, when all gradients exist.
        # With more samples it is at the start and grows by the activations of each sample.
        while passes < _MANY * update:
            samples *= 2
            passes, _ = peaks(objective, batch(samples), bf16=bf16)
        twice, _ = peaks(objective, batch(2 * samples), bf16=bf16)
    per_sample = (twice - passes) / samples
    return TrainingMemory(passes - samples * per_sample, per_sample, update)


def peaks(objective: nn.Module, batch: dict[str, Any], *, bf16: bool) -> tuple[float, float]:
    """Return the peak memory in bytes of the forward and backward pass, and of the update.

    The step is measured when the optimiser already has its moments.

    Args:
        objective: the model and its loss, on the CPU.
        batch: a batch for the objective.
        bf16: whether the forward pass runs under autocast to bfloat16.
    """
    # Imported here because mem_tracker loads FSDP.
    from torch.distributed._tools.mem_tracker import MemTracker

    trained = [weight for weight in objective.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0)

    def passes() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = objective(batch).loss
        loss.backward()

    def peak_of(work: Callable[[], object]) -> int:
        tracker = MemTracker()
        tracker.track_external(objective, optimizer)
        with tracker:
            work()
        (peak,) = tracker.get_tracker_snapshot("peak").values()
        return peak["Total"]

    passes()
    optimizer.step()
    optimizer.zero_grad()
    found = peak_of(passes), peak_of(optimizer.step)
    optimizer.zero_grad()
    # The tracker does not count the batch, which was created before. The update does not need it.
    own = sum(value.nbytes for value in batch.values() if isinstance(value, torch.Tensor))
    return float(found[0] + own), float(found[1])


@contextlib.contextmanager
def _fake_weights(objective: nn.Module) -> Iterator[None]:
    """Replace a model's meta tensors by fake CPU tensors, which have no contents."""
    # Fake tensors have no contents, and checks of contents are skipped during compilation.
    with FakeTensorMode(), mock.patch("torch.compiler.is_compiling", return_value=True):
        for part in objective.modules():
            for name, weight in part.named_parameters(recurse=False):
                empty = torch.empty(weight.shape, dtype=weight.dtype)
                setattr(part, name, nn.Parameter(empty, requires_grad=weight.requires_grad))
            for name, buffer in part.named_buffers(recurse=False):
                setattr(part, name, torch.empty(buffer.shape, dtype=buffer.dtype))
        yield
