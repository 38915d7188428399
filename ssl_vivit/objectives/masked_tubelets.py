"""Masked tubelets: most tubelets of a clip are hidden and predicted from the visible tubelets.

This is VideoMAE's method (Tong et al. 2022, arXiv 2203.12602) for all variants of ViViT. The number
of visible positions is equal in all time steps, as factorised attention needs. Only visible
tubelets are embedded and encoded, and a narrow decoder predicts the hidden tubelets.
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

# Number of visible tubelets from which each hidden tubelet is interpolated.
_NEIGHBOURS = 8


class Reconstruction(NamedTuple):
    """Clips and their reconstructions by the decoder, as pixels in [0, 1].

    Attributes:
        video: (b, c, T, H, W) clips, cropped to the area that tubelets cover.
        predicted: (b, c, T, H, W) clips with hidden tubelets replaced by predictions.
        hidden: (b, t, h, w) mask, True for hidden tubelets.
        frames: for each of the T frames, its index in the original clip.
        rescaled: whether predictions have been rescaled by mean and standard deviation of the true
            pixels of the hidden tubelet.
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
    """Objective that predicts hidden tubelets from visible ones.

    The predictions do not train class tokens or other parameters from which only ``pooled`` is
    computed. Therefore ``pooled`` is also trained to equal the mean of the visible patch tokens
    (:meth:`pooled_distance`).

    Args:
        encoder: the encoder to be trained, of any variant. If its gradient checkpointing is on, the
            decoder uses gradient checkpointing as well.
        config: settings. None means the defaults.
        preprocessing: preprocessing of the clips, which is saved with the exported encoder. Its
            ``mean`` and ``std`` are used to restore pixels. None means that clips are pixels in [0,
            1].
        overrides: single settings of :class:`MaskedTubeletsConfig`, as keyword arguments.

    Raises:
        ValueError: if the masks do not suit the encoder.
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
        """Compute the loss of a batch: mean squared error over the pixels of hidden tubelets.

        Args:
            batch: dictionary with ``clips`` (b, views, C, T, H, W), normalised floats. ``mask`` is
                an optional :class:`TubeletMask` of the b · views clips. Without it, a mask is drawn
                for each clip. Loaders add ``draw``, a tuple of names for each of the b samples, and
                these names then seed the masks. Without ``draw``, torch's generator draws them.

        Returns:
            Loss and metrics. ``effective_rank`` and ``feature_std`` (standard deviation over clips)
            are computed from the mean visible token of each clip, and fall if the encoder
            collapses. ``pooled_distance`` is the mean of :meth:`pooled_distance`. If ``logs_step``
            is false, there are no metrics.
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
            # Multiplied by each clip's error, so that the weight of this term does not depend on
            # the scale of pixels.
            loss = loss + (errors.detach() * distances).mean()
            if self.logs_step:
                metrics["pooled_distance"] = distances.detach().mean()
        return Step(loss, metrics)

    def pooled_distance(self, out: EncoderOutput) -> Float[Tensor, " b"]:
        """Return the mean squared distance of ``pooled`` to the mean of the visible patch tokens.

        The mean is detached, so only ``pooled`` gets a gradient. If the encoder's pooling is this
        mean, the distance is 0.

        Args:
            out: output of the encoder for visible tubelets.
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
        """Draw a mask for each clip, on the clips' device.

        Args:
            video: the clips.
            generator: random generator on the CPU. None means torch's global generator.
            names: for each clip a tuple of names that seeds its mask. ``generator`` is then not
                used.
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
        """Return predictions of the hidden tubelets, and the output of the encoder.

        Predictions have shape (b, m, p) for m hidden tubelets of a clip, each with p values (all
        pixels and channels of a tubelet). They are ordered by time step, and by spatial position
        within a time step.
        """
        out = self.encoder(video, **mask.for_encoder)
        return self.decoder(out.tokens, mask, out.grid), out

    @torch.no_grad()
    def targets(
        self, video: Float[Tensor, "b c T H W"], mask: TubeletMask
    ) -> Float[Tensor, "b m p"]:
        """Return the true values of the hidden tubelets (b, m, p), in the order of :meth:`predict`.

        They are pixels, normalised within each tubelet and channel if ``normalize_targets`` is set.
        """
        return self._targets(video, mask.tokens(self._grid(video))[1])

    def _targets(
        self, video: Float[Tensor, "b c T H W"], index: Int[Tensor, "b m"]
    ) -> Float[Tensor, "b m p"]:
        pixels = _pixels_at(self._pixels(video), index)
        if self.config.normalize_targets:
            pixels = PixelScale(pixels).normalised(pixels)
        return rearrange(pixels, "b m c p -> b m (p c)")

    def _grid(self, video: Tensor) -> Grid:
        return self.encoder.config.grid_of(*video.shape[2:])

    @torch.no_grad()
    def reconstruct(
        self, video: Float[Tensor, "b c T H W"], mask: TubeletMask | None = None
    ) -> Reconstruction:
        """Reconstruct clips by replacing hidden tubelets by the decoder's predictions.

        Normalised predictions are rescaled by the mean and standard deviation of the true pixels of
        the hidden tubelet, as in VideoMAE's figures. Only the structure of hidden tubelets is then
        predicted, not their mean colour.

        Args:
            video: normalised clips.
            mask: the masks. None draws random masks.
        """
        mask = self.draw_mask(video) if mask is None else mask
        pixels = self._pixels(video)
        predicted, _ = self.predict(video, mask)
        predicted = rearrange(predicted, "b m (p c) -> b m c p", c=pixels.shape[3]).to(pixels)
        grid = self._grid(video)
        _, index = mask.tokens(grid)
        if self.config.normalize_targets:
            predicted = PixelScale(_pixels_at(pixels, index)).restored(predicted)
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
        """Measure the errors of the predictions and of three simple guesses.

        Args:
            batch: see :meth:`forward`.
            seed: seed of the masks. None seeds each mask by the names in the batch's ``draw``, so
                that the mask of a clip does not depend on other clips of the batch.

        Returns:
            Mean squared errors over the hidden tubelets of each clip, on the scale of the targets.
            ``error`` is the error of the predictions. ``copy_error`` is that of copies of the
            nearest visible tubelet. ``interpolation_error`` is that of the mean of the eight
            nearest visible tubelets, weighted by inverse squared distance (Shepard 1968).
            ``mean_error`` is that of the mean colour of the hidden tubelet, which no model can see.
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
        """Return the encoder's pooled vectors (b, views, d) of complete clips, without masks.

        Args:
            batch: dictionary with ``clips`` (b, views, C, T, H, W), for any number of views.
        """
        views = batch["clips"].shape[1]
        video = rearrange(batch["clips"], "b views c T H W -> (b views) c T H W")
        pooled = self.encoder(video, tokens=False).pooled
        return rearrange(pooled, "(b views) d -> b views d", views=views)

    def to_compile(self) -> nn.Module:
        """Return the objective, whose :meth:`compile` compiles encoder and decoder."""
        return self

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile encoder and decoder separately, with the arguments of ``torch.compile``."""
        self.encoder.compile(*args, **kwargs)
        self.decoder.compile(*args, **kwargs)

    def export(self, directory: Path, *, training: dict[str, Any]) -> None:
        """Export the encoder, without the decoder, to a directory."""
        masks = f"{self.config.mask} masks of {self.config.mask_ratio:g}"
        card = {"objective": f"masked tubelets, {masks}", **training}
        save_pretrained(self.encoder, directory, preprocessing=self.preprocessing, card=card)

    def _pixels(self, video: Tensor) -> Float[Tensor, "b t n c pixels"]:
        assert isinstance(self.mean, Tensor)
        assert isinstance(self.std, Tensor)
        return tubelet_pixels(denormalised(video, self.mean, self.std), self.encoder.config)


