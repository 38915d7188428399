"""Clip labels, compared with slow loops over a made-up annotation in CLEVRER's schema."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from ssl_vivit.data.video.clevrer import COLOURS, KINDS, MATERIALS, SHAPES, clip_labels
from ssl_vivit.errors import AnnotationError, DataError


def annotation(seed: int, num_frames: int = 30, num_objects: int = 5) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "scene_index": seed,
        "video_filename": f"video_{seed:05d}.mp4",
        "object_property": [
            {
                "object_id": i,
                "color": str(rng.choice(COLOURS)),
                "material": str(rng.choice(MATERIALS)),
                "shape": str(rng.choice(SHAPES)),
            }
            for i in range(num_objects)
        ],
        "motion_trajectory": [
            {
                "frame_id": frame,
                "objects": [
                    {
                        "object_id": i,
                        "location": rng.normal(size=3).tolist(),
                        "orientation": rng.normal(size=3).tolist(),
                        "velocity": rng.normal(size=3).tolist(),
                        "angular_velocity": rng.normal(size=3).tolist(),
                        "inside_camera_view": bool(rng.random() < 0.1 + 0.2 * i),
                    }
                    for i in range(num_objects)
                ],
            }
            for frame in range(num_frames)
        ],
        "collision": [
            {"frame_id": int(f), "object_ids": [0, 1], "location": [0.0, 0.0, 0.0]}
            for f in rng.integers(num_frames, size=4)
        ],
    }


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("frames", [[4, 6, 8, 10], [0], [29, 3, 3, 17], list(range(30))])
def test_labels_equal_those_of_slow_loops(seed: int, frames: list[int]) -> None:
    scene = annotation(seed)
    labels = clip_labels(scene, frames)

    presence, visible, speeds = [0.0] * 48, set(), []
    for frame in frames:
        for thing in scene["motion_trajectory"][frame]["objects"]:
            if thing["inside_camera_view"]:
                visible.add(thing["object_id"])
                speeds.append(math.sqrt(sum(v * v for v in thing["velocity"])))
    for i in visible:
        what = scene["object_property"][i]
        s = ["cube", "sphere", "cylinder"].index(what["shape"])
        c = ["gray", "red", "blue", "green", "brown", "cyan", "purple", "yellow"].index(
            what["color"]
        )
        m = ["metal", "rubber"].index(what["material"])
        presence[(s * 8 + c) * 2 + m] = 1.0
    hits = sum(min(frames) <= hit["frame_id"] <= max(frames) for hit in scene["collision"])

    assert labels["presence"].tolist() == presence
    assert labels["num_objects"].item() == len(visible)
    assert labels["num_collisions"].item() == hits
    assert labels["has_collision"].item() == (1.0 if hits else 0.0)
    expected = sum(speeds) / len(speeds) if speeds else 0.0
    assert labels["mean_speed"].item() == pytest.approx(expected, rel=1e-6)


def test_the_order_of_kinds_is_the_documented_one() -> None:
    assert len(KINDS) == len(set(KINDS)) == 48
    assert KINDS[0] == "gray metal cube"
    assert KINDS[1] == "gray rubber cube"
    assert KINDS[2] == "red metal cube"
    assert KINDS[47] == "yellow rubber cylinder"


def test_an_empty_scene_has_no_speed() -> None:
    scene = annotation(0)
    for frame in scene["motion_trajectory"]:
        for thing in frame["objects"]:
            thing["inside_camera_view"] = False
    labels = clip_labels(scene, [0, 1])
    assert labels["mean_speed"].item() == 0.0
    assert labels["presence"].sum().item() == 0.0


def test_missing_annotations_name_the_command() -> None:
    with pytest.raises(DataError, match=r"video_00003 has no annotation.*pack --annotations"):
        clip_labels(None, [0], "video_00003")


FAULTS = {
    "motion_trajectory has no frame 29": lambda scene: scene["motion_trajectory"].pop(),
    "motion_trajectory is missing": lambda scene: scene.pop("motion_trajectory"),
    "object_property[0] is a 'pink": lambda scene: scene["object_property"][0].update(color="pink"),
    "object_property[1].object_id is 0, not unique": (
        lambda scene: scene["object_property"][1].update(object_id=0)
    ),
    "motion_trajectory[29].frame_id is 0, not unique": (
        lambda scene: scene["motion_trajectory"][29].update(frame_id=0)
    ),
    "collision[2].frame_id is 1e+308, not a finite number of at most 1,000,000": (
        lambda scene: scene["collision"][2].update(frame_id=1e308)
    ),
    "collision is null, not a list": lambda scene: scene.update(collision=None),
}


@pytest.mark.parametrize("message", FAULTS)
def test_errors_of_annotations_name_video_and_field(message: str) -> None:
    scene = annotation(0)
    FAULTS[message](scene)
    with pytest.raises(AnnotationError) as caught:
        clip_labels(scene, range(30), "video_00001")
    assert str(caught.value).startswith(f"the annotation of video_00001: {message}")
    assert "\n" not in str(caught.value)


STRANGE = (
    None, True, [], [[]], {}, "", "7", "a\nb", -1, 7.5, 10**400, 1e308, math.nan, math.inf, -math.inf
)  # fmt: skip


def places(value: Any, at: tuple = ()) -> Iterator[tuple]:
    yield at
    entries = value.items() if isinstance(value, dict) else ()
    entries = enumerate(value) if isinstance(value, list) else entries
    for name, entry in entries:
        yield from places(entry, (*at, name))


def test_no_value_of_any_field_makes_a_label_that_is_not_finite() -> None:
    """Each field in turn has each invalid value, or is missing."""
    scene = annotation(3, num_frames=2, num_objects=2)
    for frame in scene["motion_trajectory"]:
        for thing in frame["objects"]:
            thing["inside_camera_view"] = True
    refused = told = 0
    for at in list(places(scene))[1:]:
        for value in (*STRANGE, places):
            changed = copy.deepcopy(scene)
            inner: Any = changed
            for name in at[:-1]:
                inner = inner[name]
            if value is places:
                del inner[at[-1]]
            else:
                inner[at[-1]] = value
            message = ""
            try:
                labels = clip_labels(changed, [0, 1], "video_00007")
            except AnnotationError as error:
                message = str(error)
            if message:
                assert message.startswith("the annotation of video_00007: ")
                assert "\n" not in message
                assert any(name in message for name in at if isinstance(name, str))
                refused += 1
            else:
                assert all(label.double().isfinite().all() for label in labels.values())
                assert labels["mean_speed"] < 1e7
                told += 1
    assert refused > 500
    # What labels do not depend on, such as places, may hold anything.
    assert told > 500
