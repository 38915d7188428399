"""Videos that cannot be decoded: replaced in batches, counted, and too many of them refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ssl_vivit.data.randomness import named_generator
from ssl_vivit.data.video.dataset import ClipDataset
from ssl_vivit.errors import DataError, DecodingError

BROKEN_LIMIT = 0.01
# Eight broken videos in a row are no accident in a set that is 1 % broken.
_ATTEMPTS = 8


class SampleFetcher:
    """Dataset of a DataLoader: (index, epoch) → a sample, or the reason for none."""

    def __init__(self, dataset: ClipDataset, indices: np.ndarray, replace: bool) -> None:
        self.dataset, self.indices, self.replace = dataset, indices, replace

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        index, epoch = item
        key = self.dataset.videos.keys[index]
        names: list[int | str] = [key]
        broken: dict[str, str] = {}
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return {**self.dataset.sample(index, epoch, *names), "broken": broken}
            except DecodingError as error:
                broken[self.dataset.videos.keys[index]] = str(error)
            except DataError as error:
                # Raised here, it would reach the user as a worker's traceback.
                return {"refusal": str(error)}
            if not self.replace:
                break
            names = [key, attempt]
            rng = named_generator(self.dataset.seed, epoch, *names, "replacement")
            index = int(self.indices[rng.integers(len(self.indices))])
        return {"broken": broken}


def refuse_many_broken(
    broken: Mapping[str, str], total: int, few: int = 0, *, given_up: bool = False
) -> None:
    """Stop where more than :data:`BROKEN_LIMIT` of the videos cannot be used.

    Args:
        broken: name → why the video cannot be used.
        total: videos, the broken ones included.
        few: so many are no reason to stop, in whatever share.
        given_up: stop whatever the share: no video was found in the place of a broken one.

    Raises:
        DataError: naming some of them.
    """
    if not given_up and len(broken) <= max(few, BROKEN_LIMIT * total):
        return
    names = ", ".join(list(broken)[:10])
    more = f" and {len(broken) - 10} more" if len(broken) > 10 else ""
    raise DataError(
        f"{len(broken)} of {total} videos cannot be used, more than {BROKEN_LIMIT:.0%}"
        f"{f' and more than {few}' if few else ''}: {names}{more} (the first: "
        f"{next(iter(broken.values()))}); leave them out, or mend them: of shards, "
        "`python -m data_prep.clevrer verify` names what is broken"
    )
