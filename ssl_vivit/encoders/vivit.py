"""ViViT: video → tokens → one vector per clip (Arnab et al. 2021, arXiv 2103.15691).

- tubelet embedding, optionally overlapping or causally padded; uniform frame sampling
- Model 1, joint: every token attends to all tokens
- Model 2, factorised encoder: a spatial transformer within each time step, then a temporal one
- Model 3, factorised self-attention: each block attends over space, then over time
- Model 4, factorised dot product: half of the heads attend over time, half over space
- learned, sinusoidal and rotary positions; class tokens; registers for each axis
- masks: only visible tubelets are embedded
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
from ssl_vivit.encoders.positions import Positions
from ssl_vivit.encoders.trunks.attention_window import KeyValueCache
from ssl_vivit.encoders.trunks.blocks import norm_layer
from ssl_vivit.encoders.trunks.factorized_dot_product import factorized_dot_product
from ssl_vivit.encoders.trunks.factorized_encoder import FactorizedEncoder
from ssl_vivit.encoders.trunks.factorized_self_attention import factorized_self_attention
from ssl_vivit.encoders.trunks.joint import Joint
from ssl_vivit.encoders.trunks.space_time import SpaceTimeTrunk
from ssl_vivit.encoders.tubelets import TubeletEmbedding
from ssl_vivit.encoders.visible_tokens import Kept, Places, check_visible, drop_patches
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

# An exported classifier has this file in addition to the files of its encoder.
HEAD = "classifier.safetensors"
ENCODER = Format(
    "exported encoder", "encoder", inside_runs=("encoder", "model/encoder"), files=(HEAD,)
)
# Name of exported directories of any size in timm's registry.
ARCHITECTURE = "vivit"


class EncoderOutput(NamedTuple):
    """Output of an encoder.

    Attributes:
        tokens: patch tokens (b, t, n, d), with ``visible_tokens`` (b, 1, k, d); None if they were
            not requested.
        cls: class token or pooled frame vector of each time step (b, t, d); class token of Model 1
            (b, 1, d); else None.
        pooled: one vector per clip, (b, d).
        grid: token grid of the clip.
    """

    tokens: Tensor | None
    cls: Tensor | None
    pooled: Tensor
    grid: Grid

    @property
    def map(self) -> Float[Tensor, "b d t h w"]:
        """Return the tokens as a feature map (b, d, t, h, w).

        Raises:
            ValueError: if tokens were not requested, or some positions are hidden.
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
        tokens: patch tokens (b, t, n, d); n = 0 if they were not requested.
        cls: class tokens or frame vectors, as in :class:`EncoderOutput`.
        summary: vector (b, d) pooled from class tokens or frame vectors; None if the encoder pools
            patch tokens.
        grid: token grid of the clip.
    """

    tokens: Tensor
    cls: Tensor | None
    summary: Tensor | None
    grid: Grid


class ViViT(nn.Module, HubModel):
    """A ViViT encoder; :class:`ViViTConfig` describes its settings.

    Attributes:
        config: the architecture.
        preprocessing: :class:`~ssl_vivit.preprocessing.Preprocessing` that converts uint8 frames to
            the encoder's input; None for a new encoder. A dictionary may be assigned.
        provenance: facts about the run that made the weights (objective, data, steps, versions), or
            None.
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
        """Preprocessing of frames for this encoder; None for a new encoder."""
        return self._preprocessing

    @preprocessing.setter
    def preprocessing(self, settings: Mapping[str, Any] | None) -> None:
        self._preprocessing = Preprocessing.of(settings)

    @property
    def drops_patches(self) -> bool:
        """True if the forward pass drops patches: in training mode with patch_dropout above 0."""
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
            video: (B, C, T, H, W) floats, normalised by ``preprocessing``.
            visible: indices of the kept spatial positions: (b, v) for all time steps (a tube mask),
                or (b, t, v) for each time step. Tokens are returned in this order. Hidden tokens
                neither attend nor are attended to.
            visible_tokens: indices of the kept tokens among all t·h·w, in the order of time, row,
                column; only for Model 1. Tokens are returned as (b, 1, k, d).
            tokens: return patch tokens. Without them Model 2 applies the temporal transformer only
                to class tokens, and the last (spatial) block of Models 1 and 2 computes only the
                class token.
            patch_draw: random numbers for patch dropout, (b, n) or of the shape of ``visible`` or
                ``visible_tokens``; patches with the lowest numbers are kept. None draws them from
                torch's generator.

        Returns:
            :class:`EncoderOutput` with tokens (b, t, n, d), cls (b, t, d) or None, pooled (b, d).

        Raises:
            ValueError: if the shape or geometry of the video does not fit the encoder, or masks or
                random numbers do not fit the video.
        """
        self.check(video)
        check_visible(self.config, video, visible, visible_tokens)
        # torch would interpret uint8 indices as a boolean mask.
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
        """Encode clips without pooling; arguments as in :meth:`forward`."""
        x, grid = self.tubelets(video, visible, visible_tokens)
        # Under autocast the embedding is in half precision. The residual stream must be in the
        # precision of the weights, also without learned positions, which would convert it.
        x = x.to(self.tubelets.weight.dtype)
        places = Places(grid, visible, visible_tokens)
        if places.varying is not None and self.trunk.attention_window is not None:
            raise ValueError(
                "visible of shape (B, t, kept) cannot be used with attention_window; omit one of "
                "these"
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
        """Encode the next time step of a video.

        The tokens equal those of :meth:`encode` for the whole video. Attention over time uses the
        keys and values of earlier steps in the cache. The encoder must be causal and in eval mode.

        Args:
            frames: the frames of the step's tubelets, oldest first; zeros stand for frames before
                the start of the video.
            cache: keys and values of earlier steps; a new cache for the first step.
            blocks: sorted indices of the blocks whose tokens are returned; no block after the last
                of them is computed.

        Returns:
            The list of patch tokens (b, 1, n, d) of these blocks, after the norm that follows the
            transformer; and the token grid (1, h, w) of the step.

        Raises:
            ValueError: if the step is beyond the end of learned positions in time.
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
        """Pool the patch tokens of :meth:`encode` to one vector per clip.

        Args:
            tokens: patch tokens (b, t, n, d); not used if there is a summary.
            summary: vector (b, d) pooled from class tokens or frame vectors, or None.
        """
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
        """Raise ValueError unless video is (B, C, T, H, W) floats with the configured channels."""
        if not isinstance(video, Tensor):
            raise ValueError(f"video is a {type(video).__name__}; give a tensor (B, C, T, H, W)")
        channels = self.config.in_channels
        if video.ndim != 5 or video.shape[1] != channels:
            mend = ""
            if video.ndim == 4 and video.shape[0] == channels:
                mend = "; for a single clip pass video[None]"
            elif video.ndim == 5 and video.shape[2] == channels:
                mend = "; if frames come before channels, pass video.transpose(1, 2)"
            elif video.ndim == 5 and {video.shape[1], channels} == {1, 3}:
                mend = f"; for this video use load_encoder(…, in_channels={video.shape[1]})"
            raise ValueError(
                f"video of shape {tuple(video.shape)} is not (B, C, T, H, W) with C = in_channels "
                f"= {channels}{mend}"
            )
        if not video.is_floating_point():
            raise ValueError(
                f"video is {video.dtype}; give floats, normalised by encoder.preprocessing"
            )
        weights = self.tubelets.weight.dtype
        if video.dtype != weights and not torch.is_autocast_enabled(video.device.type):
            raise ValueError(
                f"video is {video.dtype} and the encoder {weights}; pass video.to({weights})"
            )

    def drop_patches(
        self,
        video: Tensor,
        visible: Tensor | None = None,
        visible_tokens: Tensor | None = None,
        patch_draw: Tensor | None = None,
    ) -> Kept | None:
        """Draw the patches of each clip that patch dropout keeps; None if it is not active.

        Patches are drawn from all spatial positions, or from ``visible`` or ``visible_tokens`` if
        given. Arguments as in :meth:`forward`.
        """
        if not self.drops_patches:
            return None
        grid, rate = self.config.grid_of(*video.shape[2:]), self.config.patch_dropout
        return drop_patches(grid, rate, video, visible, visible_tokens, patch_draw)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block's activations in the backward pass instead of keeping them."""
        self.trunk.grad_checkpointing = enable

    @contextmanager
    def attention_window(self, steps: int | None) -> Iterator[None]:
        """Context manager that limits attention over time to the last ``steps`` time steps.

        The limit applies to patch tokens and frame vectors in every layer with attention over time;
        class tokens of the clip attend to all time steps. :meth:`step` returns equal tokens
        with a cache of that window.

        Args:
            steps: number of time steps, including the token's own; None is all.

        Raises:
            ValueError: if the encoder is not causal.
        """
        if steps is not None and not self.config.temporal_causal:
            raise ValueError("attention_window needs an encoder with temporal_causal=True")
        before, self.trunk.attention_window = self.trunk.attention_window, steps
        try:
            yield
        finally:
            self.trunk.attention_window = before

    def freeze_pooling(self) -> None:
        """Freeze the parameters that do not affect patch tokens, for training on patch tokens.

        These are the parameters of pooling, and class tokens that no patch attends to. A trainable
        parameter without a gradient would raise an error in DistributedDataParallel, and weight
        decay would still change it.
        """
        for name, parameter in self.named_parameters():
            # Under a causal mask no token attends to a class token that attends to all frames.
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
        """Return patterns that map parameter names to depths, for timm's layer-wise learning-rate decay.

        Args:
            coarse: group whole transformers instead of single blocks.
        """
        groups = self.trunk.group_matcher()
        if coarse:
            groups = {name: pattern.replace(r"\.(\d+)", r"\.") for name, pattern in groups.items()}
        return groups

    def adapted(self, **geometry: Any) -> ViViT:
        """Copy the encoder for another geometry; see :func:`ssl_vivit.encoders.adapt.adapt`."""
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
        """Adapt this encoder in place to clips of another height and width, by :func:`adapt`.

        Resized parameters are new objects, so an existing optimiser does not update them. Other
        parameters stay the same objects.

        Args:
            img_size: (H, W) in pixels, or an int for both; None keeps the size.
            patch_size: (h, w) of a tubelet, or an int for both; None keeps the size.
            others: further settings of timm's method, which raise TypeError here.

        Raises:
            ValueError: if tubelets do not fill clips of that size.
            TypeError: for other settings.
        """
        if others:
            raise TypeError(
                f"set_input_size takes img_size and patch_size, not {', '.join(others)}; set "
                "other geometry by load_encoder(path, num_frames=…, tubelet_size=…) or adapt"
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
        """Load an exported encoder from its directory or hub name, in eval mode.

        The loaded encoder has the precision of the saved encoder.

        Args:
            path: a directory written by :meth:`save_pretrained`, or ``"org/name"`` on the Hugging
                Face hub; an existing directory is preferred.
            revision: branch, tag or commit on the hub.
            token: access token for private models of the hub.
            overrides: settings of :class:`ViViTConfig` to change. For another geometry, weights and
                positions are adapted by :func:`ssl_vivit.encoders.adapt.adapt`. Any other
                setting must keep the names and shapes of weights, as ``drop_path`` does.

        Raises:
            FileNotFoundError: if there is no encoder at that path.
            ValueError: if files are unreadable or incomplete, the weights do not fit the overrides,
                or the hub cannot be reached or does not have the model.
        """
        path = locate(path, ENCODER, revision=revision, token=token)
        return cls.from_saved(path, read_config(path, ENCODER), overrides)

    @classmethod
    def from_saved(
        cls, path: Path, saved: Mapping[str, Any], overrides: Mapping[str, Any]
    ) -> ViViT:
        """Load an encoder whose config.json has been read; see :meth:`from_pretrained`."""
        geometry = {name: value for name, value in overrides.items() if name in GEOMETRY}
        others = {name: value for name, value in overrides.items() if name not in GEOMETRY}
        if not isinstance(saved["encoder"], dict):
            raise ExportError(f"{path / CONFIG} describes no encoder; export the encoder again")
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
            # Earlier versions saved settings without checking them.
            warnings.warn(
                f"{path / CONFIG}: preprocessing setting {', '.join(unknown)} is unknown and "
                "ignored",
                stacklevel=3,
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
        """Write the encoder to a directory, which :meth:`from_pretrained` loads.

        The directory is written atomically. An older export in it is replaced; other files in it
        stay. A directory that is not an export is refused.

        Args:
            directory: the directory; missing parents are created.
            preprocessing: preprocessing to save; None saves the encoder's own.
            card: facts about the run that made the weights, as a mapping from name to value
                (objective, data, number of training steps, versions). They are written to the model
                card and to config.json, as ``training``. The loaded encoder has them as its
                ``provenance``. If this encoder has a ``provenance`` itself, it is saved in
                ``training`` as ``before``.
            stored_dtype: precision of the weights in the file, such as ``torch.float16`` for a file
                of half the size; None is the precision of this encoder. The loaded encoder always
                computes in the precision of this encoder.

        Raises:
            ValueError: if the directory is not an export or cannot be written, or if weights are
                too large for ``stored_dtype``.
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
        """Return the settings for the config.json of an export; see :meth:`save_pretrained`."""
        training = self.provenance
        if card:
            training = json.loads(json.dumps(card, default=str))  # values may be of any type
            if self.provenance is not None:
                training["before"] = self.provenance
        return {
            # Entries that timm needs to load the directory by local-dir: or hf-hub:.
            "architecture": ARCHITECTURE,
            "pretrained_cfg": {},
            "encoder": self.config.to_dict(),
            "preprocessing": None if preprocessing is None else dict(preprocessing),
            "training": training,
        }


def _blocks(config: ViViTConfig) -> dict[str, int]:
    """Return the number of blocks in each transformer, keyed by prefix of parameter names."""
    if config.variant == "factorized_encoder":
        assert config.spatial_depth is not None
        assert config.temporal_depth is not None
        return {
            "trunk.spatial_blocks.": config.spatial_depth,
            "trunk.temporal_blocks.": config.temporal_depth,
        }
    assert config.depth is not None
    return {"trunk.blocks.": config.depth}


def create_encoder(name: str, **overrides: Any) -> ViViT:
    """Make a randomly initialised encoder of a named size.

    Args:
        name: a size, see :func:`ssl_vivit.encoders.named_sizes.named_config`.
        overrides: settings of :class:`ViViTConfig` to change.

    Raises:
        ValueError: for an unknown size or setting, or values that do not fit each other.
    """
    return ViViT(named_config(name, **overrides))


def load_encoder(path: str | Path, **options: Any) -> ViViT:
    """Load an exported encoder; arguments and errors as in :meth:`ViViT.from_pretrained`."""
    return ViViT.from_pretrained(path, **options)


def save_pretrained(encoder: ViViT, directory: str | Path, **options: Any) -> None:
    """Export an encoder; arguments and errors as in :meth:`ViViT.save_pretrained`."""
    encoder.save_pretrained(directory, **options)
