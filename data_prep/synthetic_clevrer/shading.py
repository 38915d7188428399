"""Light, materials and shadows of CLEVRER-like scenes.

Three lamps are placed as in CLEVR's base scene (key in front, fill at the left, back behind at the
right). Directions, strengths and colours are fitted by eye to CLEVRER's frames. Colours here are
linear light, the square of the pixel value in [0, 1].
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data_prep.synthetic_clevrer.scenes import HALF_SIDE, RADIUS, SceneObject
from data_prep.synthetic_clevrer.shapes import Vectors

# CLEVR's palette (Johnson et al. 2017, released properties.json).
PALETTE = {
    "gray": (87, 87, 87),
    "red": (173, 35, 35),
    "blue": (42, 75, 215),
    "green": (29, 105, 20),
    "brown": (129, 74, 25),
    "purple": (129, 38, 192),
    "cyan": (41, 208, 208),
    "yellow": (255, 238, 51),
}
GROUND = 0.27


@dataclass(frozen=True)
class Lamp:
    """A distant lamp.

    Args:
        azimuth: degrees from +x towards +y.
        elevation: degrees above the ground.
        strength: light on a surface that faces the lamp.
        shadow: fraction of the ground's light that its shadow removes.
        softness: half-width of the shadow's edge at the object's foot, and the increase of this
            half-width up to the shadow's tip, both in scene units.
    """

    azimuth: float
    elevation: float
    strength: float
    shadow: float
    softness: tuple[float, float]

    @cached_property
    def direction(self) -> tuple[float, float, float]:
        """Unit vector towards the lamp."""
        turn, rise = np.deg2rad(self.azimuth), np.deg2rad(self.elevation)
        return (
            float(np.cos(rise) * np.cos(turn)),
            float(np.cos(rise) * np.sin(turn)),
            float(np.sin(rise)),
        )

    @cached_property
    def fall(self) -> np.ndarray:
        """Offset (2,) of a point's shadow on the ground, for a point one unit above the ground.

        The offset starts at the place on the ground directly below the point.
        """
        x, y, z = self.direction
        return np.array([-x / z, -y / z])


LAMPS = (
    Lamp(azimuth=5, elevation=36, strength=0.26, shadow=0.10, softness=(0.04, 0.16)),
    Lamp(azimuth=-110, elevation=34, strength=0.10, shadow=0.07, softness=(0.05, 0.20)),
    Lamp(azimuth=142, elevation=60, strength=0.24, shadow=0.24, softness=(0.025, 0.07)),
)
SKY, BOUNCE = 0.26, 0.14


def albedo(item: SceneObject) -> np.ndarray:
    """Return the linear colour (3,) of an object."""
    return (np.asarray(PALETTE[item.color], dtype=np.float32) / 255) ** 2


def shade(
    item: SceneObject,
    points: Vectors,
    normals: Vectors,
    rays: Vectors,
    others: list[tuple[SceneObject, np.ndarray]],
) -> np.ndarray:
    """Return the light that reaches the camera from points on an object's surface.

    Args:
        item: the object.
        points: x, y and z of the n points.
        normals: x, y and z of the unit normals at the points.
        rays: x, y and z of the unit directions from the camera to the points.
        others: other objects of the scene and their centres, which metal reflects.

    Returns:
        Linear colours (3, n), 1 is white.
    """
    if item.material == "metal":
        light = _metal(item, points, normals, rays, others)
    else:
        light = _rubber(item, points, normals, rays)
    # CLEVRER's exposure compresses bright colours, as film does.
    return light / (1 + 0.55 * light)


def _rubber(item: SceneObject, points: Vectors, normals: Vectors, rays: Vectors) -> np.ndarray:
    nx, ny, nz = normals
    # Near the ground a surface receives less light from the sky and the floor.
    foot = 0.65 + 0.35 * _smoothstep(0.0, 0.16, points[2])
    light = ((SKY + BOUNCE) / 2 + (SKY - BOUNCE) / 2 * nz) * foot
    gloss = np.zeros_like(nz)
    for lamp in LAMPS:
        x, y, z = lamp.direction
        facing = nx * x + ny * y + nz * z
        light += lamp.strength * np.maximum(facing, 0)
        hx, hy, hz = x - rays[0], y - rays[1], z - rays[2]
        half = (nx * hx + ny * hy + nz * hz) / np.sqrt(hx * hx + hy * hy + hz * hz)
        gloss += lamp.strength * np.maximum(half, 0) ** 8
    # The surface scatters some white light, which makes its colour less saturated.
    return (albedo(item)[:, None] + np.float32(0.04)) * light + 0.03 * gloss


def _metal(
    item: SceneObject,
    points: Vectors,
    normals: Vectors,
    rays: Vectors,
    others: list[tuple[SceneObject, np.ndarray]],
) -> np.ndarray:
    nx, ny, nz = normals
    twice = 2 * (rays[0] * nx + rays[1] * ny + rays[2] * nz)
    rx, ry, rz = rays[0] - twice * nx, rays[1] - twice * ny, rays[2] - twice * nz

    # Metal reflects the floor below, which is darker near the object's foot, and a dark room above.
    reach = points[2] / np.maximum(-rz, np.float32(1e-3))
    floor = GROUND * (0.45 + 0.55 * _smoothstep(0.0, 0.35, reach))
    hall = 0.06 + 0.16 * np.exp(-5.0 * np.maximum(rz, 0))
    seen = np.where(rz < 0, floor, hall)[None].repeat(3, axis=0)
    for other, centre in others:
        cx, cy, cz = (np.float32(c) - p for c, p in zip(centre, points, strict=True))
        along = cx * rx + cy * ry + cz * rz
        room = np.float32(RADIUS**2) - (cx * cx + cy * cy + cz * cz - along * along)
        mirrored = np.flatnonzero((along > 0) & (room > 0))
        if mirrored.size:
            depth = along[mirrored] - np.sqrt(room[mirrored])
            up = (depth * rz[mirrored] - cz[mirrored]) / np.float32(RADIUS)
            seen[:, mirrored] = albedo(other)[:, None] * (0.38 + 0.15 * up)

    base = albedo(item)
    # Dark colours reflect brightly too, so their tint is raised more.
    tint = 0.8 * base * base.max() ** -0.6
    light = tint[:, None] * seen
    diffuse = np.zeros_like(nz)
    glare = np.zeros_like(nz)
    for lamp in LAMPS:
        x, y, z = lamp.direction
        diffuse += lamp.strength * np.maximum(nx * x + ny * y + nz * z, 0)
        toward = rx * x + ry * y + rz * z
        glare += lamp.strength * (
            20.0 * _smoothstep(0.955, 0.985, toward) + 0.5 * np.maximum(toward, 0) ** 12
        )
    rim = 0.012 + 0.15 * (1 - np.minimum(np.abs(twice) / 2, 1)) ** 4
    white = 0.3 * tint + 0.16
    return light + base[:, None] * (0.25 * diffuse) + white[:, None] * glare + rim


def shadow_reach(item: SceneObject) -> tuple[np.ndarray, np.ndarray]:
    """Return a box that contains all ground that an object darkens.

    Returns:
        Lowest and highest (x, y) of the box in scene units, relative to the object's centre.
    """
    low, high = np.full(2, -item.reach - 0.15), np.full(2, item.reach + 0.15)
    for lamp in LAMPS:
        offset = lamp.fall * 2 * item.half_height
        wide = item.reach + sum(lamp.softness)
        low, high = np.minimum(low, offset - wide), np.maximum(high, offset + wide)
    return low, high


def ground_light(
    item: SceneObject, location: np.ndarray, yaw: float, x: np.ndarray, y: np.ndarray
) -> np.ndarray:
    """Return factors (3, *x.shape) by which an object darkens the ground's pixels at (x, y).

    Shadows are computed from signed distances to the outline of the object's parallel projection.
    Their edges are softer farther from the object's foot, and they are tinted by its colour.
    """
    x, y = x - np.float32(location[0]), y - np.float32(location[1])
    if item.shape == "cube":
        c, s = np.float32(np.cos(yaw)), np.float32(np.sin(yaw))
        x, y = c * x + s * y, c * y - s * x
        turn = np.array([[c, s], [-s, c]])
        close = 1 - _smoothstep(-0.03, 0.10, _square(x, y))
    elif item.shape == "cylinder":
        turn = np.eye(2)
        close = 1 - _smoothstep(-0.03, 0.10, np.sqrt(x * x + y * y) - np.float32(RADIUS))
    else:
        turn = np.eye(2)
        close = 1 - _smoothstep(0.02, 0.24, np.sqrt(x * x + y * y))
    clear = 1 - 0.28 * close
    for lamp in LAMPS:
        clear *= 1 - np.float32(lamp.shadow) * _shadow(item, lamp, turn @ lamp.fall, x, y)
    colour = (1 - 0.22 * np.sqrt(albedo(item)))[:, None, None]
    return 1 - colour * (1 - clear)


def _shadow(
    item: SceneObject, lamp: Lamp, fall: np.ndarray, x: np.ndarray, y: np.ndarray
) -> np.ndarray:
    start, grow = lamp.softness
    tip = fall.astype(np.float32) * np.float32(2 * item.half_height)
    if item.shape == "cube":
        depth = np.zeros_like(x)
        for share in (0.0, 0.5, 1.0):
            edge = start + grow * share
            outside = _square(x - tip[0] * share, y - tip[1] * share)
            depth = np.maximum(depth, (1 - 0.35 * share) * (1 - _smoothstep(-edge, edge, outside)))
        return depth
    length = float(np.hypot(*tip))
    if item.shape == "sphere":
        # A sphere's shadow is an ellipse, approximated by a capsule of equal length and width.
        rise = np.deg2rad(lamp.elevation)
        middle, spare = RADIUS / np.tan(rise), RADIUS / np.sin(rise) - RADIUS
        foot = tip / length * np.float32(middle - spare)
        run = tip / length * np.float32(2 * spare)
    else:
        foot, run = np.zeros(2, dtype=np.float32), tip
    x, y = x - foot[0], y - foot[1]
    share = np.clip((x * run[0] + y * run[1]) / np.float32(run @ run), 0, 1)
    x, y = x - share * run[0], y - share * run[1]
    outside = np.sqrt(x * x + y * y) - np.float32(RADIUS)
    edge = start + np.float32(grow) * share
    return (1 - 0.35 * share) * (1 - _smoothstep(-edge, edge, outside))


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the signed distance to the outline of a cube's footprint."""
    a, b = np.abs(x) - np.float32(HALF_SIDE), np.abs(y) - np.float32(HALF_SIDE)
    c, d = np.maximum(a, 0), np.maximum(b, 0)
    return np.sqrt(c * c + d * d) + np.minimum(np.maximum(a, b), 0)


def _smoothstep(low: float | np.ndarray, high: float | np.ndarray, value: np.ndarray) -> np.ndarray:
    step = np.minimum(np.maximum((value - low) / (high - low), 0), 1)
    return step * step * (3 - 2 * step)
