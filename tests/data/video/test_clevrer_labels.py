"""Clip labels against slow loops over a made-up annotation in CLEVRER's schema."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ssl_vivit.data.video.clevrer import COLOURS, KINDS, MATERIALS, SHAPES, clip_labels
from ssl_vivit.errors import DataError


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


@pytest.mark.parametrize("fault", ["frame", "kind", "schema"])
def test_foreign_annotations_are_refused_in_one_line(fault: str) -> None:
    scene, frames = annotation(0), [0]
    if fault == "frame":
        frames = [30]
    elif fault == "kind":
        for thing in scene["object_property"]:
            thing["color"] = "pink"
    else:
        del scene["motion_trajectory"]
    with pytest.raises(DataError, match="the annotation of video_00001 has no") as caught:
        clip_labels(scene, frames, "video_00001")
    assert "\n" not in str(caught.value)
