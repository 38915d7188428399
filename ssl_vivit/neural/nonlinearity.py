"""Static nonlinearities of models of neurons, from drive to positive rate, and their inverses."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Nonlinearity = Literal["softplus", "elu"]

# Added to every rate. If a rate underflowed to 0, the Poisson loss of a spike would be infinite.
LEAST_RATE = 1e-8


def rate_of(drive: Tensor, nonlinearity: Nonlinearity) -> Tensor:
    """Convert drives to strictly positive rates by softplus or ELU + 1."""
    if nonlinearity == "softplus":
        return F.softplus(drive) + LEAST_RATE
    # F.elu(x) + 1 would round to 0 below about −17.
    return torch.where(drive >= 0, drive + 1, drive.clamp(max=0).exp()) + LEAST_RATE


def drive_of(rate: Tensor, nonlinearity: Nonlinearity) -> Tensor:
    """Invert :func:`rate_of`: return the drive that gives a rate. Exact for rates well above 0."""
    if nonlinearity == "softplus":
        return rate + torch.log(-torch.expm1(-rate))
    return torch.where(rate < 1, rate.log(), rate - 1)
