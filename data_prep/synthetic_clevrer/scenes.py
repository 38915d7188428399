"""Draw random CLEVRER-like scenes: objects, their positions and their initial velocities.

Some objects rest in view; the others enter from outside, most of them aimed at another object. A
scene depends only on (seed, index), not on frame size or length: a shorter video is the start of a
longer one.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np

from data_prep.synthetic_clevrer.camera import ASPECT, Camera

COLORS = ("gray", "red", "blue", "green", "brown", "cyan", "purple", "yellow")
MATERIALS = ("metal", "rubber")
SHAPES = ("cube", "sphere", "cylinder")

RADIUS = 0.2
"""Radius of spheres and cylinders, and half the height of a cylinder."""
HALF_SIDE = 0.17
"""Half the side of a cube."""

GRAVITY = 9.8
SLIDING_FRICTION = 0.036
ROLLING_FRICTION = 0.015
"""Friction coefficients with the ground; their product with GRAVITY is the speed lost per second.
Sliding objects lose about 1 % of a typical speed per frame, as in CLEVRER; spheres roll farther."""
SHADOW_LENGTH = 0.5
"""Distance from an object up to which the ground is visibly darker, in scene units."""
DURATION = 5.12
"""Seconds over which entries are spread: CLEVRER's 128 frames at 25 frames per second."""


@dataclass(frozen=True)
class SceneObject:
    """An object, and the push that starts its motion.

    Args:
        color: one of COLORS.
        material: one of MATERIALS.
        shape: one of SHAPES.
        position: (x, y) of its centre at the start of the video.
        yaw: rotation about the vertical, in radians.
        velocity: (x, y) in units per second at time `start`; before that the object rests.
        spin: angular velocity about the vertical in radians per second at time `start`.
        start: time of the push in seconds.
    """

    color: str
    material: str
    shape: str
    position: tuple[float, float]
    yaw: float = 0.0
    velocity: tuple[float, float] = (0.0, 0.0)
    spin: float = 0.0
    start: float = 0.0

    @property
    def half_height(self) -> float:
        """Height of the centre above the ground."""
        return HALF_SIDE if self.shape == "cube" else RADIUS

    @property
    def reach(self) -> float:
        """Radius of the footprint's circumscribed circle."""
        return HALF_SIDE * math.sqrt(2) if self.shape == "cube" else RADIUS

    @property
    def deceleration(self) -> float:
        """Deceleration by friction, in units per second squared."""
        return GRAVITY * (ROLLING_FRICTION if self.shape == "sphere" else SLIDING_FRICTION)


def draw_scene(seed: int, index: int) -> list[SceneObject]:
    """Choose three to six objects at random; no two have equal colour, material and shape.

    Args:
        seed: seed of the data set.
        index: number of the video; the scene depends only on seed and index.
    """
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, index])))
    kinds = list(itertools.product(COLORS, MATERIALS, SHAPES))
    count = int(rng.integers(3, 7))
    chosen = [kinds[k] for k in rng.permutation(len(kinds))[:count]]
    resting = int(rng.integers(1, min(3, count - 1) + 1))
    starts = np.sort(rng.uniform(0.0, 0.55 * DURATION, count - resting))
    starts -= starts[0] * rng.uniform(0.5, 1.0)
    objects: list[SceneObject] = []
    for number, (color, material, shape) in enumerate(chosen):
        kind = SceneObject(color, material, shape, (0.0, 0.0), float(rng.uniform(-np.pi, np.pi)))
        if number < resting:
            objects.append(_resting(kind, objects, rng))
        else:
            objects.append(_entering(kind, objects, float(starts[number - resting]), rng))
    order = rng.permutation(count)
    return [objects[k] for k in order]


def _resting(kind: SceneObject, others: list[SceneObject], rng: np.random.Generator) -> SceneObject:
    """Return a copy of `kind` that rests near the middle of the view, apart from `others`."""
    while True:
        x, y = float(rng.uniform(-1.8, 1.4)), float(rng.uniform(-1.6, 1.6))
        if _is_free((x, y), others, 0.75):
            return SceneObject(kind.color, kind.material, kind.shape, (x, y), kind.yaw)


def _entering(
    kind: SceneObject, others: list[SceneObject], start: float, rng: np.random.Generator
) -> SceneObject:
    """Return a copy of `kind` that starts just outside the view.

    Its push is towards one of `others` that rests, or towards the middle of the view.
    """
    camera = Camera(1000, round(1000 * ASPECT))
    while True:
        side = rng.choice(["left", "right", "near"], p=[0.4, 0.4, 0.2])
        if side == "near":
            pixel = rng.uniform(0.15, 0.85) * camera.width, float(camera.height)
        else:
            pixel = camera.width * float(side == "right"), rng.uniform(0.18, 0.85) * camera.height
        edge = camera.ground(*pixel, kind.half_height)[:2]
        seen = [k for k in others if k.start == 0.0 and k.velocity == (0.0, 0.0)]
        if rng.uniform() < 0.8:
            goal = np.array(seen[int(rng.integers(len(seen)))].position)
            goal = goal + rng.uniform(-0.15, 0.15, 2)
        else:
            goal = np.array([rng.uniform(-1.6, 1.0), rng.uniform(-1.2, 1.2)])
        heading = (goal - edge) / np.linalg.norm(goal - edge)
        # Move the object outwards until neither it nor its shadow is in view before the push.
        place = edge
        while _touches_view(camera, place, kind):
            place = place - 0.05 * heading
        position = (float(place[0]), float(place[1]))
        if not _is_free(position, others, 0.6):
            continue
        arrival = rng.uniform(0.5, 1.9)
        distance = float(np.linalg.norm(goal - place))
        speed = math.sqrt(arrival**2 + 2.0 * kind.deceleration * distance)
        spin = 0.0
        if kind.shape != "sphere" and rng.uniform() < 0.6:
            spin = float(rng.uniform(-4.0, 4.0))
        return SceneObject(
            kind.color,
            kind.material,
            kind.shape,
            position,
            kind.yaw,
            (float(speed * heading[0]), float(speed * heading[1])),
            spin,
            start,
        )


def _is_free(position: tuple[float, float], others: list[SceneObject], apart: float) -> bool:
    return all(math.dist(position, other.position) >= apart for other in others)


def _touches_view(camera: Camera, place: np.ndarray, kind: SceneObject) -> bool:
    corners = np.array(list(itertools.product((-1, 1), (-1, 1), (0, 2))), dtype=float)
    wide = kind.reach + SHADOW_LENGTH
    corners *= [wide, wide, kind.half_height]
    pixels = camera.project(corners + np.array([*place, 0.0]))
    low, high = pixels.min(axis=0), pixels.max(axis=0)
    return bool(np.all(high >= 0) and np.all(low <= (camera.width, camera.height)))
