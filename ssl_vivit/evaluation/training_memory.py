"""Memory that a training step takes, computed from shapes alone.

A training step runs on tensors without contents, and every tensor that lives is counted, by
``torch.distributed._tools.mem_tracker``. Two steps, one of twice the samples of the other, give the
part that does not depend on the batch (parameters, the optimiser's moments) and the part of each
sample (activations), so that the memory of any batch follows. A GPU needs its context and the
allocator's waste beside it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import nn
from torch._subclasses import FakeTensorMode

# Where forward and backward pass need so many times the memory of the update, activations decide.
_MANY = 1.5


class TrainingMemory(NamedTuple):
    """Memory of a training step, in bytes.

    Attributes:
        fixed: of forward and backward pass, without samples: parameters, gradients, moments.
        per_sample: of each sample in a micro-batch, in the forward and backward pass.
        update: at the peak of the optimiser's step, whatever the batch.
    """

    fixed: float
    per_sample: float
    update: float

    def of(self, samples: int) -> float:
        """Bytes at the peak of a step with so many samples in a micro-batch."""
        return max(self.update, self.fixed + samples * self.per_sample)

    def largest(self, available: float) -> int:
        """The most samples, a power of two, whose step fits in so many bytes; 0 if none does."""
        samples = 0
        while self.of(max(1, 2 * samples)) <= available:
            samples = max(1, 2 * samples)
        return samples


def training_memory(
    objective: nn.Module, batch: Callable[[int], dict[str, Any]], *, bf16: bool
) -> TrainingMemory:
    """Compute the memory of training steps with AdamW.

    Args:
        objective: an :class:`~ssl_vivit.objectives.Objective` made on the meta device. Its forward
            pass must not depend on the contents of tensors.
        batch: makes a batch of so many samples on the CPU; it is called where tensors have no
            contents.
        bf16: whether the forward pass runs under autocast to bfloat16, as on GPUs that have it.
    """
    samples = 2  # contrastive objectives need two
    with _shapes_alone(objective):
        passes, update = peaks(objective, batch(samples), bf16=bf16)
        # With few samples the peak is at the end of the backward pass, where all gradients are
        # there; with more it is at its start, and grows by the activations of each sample.
        while passes < _MANY * update:
            samples *= 2
            passes, _ = peaks(objective, batch(samples), bf16=bf16)
        twice, _ = peaks(objective, batch(2 * samples), bf16=bf16)
    per_sample = (twice - passes) / samples
    return TrainingMemory(passes - samples * per_sample, per_sample, update)


def peaks(objective: nn.Module, batch: dict[str, Any], *, bf16: bool) -> tuple[float, float]:
    """Count bytes at the peaks of a training step: of forward and backward pass, and of the update.

    The step is one in which the optimiser has its moments already.

    Args:
        objective: the model and its loss, on the CPU.
        batch: its batch.
        bf16: whether the forward pass runs under autocast to bfloat16.
    """
    # Imported here: it loads FSDP.
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
    # The batch was made before; on a GPU it lies there as well, and has gone by the update.
    own = sum(value.nbytes for value in batch.values() if isinstance(value, torch.Tensor))
    return float(found[0] + own), float(found[1])


@contextlib.contextmanager
def _shapes_alone(objective: nn.Module) -> Iterator[None]:
    """Give a model of the meta device tensors that pass for those of the CPU, without contents."""
    # While a graph is compiled, no check looks into a tensor; here there is nothing to look at.
    with FakeTensorMode(), mock.patch("torch.compiler.is_compiling", return_value=True):
        for part in objective.modules():
            for name, weight in part.named_parameters(recurse=False):
                empty = torch.empty(weight.shape, dtype=weight.dtype)
                setattr(part, name, nn.Parameter(empty, requires_grad=weight.requires_grad))
            for name, buffer in part.named_buffers(recurse=False):
                setattr(part, name, torch.empty(buffer.shape, dtype=buffer.dtype))
        yield
