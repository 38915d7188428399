"""The attentive probe: one query for each target attends to frozen tokens, then a linear layer.

V-JEPA's protocol (Bardes et al. 2024, arXiv 2404.08471, Sec. 4.2): where features are read from
patch tokens, a learned query finds the ones that matter, which a mean over all of them drowns.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from timm.layers import AttentionPoolLatent
from torch import Tensor, nn

from ssl_vivit.data.randomness import named_generator
from ssl_vivit.evaluation.clip_features import TokenStore
from ssl_vivit.objectives.targets import NumberScale, Target, in_label_units, target_loss


@dataclass
class AttentiveConfig:
    """How the attentive probe is trained.

    Args:
        epochs: passes over the training part, at most; of them each target takes the one with the
            least loss on the validation part.
        batch_size: clips in a step.
        learning_rate: of AdamW, at its peak.
        weight_decay: of AdamW.
        validation: share of the training part that chooses the epoch.
    """

    epochs: int = 40
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    validation: float = 0.2

    def check(self) -> None:
        """Refuse values that no probe can be trained with.

        Raises:
            ValueError: naming the setting.
        """
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError("attentive.epochs and attentive.batch_size must be at least 1")
        if not 0 < self.validation < 1:
            raise ValueError(
                f"attentive.validation is {self.validation}; it must be between 0 and 1"
            )


class AttentiveProbe(nn.Module):
    """Tokens → one output, by a learned query.

    timm's latent pooling: cross-attention of one query, then an MLP with a residual; a layer norm
    and a linear layer follow.

    Args:
        dim: width of the tokens.
        outputs: numbers that are predicted.
    """

    def __init__(self, dim: int, outputs: int) -> None:
        super().__init__()
        heads = max(1, dim // 64)
        while dim % heads:
            heads -= 1
        self.pool = AttentionPoolLatent(dim, num_heads=heads, norm_layer=nn.LayerNorm)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, outputs)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Float[Tensor, "b l d"]) -> Float[Tensor, "b outputs"]:
        return self.head(self.norm(self.pool(tokens)))


class TokenPart(NamedTuple):
    """Clips whose tokens lie in a store.

    Attributes:
        store: the tokens.
        views: which clips of each video; their tokens are put in a row.
    """

    store: TokenStore
    views: slice

    def __len__(self) -> int:
        return self.store.shape[0]

    def read(self, index: Int[Tensor, " b"]) -> Float[Tensor, "b l d"]:
        """Tokens of some videos."""
        return self.store.read(index, self.views)


def attentive_predict(
    train: TokenPart,
    train_labels: Mapping[str, Tensor],
    test: TokenPart,
    *,
    targets: tuple[Target, ...],
    config: AttentiveConfig | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> dict[str, Float[Tensor, "m width"]]:
    """Train a probe for each target and predict the test part.

    Args:
        train, test: tokens of different videos.
        train_labels: of the training part.
        targets: what is predicted; each has a probe of its own.
        config: how they are trained.
        seed: of the validation part, the weights and the order of the clips.
        device: where the probes are trained.

    Returns:
        Target → (m, width): logits, or numbers in the labels' units.

    Raises:
        ValueError: for settings that cannot be, or too few clips.
    """
    config = config or AttentiveConfig()
    config.check()
    count = len(train)
    held_out = max(1, round(count * config.validation))
    if count - held_out < 1:
        raise ValueError(f"{count} clips are too few to train an attentive probe on")
    order = torch.from_numpy(named_generator(seed, "validation").permutation(count))
    validation, fitting = order[:held_out].sort().values, order[held_out:].sort().values
    labels = {t.name: train_labels[t.name].to(device) for t in targets}
    scale = NumberScale.of({name: value[fitting] for name, value in labels.items()}, targets)
    mean, std = _statistics(train, fitting, config.batch_size)

    def tokens(part: TokenPart, index: Tensor) -> Tensor:
        return ((part.read(index) - mean) / std).to(device)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probes = nn.ModuleDict(
            {t.name: AttentiveProbe(train.store.shape[-1], t.width) for t in targets}
        )
    probes.to(device)
    optimizer = torch.optim.AdamW(
        probes.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    steps = config.epochs * math.ceil(len(fitting) / config.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=steps, pct_start=0.1, cycle_momentum=False
    )

    def losses(part: Tensor) -> dict[str, Tensor]:
        seen = tokens(train, part)
        return {
            t.name: target_loss(probes[t.name](seen), labels[t.name][part.to(device)], t, scale)
            for t in targets
        }

    best = {t.name: (math.inf, copy.deepcopy(probes[t.name].state_dict())) for t in targets}
    for epoch in range(config.epochs):
        probes.train()
        shuffled = torch.from_numpy(named_generator(seed, epoch, "order").permutation(len(fitting)))
        for part in fitting[shuffled].split(config.batch_size):
            optimizer.zero_grad()
            # No probe shares a weight with another: the sum trains each by itself.
            torch.stack(list(losses(part).values())).sum().backward()
            optimizer.step()
            schedule.step()
        probes.eval()
        with torch.no_grad():
            sums = dict.fromkeys(best, 0.0)
            for part in validation.split(config.batch_size):
                for name, loss in losses(part).items():
                    sums[name] += loss.item() * len(part)
        for name, value in sums.items():
            if value < best[name][0]:
                best[name] = (value, copy.deepcopy(probes[name].state_dict()))
    for name, (_, state) in best.items():
        probes[name].load_state_dict(state)
    parts: dict[str, list[Tensor]] = {t.name: [] for t in targets}
    with torch.no_grad():
        for part in torch.arange(len(test)).split(config.batch_size):
            seen = tokens(test, part)
            for name, found in parts.items():
                found.append(probes[name](seen).float().cpu())
    predicted = {name: torch.cat(found) for name, found in parts.items()}
    return in_label_units(predicted, targets, scale)


def _statistics(
    part: TokenPart, index: Tensor, batch_size: int
) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
    """Mean and deviation of each feature over the tokens of the training part."""
    count, total = 0, torch.zeros(2, part.store.shape[-1], dtype=torch.float64)
    for some in index.split(batch_size):
        tokens = part.read(some).flatten(0, 1).double()
        count += len(tokens)
        total += torch.stack((tokens.sum(0), tokens.square().sum(0)))
    mean = total[0] / count
    # A feature that never varies stays near 0 instead of being blown up.
    std = (total[1] / count - mean.square()).clamp(min=0).sqrt()
    return mean.float(), torch.where(std > 1e-4 * mean.abs(), std, 1.0).float()
