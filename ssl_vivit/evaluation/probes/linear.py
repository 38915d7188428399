"""Probes on frozen features by nearest neighbours and ridge regression; fast, deterministic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ssl_vivit.data.randomness import named_generator
from ssl_vivit.evaluation.probes.scores import CLEVRER_TARGETS, scores
from ssl_vivit.objectives.targets import Target, columns
from ssl_vivit.settings import check_type

ProbeKind = Literal["knn", "linear"]

NEIGHBOURS = 20
TEMPERATURE = 0.1
FOLDS = 5
# Multiples of the number of clips, for features of variance 1.
PENALTIES = tuple(10.0 ** (power / 2) for power in range(-10, 7))
_CHUNK = 1024


def probe(
    train_features: Float[Tensor, "n d"],
    train_labels: Mapping[str, Tensor],
    test_features: Float[Tensor, "m d"],
    test_labels: Mapping[str, Tensor],
    kind: ProbeKind = "linear",
    *,
    targets: tuple[Target, ...] = CLEVRER_TARGETS,
    seed: int = 0,
) -> dict[str, float]:
    """Predict each target from frozen features and score the predictions.

    Args:
        train_features: features of the training part, (n, d).
        train_labels: target → labels, (n,) or (n, kinds of objects), as returned by
            :func:`~ssl_vivit.data.video.clevrer.clip_labels`.
        test_features: features of the test part, (m, d), from other videos.
        test_labels: target → labels of the test part.
        kind: ``knn``, see :func:`nearest_neighbours`, or ``linear``, see :func:`ridge`.
        targets: the targets to predict; both sets of labels must contain them.
        seed: seed of the folds that select the linear probe's penalty.

    Returns:
        Target → score, see :func:`~ssl_vivit.evaluation.probes.scores.score`.

    Raises:
        ValueError: if there are too few clips, or if features are not finite.
    """
    predicted = predict(
        train_features, train_labels, test_features, kind, targets=targets, seed=seed
    )
    return scores(predicted, test_labels, train_labels, targets)


def predict(
    train_features: Float[Tensor, "n d"],
    train_labels: Mapping[str, Tensor],
    test_features: Float[Tensor, "m d"],
    kind: ProbeKind,
    *,
    targets: tuple[Target, ...] = CLEVRER_TARGETS,
    seed: int = 0,
) -> dict[str, Float[Tensor, "m width"]]:
    """Return a probe's predictions for the test part; arguments and errors as in :func:`probe`."""
    check_type("probe kind", kind, ProbeKind)
    if len(train_features) < FOLDS or len(test_features) < 1:
        raise ValueError(
            f"{len(train_features)} training clips and {len(test_features)} test clips are too "
            f"few; a probe needs at least {FOLDS} and 1"
        )
    if not (train_features.isfinite().all() and test_features.isfinite().all()):
        raise ValueError("features are not finite; check the encoder's weights")
    train, test = standardised(train_features, test_features)
    wanted = {target.name: columns(train_labels[target.name].cpu(), target) for target in targets}
    if kind == "linear":
        return ridge(train, wanted, test, seed)
    together = nearest_neighbours(train, torch.cat(list(wanted.values()), 1), test)
    parts = together.split([target.width for target in targets], dim=1)
    return dict(zip(wanted, parts, strict=True))


def standardised(
    train: Float[Tensor, "n d"], test: Float[Tensor, "m d"]
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "m d"]]:
    """Standardise training and test features by mean and standard deviation of the training part.

    Features that are constant in the training part become 0. The results are float64 on the CPU.
    """
    train, test = train.double().cpu(), test.double().cpu()
    mean, std = train.mean(0), train.std(0, correction=0)
    # By rounding, a constant feature has a standard deviation of about 1e-16 times its magnitude.
    varies = std > 1e-9 * mean.abs().clamp(min=1e-30)
    scale = torch.where(varies, 1 / std, 0)
    return (train - mean) * scale, (test - mean) * scale


