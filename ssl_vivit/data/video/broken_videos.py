"""Replace broken videos in batches, count them, and refuse data with too many of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ssl_vivit.data import stopping
from ssl_vivit.data.randomness import named_generator
from ssl_vivit.data.video.clips import ClipConfig, needed_length
from ssl_vivit.data.video.dataset import ClipDataset
from ssl_vivit.data.video.videos import ShortVideos
from ssl_vivit.errors import AnnotationError, DataError, DecodingError

BROKEN_LIMIT = 0.01
# This number of broken videos is always accepted, also in small sets of videos.
FEW = 5
# Number of videos tried for one sample. If 1 % of videos are broken, eight broken videos in a row
# are not a coincidence.
_ATTEMPTS = 8


class SampleFetcher:
    """Dataset of a DataLoader that returns a sample for the key (index of a video, epoch).

    If ``replace`` is true, a video that is broken or lacks needed labels is replaced by a randomly
    drawn video. Each sample also contains ``broken`` and ``unlabelled``, two dictionaries from the
    names of videos that could not be used to the reasons. If no video could be read, only these
    two dictionaries are returned. If the data are refused or a stop is requested, a dictionary with
    the single key ``refusal`` (a message) or ``stopped`` is returned.
    """

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
                # Raising the error in the worker would show the user the worker's traceback.
                return {"refusal": str(error)}
            except KeyboardInterrupt:
                if stopping.is_orphan():
                    raise
                return {"stopped": True}  # if the worker ended, the loader would wait for it
            if not self.replace:
                break
            names = [key, attempt]
            rng = named_generator(self.dataset.seed, epoch, *names, "replacement")
            index = int(self.indices[rng.integers(len(self.indices))])
        return dict(left_out)


def refuse_many_broken(broken: Mapping[str, str], total: int, *, given_up: bool = False) -> None:
    """Raise an error if too many videos are broken.

    The limits are :data:`FEW` videos and the fraction :data:`BROKEN_LIMIT` of all videos. The error
    is raised if both limits are exceeded.

    Args:
        broken: dictionary from the name of each broken video to the reason why it cannot be used.
        total: number of all videos, including broken ones.
        given_up: whether no replacement was found for a broken video; the error is then always
            raised.

    Raises:
        DataError: if too many videos are broken; the message names some of them.
    """
    if not given_up and len(broken) <= max(FEW, BROKEN_LIMIT * total):
        return
    limit = "" if given_up else f", more than {BROKEN_LIMIT:.0%} and more than {FEW}"
    raise DataError(
        f"{len(broken)} of {total} videos cannot be used{limit}: {some_names(broken)} (reason of "
        f"the first: {next(iter(broken.values()))}); remove or repair them; for shards, "
        "`python -m data_prep.clevrer verify` lists broken videos"
    )


def short_videos_line(
    names: Sequence[str], total: int, short_videos: ShortVideos, clips: Iterable[ClipConfig]
) -> str | None:
    """Return a line for the user on the videos that are too short; None if there are none.

    The line contains the number and names of these videos, and the length that the clips need.

    Args:
        names: names of the videos that are too short for the clips.
        total: number of all videos, including short ones.
        short_videos: the setting ``--data.short_videos``.
        clips: settings of the clips.
    """
    if not names:
        return None
    needed = " and ".join(sorted({needed_length(clip) for clip in clips}))
    fate = "their last frame is repeated" if short_videos == "pad" else "they are left out"
    return (
        f"{len(names)} of {total} videos are too short for the clips, so {fate} "
        f"(--data.short_videos {short_videos}; {needed}): {some_names(names)}"
    )


def some_names(names: Iterable[str]) -> str:
    """Return a text with the first ten names and the number of further names."""
    listed = list(names)
    more = f" and {len(listed) - 10} more" if len(listed) > 10 else ""
    return ", ".join(listed[:10]) + more
