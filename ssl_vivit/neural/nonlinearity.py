"""The last step of a model of neurons: any drive → a positive rate, and back."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Nonlinearity = Literal["softplus", "elu"]

# A rate that underflows to nothing would make a spike impossible, and the Poisson loss infinite.
LEAST_RATE = 1e-8


def rate_of(drive: Tensor, nonlinearity: Nonlinearity) -> Tensor:
    """Strictly positive rates of any drive: softplus, or ELU + 1."""
    if nonlinearity == "softplus":
        return F.softplus(drive) + LEAST_RATE
    # F.elu(x) + 1 would cancel to nothing from about −17 on.
    return torch.where(drive >= 0, drive + 1, drive.clamp(max=0).exp()) + LEAST_RATE


def drive_of(rate: Tensor, nonlinearity: Nonlinearity) -> Tensor:
    """The drive that gives a rate well above 0."""
    if nonlinearity == "softplus":
        return rate + torch.log(-torch.expm1(-rate))
    return torch.where(rate < 1, rate.log(), rate - 1)