def nearest_neighbours(
    train: Float[Tensor, "n d"],
    labels: Float[Tensor, "n k"],
    test: Float[Tensor, "m d"],
    *,
    neighbours: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> Float[Tensor, "m k"]:
    """Return for each test clip the weighted mean label of the nearest training clips.

    The nearest clips have the largest cosine similarity of features. Weights are
    exp(cosine / temperature), as in Wu et al. 2018 (arXiv 1805.01978, Sec. 3.4). If labels are
    indicators of classes, the largest mean is the class that Wu et al. predict.

    Args:
        train, test: features.
        labels: numbers, or indicators of classes.
        neighbours: number of neighbours; at most all training clips are used.
        temperature: temperature of the weights.
    """
    train, test = F.normalize(train, dim=1), F.normalize(test, dim=1)
    means = []
    for part in test.split(_CHUNK):
        near = (part @ train.T).topk(min(neighbours, len(train)), dim=1)
        weights = (near.values / temperature).softmax(1)
        means.append((weights[..., None] * labels[near.indices]).sum(1))
    return torch.cat(means)


def ridge(
    train: Float[Tensor, "n d"],
    labels: Mapping[str, Float[Tensor, "n k"]],
    test: Float[Tensor, "m d"],
    seed: int = 0,
) -> dict[str, Float[Tensor, "m k"]]:
    """Fit ridge regression in closed form, with one penalty for each target; predict the test part.

    A target's penalty is the value in :data:`PENALTIES` with the smallest squared error in
    five-fold cross-validation, summed over the target's columns. The model is then fitted to the
    whole training part.

    Args:
        train, test: standardised features; see :func:`standardised`.
        labels: target → columns (n, k).
        seed: seed of the folds.
    """
    order = torch.from_numpy(named_generator(seed, "folds").permutation(len(train)))
    everything = torch.cat(list(labels.values()), 1)
    widths = [part.shape[1] for part in labels.values()]
    errors = torch.zeros(len(PENALTIES), everything.shape[1], dtype=torch.float64)
    for left_out in order.tensor_split(FOLDS):
        kept = torch.ones(len(train), dtype=torch.bool)
        kept[left_out] = False
        fitted = _ridge_path(train[kept], everything[kept], train[left_out], PENALTIES)
        errors += (fitted - everything[left_out]).square().sum(1)
    chosen = [int(part.sum(1).argmin()) for part in errors.split(widths, dim=1)]
    needed = sorted(set(chosen))
    fitted = _ridge_path(train, everything, test, [PENALTIES[i] for i in needed])
    parts = fitted.split(widths, dim=2)
    return {
        name: part[needed.index(choice)]
        for name, part, choice in zip(labels, parts, chosen, strict=True)
    }


def _ridge_path(
    train: Tensor, labels: Tensor, test: Tensor, penalties: tuple[float, ...] | list[float]
) -> Float[Tensor, "penalties m k"]:
    """Return predictions for all penalties, by one eigendecomposition over clips or features."""
    n, d = train.shape
    centre, level = train.mean(0), labels.mean(0)
    x, y, z = train - centre, labels - level, test - centre
    # With x xᵀ = v e vᵀ: z (xᵀx + λ)⁻¹ xᵀ y = (z xᵀ v) (e + λ)⁻¹ (vᵀ y).
    # With xᵀx = v e vᵀ: z (xᵀx + λ)⁻¹ xᵀ y = (z v) (e + λ)⁻¹ (vᵀ xᵀ y).
    e, v = torch.linalg.eigh(x @ x.T if n < d else x.T @ x)
    left, right = (z @ x.T @ v, v.T @ y) if n < d else (z @ v, v.T @ x.T @ y)
    e = e.clamp(min=0)
    return torch.stack([(left / (e + penalty * n)) @ right + level for penalty in penalties])
