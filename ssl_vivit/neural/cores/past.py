"""State that a causal model stores between the frames of a stream."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


class Past:
    """State of a causal model between the frames of a stream; each module stores its own part.

    Args:
        window: number of time steps that attention sees, including the newest. None means all.

    Attributes:
        frames: number of recorded frames so far.
        kept: state of each module. The key is the module, or a tuple that starts with it.
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
        frames: number of frames to prepend.
        owner: key in ``past.kept`` for the last frames of this signal.
        past: state that provides the earlier frames and then stores the last frames of this signal.
            If it is None, or has no earlier frames, zeros are prepended.

    Returns:
        The signal with ``frames`` more frames in front.
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
