"""ViViT: video → tokens → one vector a clip (Arnab et al. 2021, arXiv 2103.15691).

- tubelet embedding, overlapping and causally padded where the config says so; uniform frames
- Model 1, joint: every token attends to every other
- Model 2, factorised encoder: a spatial transformer within each time step, a temporal one over them
- Model 3, factorised self-attention: space and time in turn in every block
- Model 4, factorised dot product: half of the heads over time, half over space
- learned, sinusoidal and rotary positions; class tokens; registers for each axis
- masks: only the visible tubelets are ever embedded
- gradient checkpointing, patch dropout, stochastic depth
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from ssl_vivit.encoders.adapt import (
    GEOMETRY,
    adapt,
    adapted_config,
    adapted_weights,
    warn_of_causality,
)
from ssl_vivit.encoders.config import ViViTConfig
from ssl_vivit.encoders.encoder_card import encoder_card
from ssl_vivit.encoders.named_sizes import named_config
from ssl_vivit.encoders.pooling import AttentionPooling, reduce_tokens
from ssl_vivit.encoders.positions import Places, Positions
from ssl_vivit.encoders.trunks.attention_window import KeyValueCache
from ssl_vivit.encoders.trunks.blocks import norm_layer
from ssl_vivit.encoders.trunks.factorized_dot_product import factorized_dot_product
from ssl_vivit.encoders.trunks.factorized_encoder import FactorizedEncoder
from ssl_vivit.encoders.trunks.factorized_self_attention import factorized_self_attention
from ssl_vivit.encoders.trunks.joint import Joint
from ssl_vivit.encoders.trunks.space_time import SpaceTimeTrunk
from ssl_vivit.encoders.tubelets import TubeletEmbedding
from ssl_vivit.errors import ExportError
from ssl_vivit.exported import precision
from ssl_vivit.exported.directory import (
    CONFIG,
    WEIGHTS,
    Format,
    built_from,
    check_blocks,
    read_config,
    read_shapes,
    write_directory,
)
from ssl_vivit.exported.hub import HubModel, locate
from ssl_vivit.grid import Grid
from ssl_vivit.preprocessing import Preprocessing

# A classifier is exported as its encoder with one more file.
HEAD = "classifier.safetensors"
ENCODER = Format(
    "exported encoder", "encoder", inside_runs=("encoder", "model/encoder"), files=(HEAD,)
)
# By this name timm's registry knows exported directories, of any size.
ARCHITECTURE = "vivit"


class EncoderOutput(NamedTuple):
    """Output of an encoder.

    Attributes:
        tokens: (b, t, n, d) patch tokens, or None where they were not asked for; (b, 1, k, d) of
            ``visible_tokens``.
        cls: (b, t, d) class token of each time step (or pooled frame vectors), (b, 1, d) the one
            of Model 1, or None.
        pooled: (b, d), one vector a clip.
        grid: token grid of the clip.
    """

    tokens: Tensor | None
    cls: Tensor | None
    pooled: Tensor
    grid: Grid

    @property
    def map(self) -> Float[Tensor, "b d t h w"]:
        """Tokens as a feature map (b, d, t, h, w).

        Raises:
            ValueError: if tokens were not asked for, or some positions are hidden.
        """
        if self.tokens is None:
            raise ValueError("there is no map without tokens; call encoder(video, tokens=True)")
        t, h, w = self.grid
        if self.tokens.shape[1:3] != (t, h * w):
            raise ValueError(
                f"{self.tokens.shape[1]}×{self.tokens.shape[2]} visible tokens do not fill a map "
                f"of {t}×{h}×{w}; encode without visible"
            )
        return rearrange(self.tokens, "b t (h w) d -> b d t h w", h=self.grid.h)


class Encoded(NamedTuple):
    """Tokens before pooling.

    Attributes:
        tokens: (b, t, n, d) patch tokens; n = 0 where they were not needed.
        cls: (b, t, d) as in :class:`EncoderOutput`.
        summary: (b, d), the vector that pooling takes where it does not go over patch tokens: of
            class tokens or frame vectors. None where it does.
        grid: token grid of the clip.
    """

    tokens: Tensor
    cls: Tensor | None
    summary: Tensor | None
    grid: Grid


class ViViT(nn.Module, HubModel):
    """A ViViT encoder; see :class:`ViViTConfig` for what it can be.

    Attributes:
        config: the architecture.
        preprocessing: :class:`~ssl_vivit.preprocessing.Preprocessing`, which turns uint8 frames into
            the encoder's video; None for a fresh encoder. A dictionary may be assigned.
        provenance: what is known of the run that made the weights (objective, data, steps,
            versions), or None.
    """

    export_format = ENCODER
    _no_split_modules = (
        "PreNormBlock",
        "ParallelBlock",
        "SpaceThenTimeBlock",
        "DotProductBlock",
        "ParallelSpaceTimeBlock",
    )

    def __init__(self, config: ViViTConfig) -> None:
        super().__init__()
        self.config = config
        self.preprocessing = None
        self.provenance: dict[str, Any] | None = None
        self.tubelets = TubeletEmbedding(config)
        self.positions = Positions(config)
        self.trunk: Joint | FactorizedEncoder | SpaceTimeTrunk
        if config.variant == "joint":
            self.trunk = Joint(config)
        elif config.variant == "factorized_encoder":
            self.trunk = FactorizedEncoder(config)
        elif config.variant == "factorized_self_attention":
            self.trunk = factorized_self_attention(config)
        else:
            self.trunk = factorized_dot_product(config)
        self.attention_pooling = AttentionPooling(config) if config.pooling == "attention" else None
        self.pooled_norm: nn.Module = nn.Identity()
        if config.final_norm == "pooled":
            self.pooled_norm = norm_layer(config, config.pooled_norm_eps)
        self.pools_patches = config.pooling not in ("cls_mean", "temporal_cls") and (
            config.frame_pooling == "none"
        )

    @property
    def preprocessing(self) -> Preprocessing | None:
        """Preprocessing of frames for this encoder; None for a fresh encoder."""
        return self._preprocessing

    @preprocessing.setter
    def preprocessing(self, settings: Mapping[str, Any] | None) -> None:
        self._preprocessing = Preprocessing.of(settings)

    @property
    def drops_patches(self) -> bool:
        """True if a forward pass now drops patches: in training, with patch dropout."""
        return self.training and self.config.patch_dropout > 0

    @property
    def embed_dim(self) -> int:
        """Width d of tokens and of the pooled vector."""
        return self.config.embed_dim

    def forward(
        self,
        video: Float[Tensor, "b c T H W"],
        visible: Int[Tensor, "b *t v"] | None = None,
        *,
        visible_tokens: Int[Tensor, "b k"] | None = None,
        tokens: bool = True,
        patch_draw: Float[Tensor, "b *t n"] | None = None,
    ) -> EncoderOutput:
        """Encode clips.

        Args:
            video: (B, C, T, H, W) floats, normalised as ``preprocessing`` says.
            visible: indices of the kept spatial positions: (b, v) at all times (a tube mask), or
                (b, t, v) at each time step, as many at each. Tokens come out in their order.
                Hidden tokens neither attend nor are attended to.
            visible_tokens: indices of the kept tokens among all t·h·w, in the order of time, row,
                column; Model 1 alone, which returns them as (b, 1, k, d).
            tokens: whether patch tokens are wanted. Without them Model 2 sends the class tokens
                alone through time, and the last (spatial) block of Models 1 and 2 computes the
                class query alone.
            patch_draw: random numbers that patch dropout chooses by, where there is any: (b, n), or
                of the shape of ``visible`` or ``visible_tokens``. The lowest are kept. None draws
                them from torch's generator.

        Returns:
            :class:`EncoderOutput` with tokens (b, t, n, d), cls (b, t, d) or None, pooled (b, d).

        Raises:
            ValueError: for video of another shape or geometry than the encoder takes, and for masks
                or random numbers that do not fit it.
        """
        self.check(video)
        self._check_visible(video, visible, visible_tokens)
        # torch takes uint8 indices for a boolean mask.
        visible = None if visible is None else visible.long()
        visible_tokens = None if visible_tokens is None else visible_tokens.long()
        kept = self.drop_patches(video, visible, visible_tokens, patch_draw)
        if kept is not None:
            visible, visible_tokens = kept.visible, kept.visible_tokens
        out = self.encode(video, visible, visible_tokens, tokens)
        pooled = self.pool(out.tokens, out.summary)
        patches = out.tokens if tokens else None
        if patches is not None and kept is not None:
            patches = kept.restore(patches)
        return EncoderOutput(patches, out.cls, pooled, out.grid)

    def encode(
        self,
        video: Float[Tensor, "b c T H W"],
        visible: Int[Tensor, "b *t v"] | None = None,
        visible_tokens: Int[Tensor, "b k"] | None = None,
        tokens: bool = True,
    ) -> Encoded:
        """The encoder without its pooling; arguments as in :meth:`forward`."""
        x, grid = self.tubelets(video, visible, visible_tokens)
        # Under autocast the embedding is in half precision; residuals add up in the weights' own,
        # also where no learned positions would have raised them.
        x = x.to(self.tubelets.weight.dtype)
        places = Places(grid, visible, visible_tokens)
        if places.varying is not None and self.trunk.attention_window is not None:
            raise ValueError(
                "visible differs from step to step, where no attention_window can be set; leave one out"
            )
        x = self.positions.add_spatial(x, places)
        patches = tokens or self.pools_patches
        if isinstance(self.trunk, FactorizedEncoder):
            rotations = self.positions.rotations(places, x)
            x, cls, last = self.trunk(x, places, self.positions, rotations, patches)
            return Encoded(x, cls, self._summary(cls, last), grid)
        x = self.positions.add_temporal(x, places)
        if isinstance(self.trunk, SpaceTimeTrunk):
            x = self.trunk(x, places, self.positions.rotations(places, x))
            return Encoded(x, None, None, grid)
        steps = x.shape[1]
        x, cls = self.trunk(
            rearrange(x, "b t n d -> b (t n) d"),
            self.positions,
            places.times(x.device),
            grid.t,
            self.positions.joint_rotation(places, x),
            class_only=not patches,
        )
        x = rearrange(x, "b (t n) d -> b t n d", t=steps)
        return Encoded(x, cls, self._summary(cls, None), grid)

    @torch.no_grad()
    def step(
        self, frames: Float[Tensor, "b c pt H W"], cache: KeyValueCache, blocks: Sequence[int]
    ) -> tuple[list[Float[Tensor, "b 1 n d"]], Grid]:
        """Encode the next time step of a video; :meth:`encode` gives the same tokens of the whole.

        Space is encoded within the step, and in time its tokens attend to the keys and values that
        the steps before it left in the cache. The encoder is causal and in eval mode.

        Args:
            frames: those that a tubelet spans, the newest last; zeros before the first frame.
            cache: of the steps before; a new one in the first step.
            blocks: numbers of the blocks whose tokens are wanted, rising; none after the last of
                them is computed.

        Returns:
            of each of these blocks the patch tokens, after the norm that follows the blocks; and
            the token grid of the step.

        Raises:
            ValueError: beyond the end of learned positions in time.
        """
        x, grid = self.tubelets.step(frames)
        x = x.to(self.tubelets.weight.dtype)
        places = Places(grid, start=cache.steps)
        x = self.positions.add_spatial(x, places)
        if isinstance(self.trunk, FactorizedEncoder):
            rotations = self.positions.rotations(places, x)
            tokens = self.trunk.step(x[:, 0], places, self.positions, rotations, cache)
        else:
            x = self.positions.add_temporal(x, places)
            if isinstance(self.trunk, SpaceTimeTrunk):
                tokens = self.trunk.step(x, self.positions.rotations(places, x), cache)
            else:
                rotation = self.positions.joint_rotation(places, x)
                tokens = self.trunk.step(x[:, 0], rotation, cache)
        found = [
            norm(each)[:, None]
            for number, (each, norm) in zip(range(blocks[-1] + 1), tokens, strict=False)
            if number in blocks
        ]
        cache.steps += 1
        return found, grid

    def pool(
        self, tokens: Float[Tensor, "b t n d"], summary: Float[Tensor, "b d"] | None
    ) -> Float[Tensor, "b d"]:
        """Pool the tokens of :meth:`encode` to one vector per clip."""
        if summary is None:
            summary = self._pooled(rearrange(tokens, "b t n d -> b (t n) d"))
        return self.pooled_norm(summary)

    def _summary(
        self, cls: Float[Tensor, "b t d"] | None, temporal_class: Float[Tensor, "b d"] | None
    ) -> Float[Tensor, "b d"] | None:
        if self.pools_patches:
            return None
        if self.config.pooling == "temporal_cls":
            return temporal_class
        assert cls is not None
        return cls.mean(1) if self.config.pooling == "cls_mean" else self._pooled(cls)

    def _pooled(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        if self.attention_pooling is not None:
            return self.attention_pooling(x)
        assert self.config.pooling is not None
        return reduce_tokens(x, self.config.pooling)

    def check(self, video: Tensor) -> None:
        """Refuse video that is not (B, C, T, H, W) floats of the configured channels."""
        if not isinstance(video, Tensor):
            raise ValueError(f"video is a {type(video).__name__}; give a tensor (B, C, T, H, W)")
        channels = self.config.in_channels
        if video.ndim != 5 or video.shape[1] != channels:
            mend = ""
            if video.ndim == 4 and video.shape[0] == channels:
                mend = "; a single clip is video[None]"
            elif video.ndim == 5 and video.shape[2] == channels:
                mend = "; frames before channels are put right by video.transpose(1, 2)"
            elif video.ndim == 5 and {video.shape[1], channels} == {1, 3}:
                mend = f"; load_encoder(…, in_channels={video.shape[1]}) makes an encoder for it"
            raise ValueError(
                f"video of shape {tuple(video.shape)} is not (B, C, T, H, W) with C = in_channels "
                f"= {channels}{mend}"
            )
        if not video.is_floating_point():
            raise ValueError(
                f"video is {video.dtype}; give floats, normalised as encoder.preprocessing says"
            )
        weights = self.tubelets.weight.dtype
        if video.dtype != weights and not torch.is_autocast_enabled(video.device.type):
            raise ValueError(
                f"video is {video.dtype} and the encoder {weights}; give video.to({weights})"
            )

    def _check_visible(
        self, video: Tensor, visible: Tensor | None, visible_tokens: Tensor | None
    ) -> None:
        if visible_tokens is not None and self.config.variant != "joint":
            raise ValueError(
                f"visible_tokens would break up the axes of {self.config.variant}; use visible, "
                "as many positions at every time step, or variant='joint'"
            )
        if visible is not None and visible_tokens is not None:
            raise ValueError("give visible or visible_tokens, not both")
        for name, index in (("visible", visible), ("visible_tokens", visible_tokens)):
            if index is None:
                continue
            if not isinstance(index, Tensor):
                raise ValueError(f"{name} is a {type(index).__name__}; give a tensor of indices")
            grid = self.config.grid_of(*video.shape[2:])
            shapes, allowed = [(2, 1)], "(B, kept)"
            if name == "visible":
                shapes, allowed = [(2, 1), (3, grid.t)], f"(B, kept) or (B, {grid.t}, kept)"
            fits = (index.ndim, index.shape[1] if index.ndim == 3 else 1) in shapes
            if not fits or len(index) != len(video) or index.is_floating_point():
                raise ValueError(
                    f"{name} of shape {tuple(index.shape)} and {index.dtype} must be whole-number "
                    f"indices {allowed} for {len(video)} clips"
                )
            if index.dtype == torch.bool:
                raise ValueError(f"{name} is a boolean mask; give the indices of what is visible")
            if index.shape[-1] == 0:
                raise ValueError(
                    f"{name} of shape {tuple(index.shape)} hides all; keep one or more"
                )
            # On a GPU this would wait for the device, and its own bounds check follows anyway.
            if index.device.type == "cpu" and index.numel() and not torch.compiler.is_compiling():
                count = grid.n if name == "visible" else grid.t * grid.n
                low, high = int(index.min()), int(index.max())
                if low < 0 or high >= count:
                    raise ValueError(
                        f"{name} holds indices from {low} to {high}; a clip of this size has 0 to "
                        f"{count - 1}"
                    )
                if (index.sort(dim=-1).values.diff(dim=-1) == 0).any():
                    raise ValueError(f"{name} holds an index twice; give each one once")

    def drop_patches(
        self,
        video: Tensor,
        visible: Tensor | None = None,
        visible_tokens: Tensor | None = None,
        patch_draw: Tensor | None = None,
    ) -> Kept | None:
        """In training, a random choice of what is visible to keep for each clip.

        Of tubes, of the positions of each time step where these differ, or of visible tokens.
        Arguments as in :meth:`forward`.
        """
        if not self.drops_patches:
            return None
        grid = self.config.grid_of(*video.shape[2:])
        given = visible if visible_tokens is None else visible_tokens
        shape = (len(video), grid.n) if given is None else given.shape
        total = shape[-1]
        keep = max(1, total - int(total * self.config.patch_dropout))
        if patch_draw is None:
            patch_draw = torch.rand(shape, device=video.device)
        elif patch_draw.shape != shape:
            raise ValueError(
                f"patch_draw of shape {tuple(patch_draw.shape)} is not {tuple(shape)}, one number "
                "for each patch that may be dropped"
            )
        slots = patch_draw.argsort(-1)[..., :keep].sort(-1).values
        index = slots if given is None else given.gather(-1, slots)
        if visible_tokens is None:
            return Kept(slots, total, index, None)
        return Kept(slots, total, None, index)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block's activations in the backward pass instead of keeping them."""
        self.trunk.grad_checkpointing = enable

    @contextmanager
    def attention_window(self, steps: int | None) -> Iterator[None]:
        """Context manager in which a token attends in time only to the last so many time steps.

        That is a band of attention in every layer that looks back in time. :meth:`step` gives the
        same tokens with a cache of that window.

        Args:
            steps: time steps, the token's own among them; None is all.

        Raises:
            ValueError: for an encoder that is not causal.
        """
        if steps is not None and not self.config.temporal_causal:
            raise ValueError("an attention_window needs temporal_causal=True")
        before, self.trunk.attention_window = self.trunk.attention_window, steps
        try:
            yield
        finally:
            self.trunk.attention_window = before

    def freeze_pooling(self) -> None:
        """Freeze the parameters that patch tokens do not depend on, where these alone are trained.

        Left trainable they would get no gradient, which DistributedDataParallel refuses, and weight
        decay all the same. They are those of pooling, and class tokens that no patch attends to.
        """
        for name, parameter in self.named_parameters():
            # Under a causal mask nothing attends to a class token that sees all frames.
            unseen = self.config.temporal_causal and (
                name == "trunk.temporal_class_token"
                or (self.config.variant == "joint" and name == "trunk.class_token")
            )
            if unseen or name.startswith(("attention_pooling.", "pooled_norm.")):
                parameter.requires_grad_(False)

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters without weight decay: positions, class tokens, registers."""
        tokens = ("class_token", "registers", "attention_pooling.query")
        return {
            name
            for name, _ in self.named_parameters()
            if name.startswith("positions.") or name.endswith(tokens)
        }

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Parameter names → depth, for timm's layer-wise learning rate decay.

        Args:
            coarse: timm's protocol: whole transformers in place of single blocks.
        """
        groups = self.trunk.group_matcher()
        if coarse:
            groups = {name: pattern.replace(r"\.(\d+)", r"\.") for name, pattern in groups.items()}
        return groups

    def adapted(self, **geometry: Any) -> ViViT:
        """A copy for clips of another geometry; see :func:`ssl_vivit.encoders.adapt.adapt`."""
        config = adapted_config(self.config, geometry)
        state, preprocessing = adapted_weights(
            self.state_dict(), self.preprocessing, self.config, config
        )
        with torch.device("meta"):
            copied = ViViT(config)
        copied.load_state_dict(state, assign=True)
        for name, parameter in self.named_parameters():
            copied.get_parameter(name).requires_grad_(parameter.requires_grad)
        copied.preprocessing = preprocessing
        copied.provenance = copy.deepcopy(self.provenance)
        warn_of_causality(self.config, config)
        return copied.train(self.training)

    def set_input_size(
        self,
        img_size: int | Sequence[int] | None = None,
        patch_size: int | Sequence[int] | None = None,
        **others: Any,
    ) -> None:
        """Fit this encoder to clips of another height and width, by :func:`adapt`.

        Parameters that keep their shape stay the objects that they are. Those that are resized are
        new ones, which an optimiser made before does not know.

        Args:
            img_size: (H, W) in pixels, or one number for a square; None keeps the size.
            patch_size: (h, w) of a tubelet, or one number for a square; None keeps the size.
            others: refused; timm's models with windows take more.

        Raises:
            ValueError: where tubelets do not fill clips of that size.
            TypeError: for other settings.
        """
        if others:
            raise TypeError(
                f"set_input_size takes img_size and patch_size, not {', '.join(others)}; other "
                "geometry is set by load_encoder(path, num_frames=…, tubelet_size=…) or adapt"
            )
        geometry: dict[str, Any] = {}
        if img_size is not None:
            geometry["image_size"] = img_size if isinstance(img_size, int) else tuple(img_size)
        if patch_size is not None:
            sides = (patch_size,) * 2 if isinstance(patch_size, int) else tuple(patch_size)
            geometry["tubelet_size"] = (self.config.tubelet_size[0], *sides)
        adapted = adapt(self, **geometry)
        for name, parameter in self.named_parameters():
            fitted = adapted.get_parameter(name)
            if fitted.shape == parameter.shape:
                with torch.no_grad():
                    parameter.copy_(fitted)
                module, _, attribute = name.rpartition(".")
                setattr(adapted.get_submodule(module), attribute, parameter)
        adapted.set_grad_checkpointing(self.trunk.grad_checkpointing)
        self.config, self.preprocessing = adapted.config, adapted.preprocessing
        for name, part in adapted.named_children():
            setattr(self, name, part)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        **overrides: Any,
    ) -> ViViT:
        """Rebuild an exported encoder from its directory or hub name alone, in eval mode.

        The encoder has the precision that it was saved with.

        Args:
            path: a directory written by :meth:`save_pretrained`, or ``"org/name"`` on the Hugging
                Face hub; an existing directory wins.
            revision: branch, tag or commit on the hub.
            token: for private models of the hub.
            overrides: settings of :class:`ViViTConfig` to change. Weights and positions are fitted
                to another geometry by :func:`ssl_vivit.encoders.adapt.adapt`; others must be
                settings that the weights do not depend on, such as ``drop_path``.

        Raises:
            FileNotFoundError: if there is no encoder at that path.
            ValueError: for unreadable or incomplete files, overrides that the weights do not fit,
                or a hub that cannot be reached or does not have it.
        """
        path = locate(path, ENCODER, revision=revision, token=token)
        return cls.from_saved(path, read_config(path, ENCODER), overrides)

    @classmethod
    def from_saved(
        cls, path: Path, saved: Mapping[str, Any], overrides: Mapping[str, Any]
    ) -> ViViT:
        """Rebuild an encoder whose config.json has been read; see :meth:`from_pretrained`."""
        geometry = {name: value for name, value in overrides.items() if name in GEOMETRY}
        others = {name: value for name, value in overrides.items() if name not in GEOMETRY}
        if not isinstance(saved["encoder"], dict):
            raise ExportError(f"{path / CONFIG} describes no encoder")
        try:
            ViViTConfig.from_dict(saved["encoder"])
        except ValueError as error:
            raise ExportError(f"{path / CONFIG}: {error}; export the encoder again") from None
        config = ViViTConfig.from_dict(saved["encoder"] | others)
        described = "encoder of config.json"
        if others:
            described = f"encoder with {', '.join(others)} overridden"
        check_blocks(_blocks(config), read_shapes(path / WEIGHTS), path / WEIGHTS, described)
        encoder = built_from(path / WEIGHTS, described, lambda: cls(config))
        known = [field.name for field in fields(Preprocessing)]
        given = saved.get("preprocessing")
        if isinstance(given, dict) and (unknown := sorted(given.keys() - set(known))):
            # Earlier versions saved any settings.
            warnings.warn(
                f"{path / CONFIG}: preprocessing {', '.join(unknown)} is not used", stacklevel=3
            )
            given = {name: value for name, value in given.items() if name in known}
        try:
            encoder.preprocessing = given
        except (TypeError, ValueError, AttributeError, ArithmeticError, LookupError) as error:
            raise ExportError(f"{path / CONFIG}: {error}") from None
        training = saved.get("training")
        encoder.provenance = training if isinstance(training, dict) else None
        if (dtype := precision.computing_precision(saved)) is not None:
            encoder.to(dtype)
        return adapt(encoder, **geometry) if geometry else encoder

    def save_pretrained(
        self,
        directory: str | Path,
        *,
        preprocessing: Mapping[str, Any] | None = None,
        card: Mapping[str, Any] | None = None,
        stored_dtype: torch.dtype | None = None,
    ) -> None:
        """Write the encoder to a directory that :meth:`from_pretrained` rebuilds it from.

        The directory appears whole or not at all. An older export of that name is replaced, other
        files in it stay; a directory that is no export is never touched.

        Args:
            directory: where to; parents are made.
            preprocessing: how frames become its video; None keeps the encoder's own.
            card: facts of the run that made the weights, name → value (objective, data, steps,
                versions): rows of the model card, and ``training`` in config.json, which becomes
                the loaded encoder's ``provenance``. Those of an earlier run, from which the
                encoder was loaded, are kept as its ``before``.
            stored_dtype: precision of the weights in the file, such as ``torch.float16`` for a
                file of half the size; None keeps the encoder's own. The loaded encoder computes in
                the precision of this one either way.

        Raises:
            ValueError: if something else stands there, nothing can be written there, or weights
                are too large for ``stored_dtype``.
        """
        prepared = Preprocessing.of(preprocessing) or self.preprocessing
        settings = self.saved_settings(prepared, card)
        weights = self.state_dict()
        if stored_dtype is not None:
            settings[precision.KEY] = precision.name_of(self.tubelets.weight.dtype)
            weights = precision.shortened(weights, stored_dtype)
        write_directory(
            directory,
            ENCODER,
            settings,
            {WEIGHTS: weights},
            encoder_card(self.config, prepared, card or self.provenance or {}),
        )

    def saved_settings(
        self, preprocessing: Preprocessing | None, card: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        """Settings that config.json of an export holds; see :meth:`save_pretrained`."""
        training = self.provenance
        if card:
            training = json.loads(json.dumps(card, default=str))  # values may be of any type
            if self.provenance is not None:
                training["before"] = self.provenance
        return {
            # What timm needs of a directory that local-dir: or hf-hub: names.
            "architecture": ARCHITECTURE,
            "pretrained_cfg": {},
            "encoder": self.config.to_dict(),
            "preprocessing": None if preprocessing is None else dict(preprocessing),
            "training": training,
        }


def _blocks(config: ViViTConfig) -> dict[str, int]:
    """Prefix of the names of a list of blocks → its length."""
    if config.variant == "factorized_encoder":
        assert config.spatial_depth is not None
        assert config.temporal_depth is not None
        return {
            "trunk.spatial_blocks.": config.spatial_depth,
            "trunk.temporal_blocks.": config.temporal_depth,
        }
    assert config.depth is not None
    return {"trunk.blocks.": config.depth}


class Kept(NamedTuple):
    """Tokens that patch dropout has kept: their slots among the requested ones, and the mask."""

    slots: Tensor
    total: int
    visible: Tensor | None
    visible_tokens: Tensor | None

    def restore(self, tokens: Float[Tensor, "b t k d"]) -> Float[Tensor, "b t n d"]:
        """Tokens back in their slots, zeros where some were dropped."""
        b, t, _, d = tokens.shape
        slots = self.slots if self.slots.ndim == 3 else self.slots[:, None]
        index = slots[..., None].expand(b, t, -1, d)
        return tokens.new_zeros(b, t, self.total, d).scatter(2, index, tokens)


def create_encoder(name: str, **overrides: Any) -> ViViT:
    """A fresh encoder of a named size.

    Args:
        name: a size, see :func:`ssl_vivit.encoders.named_sizes.named_config`.
        overrides: settings of :class:`ViViTConfig` to change.

    Raises:
        ValueError: for an unknown size or setting, or values that do not fit each other.
    """
    return ViViT(named_config(name, **overrides))


def load_encoder(path: str | Path, **options: Any) -> ViViT:
    """Rebuild an exported encoder; arguments and errors as of :meth:`ViViT.from_pretrained`."""
    return ViViT.from_pretrained(path, **options)


def save_pretrained(encoder: ViViT, directory: str | Path, **options: Any) -> None:
    """Export an encoder; arguments and errors as of :meth:`ViViT.save_pretrained`."""
    encoder.save_pretrained(directory, **options)
