"""Attentive probe: one learned query per target attends to frozen tokens, then a linear layer.

This is V-JEPA's protocol (Bardes et al. 2024, arXiv 2404.08471, Sec. 4.2). A learned query can
select the relevant patch tokens, whose information would be lost in a mean over all tokens.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from itertools import islice

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from timm.layers import AttentionPoolLatent
from torch import Tensor, nn
from tqdm import tqdm

from ssl_vivit.data.randomness import named_generator
from ssl_vivit.evaluation.features.extraction import TokenStore
from ssl_vivit.evaluation.probes.config import AttentiveConfig
from ssl_vivit.objectives.targets import NumberScale, Target, in_label_units, target_loss

MOMENTS = 20


class OneQuery(AttentionPoolLatent):
    """timm's ``AttentionPoolLatent`` for one latent query, without keys and values of all tokens.

    Keys and values are products W x of a matrix and the tokens x. For a query q and attention
    weights w, q·(W x) = (Wᵀ q)·x and Σ w (W x) = W (Σ w x). The results are equal to timm's, with
    less computation and memory.
    """

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b d"]:  # type: ignore[override]
        query = rearrange(self.q(self.latent[0, 0]), "(h e) -> h e", h=self.num_heads)
        to_keys, to_values = rearrange(
            self.kv.weight, "(two h e) d -> two h e d", two=2, h=self.num_heads
        )
        # The keys' bias adds a constant to all scores, which does not change the softmax.
        asked = einsum(query, to_keys, "h e, h e d -> h d") * self.scale
        weights = einsum(asked, x, "h d, b l d -> b h l").softmax(-1)
        seen = einsum(weights, x, "b h l, b l d -> b h d")
        values = rearrange(einsum(seen, to_values, "b h d, h e d -> b h e"), "b h e -> b (h e)")
        pooled = self.proj(values + self.kv.bias.chunk(2)[1])
        return pooled + self.mlp(self.norm(pooled))


class AttentiveProbe(nn.Module):
    """Attentive probe for one target.

    The layers are cross-attention of a learned query, an MLP with a residual connection, layer norm
    and a linear layer.

    Args:
        dim: width of the tokens.
        outputs: number of outputs.
    """

    def __init__(self, dim: int, outputs: int) -> None:
        super().__init__()
        heads = max(1, dim // 64)
        while dim % heads:
            heads -= 1
        self.pool = OneQuery(dim, num_heads=heads, norm_layer=nn.LayerNorm)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, outputs)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Float[Tensor, "b l d"]) -> Float[Tensor, "b outputs"]:
        return self.head(self.norm(self.pool(tokens)))


def attentive_predict(
    train: TokenStore,
    train_labels: Mapping[str, Tensor],
    test: TokenStore,
    views: slice,
    *,
    targets: tuple[Target, ...],
    config: AttentiveConfig | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> dict[str, Float[Tensor, "m width"]]:
    """Train a probe for each target and predict the labels of the test part.

    Args:
        train, test: tokens of the training and of the test part, which must have different videos.
        train_labels: target → labels of the training part.
        views: slice that selects clips of each video; the tokens of these clips are concatenated.
        targets: the targets; each has its own probe.
        config: settings of training; None takes the defaults.
        seed: seed of the validation part, the weights and the order of the videos.
        device: device on which the probes are trained.

    Returns:
        Target → predictions (m, width) for the m test videos. Targets that are numbers have
        predictions in the units of the labels, and other targets have one logit per output.

    Raises:
        ValueError: if there are too few videos, or if tokens are not finite.
    """
    config = config or AttentiveConfig()
    count = train.shape[0]
    held_out = max(1, round(count * config.validation))
    if count - held_out < 1:
        raise ValueError(f"{count} videos are too few to train an attentive probe; give more")
    order = torch.from_numpy(named_generator(seed, "validation").permutation(count))
    validation, fitting = order[:held_out].sort().values, order[held_out:].sort().values
    labels = {t.name: train_labels[t.name].to(device) for t in targets}
    scale = NumberScale.of({name: value[fitting] for name, value in labels.items()}, targets)
    mean, std = _statistics(train, views, fitting, config.batch_size)

    def tokens(store: TokenStore, index: Tensor) -> Tensor:
        return ((store.read(index, views) - mean) / std).to(device)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probes = nn.ModuleDict({t.name: AttentiveProbe(train.shape[-1], t.width) for t in targets})
    probes.to(device)
    optimizer = torch.optim.AdamW(
        probes.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        config.learning_rate,
        total_steps=config.steps,
        pct_start=0.1,
        cycle_momentum=False,
    )

    def losses(part: Tensor) -> dict[str, Tensor]:
        seen = tokens(train, part)
        return {
            t.name: target_loss(probes[t.name](seen), labels[t.name][part.to(device)], t, scale)
            for t in targets
        }

    best: dict[str, tuple[float, dict[str, Tensor]]] = {t.name: (math.inf, {}) for t in targets}

    @torch.no_grad()
    def keep_the_best() -> None:
        probes.eval()
        sums = dict.fromkeys(best, 0.0)
        for some in validation.split(config.batch_size):
            for name, loss in losses(some).items():
                sums[name] += loss.item() * len(some)
        for name, value in sums.items():
            if value < best[name][0]:
                best[name] = (value, copy.deepcopy(probes[name].state_dict()))

    # The untrained probe is a candidate too, and is kept if training never lowers the loss.
    keep_the_best()
    if not all(state for _, state in best.values()):
        raise ValueError("tokens are not finite; check the encoder's weights")
    pause = max(1, config.steps // MOMENTS)
    steps = tqdm(
        _shuffled(fitting, config, seed), total=config.steps, desc=f"attentive probe, seed {seed}",
        unit="step", leave=False, dynamic_ncols=True,
    )  # fmt: skip
    for step, part in enumerate(steps, 1):
        probes.train()
        optimizer.zero_grad()
        # Probes share no weights, so minimising the sum trains each one independently.
        torch.stack(list(losses(part).values())).sum().backward()
        optimizer.step()
        schedule.step()
        if step % pause == 0 or step == config.steps:
            keep_the_best()
    for name, (_, state) in best.items():
        probes[name].load_state_dict(state)
    parts: dict[str, list[Tensor]] = {t.name: [] for t in targets}
    with torch.no_grad():
        for part in torch.arange(test.shape[0]).split(config.batch_size):
            seen = tokens(test, part)
            for name, found in parts.items():
                found.append(probes[name](seen).float().cpu())
    predicted = {name: torch.cat(found) for name, found in parts.items()}
    return in_label_units(predicted, targets, scale)


def _shuffled(index: Tensor, config: AttentiveConfig, seed: int) -> Iterator[Tensor]:
    """Yield the video indices of each step's batch, in a new random order in every epoch."""
    epochs = math.ceil(config.steps / math.ceil(len(index) / config.batch_size))
    batches = (
        part
        for epoch in range(epochs)
        for part in index[
            torch.from_numpy(named_generator(seed, epoch, "order").permutation(len(index)))
        ].split(config.batch_size)
    )
    return islice(batches, config.steps)


def _statistics(
    store: TokenStore, views: slice, index: Tensor, batch_size: int
) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
    """Return each feature's mean and standard deviation over all tokens of the videos ``index``."""
    count, total = 0, torch.zeros(2, store.shape[-1], dtype=torch.float64)
    for some in index.split(batch_size):
        tokens = store.read(some, views).flatten(0, 1).double()
        count += len(tokens)
        total += torch.stack((tokens.sum(0), tokens.square().sum(0)))
    mean = total[0] / count
    # Dividing a constant feature by its standard deviation would amplify rounding errors.
    std = (total[1] / count - mean.square()).clamp(min=0).sqrt()
    return mean.float(), torch.where(std > 1e-4 * mean.abs(), std, 1.0).float()
