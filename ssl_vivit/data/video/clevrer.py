"""Labels for clips from CLEVRER's annotations (Yi et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ssl_vivit.errors import DataError

# Mean and standard deviation of pixels in [0, 1]; most of them show the grey ground.
MEAN, STD = (0.5,), (0.1,)
SHAPES = ("cube", "sphere", "cylinder")
COLOURS = ("gray", "red", "blue", "green", "brown", "cyan", "purple", "yellow")
MATERIALS = ("metal", "rubber")

# The order of ``presence``: the material changes fastest, then the colour, then the shape.
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
    """Labels of a clip: visible objects, collisions, mean speed.

    An object counts as visible when the annotation says ``inside_camera_view`` in at least one
    of the clip's frames (another object may stand in front of it all the same).

    Args:
        annotation: a video's annotation, as CLEVRER's JSON has it.
        frames: the clip's frame numbers in the annotation's count, in any order.
        name: the video, for messages.

    Returns:
        The labels by name.
        ``presence`` float32 (48,): 1 where an object of that kind is visible, in the order of
        :data:`KINDS`, index ((shape · 8) + colour) · 2 + material;
        ``num_objects`` int64 (): visible objects;
        ``num_collisions`` int64 (): collisions from the clip's first to its last frame, those
        between its sampled frames included;
        ``has_collision`` float32 (): 1 if there are any;
        ``mean_speed`` float32 (): length of the velocity in the annotation's units of length
        per second, averaged over the pairs of a sampled frame and an object visible in it; 0
        if there are none.

    Raises:
        DataError: if there is no annotation, or it lacks a frame, an object or a known kind.
    """
    if annotation is None:
        raise DataError(
            f"{name} has no annotation, which labels need; pack the shards with "
            f"`python -m data_prep.clevrer pack --annotations …`"
        )
    try:
        return _labels(annotation, [int(frame) for frame in frames])
    except KeyError as error:
        raise DataError(
            f"the annotation of {name} has no {error}; it is not one of CLEVRER's, or not this "
            f"video's: pack the shards again with `python -m data_prep.clevrer pack "
            f"--annotations …`"
        ) from None


def _labels(annotation: Mapping[str, Any], frames: list[int]) -> dict[str, Tensor]:
    kinds = {
        entry["object_id"]: _KIND_INDEX[f"{entry['color']} {entry['material']} {entry['shape']}"]
        for entry in annotation["object_property"]
    }
    trajectory = {entry["frame_id"]: entry["objects"] for entry in annotation["motion_trajectory"]}
    seen = [entry for frame in frames for entry in trajectory[frame] if entry["inside_camera_view"]]
    visible = {entry["object_id"] for entry in seen}
    presence = torch.zeros(len(KINDS))
    presence[[kinds[identity] for identity in visible]] = 1.0
    velocities = torch.tensor([entry["velocity"] for entry in seen], dtype=torch.float64)
    speed = velocities.norm(dim=-1).mean() if seen else torch.tensor(0.0)
    first, last = min(frames), max(frames)
    collisions = sum(first <= entry["frame_id"] <= last for entry in annotation["collision"])
    return {
        "presence": presence,
        "num_objects": torch.tensor(len(visible)),
        "num_collisions": torch.tensor(collisions),
        "has_collision": torch.tensor(float(collisions > 0)),
        "mean_speed": speed.to(torch.float32),
    }
