"""Labels of clips from CLEVRER's annotations (Yi et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ssl_vivit.data.video.annotation_fields import Field
from ssl_vivit.errors import AnnotationError, DataError, DecodingError

if TYPE_CHECKING:
    from ssl_vivit.data.video.videos import Videos

# Mean and standard deviation of pixels scaled to [0, 1]; most pixels show the grey ground.
MEAN, STD = (0.5,), (0.1,)
SHAPES = ("cube", "sphere", "cylinder")
COLOURS = ("gray", "red", "blue", "green", "brown", "cyan", "purple", "yellow")
MATERIALS = ("metal", "rubber")

# Kinds of objects in the order of ``presence``: material varies fastest, then colour, then shape.
KINDS = tuple(
    f"{colour} {material} {shape}"
    for shape in SHAPES
    for colour in COLOURS
    for material in MATERIALS
)
_KIND_INDEX = {kind: i for i, kind in enumerate(KINDS)}


def clip_labels(
    annotation: Mapping[str, Any] | None, frames: Sequence[int], name: str = "the video"
) -> dict[str, Tensor]:
    """Return the labels of a clip: visible objects, collisions and mean speed.

    An object counts as visible if ``inside_camera_view`` is true in at least one of the clip's
    frames, even if another object hides it.

    Args:
        annotation: annotation of the video, in the format of CLEVRER's JSON files.
        frames: frame numbers of the clip in the annotation, in any order.
        name: name of the video, for messages.

    Returns:
        The labels by name.

        - ``presence`` float32 (48,): 1 for each visible kind of object, else 0. A kind is a shape
          with a colour and a material, and has index ((shape · 8) + colour) · 2 + material, as in
          :data:`KINDS`
        - ``num_objects`` int64 (): number of visible objects
        - ``num_collisions`` int64 (): number of collisions from the clip's first to its last
          frame, including those between its sampled frames
        - ``has_collision`` float32 (): 1 if there is a collision, else 0
        - ``mean_speed`` float32 (): speed in the annotation's units of length per second,
          averaged over all sampled frames and the objects visible in them; 0 if no object is
          visible

    Raises:
        DataError: if there is no annotation.
        AnnotationError: if a needed field is missing, has another type, is not finite or is
            unknown; the message names the video and the field.
    """
    if annotation is None:
        raise DataError(
            f"{name} has no annotation, but labels need one; pack the shards with "
            "`python -m data_prep.clevrer pack --annotations …`, or set --probe.every 0 to pretrain "
            "without probes"
        )
    with _naming(name):
        return _labels(Field(annotation), [int(frame) for frame in frames])


def video_labels(videos: Videos, i: int, clips: Iterable[Sequence[int]]) -> list[dict[str, Tensor]]:
    """Return the labels of clips of one video; see :func:`clip_labels`.

    Args:
        videos: videos with annotations.
        i: index of the video.
        clips: frame numbers of each clip.

    Raises:
        AnnotationError: for the errors of :func:`clip_labels`, and if the annotation is damaged or
            has another number of frames than the video.
    """
    key, num_frames = videos.keys[i], int(videos.num_frames[i])
    try:
        annotation = videos.annotation(i)
    except DecodingError as error:
        raise AnnotationError(str(error)) from error
    if annotation is not None or videos.has_annotation[i]:
        with _naming(key):
            told = len(Field(annotation)["motion_trajectory"].items())
        if told != num_frames:
            # For example, it was packed at another rate. Frame numbers then differ from the
            # annotation's.
            raise AnnotationError(
                f"the annotation of {key} has {told} frames, but the video has {num_frames}; "
                "labels need shards packed at the videos' own frame rate"
            )
    return [clip_labels(annotation, frames, key) for frames in clips]


@contextmanager
def _naming(video: str) -> Iterator[None]:
    try:
        yield
    except AnnotationError as error:
        raise AnnotationError(f"the annotation of {video}: {error}") from None


def _labels(annotation: Field, frames: list[int]) -> dict[str, Tensor]:
    kinds: dict[int, int] = {}
    for entry in annotation["object_property"].items():
        identity, parts = entry["object_id"].whole(), ("color", "material", "shape")
        kind = " ".join(entry[part].word() for part in parts)
        entry["object_id"].check(identity not in kinds, "unique")
        if kind not in _KIND_INDEX:
            raise AnnotationError(
                f"{entry.path} is a {kind[:60]!r}, which is not a kind of object in CLEVRER"
            )
        kinds[identity] = _KIND_INDEX[kind]
    trajectory: dict[int, Field] = {}
    for entry in annotation["motion_trajectory"].items():
        frame = entry["frame_id"].whole()
        entry["frame_id"].check(frame not in trajectory, "unique")
        trajectory[frame] = entry["objects"]
    visible: set[int] = set()
    speeds: list[float] = []
    for frame in frames:
        if frame not in trajectory:
            raise AnnotationError(f"motion_trajectory has no frame {frame}")
        here: set[int] = set()
        for entry in trajectory[frame].items():
            if not entry["inside_camera_view"].flag():
                continue
            identity = entry["object_id"].whole()
            entry["object_id"].check(identity not in here, "unique in the frame")
            entry["object_id"].check(identity in kinds, "an object_id of object_property")
            here.add(identity)
            velocity = [part.number() for part in entry["velocity"].items()]
            entry["velocity"].check(len(velocity) == 3, "a list of three numbers")
            speeds.append(math.hypot(*velocity))
        visible |= here
    presence = torch.zeros(len(KINDS))
    presence[[kinds[identity] for identity in visible]] = 1.0
    first, last = min(frames), max(frames)
    hits = [entry["frame_id"].whole() for entry in annotation["collision"].items()]
    collisions = sum(first <= frame <= last for frame in hits)
    return {
        "presence": presence,
        "num_objects": torch.tensor(len(visible)),
        "num_collisions": torch.tensor(collisions),
        "has_collision": torch.tensor(float(collisions > 0)),
        "mean_speed": torch.tensor(sum(speeds) / len(speeds) if speeds else 0.0),
    }
