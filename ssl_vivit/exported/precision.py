"""Weights stored in a lower precision than the model computes in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ssl_vivit.errors import ExportError

KEY = "dtype"


def name_of(dtype: torch.dtype) -> str:
    """Return the name that config.json uses for a precision."""
    return str(dtype).removeprefix("torch.")


_PRECISIONS = {
    name_of(dtype): dtype for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)
}


def shortened(weights: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return weights converted to another precision.

    Raises:
        ExportError: if a finite value becomes infinite in that precision.
    """
    short = {name: value.to(dtype) for name, value in weights.items()}
    large = [name for name, value in short.items() if not value.isfinite().all()]
    if large:
        raise ExportError(
            f"{large[0]} has values too large for stored_dtype {dtype}; omit stored_dtype"
        )
    return short


def computing_precision(saved: Mapping[str, Any]) -> torch.dtype | None:
    """Return the precision in which a loaded model computes, as given by its config.json.

    None means the precision of the stored weights.

    Raises:
        ExportError: if the precision in config.json is unknown.
    """
    name = saved.get(KEY)
    if name is None:
        return None
    if not isinstance(name, str) or name not in _PRECISIONS:
        known = ", ".join(_PRECISIONS)
        raise ExportError(f"{KEY} of config.json is {name!r}; it must be one of {known}")
    return _PRECISIONS[name]
