"""Masked tubelets: most of a clip is hidden, its pixels are predicted from the rest.

VideoMAE's recipe (Tong et al. 2022, arXiv 2203.12602) for every ViViT: as many positions are visible
at every time step, which keeps the factorised structure; only visible tubelets are embedded and
encoded, and a narrow decoder predicts the hidden ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from ssl_vivit.data.randomness import Names
from ssl_vivit.encoders import EncoderOutput, ViViT, ViViTConfig, save_pretrained
from ssl_vivit.grid import Grid
from ssl_vivit.objectives.config import MaskedTubeletsConfig
from ssl_vivit.objectives.contract import Objective, Step
from ssl_vivit.objectives.embedding_geometry import effective_rank
from ssl_vivit.objectives.masking import (
    TubeletMask,
    draw_mask,
    hidden_count,
    mask_numbers,
    nearest_visible,
)
from ssl_vivit.objectives.named_draws import names_of_views, uniform
from ssl_vivit.objectives.pixel_targets import (
    PixelScale,
    denormalised,
    shown_frames,
    squared_errors,
    tubelet_pixels,
    video_of,
)
from ssl_vivit.objectives.tubelet_decoder import TubeletDecoder

# Visible tubelets that interpolation takes for each hidden one.
_NEIGHBOURS = 8


class Reconstruction(NamedTuple):
    """Clips and their reconstructions by the decoder, as pixels in [0, 1].

    Attributes:
        video: (b, c, T, H, W) the clips, as far as tubelets fill them.
        predicted: (b, c, T, H, W) with hidden tubelets as predicted and visible ones as they are.
        hidden: (b, t, h, w) True where a tubelet was hidden.
        frames: which of the clip's frames the T are.
        rescaled: whether predictions were given the mean and spread of what was hidden.
    """

    video: Tensor
    predicted: Tensor
    hidden: Tensor
    frames: list[int]
    rescaled: bool

    def cpu(self) -> Reconstruction:
        """Return a copy on the CPU."""
        return self._replace(
            video=self.video.cpu(), predicted=self.predicted.cpu(), hidden=self.hidden.cpu()
        )


class MaskedTubelets(Objective):
    """Prediction of hidden tubelets from visible ones.

    Predictions alone would not train class tokens, or what else makes ``pooled``. So ``pooled``
    also learns to be the mean of the visible patch tokens, which holds what they know of the clip
    (:meth:`pooled_distance`).

    Args:
        encoder: the encoder to be trained, any variant. With its gradient checkpointing on, the
            decoder recomputes its blocks' activations, too.
        config: settings; None takes the defaults.
        preprocessing: how the clips were prepared: ``mean`` and ``std`` make pixels of them again,
            and all of it is saved with the exported encoder. None takes clips as pixels in [0, 1].
        overrides: single settings of :class:`MaskedTubeletsConfig`, for calls in code.

    Raises:
        ValueError: for masks that the encoder or its clips cannot have.
    """

    def __init__(
        self,
        encoder: ViViT,
        config: MaskedTubeletsConfig | None = None,
        *,
        preprocessing: Mapping[str, Any] | None = None,
        **overrides: Any,
    ) -> None:
        super().__init__()
        config = MaskedTubeletsConfig(**((vars(config) if config else {}) | overrides))
        check_masks(config, encoder.config)
        self.config = config
        self.preprocessing = preprocessing
        self.encoder = encoder
        size = encoder.config.kernel_stride
        self.decoder = TubeletDecoder(
            encoder.config,
            encoder.embed_dim // 2 if config.decoder_dim is None else config.decoder_dim,
            config.decoder_depth,
            size[0] * size[1] * size[2] * encoder.config.in_channels,
            config.decoder_positions,
        )
        self.decoder.trunk.grad_checkpointing = encoder.trunk.grad_checkpointing
        statistics = preprocessing or {}
        for name, neutral in (("mean", 0.0), ("std", 1.0)):
            value = torch.tensor(statistics.get(name, neutral)).flatten()
            self.register_buffer(name, value, persistent=False)
        self.learns_pooled = encoder.config.pooling not in ("max", "sum", "first")
        if not self.learns_pooled:
            encoder.freeze_pooling()

    def forward(self, batch: dict[str, Any]) -> Step:
        """The loss of a batch: mean squared error over the pixels of hidden tubelets.

        Args:
            batch: with ``clips`` (b, views, C, T, H, W), normalised floats; a mask is drawn for
                each view, unless ``mask`` (:class:`TubeletMask` of b · views clips) is there: from
                the names in ``draw``, as loaders give them, or else by torch's generator.

        Returns:
            :class:`Step`; metrics are the effective rank and the standard deviation of the visible
            tokens' mean over clips, which fall when the encoder collapses, and ``pooled_distance``.
            There are none where ``logs_step`` is false.
        """
        video = rearrange(batch["clips"], "b views c T H W -> (b views) c T H W")
        if "mask" in batch:
            mask = batch["mask"]
        else:
            mask = self.draw_mask(video, names=names_of_views(batch, "mask"))
        predicted, out = self.predict(video, mask)
        errors = squared_errors(predicted, self.targets(video, mask))
        assert out.tokens is not None
        loss, metrics = errors.mean(), {}
        if self.logs_step:
            metrics = _metrics(out.tokens.detach().float().mean((1, 2)))
        if self.learns_pooled:
            distances = self.pooled_distance(out)
            # In units of each clip's error, so that it weighs alike for pixels of any scale.
            loss = loss + (errors.detach() * distances).mean()
            if self.logs_step:
                metrics["pooled_distance"] = distances.detach().mean()
        return Step(loss, metrics)

    def pooled_distance(self, out: EncoderOutput) -> Float[Tensor, " b"]:
        """Mean squared distance of each clip's ``pooled`` to the mean of its visible patch tokens.

        Tokens are taken as they are: the gradient goes to ``pooled`` alone. Where ``pooled`` is
        their mean by itself, the distance is 0.
        """
        assert out.tokens is not None
        wide = torch.promote_types(out.pooled.dtype, torch.float32)
        mean = self.encoder.pooled_norm(out.tokens.mean((1, 2))).detach()
        return (out.pooled.to(wide) - mean.to(wide)).square().mean(1)

    def draw_mask(
        self,
        video: Float[Tensor, "b c T H W"],
        generator: torch.Generator | None = None,
        *,
        names: Sequence[Names] | None = None,
    ) -> TubeletMask:
        """A mask for each clip, on the clips' device.

        Args:
            video: the clips.
            generator: of the random numbers, on the CPU; None is torch's own.
            names: of each clip's draw, in place of a generator: its mask depends on them alone.
        """
        grid = self._grid(video)
        count = mask_numbers(self.config.mask, grid)
        if names is None:
            numbers = torch.rand(len(video), count, generator=generator)
        else:
            numbers = uniform(names, count)
        mask = draw_mask(self.config.mask, grid, self.config.mask_ratio, numbers)
        return mask.to(video.device)

    def predict(
        self, video: Float[Tensor, "b c T H W"], mask: TubeletMask
    ) -> tuple[Float[Tensor, "b m p"], EncoderOutput]:
        """Predictions of the hidden tubelets in the order of time and mask, and what is encoded."""
        out = self.encoder(video, **mask.for_encoder)
        return self.decoder(out.tokens, mask, out.grid), out

    @torch.no_grad()
    def targets(
        self, video: Float[Tensor, "b c T H W"], mask: TubeletMask
    ) -> Float[Tensor, "b m p"]:
        """Return the targets of the hidden tubelets, in the order of :meth:`predict`."""
        return self._targets(video, mask.tokens(self._grid(video))[1])

    def _targets(
        self, video: Float[Tensor, "b c T H W"], index: Int[Tensor, "b m"]
    ) -> Float[Tensor, "b m p"]:
        pixels = _at(self._pixels(video), index)
        if self.config.normalize_targets:
            pixels = PixelScale(pixels).normalised(pixels)
        return rearrange(pixels, "b m c p -> b m (p c)")

    def _grid(self, video: Tensor) -> Grid:
        return self.encoder.config.grid_of(*video.shape[2:])

    @torch.no_grad()
    def reconstruct(
        self, video: Float[Tensor, "b c T H W"], mask: TubeletMask | None = None
    ) -> Reconstruction:
        """Clips with their hidden tubelets as the decoder predicts them.

        Normalised predictions get the mean and spread of the tubelet that they stand for, as in
        VideoMAE's figures: they show structure, and not the colour that was hidden.
        """
        mask = self.draw_mask(video) if mask is None else mask
        pixels = self._pixels(video)
        predicted, _ = self.predict(video, mask)
        predicted = rearrange(predicted, "b m (p c) -> b m c p", c=pixels.shape[3]).to(pixels)
        grid = self._grid(video)
        _, index = mask.tokens(grid)
        if self.config.normalize_targets:
            predicted = PixelScale(_at(pixels, index)).restored(predicted)
        flat = rearrange(pixels, "b t n c p -> b (t n) c p").clone()
        flat.scatter_(1, index[..., None, None].expand_as(predicted), predicted)
        hidden = torch.zeros(flat.shape[:2], dtype=torch.bool, device=video.device)
        hidden.scatter_(1, index, True)
        config = self.encoder.config
        return Reconstruction(
            video_of(pixels, config, grid.h),
            video_of(rearrange(flat, "b (t n) c p -> b t n c p", t=grid.t), config, grid.h),
            rearrange(hidden, "b (t h w) -> b t h w", t=grid.t, h=grid.h),
            shown_frames(config, video.shape[2]),
            self.config.normalize_targets,
        )

    @torch.no_grad()
    def errors(
        self, batch: dict[str, Any], seed: int | None = None
    ) -> dict[str, Float[Tensor, " clips"]]:
        """Measure the errors of predictions and of three guesses without a model.

        Args:
            batch: as in :meth:`forward`.
            seed: of the masks; None draws them from the names in ``draw``, so that the mask of a
                clip does not depend on the others of its batch.

        Returns:
            Mean squared errors over the hidden tubelets of each clip, in units of the targets,
            with ``error`` of the predictions; ``copy_error`` of copies of the nearest visible
            tubelet; ``interpolation_error`` of the mean of the eight nearest visible tubelets,
            weighted by inverse squared distance (Shepard 1968); ``mean_error`` of each hidden
            tubelet's own mean colour, an oracle, since no model sees what is hidden.
        """
        video = rearrange(batch["clips"], "b views c T H W -> (b views) c T H W")
        if seed is None:
            mask = self.draw_mask(video, names=names_of_views(batch, "mask"))
        else:
            mask = self.draw_mask(video, torch.Generator().manual_seed(seed))
        targets = self.targets(video, mask)
        near, distance = nearest_visible(mask, self._grid(video), _NEIGHBOURS)
        weight = distance.square().reciprocal().to(targets)
        between = torch.zeros_like(targets)
        for k in range(near.shape[2]):
            between += weight[:, :, k, None] * self._targets(video, near[:, :, k])
        between /= weight.sum(-1, keepdim=True)
        predicted, _ = self.predict(video, mask)
        by_channel = rearrange(targets, "b m (p c) -> b m p c", c=video.shape[1])
        mean = rearrange(
            by_channel.mean(2, keepdim=True).expand_as(by_channel), "b m p c -> b m (p c)"
        )
        guesses = {
            "error": predicted,
            "copy_error": self._targets(video, near[:, :, 0]),
            "interpolation_error": between,
            "mean_error": mean,
        }
        return {name: squared_errors(x, targets) for name, x in guesses.items()}

    @torch.no_grad()
    def features(self, batch: dict[str, Any]) -> Float[Tensor, "b views d"]:
        """The encoder's ``pooled`` of whole clips, (b, views, d) for any number of views."""
        views = batch["clips"].shape[1]
        video = rearrange(batch["clips"], "b views c T H W -> (b views) c T H W")
        pooled = self.encoder(video, tokens=False).pooled
        return rearrange(pooled, "(b views) d -> b views d", views=views)

    def to_compile(self) -> nn.Module:
        """The objective itself, which compiles its encoder and its decoder."""
        return self

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the encoder and the decoder separately; arguments go to ``torch.compile``."""
        self.encoder.compile(*args, **kwargs)
        self.decoder.compile(*args, **kwargs)

    def export(self, directory: Path, *, training: dict[str, Any]) -> None:
        """Write the encoder (without the decoder) to ``directory``."""
        masks = f"{self.config.mask} masks of {self.config.mask_ratio:g}"
        card = {"objective": f"masked tubelets, {masks}", **training}
        save_pretrained(self.encoder, directory, preprocessing=self.preprocessing, card=card)

    def _pixels(self, video: Tensor) -> Float[Tensor, "b t n c pixels"]:
        assert isinstance(self.mean, Tensor)
        assert isinstance(self.std, Tensor)
        return tubelet_pixels(denormalised(video, self.mean, self.std), self.encoder.config)


def check_masks(config: MaskedTubeletsConfig, architecture: ViViTConfig) -> None:
    """Refuse masks that an encoder's tokens cannot have.

    Args:
        config: the masks.
        architecture: of the encoder.

    Raises:
        ValueError: naming the setting and what it may be.
    """
    hidden_count(architecture.grid.n, config.mask_ratio, "positions of a time step")
    size, stride = architecture.kernel_size, architecture.kernel_stride
    overlaps = size[1:] != stride[1:] or (config.mask == "random" and size[0] != stride[0])
    if overlaps:
        raise ValueError(
            f"tubelet_stride {stride} lets tubelets of {size} overlap, so that visible ones show "
            "pixels of hidden ones; use encoder.overrides.tubelet_stride equal to tubelet_size"
            + (", or overlap in time with objective.mask tube" if size[1:] == stride[1:] else "")
        )
    if architecture.patch_dropout > 0:
        raise ValueError(
            f"patch_dropout {architecture.patch_dropout} would hide more than mask_ratio; set "
            "encoder.overrides.patch_dropout to 0"
        )


def _at(pixels: Float[Tensor, "b t n c p"], index: Int[Tensor, "b m"]) -> Float[Tensor, "b m c p"]:
    """The pixels of some tubelets, by their indices among t·n."""
    flat = rearrange(pixels, "b t n c p -> b (t n) c p")
    return flat.gather(1, index[..., None, None].expand(-1, -1, *flat.shape[2:]))


@torch.no_grad()
def _metrics(features: Float[Tensor, "b d"]) -> dict[str, Tensor]:
    return {
        "effective_rank": effective_rank(nn.functional.normalize(features, dim=1)),
        "feature_std": features.std(0, correction=0).mean(),
    }
