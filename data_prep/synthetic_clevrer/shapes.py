"""Intersect arrays of rays with the three shapes of CLEVRER-like scenes.

Rays are float32 arrays of components (x, y, z separate and contiguous) with one origin and unit
directions. Shapes stand upright on the ground. The camera is above and outside of them, so a ray
hits an outer surface or misses.
"""

import numpy as np

from data_prep.synthetic_clevrer.scenes import HALF_SIDE, RADIUS, SceneObject

BEVEL = 0.025
"""Width over which edges look rounded: only the shading normal changes, the outline is sharp."""

Vectors = tuple[np.ndarray, np.ndarray, np.ndarray]


def hit_distance(
    item: SceneObject, location: np.ndarray, yaw: float, origin: np.ndarray, rays: Vectors
) -> np.ndarray:
    """Return the distance along each ray to the object's surface; inf if the ray misses it.

    Args:
        item: the object.
        location: (3,), centre of the object.
        yaw: rotation of the object about the vertical, in radians.
        origin: (3,), origin of the rays.
        rays: x, y and z of the unit directions, three arrays of equal shape.
    """
    o = (np.asarray(origin) - location).astype(np.float32)
    if item.shape == "sphere":
        return _sphere(o, rays)
    if item.shape == "cylinder":
        return _cylinder(o, rays)
    c, s = np.float32(np.cos(yaw)), np.float32(np.sin(yaw))
    o = np.array([c * o[0] + s * o[1], c * o[1] - s * o[0], o[2]], dtype=np.float32)
    x, y, z = rays
    return _box(o, (c * x + s * y, c * y - s * x, z))


def _sphere(o: np.ndarray, d: Vectors) -> np.ndarray:
    x, y, z = d
    # Squared distance of the ray from the centre, by a cross product: o·o − (o·d)² would lose
    # precision by cancellation.
    off = (o[1] * z - o[2] * y) ** 2 + (o[2] * x - o[0] * z) ** 2 + (o[0] * y - o[1] * x) ** 2
    room = np.float32(RADIUS**2) - off
    along = -(o[0] * x + o[1] * y + o[2] * z)
    return np.where(
        (room > 0) & (along > 0), along - np.sqrt(np.maximum(room, 0)), np.float32(np.inf)
    )


def _cylinder(o: np.ndarray, d: Vectors) -> np.ndarray:
    x, y, z = d
    height = radius = np.float32(RADIUS)
    flat = x * x + y * y
    room = radius**2 * flat - (o[0] * y - o[1] * x) ** 2
    along = -(o[0] * x + o[1] * y)
    with np.errstate(divide="ignore", invalid="ignore"):
        side = (along - np.sqrt(np.maximum(room, 0))) / flat
        top = (height - o[2]) / z
    on_side = (room > 0) & (side > 0) & (np.abs(o[2] + side * z) <= height)
    rim = (o[0] + top * x) ** 2 + (o[1] + top * y) ** 2
    on_top = (top > 0) & (rim <= radius**2)
    return np.where(on_top, top, np.where(on_side, side, np.float32(np.inf)))


def _box(o: np.ndarray, d: Vectors) -> np.ndarray:
    half = np.float32(HALF_SIDE)
    near = np.full_like(d[0], -np.inf)
    far = np.full_like(d[0], np.inf)
    for start, along in zip(o, d, strict=True):
        with np.errstate(divide="ignore"):
            inverse = 1 / along
        one, two = (-half - start) * inverse, (half - start) * inverse
        low, high = np.minimum(one, two), np.maximum(one, two)
        near = np.maximum(near, low)
        far = np.minimum(far, high)
    return np.where((near <= far) & (near > 0), near, np.float32(np.inf))


def shading_normals(
    item: SceneObject, location: np.ndarray, yaw: float, points: Vectors
) -> Vectors:
    """Return unit normals at points of the surface, tilted near edges as on a bevel.

    Args:
        item: the object.
        location: (3,), centre of the object.
        yaw: rotation of the object about the vertical, in radians.
        points: x, y and z of points on the surface.
    """
    x, y, z = (p - np.float32(c) for p, c in zip(points, location, strict=True))
    if item.shape == "sphere":
        return _unit(x, y, z)
    if item.shape == "cylinder":
        across = np.sqrt(x * x + y * y)
        out = _rounded(across, RADIUS) / np.maximum(across, np.float32(1e-6))
        return _unit(x * out, y * out, np.copysign(_rounded(np.abs(z), RADIUS), z))
    c, s = np.float32(np.cos(yaw)), np.float32(np.sin(yaw))
    a, b = c * x + s * y, c * y - s * x
    a, b, z = (np.copysign(_rounded(np.abs(v), HALF_SIDE), v) for v in (a, b, z))
    return _unit(c * a - s * b, s * a + c * b, z)


def _rounded(inward: np.ndarray, half: float) -> np.ndarray:
    """Return the normal's component perpendicular to a face, before normalisation.

    It is 1 at the face and falls linearly to about 0 at a depth of one bevel's width.

    Args:
        inward: distances of points from the object's centre, perpendicular to the face.
        half: distance of the face from the centre.
    """
    return np.clip((inward - np.float32(half - BEVEL)) / np.float32(BEVEL), 1e-4, 1)


def _unit(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> Vectors:
    scale = 1 / np.sqrt(x * x + y * y + z * z)
    return x * scale, y * scale, z * scale
