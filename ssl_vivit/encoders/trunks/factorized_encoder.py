"""Model 2, factorised encoder: attention within each time step, then over time (Sec. 3.3)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from ssl_vivit.encoders.config import ViViTConfig
from ssl_vivit.encoders.pooling import reduce_tokens
from ssl_vivit.encoders.positions import Positions, Rotation, token_parameter
from ssl_vivit.encoders.trunks.attention_window import KeyValueCache, band
from ssl_vivit.encoders.trunks.blocks import (
    Mask,
    drop_path_rates,
    make_block,
    run_block,
    token_norm,
)
from ssl_vivit.encoders.trunks.time_sequences import TimeSequences
from ssl_vivit.encoders.visible_tokens import Places


class FactorizedOutput(NamedTuple):
    """Output of the transformers of Model 2.

    Attributes:
        patches: (b, t, n, d) after the temporal transformer; n = 0 if patches were not requested.
        frames: (b, t, d) class tokens or pooled frame vectors, or None if there are none.
        temporal_class: (b, d) class token of the temporal transformer over frame vectors, or None.
    """

    patches: Tensor
    frames: Tensor | None
    temporal_class: Tensor | None


class FactorizedEncoder(nn.Module):
    """Spatial transformer over [class, registers, patches], then a temporal one over time steps.

    The temporal transformer attends over [registers, time steps, temporal class] at every requested
    token position. Its class token is last, so that under a causal mask it attends to all frames
    and no frame attends to it.

    Attributes:
        attention_window: number of newest time steps that a token of a causal encoder attends to,
            including its own; None is all.
    """

    def __init__(self, config: ViViTConfig) -> None:
        super().__init__()
        assert config.spatial_depth is not None
        assert config.temporal_depth is not None
        self.config = config
        self.grad_checkpointing = False
        self.attention_window: int | None = None
        registers, width = config.register_tokens, config.embed_dim
        self.class_token = token_parameter(width, std=1e-6) if config.class_token else None
        self.temporal_class_token = (
            token_parameter(width, std=1e-6) if config.pooling == "temporal_cls" else None
        )
        self.spatial_registers = token_parameter(registers, width) if registers else None
        self.temporal_registers = (
            token_parameter(registers, width) if registers and config.temporal_depth else None
        )
        rates = drop_path_rates(config, config.spatial_depth + config.temporal_depth)
        blocks = [make_block(config, rate) for rate in rates]
        self.spatial_blocks = nn.ModuleList(blocks[: config.spatial_depth])
        self.spatial_norm = token_norm(config)
        self.temporal_blocks = nn.ModuleList(blocks[config.spatial_depth :])
        self.temporal_norm = token_norm(config) if config.temporal_depth else nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "b t n d"],
        places: Places,
        positions: Positions,
        rotations: tuple[Rotation | None, Rotation | None],
        tokens: bool,
    ) -> FactorizedOutput:
        """Apply the spatial transformer, then the temporal one to frame vectors and patches.

        A frame vector is the class token or the pooled patches of a time step.

        Args:
            x: embedded patches (b, t, n, d) with spatial positions added.
            places: token grid of the clip, and which tokens are kept.
            positions: position embedding, for class tokens and time steps.
            rotations: rotary embeddings of sequences over space and of sequences over time; each
                may be None.
            tokens: also apply the temporal transformer to patches. Without it the last spatial
                block computes only the class token.
        """
        config, batch = self.config, x.shape[0]
        class_only = bool(config.class_token) and not tokens
        x = rearrange(x, "b t n d -> (b t) n d")
        x = self._with_spatial_specials(x, positions)
        last = len(self.spatial_blocks) - 1
        for index, block in enumerate(self.spatial_blocks):
            queries = 1 if class_only and index == last else None
            x = run_block(block, self.grad_checkpointing, x, rotations[0], None, queries)
        x = self.spatial_norm(x)

        patches = x[:, config.register_tokens + int(bool(config.class_token)) :]
        frames = None
        if config.class_token:
            frames = x[:, :1]
        elif config.frame_pooling != "none":
            frames = reduce_tokens(patches, config.frame_pooling)[:, None]
        through_time = [part for part in (frames, patches if tokens else None) if part is not None]
        x = rearrange(torch.cat(through_time, dim=1), "(b t) m d -> b t m d", b=batch)
        # Every time step has a frame vector, even if patches are hidden.
        in_time = places if tokens else Places(places.grid)
        x, temporal_class = self._through_time(x, in_time, positions, rotations[1])
        if frames is None:
            return FactorizedOutput(x, None, None)
        return FactorizedOutput(x[:, :, 1:], x[:, :, 0], temporal_class)

    def step(
        self,
        x: Float[Tensor, "b n d"],
        places: Places,
        positions: Positions,
        rotations: tuple[Rotation | None, Rotation | None],
        cache: KeyValueCache,
    ) -> Iterator[tuple[Float[Tensor, "b n d"], nn.Module]]:
        """Encode the patches of the next time step of a causal encoder.

        The patches equal those of :meth:`forward` on the whole clip. Frame vectors are not passed
        to the temporal transformer, since no patch attends to them.

        Args:
            x: embedded patches (b, n, d) of the step with spatial positions added.
            places: token grid of the step, and the index of the step.
            positions: position embedding, for class tokens and time steps.
            rotations: rotary embeddings of the sequence over space and of the sequence [registers,
                step, temporal class]; each may be None.
            cache: keys and values of the earlier steps.

        Yields:
            For each block the patches after it (b, n, d), and the norm that follows its
            transformer. The norm has not been applied to the patches.
        """
        batch, n, _ = x.shape
        x = self._with_spatial_specials(x, positions)
        for block in self.spatial_blocks:
            x = block(x, rotations[0])
            yield x[:, -n:], self.spatial_norm
        if not self.temporal_blocks:
            return
        x = self.spatial_norm(x[:, -n:])
        x = rearrange(positions.add_temporal(x[:, None], places), "b 1 n d -> (b n) 1 d")
        before, rotation = self.config.register_tokens, rotations[1]
        if rotation is not None:
            rotation = rotation.of_tokens(slice(before if cache.steps else 0, before + 1))
        if self.temporal_registers is not None and not cache.steps:
            x = torch.cat((repeat(self.temporal_registers, "r d -> b r d", b=len(x)), x), dim=1)
            cache.begin(before, "causal")
        for block in self.temporal_blocks:
            x = block(x, rotation, cache)
            yield rearrange(x[:, -1], "(b n) d -> b n d", b=batch), self.temporal_norm

    def _with_spatial_specials(
        self, x: Float[Tensor, "b n d"], positions: Positions
    ) -> Float[Tensor, "b m d"]:
        """Return [class, registers, patches]; add positions only to the class token."""
        specials = []
        if self.class_token is not None:
            place = positions.of_class_token()
            token = self.class_token if place is None else self.class_token + place
            specials.append(token[None])
        if self.spatial_registers is not None:
            specials.append(self.spatial_registers)
        if not specials:
            return x
        special = repeat(torch.cat(specials), "r d -> b r d", b=x.shape[0])
        return torch.cat((special, x), dim=1)

    def _through_time(
        self,
        x: Float[Tensor, "b t m d"],
        places: Places,
        positions: Positions,
        time_rotation: Rotation | None,
    ) -> tuple[Float[Tensor, "b t m d"], Float[Tensor, "b d"] | None]:
        """Apply the temporal transformer to the m sequences over time in ``x`` (b, t, m, d).

        There is one sequence for each token position. If the visible positions differ between time
        steps, registers and class tokens are added at all positions of the grid.

        Returns:
            The tokens (b, t, m, d), and the temporal class token (b, d) of the first sequence, or
            None if there is none.
        """
        if not self.temporal_blocks:
            return x, None
        b, t, m, _ = x.shape
        before, after = self.config.register_tokens, int(self.temporal_class_token is not None)
        mask: Mask = "causal" if self.config.temporal_causal else None
        if self.attention_window is not None:
            mask = band(
                t, self.attention_window, registers=before, class_tokens=after, device=x.device
            )
        count = m  # number of sequences per clip
        varying = places.varying
        if varying is not None:
            # Frame vectors, if there are any, are position 0 of every time step.
            framed = m - varying.shape[2]
            count = framed + places.grid.n
            mask = TimeSequences.of(
                F.pad(varying + framed, (framed, 0)),
                count, before=before, after=after, causal=self.config.temporal_causal,
            )  # fmt: skip
        parts = [positions.add_temporal(x, places)]
        if self.temporal_registers is not None:
            parts.insert(0, repeat(self.temporal_registers, "r d -> b r p d", b=b, p=count))
        if self.temporal_class_token is not None:
            place = positions.of_temporal_class_token()
            token: Tensor = self.temporal_class_token
            token = token if place is None else token + place
            parts.append(repeat(token, "d -> b 1 p d", b=b, p=count))
        if varying is None:
            x = rearrange(torch.cat(parts, dim=1), "b s m d -> (b m) s d")
        else:
            x = torch.cat([part.flatten(1, 2) for part in parts], dim=1)
        for block in self.temporal_blocks:
            x = run_block(block, self.grad_checkpointing, x, time_rotation, mask)
        x = self.temporal_norm(x)
        if varying is None:
            x = rearrange(x, "(b m) s d -> b s m d", b=b)
            return x[:, before : before + t], x[:, -1, 0] if after else None
        patches = x[:, before * count : before * count + t * m].unflatten(1, (t, m))
        return patches, x[:, -count] if after else None

    def group_matcher(self) -> dict[str, str]:
        """Return a regular expression of parameter names for each layer group, ordered by depth."""
        between = (
            r"^trunk\.(?:spatial_norm|temporal_class_token|temporal_registers)|^positions\.temporal"
        )
        return {
            "stem": r"^(?:tubelets|positions\.(?:spatial|joint)|trunk\.(?:class_token|spatial_registers))",
            "spatial_blocks": r"^trunk\.spatial_blocks\.(\d+)",
            "between": between,
            "temporal_blocks": r"^trunk\.temporal_blocks\.(\d+)",
            "norm": r"^trunk\.temporal_norm",
        }
