"""An encoder with a classification head and the methods of timm's models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ssl_vivit.encoders.encoder_card import encoder_card
from ssl_vivit.encoders.intermediates import block_names, encode_with_blocks
from ssl_vivit.encoders.vivit import ENCODER, HEAD, Encoded, ViViT
from ssl_vivit.errors import ExportError
from ssl_vivit.exported.directory import (
    CONFIG,
    WEIGHTS,
    Shapes,
    built_from,
    check_shapes,
    read_config,
    read_shapes,
    write_directory,
)
from ssl_vivit.exported.hub import HubModel, locate
from ssl_vivit.preprocessing import Preprocessing

# timm's names of poolings → names in ViViTConfig.
TIMM_POOLINGS = {"avg": "mean", "token": "cls_mean", "map": "attention"}

Map = Float[Tensor, "b d t h w"]


class VideoClassifier(nn.Module, HubModel):
    """Video → logits: encoder, an optional tanh representation layer, a linear head.

    It has the methods of timm's models, so that it works with timm's optimisers, layer decay and
    feature extraction.

    Args:
        encoder: the encoder, whose pooled vector is classified.
        num_classes: number of classes; with 0 the model returns the features before the head.
        representation_size: width of a layer with tanh between the pooled vector and the head
            (Dosovitskiy et al. 2021, Sec. 3.1); None omits the layer.
        drop_rate: dropout before the head.

    Attributes:
        num_features: width of the tokens that :meth:`forward_features` returns.
        head_hidden_size: width of the head's input.
        num_prefix_tokens: 1 if :meth:`forward_features` returns a summary before the patch tokens,
            as it does if the encoder pools class tokens or frame vectors; else 0.

    Raises:
        ValueError: if num_classes is negative or representation_size is below 1.
    """

    export_format = ENCODER

    def __init__(
        self,
        encoder: ViViT,
        num_classes: int,
        representation_size: int | None = None,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if representation_size is not None and representation_size < 1:
            raise ValueError(
                f"representation_size {representation_size} must be at least 1, or None for no "
                "representation layer"
            )
        self.encoder = encoder
        self.num_features = encoder.embed_dim
        self.head_hidden_size = representation_size or encoder.embed_dim
        self.num_prefix_tokens = 0 if encoder.pools_patches else 1
        self.representation = (
            None
            if representation_size is None
            else nn.Linear(encoder.embed_dim, representation_size)
        )
        self.head_drop = nn.Dropout(drop_rate)
        self.head: nn.Module = nn.Identity()
        self.reset_classifier(num_classes)

    def forward(self, video: Float[Tensor, "b c T H W"]) -> Float[Tensor, "b classes"]:
        """Return logits, or the features before the head if there are no classes.

        Patch tokens are not computed if pooling does not need them.
        """
        return self._head(self.encoder(video, tokens=False).pooled)

    def forward_features(self, video: Float[Tensor, "b c T H W"]) -> Float[Tensor, "b l d"]:
        """Return the tokens before pooling.

        Args:
            video: (B, C, T, H, W) floats, normalised by ``encoder.preprocessing``.

        Returns:
            Tokens (b, num_prefix_tokens + t·n, d): the summary, if ``num_prefix_tokens`` is 1, and
            the patch tokens in the order of time, row, column. Patches that patch dropout removes
            in training are left out.
        """
        self.encoder.check(video)
        kept = self.encoder.drop_patches(video)
        return _token_sequence(self.encoder.encode(video, None if kept is None else kept.visible))

    def forward_head(
        self, features: Float[Tensor, "b l d"], pre_logits: bool = False
    ) -> Float[Tensor, "b classes"]:
        """Return the logits of :meth:`forward` for the tokens of :meth:`forward_features`.

        Args:
            features: (b, num_prefix_tokens + t·n, d).
            pre_logits: return the input of the head instead, (b, head_hidden_size).
        """
        summary = features[:, 0] if self.num_prefix_tokens else None
        tokens = rearrange(features[:, self.num_prefix_tokens :], "b l d -> b 1 l d")
        return self._head(self.encoder.pool(tokens, summary), pre_logits)

    def _head(self, pooled: Float[Tensor, "b d"], pre_logits: bool = False) -> Tensor:
        if self.representation is not None:
            pooled = self.representation(pooled).tanh()
        pooled = self.head_drop(pooled)
        return pooled if pre_logits else self.head(pooled)

    def forward_intermediates(
        self,
        video: Float[Tensor, "b c T H W"],
        indices: int | Sequence[int] | None = None,
        *,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCTHW",
        intermediates_only: bool = False,
    ) -> list[Map] | list[tuple[Map, Tensor]] | tuple[Tensor, list[Any]]:
        """Return the patch tokens after each requested block of the encoder.

        Args:
            video: (B, C, T, H, W).
            indices: blocks to return: an int n for the last n, a sequence of indices (negative ones
                count from the end), or None for all. As in timm, the features are in the order of
                computation; in Model 2 the spatial blocks come first.
            return_prefix_tokens: if the encoder has class tokens, return pairs (features, class
                tokens), with class tokens (b, t, d) in Model 2 and (b, 1, d) in Model 1.
            norm: apply the norm that follows the transformer to the features of each block.
            stop_early: compute no block after the last requested one. Requires intermediates_only
                unless the last block of the encoder is requested.
            output_fmt: ``NCTHW`` (or timm's ``NCHW``) for maps (b, d, t, h, w); ``NLC`` for (b,
                t·n, d).
            intermediates_only: do not return the final features.

        Returns:
            With ``intermediates_only`` the list of features, one entry for each block. Else the
            pair (output of :meth:`forward_features`, list of features). In the list, patches
            dropped in training are zeros.

        Raises:
            ValueError: for blocks that do not exist, for an unknown format, or if stop_early is set
                and the final features need later blocks.
        """
        if output_fmt not in ("NCTHW", "NCHW", "NLC"):
            raise ValueError(f"output_fmt {output_fmt!r} is unknown; use NCTHW or NLC")
        layout = "b t (h w) d -> b (t h w) d" if output_fmt == "NLC" else "b t (h w) d -> b d t h w"
        encoded, found = encode_with_blocks(
            self.encoder, video, indices, norm=norm, stop_early=stop_early
        )
        height = self.encoder.config.grid_of(*video.shape[2:]).h
        features: list[Any] = [rearrange(tokens, layout, h=height) for tokens, _ in found]
        if return_prefix_tokens and self.encoder.config.class_token:
            features = [(x, cls) for x, (_, cls) in zip(features, found, strict=True)]
        if intermediates_only:
            return features
        if encoded is None:
            raise ValueError(
                "stop_early leaves no final features; set intermediates_only=True, or ask for the "
                "last block as well"
            )
        return _token_sequence(encoded), features

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load weights of a classifier or a ViViT; weights of a ViViT leave the head unchanged.

        Raises:
            ExportError: if strict, and the weights of a ViViT do not fit the encoder.
        """
        own = ("encoder.", "head.", "representation.")
        if not state_dict or any(name.startswith(own) for name in state_dict):
            return super().load_state_dict(state_dict, strict, assign)
        if strict:
            expected, found = (
                {name: tuple(value.shape) for name, value in state.items()}
                for state in (self.encoder.state_dict(), state_dict)
            )
            try:
                check_shapes(expected, found, "the checkpoint", "encoder")
            except ExportError as error:
                raise ExportError(
                    f"{error}; use the settings of the config.json beside the checkpoint, or load "
                    "the directory in timm by the model name 'local-dir:DIR'"
                ) from None
        return self.encoder.load_state_dict(state_dict, strict, assign)

    def get_classifier(self) -> nn.Module:
        """Return the head: a linear layer, or the identity if there are no classes."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a randomly initialised one.

        Args:
            num_classes: number of classes; 0 for no head.
            global_pool: must be None or the encoder's pooling.

        Raises:
            ValueError: if num_classes is negative or global_pool is not the encoder's pooling.
        """
        pooling = self.encoder.config.pooling
        if global_pool is not None and TIMM_POOLINGS.get(global_pool, global_pool) != pooling:
            raise ValueError(
                f"global_pool {global_pool!r} is not the encoder's pooling {pooling!r}, which is "
                "fixed; omit global_pool, or create an encoder with the other pooling"
            )
        if num_classes < 0:
            raise ValueError(f"num_classes {num_classes} must be 0 (no head) or more")
        self.num_classes = num_classes
        weight = self.encoder.tubelets.weight
        self.head = nn.Identity()
        if num_classes:
            self.head = nn.Linear(
                self.head_hidden_size, num_classes, device=weight.device, dtype=weight.dtype
            )
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)
        self.head.train(self.training)

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Name, width and spatial reduction of each block's features, in timm's format."""
        return [
            {
                "module": f"encoder.{name}",
                "num_chs": self.encoder.embed_dim,
                "reduction": max(self.encoder.config.kernel_stride[1:]),
            }
            for name in block_names(self.encoder)
        ]

    def set_input_size(
        self,
        img_size: int | Sequence[int] | None = None,
        patch_size: int | Sequence[int] | None = None,
        **others: Any,
    ) -> None:
        """Fit the encoder to clips of another height and width; see :meth:`ViViT.set_input_size`."""
        self.encoder.set_input_size(img_size, patch_size, **others)

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """timm's description of the model: input_size (C, T, H, W), mean, std and layer names."""
        config = self.encoder.config
        known: Mapping[str, Any] = self.encoder.preprocessing or {}
        return {
            "input_size": (config.in_channels, config.num_frames, *config.image_size),
            **{name: tuple(known[name]) for name in ("mean", "std") if known.get(name)},
            "num_classes": self.num_classes,
            "first_conv": "encoder.tubelets",
            "classifier": "head",
        }

    default_cfg = pretrained_cfg

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block's activations in the backward pass instead of keeping them."""
        self.encoder.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Return names of parameters without weight decay: positions, class tokens, registers."""
        return {f"encoder.{name}" for name in self.encoder.no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return patterns that map parameter names to depths, for timm's layer-wise learning-rate decay.

        Args:
            coarse: group whole transformers instead of single blocks.
        """
        groups = {
            name: pattern.replace("^", r"^encoder\.")
            for name, pattern in self.encoder.group_matcher(coarse).items()
        }
        groups["pooling"] = r"^encoder\.(?:attention_pooling|pooled_norm)\."
        groups["head"] = r"^(?:representation|head)\."
        return groups

    def save_pretrained(
        self,
        directory: str | Path,
        *,
        preprocessing: Mapping[str, Any] | None = None,
        card: Mapping[str, Any] | None = None,
    ) -> None:
        """Write encoder and head to a directory, which :meth:`from_pretrained` loads.

        :func:`~ssl_vivit.load_encoder` loads only the encoder from it. Arguments and errors as in
        :meth:`ViViT.save_pretrained`.
        """
        encoder = self.encoder
        prepared = Preprocessing.of(preprocessing) or encoder.preprocessing
        layer = self.representation
        head = {
            "num_classes": self.num_classes,
            "representation_size": None if layer is None else layer.out_features,
            "drop_rate": self.head_drop.p,
        }
        own = {k: v for k, v in self.state_dict().items() if not k.startswith("encoder.")}
        write_directory(
            directory,
            ENCODER,
            {**encoder.saved_settings(prepared, card), "classifier": head},
            {WEIGHTS: encoder.state_dict(), HEAD: own},
            encoder_card(encoder.config, prepared, card or {}, self.num_classes),
        )

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        drop_rate: float | None = None,
        **overrides: Any,
    ) -> VideoClassifier:
        """Load an exported classifier from its directory or hub name, in eval mode.

        Args:
            path: a directory written by :meth:`save_pretrained`, or ``"org/name"`` on the hub.
            revision: branch, tag or commit on the hub.
            token: access token for private models of the hub.
            drop_rate: dropout before the head; None keeps the saved rate.
            overrides: settings of the encoder, as in :meth:`ViViT.from_pretrained`.

        Raises:
            FileNotFoundError: if there is no encoder at that path.
            ValueError: as in :meth:`ViViT.from_pretrained`, and if the directory contains no
                classifier.
        """
        path = locate(path, ENCODER, revision=revision, token=token)
        saved = read_config(path, ENCODER)
        if not isinstance(saved.get("classifier"), dict):
            raise ExportError(
                f"{path} contains an encoder without a classifier; make a new classifier by "
                "VideoClassifier(load_encoder(path), num_classes)"
            )
        settings = saved["classifier"] | ({} if drop_rate is None else {"drop_rate": drop_rate})
        encoder = ViViT.from_saved(path, saved, overrides)
        described = "classifier of config.json"
        try:
            shapes = _head_shapes(encoder.embed_dim, **settings)
            check_shapes(shapes, read_shapes(path / HEAD), path / HEAD, described)
            return built_from(
                path / HEAD, described, lambda: cls(encoder, **settings), outside=("encoder.",)
            )
        except ExportError:
            raise
        except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise ExportError(
                f"{path / CONFIG} describes no classifier: {error}; export the classifier again"
            ) from None


