"""Arrays of another program's checkpoint, with a check of shapes and of unused arrays."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ssl_vivit.encoders.classifier import VideoClassifier
from ssl_vivit.encoders.config import ViViTConfig
from ssl_vivit.encoders.vivit import ViViT

_SHOWN = 10

Module = TypeVar("Module", bound=nn.Module)


class ForeignWeights:
    """Arrays of a checkpoint; :meth:`take` returns an array and checks its shape.

    If an array is missing or has another shape, :meth:`take` records the fault and returns zeros,
    so that :meth:`finish` can list all faults at once. :meth:`take` raises ValueError at the
    eleventh fault, or if the zeros would be larger than all arrays together.

    Args:
        arrays: name → numpy array or tensor.
        source: name of the checkpoint, for messages.
    """

    def __init__(self, arrays: Mapping[str, Any], source: str) -> None:
        self.arrays = arrays
        self.source = source
        self._taken: set[str] = set()
        self._wrong: list[str] = []

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def take(self, name: str, *shape: int) -> Tensor:
        """Return a copy of the array ``name`` as a tensor; half precision becomes float32.

        A missing array, another shape than ``shape`` and values that are not finite are recorded
        as faults. In the first two cases the tensor returned is zeros.
        """
        self._taken.add(name)
        if name not in self.arrays:
            near = difflib.get_close_matches(name, self.arrays, n=1, cutoff=0.95)
            hint = f" (there is {near[0]})" if near else ""
            return self._zeros_for(f"{name} missing{hint}", shape)
        value = as_tensor(self.arrays[name], name)
        if tuple(value.shape) != shape:
            return self._zeros_for(
                f"{name} has shape {tuple(value.shape)} instead of {shape}", shape
            )
        if not value.isfinite().all():
            self._wrong.append(f"{name} not finite")
        return value

    def _zeros_for(self, wrong: str, shape: tuple[int, ...]) -> Tensor:
        self._wrong.append(wrong)
        held = sum(math.prod(np.shape(array)) for array in self.arrays.values())
        if len(self._wrong) > _SHOWN or math.prod(shape) > held:
            raise self._misfit(self._wrong, known=False)
        return torch.zeros(shape)

    def finish(self, ignored: Callable[[str], bool] = lambda name: False) -> None:
        """Check that :meth:`take` recorded no fault and was called for every array.

        Args:
            ignored: function that returns True for the names of arrays that need not be taken.

        Raises:
            ValueError: if there was a fault or an array was not taken; the message names at most
                ten of these arrays.
        """
        extra = [name for name in self.arrays if name not in self._taken and not ignored(name)]
        wrong = self._wrong + [f"{name} unexpected" for name in extra]
        if wrong:
            raise self._misfit(wrong)

    def _misfit(self, wrong: list[str], known: bool = True) -> ValueError:
        """Return the error for faulty arrays.

        Args:
            wrong: description of each faulty array.
            known: False if there may be faulty arrays that ``wrong`` does not describe.
        """
        rest = len(wrong) - _SHOWN
        more = "" if rest <= 0 else f" and {rest} more" if known else " and more"
        return ValueError(
            f"{self.source} does not fit the model that its config describes: "
            f"{', '.join(wrong[:_SHOWN])}{more}"
        )


def as_tensor(value: Any, name: str) -> Tensor:
    """Copy a numeric array to a tensor; float64 is kept, other floats become float32.

    Raises:
        ValueError: if the value is not a numeric array.
    """
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype.kind not in "fiu":
            raise ValueError(f"{name} is an array of {value.dtype}, not of numbers")
        value = torch.from_numpy(np.array(value, order="C"))
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} is a {type(value).__name__}, not an array")
    return value.detach().to(
        "cpu", torch.float64 if value.dtype == torch.float64 else torch.float32, copy=True
    )


def built(make: Callable[[], Module], state: Mapping[str, Tensor]) -> Module:
    """Build a module in eval mode with weights ``state``, in float64 if any weight is float64."""
    with torch.device("meta"):
        module = make()
    wide = any(value.dtype == torch.float64 for value in state.values())
    dtype = torch.float64 if wide else torch.float32
    state = {name: value.to(dtype).contiguous() for name, value in state.items()}
    module.load_state_dict(state, assign=True)
    return module.eval()


def built_classifier(
    config: ViViTConfig,
    state: Mapping[str, Tensor],
    head: Mapping[str, Tensor],
    num_classes: int,
    representation_size: int | None = None,
) -> VideoClassifier:
    """Build a classifier from the weights of its encoder (``state``) and of its head (``head``)."""
    return built(
        lambda: VideoClassifier(ViViT(config), num_classes, representation_size),
        {f"encoder.{name}": value for name, value in state.items()} | dict(head),
    )


def as_dict(config: Any) -> dict[str, Any]:
    """Convert a mapping, an ml_collections config or a transformers config to plain dicts."""
    if hasattr(config, "to_dict"):
        config = config.to_dict()
    if not isinstance(config, Mapping):
        raise ValueError(f"the config is {type(config).__name__}; give a dict or a config object")
    return {
        name: as_dict(value) if isinstance(value, Mapping) or hasattr(value, "to_dict") else value
        for name, value in config.items()
    }
