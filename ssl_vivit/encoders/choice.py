"""An encoder as a setting of a recipe: a named size and what differs from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ssl_vivit.encoders.config import ViViTConfig
from ssl_vivit.encoders.named_sizes import named_config


@dataclass
class EncoderChoice:
    """Which encoder is trained.

    Args:
        name: a named size: vivit_tiny, vivit_small, vivit_base, vivit_large, vivit_base_16x2,
            vivit_large_16x2, vivit_neural_small or vivit_neural_baseline.
        overrides: settings of ViViTConfig that differ from the size's own, such as
            ``variant factorized_self_attention`` or ``image_size [128, 192]``.
        grad_checkpointing: recompute activations in the backward pass: less memory, more time.
    """

    name: str = "vivit_small"
    overrides: dict[str, Any] = field(default_factory=dict)
    grad_checkpointing: bool = False

    def config(self) -> ViViTConfig:
        """The architecture.

        Raises:
            ValueError: for an unknown size or setting, or values that do not fit each other.
        """
        return named_config(self.name, **self.overrides)