def load_encoder_or_classifier(path: str | Path, **overrides: Any) -> ViViT | VideoClassifier:
    """Load an exported directory in eval mode: its classifier if it contains one, else its encoder.

    Args:
        path: a directory, or ``"org/name"`` on the hub.
        overrides: settings of the encoder, as in :meth:`ViViT.from_pretrained`.

    Raises:
        FileNotFoundError: if there is no encoder at that path.
        ValueError: as in :meth:`ViViT.from_pretrained`.
    """
    path = locate(path, ENCODER)
    has_head = read_config(path, ENCODER).get("classifier") is not None
    return (VideoClassifier if has_head else ViViT).from_pretrained(path, **overrides)


def _head_shapes(
    width: int, num_classes: int, representation_size: int | None = None, drop_rate: float = 0.0
) -> Shapes:
    """Return the shapes of a classifier's weights outside of its encoder."""
    shapes: Shapes = {}
    if representation_size is not None:
        shapes["representation.weight"] = (representation_size, width)
        shapes["representation.bias"] = (representation_size,)
    if num_classes:
        shapes["head.weight"] = (num_classes, representation_size or width)
        shapes["head.bias"] = (num_classes,)
    return shapes


def _token_sequence(encoded: Encoded) -> Float[Tensor, "b l d"]:
    """Return the sequence [summary, patch tokens] of each clip; the summary may be absent."""
    tokens = rearrange(encoded.tokens, "b t n d -> b (t n) d")
    if encoded.summary is None:
        return tokens
    return torch.cat((rearrange(encoded.summary, "b d -> b 1 d"), tokens), dim=1)
