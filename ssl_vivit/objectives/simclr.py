"""SimCLR on video: features of two clips of one video agree, those of different videos differ.

The objective is that of Chen et al. 2020 (arXiv 2002.05709). As in Qian et al. 2021 (CVRL, arXiv
2008.03800), augmentations are drawn once for each clip, and views are more often close in time
than distant.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from lightly.models.modules import SimCLRProjectionHead
from lightly.utils import dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from ssl_vivit.data.to_device import to_device
from ssl_vivit.encoders import ViViT, save_pretrained
from ssl_vivit.objectives.config import SimCLRConfig
from ssl_vivit.objectives.contract import Objective, Step
from ssl_vivit.objectives.embedding_geometry import alignment, effective_rank, uniformity
from ssl_vivit.objectives.named_draws import names_of_views, uniform


class SimCLR(Objective):
    """Contrastive learning with lightly's projection head and the NT-Xent loss.

    Negatives are gathered from all processes. Both views are encoded in one call. Encoder
    parameters on which the chosen features do not depend are frozen.

    Args:
        encoder: the encoder to be trained.
        config: settings. None means the defaults.
        preprocessing: preprocessing of the clips, which is saved with the exported encoder.
        overrides: single settings of :class:`SimCLRConfig`, as keyword arguments.

    Raises:
        ValueError: if a setting is out of range.
    """

    # With one video there are no negatives, and the loss and its gradient are exactly 0.
    least_micro_batch = 2

    def __init__(
        self,
        encoder: ViViT,
        config: SimCLRConfig | None = None,
        *,
        preprocessing: Mapping[str, Any] | None = None,
        **overrides: Any,
    ) -> None:
        super().__init__()
        settings = (vars(config) if config else {}) | overrides
        config = SimCLRConfig(**settings)
        self.config = config
        self.preprocessing = preprocessing
        self.encoder = encoder
        self.head = SimCLRProjectionHead(
            encoder.embed_dim,
            config.hidden_dim,
            config.output_dim,
            num_layers=config.num_layers,
            batch_norm=config.batch_norm,
        )
        if config.features == "tokens":
            encoder.freeze_pooling()

    def forward(self, batch: dict[str, Any]) -> Step:
        """Compute the loss of a batch.

        Args:
            batch: dictionary with ``clips`` (b, 2, C, T, H, W), normalised floats. Loaders add
                ``draw``, a tuple of names for each of the b samples, and these names then seed the
                patch dropout. Without ``draw``, torch's generator is used.

        Returns:
            Loss and metrics. The metrics are top-1 accuracy of the positive among all candidates,
            its chance level, alignment, uniformity and the effective rank of the embeddings. If
            ``logs_step`` is false, there are no metrics.

        Raises:
            ValueError: if the batch does not contain two views of each video, or the batches of all
                processes together contain only one video.
        """
        views = batch["clips"].shape[1]
        if views != 2:
            raise ValueError(
                f"SimCLR needs two views of each video, but the batch has {views}; set "
                "data.clip.views to 2"
            )
        if len(batch["clips"]) * dist.world_size() < self.least_micro_batch:
            raise ValueError(
                "SimCLR needs at least two videos in a batch, but there is one; use a larger "
                "training.total_batch_size or a smaller training.accumulation"
            )
        hidden = rearrange(self.features(batch), "b views d -> (b views) d")
        embeddings = self.head(hidden)
        with torch.autocast(embeddings.device.type, enabled=False):
            if embeddings.dtype in (torch.float16, torch.bfloat16):
                embeddings = embeddings.float()
            first, second = rearrange(embeddings, "(b views) d -> views b d", views=2)
            loss = nt_xent(first, second, self.config.temperature)
            # Compute metrics only if needed: the solver of the effective rank makes the host wait.
            metrics = _metrics(first.detach(), second.detach()) if self.logs_step else {}
            return Step(loss, metrics)

    def features(self, batch: dict[str, Any]) -> Float[Tensor, "b views d"]:
        """Return the input of the projection head (b, views, d), for any number of views."""
        clips: Float[Tensor, "b views c T H W"] = batch["clips"]
        video = rearrange(clips, "b views c T H W -> (b views) c T H W")
        patch_draw = None
        names = names_of_views(batch, "patches") if self.encoder.drops_patches else None
        if names is not None:
            positions = self.encoder.config.grid_of(*video.shape[2:]).n
            patch_draw = to_device(uniform(names, positions), video.device)
        if self.config.features == "pooled":
            features = self.encoder(video, tokens=False, patch_draw=patch_draw).pooled
        else:
            tokens = self.encoder(video, tokens=True, patch_draw=patch_draw).tokens
            # Tokens that patch dropout removed are zeros, and do not count in the mean.
            seen = tokens.any(-1, keepdim=True)
            features = tokens.sum((1, 2)) / seen.sum((1, 2))
        return rearrange(features, "(b views) d -> b views d", views=clips.shape[1])

    def to_compile(self) -> nn.Module:
        """Return the encoder."""
        return self.encoder

    def export(self, directory: Path, *, training: dict[str, Any]) -> None:
        """Export the encoder, without the projection head, to a directory."""
        card = {"objective": f"SimCLR on {self.config.features} features", **training}
        save_pretrained(self.encoder, directory, preprocessing=self.preprocessing, card=card)


def nt_xent(
    first: Float[Tensor, "b d"], second: Float[Tensor, "b d"], temperature: float
) -> Float[Tensor, ""]:
    """Compute the normalised temperature-scaled cross entropy (Chen et al. 2020, Sec. 2.1, Eq. 1).

    The loss equals lightly's ``NTXentLoss(temperature, gather_distributed=True)``. lightly selects
    negatives by a boolean mask, so the host waits for the GPU at every step. Here the similarity of
    each embedding to itself is set to −∞ instead. Embeddings are gathered once instead of twice.

    Args:
        first: embeddings of one view of each video of this process.
        second: embeddings of the other view; row i is of the video of row i of ``first``.
        temperature: divisor of cosine similarities.

    Returns:
        The mean loss over the 2 b embeddings of this process. Candidates are the embeddings of all
        processes.
    """
    own = torch.cat((normalize(first, dim=1), normalize(second, dim=1)))
    # Order of the rows: for each process its first views, then its second views.
    candidates = torch.cat(dist.gather(own)) if dist.world_size() > 1 else own
    row = torch.arange(len(own), device=own.device)
    start = dist.rank() * len(own)
    itself = torch.arange(len(candidates), device=own.device) == (start + row)[:, None]
    logits = (own @ candidates.T / temperature).masked_fill(itself, -torch.inf)
    return cross_entropy(logits, start + row.roll(len(first)))


@torch.no_grad()
def _metrics(first: Float[Tensor, "b d"], second: Float[Tensor, "b d"]) -> dict[str, Tensor]:
    first, second = (normalize(z, dim=1) for z in (first, second))
    start = dist.rank() * len(first)
    if dist.world_size() > 1:
        first, second = (torch.cat(dist.gather(z)) for z in (first, second))
    both = torch.cat((first, second))
    count, own = len(first), slice(start, start + len(first) // dist.world_size())
    similarity = both @ both.T
    similarity.fill_diagonal_(-torch.inf)
    partner = torch.arange(2 * count, device=both.device).roll(count)
    hit = (similarity.argmax(1) == partner).to(both.dtype).view(2, count)
    return {
        "top1": hit[:, own].mean(),
        "top1_chance": both.new_tensor(1 / (2 * count - 1)),
        "alignment": alignment(first, second),
        "uniformity": uniformity(both),
        "effective_rank": effective_rank(both),
    }
