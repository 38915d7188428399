"""Videos that cannot be used: replaced in batches, counted, and too many broken ones refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ssl_vivit.data import stopping
from ssl_vivit.data.randomness import named_generator
from ssl_vivit.data.video.dataset import ClipDataset
from ssl_vivit.data.video.videos import ShortVideos
from ssl_vivit.errors import AnnotationError, DataError, DecodingError

BROKEN_LIMIT = 0.01
# So many broken videos are no reason to stop, however few there are in all.
FEW = 5
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
        left_out: dict[str, dict[str, str]] = {"broken": {}, "unlabelled": {}}
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return {**self.dataset.sample(index, epoch, *names), **left_out}
            except DecodingError as error:
                left_out["broken"][self.dataset.videos.keys[index]] = str(error)
            except AnnotationError as error:
                left_out["unlabelled"][self.dataset.videos.keys[index]] = str(error)
            except DataError as error:
                # Raised here, it would reach the user as a worker's traceback.
                return {"refusal": str(error)}
            except KeyboardInterrupt:
                if stopping.is_orphan():
                    raise
                return {"stopped": True}  # a worker that ended would leave the loader waiting
            if not self.replace:
                break
            names = [key, attempt]
            rng = named_generator(self.dataset.seed, epoch, *names, "replacement")
            index = int(self.indices[rng.integers(len(self.indices))])
        return dict(left_out)


def refuse_many_broken(broken: Mapping[str, str], total: int, *, given_up: bool = False) -> None:
    """Stop where more than :data:`FEW` and :data:`BROKEN_LIMIT` of the videos cannot be used.

    Args:
        broken: name → why the video cannot be used.
        total: videos, the broken ones included.
        given_up: stop whatever the share: no video was found in the place of a broken one.

    Raises:
        DataError: naming some of them.
    """
    if not given_up and len(broken) <= max(FEW, BROKEN_LIMIT * total):
        return
    limit = "" if given_up else f", more than {BROKEN_LIMIT:.0%} and more than {FEW}"
    raise DataError(
        f"{len(broken)} of {total} videos cannot be used{limit}: {some_names(broken)} (the first: "
        f"{next(iter(broken.values()))}); leave them out, or fix them: of shards, "
        "`python -m data_prep.clevrer verify` names what is broken"
    )


def short_videos_line(names: Sequence[str], total: int, short_videos: ShortVideos) -> str | None:
    """Count and names of the videos that are too short, in a line; None if there are none.

    Args:
        names: of the short videos.
        total: videos, the short ones included.
        short_videos: what becomes of them.
    """
    if not names:
        return None
    fate = "their last frame is repeated" if short_videos == "pad" else "they are left out"
    return (
        f"{len(names)} of {total} videos are too short for the clips, {fate} "
        f"(--data.short_videos {short_videos}): {some_names(names)}"
    )


def some_names(names: Iterable[str]) -> str:
    """The first ten names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - 10} more" if len(listed) > 10 else ""
    return ", ".join(listed[:10]) + more
