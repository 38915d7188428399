"""Cache in host memory of the features that a frozen module computes for each clip."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from hashlib import blake2b
from itertools import chain

import torch
from torch import Tensor, nn


class FeatureCache:
    """Cache of features of clips, addressed by the contents of the clips.

    The key of a clip is a hash (BLAKE2b) of its values. A clip is therefore found only if all its
    values repeat exactly. The clips of a batch that are not in the cache are computed in one call.
    Batches of different sizes may round differently, so cached features can differ from computed
    ones by rounding.

    Args:
        gigabytes: capacity in units of 10⁹ bytes. When it is reached, further clips are not stored
            and are computed each time.

    Attributes:
        size: bytes of the stored features.
    """

    def __init__(self, gigabytes: float) -> None:
        self.limit, self.size = gigabytes * 1e9, 0
        self._kept: dict[bytes, Tensor] = {}
        self._weights: tuple[tuple[int, int], ...] = ()

    def __len__(self) -> int:
        """Return the number of stored clips."""
        return len(self._kept)

    def features(
        self,
        modules: Iterable[nn.Module],
        compute: Callable[..., Tensor],
        *inputs: Tensor | None,
        about: object = None,
    ) -> Tensor:
        """Return ``compute(*inputs)``, with rows taken from the cache if they are stored there.

        The cache is bypassed if the modules are not fixed (:func:`is_fixed`), or an input requires
        a gradient.

        Args:
            modules: all modules on whose weights the features depend. The cache is emptied if the
                weights have changed since the last call.
            compute: function that returns one row of features for each row of its inputs. A row
                must not depend on other rows.
            inputs: tensors with one row for each clip. None is passed on unchanged.
            about: anything else on which the features depend; its ``repr`` is part of the key.
        """
        modules = list(modules)
        given = [each for each in inputs if each is not None]
        if not is_fixed(modules) or any(each.requires_grad for each in given):
            return compute(*inputs)
        self._empty_for_other_weights(modules)
        device = given[0].device
        # The precision of autocast is part of the key, since it changes the result.
        precision = None
        if torch.is_autocast_enabled(device.type):
            precision = torch.get_autocast_dtype(device.type)
        keys = _keys(given, repr((about, precision)))
        missing = {key: row for row, key in enumerate(keys) if key not in self._kept}
        found: dict[bytes, Tensor] = {}
        if missing:
            rows = torch.tensor([*missing.values()], device=device)
            made = compute(*(None if each is None else each[rows] for each in inputs))
            found = dict(zip(missing, made.unbind(), strict=True))
            for key, row in found.items():
                self._keep(key, row)
        return _stacked([
            found[key] if key in found else self._kept[key].to(device) for key in keys
        ])  # fmt: skip

    def _keep(self, key: bytes, row: Tensor) -> None:
        if self.size + row.nbytes <= self.limit:
            # Store a copy, since a view would keep the whole batch in memory.
            self._kept[key] = row.detach().to("cpu", copy=True)
            self.size += row.nbytes

    def _empty_for_other_weights(self, modules: list[nn.Module]) -> None:
        """Empty the cache if a tensor of the modules was replaced or modified in place."""
        tensors = chain.from_iterable((*m.parameters(), *m.buffers()) for m in modules)
        weights = tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)
        if weights != self._weights:
            self._kept, self.size, self._weights = {}, 0, weights


def is_fixed(modules: Iterable[nn.Module]) -> bool:
    """Return whether all modules are in eval mode and no parameter requires a gradient.

    Weights that are sharded over processes do not count as fixed. All processes must gather such
    weights together, but a process that finds its clips in the cache would not take part.
    """
    return not any(
        any(module.training for module in whole.modules())
        or any(p.requires_grad or type(p) is not nn.Parameter for p in whole.parameters())
        for whole in modules
    )


def _keys(inputs: list[Tensor], about: str) -> list[bytes]:
    """Return the key of each clip: a hash of its inputs, their types and shapes, and ``about``."""
    hosted = [each.detach().cpu().contiguous() for each in inputs]
    told = repr((about, [(each.dtype, tuple(each.shape[1:])) for each in hosted])).encode()
    keys = []
    for rows in zip(*hosted, strict=True):
        key = blake2b(told, digest_size=16)
        for row in rows:
            key.update(row.view(torch.uint8).numpy())
        keys.append(key.digest())
    return keys


def _stacked(rows: list[Tensor]) -> Tensor:
    """Stack tensors like ``torch.stack``, but in the memory layout (strides) of the first one."""
    strides = rows[0].stride()
    order = sorted(range(rows[0].ndim), key=lambda dim: -strides[dim])
    back = [order.index(dim) + 1 for dim in range(len(order))]
    return torch.stack([row.permute(order) for row in rows]).permute(0, *back)
