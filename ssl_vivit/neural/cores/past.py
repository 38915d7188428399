"""State of a stream: what a causal model stores of earlier frames."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


class Past:
    """State of a causal model between the frames of a stream; every module keeps its own part.

    Args:
        window: time steps of tokens that attention looks back, the newest among them; None is all.

    Attributes:
        frames: recorded frames that were seen.
        kept: what modules keep, by the module or by a key that has it in front.
    """

    def __init__(self, window: int | None = None) -> None:
        self.window, self.frames = window, 0
        self.kept: dict[Hashable, Any] = {}


def after_past(
    x: Float[Tensor, "b c t *place"], frames: int, owner: Hashable, past: Past | None
) -> Float[Tensor, "b c frames_t *place"]:
    """Prepend earlier frames to a signal, as a causal convolution needs.

    Args:
        x: the signal.
        frames: how many to put in front.
        owner: key in the past of what was seen of this signal.
        past: has the frames before, and keeps the last ones of this signal in their place. Without
            it, and before the first frame, zeros stand in front.
    """
    if not frames:
        return x
    before = None if past is None else past.kept.get(owner)
    if before is None:
        x = F.pad(x, (0, 0) * (x.ndim - 3) + (frames, 0))
    else:
        x = torch.cat((before, x), dim=2)
    if past is not None:
        past.kept[owner] = x[:, :, -frames:]
    return x
