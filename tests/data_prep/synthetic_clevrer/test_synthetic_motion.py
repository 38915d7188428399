"""Scenes and physics of the renderer of CLEVRER-like videos."""

import itertools
import math

import numpy as np
import pytest

from data_prep.synthetic_clevrer.camera import Camera
from data_prep.synthetic_clevrer.motion import MASS, RESTITUTION, annotation, simulate
from data_prep.synthetic_clevrer.scenes import (
    COLORS,
    HALF_SIDE,
    MATERIALS,
    RADIUS,
    SHAPES,
    SceneObject,
    draw_scene,
)

FPS = 25
FRAME = Camera(320, 480)
BUSY = [5, 6, 7, 13]
"""Numbers of drawn scenes with many collisions between objects of all shapes."""


@pytest.fixture(scope="module")
def motions():
    scenes = {index: draw_scene(0, index) for index in BUSY}
    return {index: (scene, simulate(scene, 128, FPS)) for index, scene in scenes.items()}


def rotation(angles):
    """Return Rz @ Ry @ Rx from XYZ Euler angles."""
    (a, b, c), (s, t, u) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, a, -s], [0, s, a]])
    about_y = np.array([[b, 0, t], [0, 1, 0], [-t, 0, b]])
    about_z = np.array([[c, -u, 0], [u, c, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def gap(first, second, place, other_place, yaw, other_yaw):
    """Return the distance of two footprints by brute force over outlines; -1 if they overlap."""
    outlines = []
    for item, at, turn in ((first, place, yaw), (second, other_place, other_yaw)):
        if item.shape == "cube":
            side = np.linspace(-HALF_SIDE, HALF_SIDE, 41)
            square = np.concatenate(
                [np.stack([side, np.full(41, s * HALF_SIDE)], 1) for s in (-1, 1)]
                + [np.stack([np.full(41, s * HALF_SIDE), side], 1) for s in (-1, 1)]
            )
        else:
            angle = np.linspace(0, 2 * np.pi, 180)
            square = RADIUS * np.stack([np.cos(angle), np.sin(angle)], 1)
        c, s = math.cos(turn), math.sin(turn)
        outlines.append(square @ np.array([[c, s], [-s, c]]) + at)
    distances = np.linalg.norm(outlines[0][:, None] - outlines[1][None], axis=-1)
    return float(distances.min())


def depth_inside(item, place, yaw, points):
    """Return the depth of points inside a footprint; negative outside."""
    offset = points - place
    if item.shape != "cube":
        return RADIUS - np.linalg.norm(offset, axis=-1)
    c, s = math.cos(yaw), math.sin(yaw)
    local = offset @ np.array([[c, -s], [s, c]])
    return (HALF_SIDE - np.abs(local)).min(axis=-1)


@pytest.mark.parametrize("index", range(40))
def test_drawn_objects_differ_rest_in_view_or_wait_outside(index):
    scene = draw_scene(3, index)
    kinds = {(item.color, item.material, item.shape) for item in scene}
    assert 3 <= len(scene) <= 6
    assert len(kinds) == len(scene)
    for color, material, shape in kinds:
        assert color in COLORS
        assert material in MATERIALS
        assert shape in SHAPES
    resting = [item for item in scene if item.velocity == (0.0, 0.0)]
    assert 1 <= len(resting) < len(scene)
    for item in scene:
        centre = np.array([*item.position, item.half_height])
        assert FRAME.sees(centre) == (item in resting)


def test_resting_objects_have_any_number_in_the_scene():
    first = [draw_scene(3, index)[0].velocity == (0.0, 0.0) for index in range(40)]
    assert 5 < sum(first) < 35


def test_a_scene_depends_only_on_seed_and_number():
    assert draw_scene(0, 4) == draw_scene(0, 4)
    assert draw_scene(0, 4) != draw_scene(0, 5)
    assert draw_scene(0, 4) != draw_scene(1, 4)


def test_shorter_video_is_the_beginning_of_a_longer_one(motions):
    scene, long = motions[5]
    short = simulate(scene, 70, FPS)
    for name in ("location", "orientation", "velocity", "angular_velocity"):
        np.testing.assert_array_equal(getattr(short, name), getattr(long, name)[:70])
    assert short.collisions == tuple(c for c in long.collisions if c.frame < 70)
    assert len(short.collisions) > 0


@pytest.mark.parametrize("fps", [FPS, 30])
@pytest.mark.parametrize("shape", SHAPES)
def test_friction_slows_a_spin_evenly(shape, fps):
    item = SceneObject("red", "metal", shape, (0.0, 0.0), spin=3.0)
    motion = simulate([item], 64, fps)
    loss = 4 / 3 * item.deceleration / item.reach
    expected = np.maximum(3.0 - loss * np.arange(64) / fps, 0)
    np.testing.assert_allclose(motion.angular_velocity[:, 0, 2], expected, atol=1e-9)


def test_friction_stops_a_lone_object_after_the_distance_of_uniform_deceleration():
    for shape in SHAPES:
        item = SceneObject("red", "metal", shape, (0.0, 0.0), velocity=(0.3, 0.4))
        motion = simulate([item], 128, FPS)
        time = np.arange(128) / FPS
        speed = np.maximum(0.5 - item.deceleration * time, 0)
        travelled = (0.5**2 - speed**2) / (2 * item.deceleration)
        np.testing.assert_allclose(np.linalg.norm(motion.velocity[:, 0], axis=-1), speed, atol=1e-3)
        np.testing.assert_allclose(
            motion.location[:, 0, :2], travelled[:, None] * [0.6, 0.8], atol=2e-3
        )


def test_head_on_collision_obeys_momentum_and_restitution():
    speed = 1.0
    first = SceneObject("red", "metal", "sphere", (0.0, 0.0), velocity=(0.0, speed))
    second = SceneObject("blue", "metal", "sphere", (0.0, 2 * RADIUS + 0.1))
    motion = simulate([first, second], 8, FPS)
    (hit,) = motion.collisions
    assert hit.objects == (0, 1)
    before = math.sqrt(speed**2 - 2 * first.deceleration * 0.1)
    e = RESTITUTION["metal"]
    time_after = hit.frame / FPS - (speed - before) / first.deceleration
    expected = np.array([(1 - e) / 2 * before, (1 + e) / 2 * before])
    expected -= first.deceleration * time_after
    np.testing.assert_allclose(motion.velocity[hit.frame, :, 1], expected, atol=2e-3)
    np.testing.assert_allclose(hit.location, [0.0, RADIUS + 0.1, RADIUS], atol=5e-3)


def test_momentum_changes_by_no_more_than_friction_takes(motions):
    for scene, motion in motions.values():
        started = [k for k, item in enumerate(scene) if item.start > 0]
        momentum = MASS * motion.velocity.sum(axis=1)
        change = np.linalg.norm(np.diff(momentum, axis=0), axis=-1)
        allowed = sum(MASS * item.deceleration for item in scene) / FPS
        pushes = {math.floor(scene[k].start * FPS) for k in started} | {0}
        calm = [f for f in range(127) if not {f, f - 1, f + 1} & pushes]
        assert change[calm].max() <= allowed + 1e-9


def test_energy_never_grows():
    scene = [
        SceneObject("red", "metal", "cube", (0.0, -1.0), 0.3, (0.1, 2.0), 3.0),
        SceneObject("blue", "metal", "cube", (0.0, 0.0), 1.0),
        SceneObject("green", "rubber", "cylinder", (0.1, 0.6), 0.0, (0.0, -1.0), -2.0),
        SceneObject("gray", "metal", "sphere", (1.0, 0.2), 0.0, (-1.5, 0.0)),
    ]
    motion = simulate(scene, 100, 100)
    inertia = [
        MASS * (2 * HALF_SIDE) ** 2 / 6 if item.shape == "cube" else MASS * RADIUS**2 / 2
        for item in scene
    ]
    energy = MASS / 2 * (motion.velocity**2).sum(axis=(1, 2))
    energy += (np.array(inertia) / 2 * motion.angular_velocity[..., 2] ** 2).sum(axis=1)
    assert len(motion.collisions) >= 3
    assert np.diff(energy).max() <= 1e-9


def test_objects_do_not_sink_into_each_other(motions):
    for scene, motion in motions.values():
        for frame in range(0, 128):
            places, yaws = motion.location[frame, :, :2], motion.orientation[frame, :, 2]
            for a, b in itertools.permutations(range(len(scene)), 2):
                if np.linalg.norm(places[a] - places[b]) > scene[a].reach + scene[b].reach:
                    continue
                # The deepest point of one in the other: a corner, or the point nearest its centre.
                toward = places[b] - places[a]
                points = [places[a] + RADIUS * toward / np.linalg.norm(toward)]
                if scene[a].shape == "cube":
                    c, s = math.cos(yaws[a]), math.sin(yaws[a])
                    points = [
                        places[a] + HALF_SIDE * np.array([c * i - s * j, s * i + c * j])
                        for i, j in itertools.product((-1, 1), repeat=2)
                    ]
                assert depth_inside(scene[b], places[b], yaws[b], np.array(points)).max() < 0.01


def test_collision_frame_is_the_first_at_or_after_the_touch(motions):
    seen = 0
    for scene, motion in motions.values():
        met = set()
        for hit in motion.collisions:
            a, b = hit.objects
            if hit.objects in met or hit.frame == 0:
                continue
            met.add(hit.objects)
            # Between two frames objects move on almost straight lines, until they touch.
            fractions = np.linspace(0, 1, 60)
            last = hit.frame - 1
            path = [
                motion.location[last, k, :2]
                + fractions[:, None] / FPS * motion.velocity[last, k, :2]
                for k in (a, b)
            ]
            turn = [
                motion.orientation[last, k, 2]
                + fractions / FPS * motion.angular_velocity[last, k, 2] * (scene[k].shape == "cube")
                for k in (a, b)
            ]
            gaps = [
                gap(scene[a], scene[b], *(p[i] for p in path), *(t[i] for t in turn))
                for i in range(60)
            ]
            assert gaps[0] > 0.0
            assert min(gaps) < 0.012
            for frame in range(0, hit.frame, 3):
                places, yaws = motion.location[frame, :, :2], motion.orientation[frame, :, 2]
                assert gap(scene[a], scene[b], places[a], places[b], yaws[a], yaws[b]) > 0.0
            seen += 1
    assert seen >= 12


def test_lasting_touch_is_one_collision():
    # In this scene a pair stays pressed together and jitters for several frames.
    hits = simulate(draw_scene(0, 22), 128, FPS).collisions
    last: dict[tuple[int, int], int] = {}
    for hit in hits:
        assert hit.frame - last.get(hit.objects, -100) > 3
        last[hit.objects] = hit.frame
    assert len(hits) > len(last) >= 3


def test_spheres_roll_without_slipping_and_orientation_follows(motions):
    checked = 0
    for scene, motion in motions.values():
        for k, item in enumerate(scene):
            turns = [rotation(angles) for angles in motion.orientation[:, k]]
            for f in range(127):
                step = turns[f + 1] @ turns[f].T
                sine = np.array(
                    [step[2, 1] - step[1, 2], step[0, 2] - step[2, 0], step[1, 0] - step[0, 1]]
                )
                angle = math.acos(min(1.0, max(-1.0, (np.trace(step) - 1) / 2)))
                vector = sine / 2 * (angle / math.sin(angle) if angle > 1e-6 else 1.0)
                mean = (motion.angular_velocity[f, k] + motion.angular_velocity[f + 1, k]) / 2
                still = np.linalg.norm(motion.velocity[f + 1, k] - motion.velocity[f, k]) < 0.02
                if still and item.shape == "sphere":
                    np.testing.assert_allclose(vector * FPS, mean, atol=1e-6)
                    checked += 1
                elif still and abs(np.diff(motion.angular_velocity[f : f + 2, k, 2])[0]) < 0.5:
                    np.testing.assert_allclose(vector * FPS, mean, atol=0.25)
            if item.shape == "sphere":
                ground = np.cross(motion.angular_velocity[:, k], [0.0, 0.0, -RADIUS])
                np.testing.assert_allclose((ground + motion.velocity[:, k])[:, :2], 0.0, atol=1e-12)
    assert checked > 100


def test_inside_camera_view_is_whether_the_centre_projects_into_the_frame(motions):
    scene, motion = motions[6]
    made = annotation(6, scene, motion, FRAME)
    for frame in made["motion_trajectory"]:
        for item in frame["objects"]:
            offset = np.array(item["location"]) - FRAME.position
            right, down, forward = FRAME.axes @ offset
            x = 240 + FRAME.focal * right / forward
            y = 160 + FRAME.focal * down / forward
            expected = forward > 0 and 0 <= x < 480 and 0 <= y < 320
            assert item["inside_camera_view"] is bool(expected)
    flags = [o["inside_camera_view"] for f in made["motion_trajectory"] for o in f["objects"]]
    assert True in flags
    assert False in flags


def test_camera_does_not_see_what_is_behind_it():
    ahead = FRAME.position + FRAME.axes[2]
    behind = FRAME.position - FRAME.axes[2]
    assert FRAME.sees(ahead)
    assert not FRAME.sees(behind)
