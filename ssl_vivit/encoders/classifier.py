"""An encoder with a classification head, after timm's protocol."""

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

# timm's names of poolings that have another one here.
TIMM_POOLINGS = {"avg": "mean", "token": "cls_mean", "map": "attention"}

Map = Float[Tensor, "b d t h w"]


class VideoClassifier(nn.Module, HubModel):
    """Video → logits: encoder, an optional tanh representation layer, a linear head.

    The methods are those of timm's models, so that timm's optimisers, layer decay and feature
    extraction take it.

    Args:
        encoder: the encoder, whose pooled vector is classified.
        num_classes: classes; 0 returns the features before the head.
        representation_size: width of a layer with tanh between the pooled vector and the head
            (Dosovitskiy et al. 2021, Sec. 3.1); None is no such layer.
        drop_rate: dropout before the head.

    Attributes:
        num_features: width of the tokens that :meth:`forward_features` returns.
        head_hidden_size: width of what the head receives.
        num_prefix_tokens: 1 where pooling takes class tokens or frame vectors: then their summary
            stands before the patch tokens in :meth:`forward_features`; otherwise 0.

    Raises:
        ValueError: for a negative num_classes or a representation_size below 1.
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
                "such layer"
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
        """Logits, or features where there are no classes; patch tokens are not computed in vain."""
        return self._head(self.encoder(video, tokens=False).pooled)

    def forward_features(self, video: Float[Tensor, "b c T H W"]) -> Float[Tensor, "b l d"]:
        """Tokens before pooling.

        Args:
            video: (B, C, T, H, W) floats, normalised as ``encoder.preprocessing`` says.

        Returns:
            (b, num_prefix_tokens + t·n, d); without dropped patches in training.
        """
        self.encoder.check(video)
        kept = self.encoder.drop_patches(video)
        return _in_a_row(self.encoder.encode(video, None if kept is None else kept.visible))

    def forward_head(
        self, features: Float[Tensor, "b l d"], pre_logits: bool = False
    ) -> Float[Tensor, "b classes"]:
        """From :meth:`forward_features` to logits, which are those of :meth:`forward`.

        Args:
            features: (b, num_prefix_tokens + t·n, d).
            pre_logits: return what the head would receive instead, (b, head_hidden_size).
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
        """Patch tokens after each block; of Model 2 after the spatial blocks, then the temporal.

        Args:
            video: (B, C, T, H, W).
            indices: which blocks: the last so many, a sequence (negative from the end), or None for
                all. Features come in the order of the computation, as timm's.
            return_prefix_tokens: return pairs (features, class tokens) where the encoder has class
                tokens: (b, t, d) in Model 2, (b, 1, d) in Model 1.
            norm: apply the norm that follows the transformer to each.
            stop_early: compute no block after the last that is asked for; then there are no final
                features, and intermediates_only must be set.
            output_fmt: ``NCTHW`` for maps (b, d, t, h, w), which timm's ``NCHW`` also means here;
                ``NLC`` for (b, t·n, d).
            intermediates_only: leave out the final features.

        Returns:
            A list of features; unless intermediates_only, (final features as
            :meth:`forward_features`, that list). Patches dropped in training are zeros.

        Raises:
            ValueError: for blocks that do not exist, an unknown format, or stop_early where final
                features would need the blocks after.
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
        return _in_a_row(encoded), features

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load own weights, or those of a ViViT alone, which leave the head as it is.

        Raises:
            ExportError: if strict, for weights of a ViViT that are not those of the encoder.
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
                    f"{error}; give the settings of the config.json beside it, or in timm "
                    "'local-dir:DIR' as the model's name, which reads them"
                ) from None
        return self.encoder.load_state_dict(state_dict, strict, assign)

    def get_classifier(self) -> nn.Module:
        """The head: a linear layer, or the identity where there are no classes."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a fresh head in place of the present one.

        Args:
            num_classes: classes; 0 for none.
            global_pool: pooling; None keeps the present one, the only one that can be asked for.

        Raises:
            ValueError: for a negative number, or another pooling than the encoder's.
        """
        pooling = self.encoder.config.pooling
        if global_pool is not None and TIMM_POOLINGS.get(global_pool, global_pool) != pooling:
            raise ValueError(
                f"global_pool {global_pool!r} is not the encoder's pooling {pooling!r}, which is "
                "fixed when it is built; leave it out, or create the encoder with that pooling"
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
        """For each block its name, width and reduction of height and width, for timm."""
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
        """timm's description of the model with input_size (C, T, H, W), mean, std, layer names."""
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
        """Names of parameters that are no weights: positions, class tokens and registers."""
        return {f"encoder.{name}" for name in self.encoder.no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Parameter names → depth, for timm's layer-wise learning rate decay.

        Args:
            coarse: timm's protocol: whole transformers in place of single blocks.
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
        """Write encoder and head to a directory that :meth:`from_pretrained` rebuilds them from.

        :func:`~ssl_vivit.load_encoder` opens the directory too, for the encoder alone. Arguments and
        errors as of :meth:`ViViT.save_pretrained`.
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
        """Rebuild an exported classifier from its directory or hub name alone, in eval mode.

        Args:
            path: a directory written by :meth:`save_pretrained`, or ``"org/name"`` on the hub.
            revision: branch, tag or commit on the hub.
            token: for private models of the hub.
            drop_rate: dropout before the head; None keeps the saved one.
            overrides: settings of the encoder, as of :meth:`ViViT.from_pretrained`.

        Raises:
            FileNotFoundError: if there is no encoder at that path.
            ValueError: as of :meth:`ViViT.from_pretrained`, and where the directory holds no
                classifier.
        """
        path = locate(path, ENCODER, revision=revision, token=token)
        saved = read_config(path, ENCODER)
        if not isinstance(saved.get("classifier"), dict):
            raise ExportError(
                f"{path} holds an encoder without a classifier; give a fresh one its head by "
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
            raise ExportError(f"{path / CONFIG} describes no classifier: {error}") from None


def load_encoder_or_classifier(path: str | Path, **overrides: Any) -> ViViT | VideoClassifier:
    """Rebuild the classifier that an exported directory holds, or else its encoder, in eval mode.

    Args:
        path: a directory, or ``"org/name"`` on the hub.
        overrides: settings of the encoder, as of :meth:`ViViT.from_pretrained`.

    Raises:
        FileNotFoundError: if there is no encoder at that path.
        ValueError: as of :meth:`ViViT.from_pretrained`.
    """
    path = locate(path, ENCODER)
    has_head = read_config(path, ENCODER).get("classifier") is not None
    return (VideoClassifier if has_head else ViViT).from_pretrained(path, **overrides)


def _head_shapes(
    width: int, num_classes: int, representation_size: int | None = None, drop_rate: float = 0.0
) -> Shapes:
    """Shapes of the weights that a classifier has beside its encoder's."""
    shapes: Shapes = {}
    if representation_size is not None:
        shapes["representation.weight"] = (representation_size, width)
        shapes["representation.bias"] = (representation_size,)
    if num_classes:
        shapes["head.weight"] = (num_classes, representation_size or width)
        shapes["head.bias"] = (num_classes,)
    return shapes


def _in_a_row(encoded: Encoded) -> Float[Tensor, "b l d"]:
    """The summary where there is one, then all patch tokens."""
    tokens = rearrange(encoded.tokens, "b t n d -> b (t n) d")
    if encoded.summary is None:
        return tokens
    return torch.cat((rearrange(encoded.summary, "b d -> b 1 d"), tokens), dim=1)