def check_masks(config: MaskedTubeletsConfig, architecture: ViViTConfig) -> None:
    """Check that an encoder can be trained with the masks.

    Args:
        config: settings of the masks.
        architecture: config of the encoder.

    Raises:
        ValueError: if the masks do not suit the encoder; the message names the setting to change.
    """
    hidden_count(architecture.grid.n, config.mask_ratio, "positions of a time step")
    size, stride = architecture.kernel_size, architecture.kernel_stride
    overlaps = size[1:] != stride[1:] or (config.mask == "random" and size[0] != stride[0])
    if overlaps:
        raise ValueError(
            f"with tubelet_stride {stride} tubelets of {size} overlap, so visible tubelets contain "
            "pixels of hidden ones; set encoder.overrides.tubelet_stride equal to tubelet_size"
            + (
                ", or use objective.mask tube, which allows overlap in time"
                if size[1:] == stride[1:]
                else ""
            )
        )
    if architecture.patch_dropout > 0:
        raise ValueError(
            f"patch_dropout {architecture.patch_dropout} would hide more than mask_ratio; set "
            "encoder.overrides.patch_dropout to 0"
        )


def _pixels_at(
    pixels: Float[Tensor, "b t n c p"], index: Int[Tensor, "b m"]
) -> Float[Tensor, "b m c p"]:
    """Return the pixels (b, m, c, p) of m selected tubelets of each clip.

    Args:
        pixels: pixels of all tubelets (b, t, n, c, p), for t time steps with n tubelets each.
        index: indices (b, m) of the selected tubelets among the t·n tubelets of the clip.
    """
    flat = rearrange(pixels, "b t n c p -> b (t n) c p")
    return flat.gather(1, index[..., None, None].expand(-1, -1, *flat.shape[2:]))


@torch.no_grad()
def _metrics(features: Float[Tensor, "b d"]) -> dict[str, Tensor]:
    return {
        "effective_rank": effective_rank(nn.functional.normalize(features, dim=1)),
        "feature_std": features.std(0, correction=0).mean(),
    }
