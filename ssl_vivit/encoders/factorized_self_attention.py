"""Model 3, factorised self-attention: space and time in turn in every block (Sec. 3.3)."""

from __future__ import annotations

from einops import repeat
from jaxtyping import Float
from torch import Tensor, nn

from ssl_vivit.encoders.blocks import SpaceTimeBlock, drop_path_rates, run_block, token_norm
from ssl_vivit.encoders.config import ViViTConfig
from ssl_vivit.encoders.positions import Rotation, token_parameter


class FactorizedSelfAttention(nn.Module):
    """Blocks of spatial and temporal attention over all tokens; no class token."""

    def __init__(self, config: ViViTConfig) -> None:
        super().__init__()
        assert config.depth is not None
        self.grad_checkpointing = False
        registers, width = config.register_tokens, config.embed_dim
        self.spatial_registers = token_parameter(registers, width) if registers else None
        self.temporal_registers = token_parameter(registers, width) if registers else None
        rates = drop_path_rates(config, config.depth)
        self.blocks = nn.ModuleList(SpaceTimeBlock(config, rate) for rate in rates)
        self.norm = token_norm(config)

    def forward(
        self,
        x: Float[Tensor, "b t n d"],
        rotations: tuple[Rotation | None, Rotation | None],
    ) -> Float[Tensor, "b t n d"]:
        """Send patch tokens, with all their positions, through the blocks."""
        b, t, n, d = x.shape
        if self.spatial_registers is None or self.temporal_registers is None:
            spatial, temporal = x.new_zeros(b, t, 0, d), x.new_zeros(b, 0, n, d)
        else:
            spatial = repeat(self.spatial_registers, "r d -> b t r d", b=b, t=t)
            temporal = repeat(self.temporal_registers, "r d -> b r n d", b=b, n=n)
        for block in self.blocks:
            x, spatial, temporal = run_block(
                block, self.grad_checkpointing, x, spatial, temporal, *rotations
            )
        return self.norm(x)

    def group_matcher(self) -> dict[str, str]:
        """Parameter names → depth, in the order of the computation."""
        return {
            "stem": r"^(?:tubelets|positions|trunk\.\w+_registers)",
            "blocks": r"^trunk\.blocks\.(\d+)",
            "norm": r"^trunk\.norm",
        }
