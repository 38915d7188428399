"""Draw CLEVRER-like scenes by ray casting, only within the bounding box of each object."""

import itertools

import numpy as np

from data_prep.synthetic_clevrer.camera import Camera
from data_prep.synthetic_clevrer.scenes import SceneObject
from data_prep.synthetic_clevrer.shading import ground_light, shade, shadow_reach
from data_prep.synthetic_clevrer.shapes import hit_distance, shading_normals

Pose = tuple[SceneObject, np.ndarray, float]
"""An object, its centre (3,) and its rotation about the vertical in radians."""

NEAREST = 0.5
"""Distance in scene units; objects closer to the camera are below the lower edge of the view."""
NOISE = 1.2
"""Standard deviation of the noise, in pixel values; all frames have equal noise, as in CLEVRER."""


class Renderer:
    """Draws frames of scenes through one camera.

    Args:
        camera: frame size and view.

    Only the boxes covered by objects and their shadows are drawn over a fixed ground, so the cost
    of a frame depends on the objects' area in pixels. Edges are antialiased by several samples per
    pixel.
    """

    def __init__(self, camera: Camera) -> None:
        self.camera = camera
        height, width = camera.height, camera.width
        # In small frames objects have few pixels, and aliasing would be visible.
        self.samples = 2 if height * width > 240 * 360 else 3
        n = self.samples
        x, y = np.meshgrid((np.arange(width * n) + 0.5) / n, (np.arange(height * n) + 0.5) / n)
        self._rays = camera.rays(x, y).astype(np.float32)
        x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
        self._ground = np.moveaxis(camera.ground(x, y), -1, 0)[:2].astype(np.float32)
        grain = np.random.Generator(np.random.Philox(0)).normal(0.0, NOISE, (height, width))
        self._grain = grain.astype(np.float32)
        self._floor = np.ascontiguousarray(
            np.moveaxis(_floor(camera, x, y), -1, 0) + self._grain, dtype=np.float32
        )
        self._empty = _bytes(self._floor)
        # Buffers for drawing. Each frame clears the parts that it uses, so a frame that an
        # exception interrupted leaves no traces.
        self._depth = np.empty((height * n, width * n), dtype=np.float32)
        self._color = np.empty((3, height * n, width * n), dtype=np.float32)
        self._shadows: dict[tuple, tuple[tuple[slice, slice], np.ndarray] | None] = {}

    def frame(
        self, objects: list[SceneObject], locations: np.ndarray, yaws: np.ndarray
    ) -> np.ndarray:
        """Draw one frame.

        Args:
            objects: objects of the scene.
            locations: (objects, 3), centres of the objects.
            yaws: (objects,), rotations about the vertical in radians.

        Returns:
            uint8 (H, W, 3), RGB.
        """
        poses = list(zip(objects, locations, yaws, strict=True))
        shadows = self._shadowed_ground(poses)
        floor = self._floor.copy() if shadows else self._floor
        for box, factor in shadows:
            floor[:, *box] *= factor
        picture = self._empty.copy()
        for box, _ in shadows:
            picture[box] = _bytes(floor[:, *box])

        boxes = [self._box(item, location) for item, location, _ in poses]
        seen = [box for box in boxes if box is not None]
        for box in seen:
            fine = self._fine(box)
            self._depth[fine] = np.inf
            self._color[:, *fine] = 0
        for number, ((item, location, yaw), own) in enumerate(zip(poses, boxes, strict=True)):
            if own is not None:
                others = [pose[:2] for k, pose in enumerate(poses) if k != number]
                self._draw(item, location, yaw, own, others)
        for box in seen:
            picture[box] = self._resolve(box, floor)
        return picture

    def _draw(
        self,
        item: SceneObject,
        location: np.ndarray,
        yaw: float,
        box: tuple[slice, slice],
        others: list[tuple[SceneObject, np.ndarray]],
    ) -> None:
        fine = self._fine(box)
        rays = self._rays[:, *fine]
        distance = hit_distance(
            item, location, yaw, self.camera.position, (rays[0], rays[1], rays[2])
        )
        depth = self._depth[fine]
        nearer = distance < depth
        if not nearer.any():
            return
        reach = distance[nearer]
        depth[nearer] = reach
        seen = (rays[0][nearer], rays[1][nearer], rays[2][nearer])
        x, y, z = (
            np.float32(o) + reach * d for o, d in zip(self.camera.position, seen, strict=True)
        )
        normals = shading_normals(item, location, yaw, (x, y, z))
        light = shade(item, (x, y, z), normals, seen, others)
        self._color[:, *fine][:, nearer] = 255 * np.sqrt(np.clip(light, 0, 1))

    def _shadowed_ground(self, poses: list[Pose]) -> list[tuple[tuple[slice, slice], np.ndarray]]:
        """Return the pixel box of each object's shadows, and factors (3, h, w) that darken the box.

        Shadows of resting objects are reused from the previous frame.
        """
        shadows = {}
        for item, location, yaw in poses:
            key = (item, location.tobytes(), float(yaw))
            if key in self._shadows:
                shadows[key] = self._shadows[key]
                continue
            box = self._shadow_box(item, location)
            if box is None:
                shadows[key] = None
            else:
                x, y = self._ground[:, *box]
                shadows[key] = box, ground_light(item, location, yaw, x, y)
        self._shadows = shadows
        return [shadow for shadow in shadows.values() if shadow is not None]

    def _resolve(self, box: tuple[slice, slice], floor: np.ndarray) -> np.ndarray:
        """Return the pixels of a box, uint8 (h, w, 3).

        A pixel is the mean of its samples. Samples without an object show the floor.
        """
        n = self.samples
        depth, color = self._depth[self._fine(box)], self._color[:, *self._fine(box)]
        # Sums over strided views are several times faster than a mean over two inner axes.
        corners = list(itertools.product(range(n), repeat=2))
        cover = sum((depth[i::n, j::n] < np.inf).astype(np.float32) for i, j in corners) / n**2
        mean = sum(color[:, i::n, j::n] for i, j in corners) / n**2
        return _bytes(floor[:, *box] * (1 - cover) + mean + self._grain[box] * cover)

    def _fine(self, box: tuple[slice, slice]) -> tuple[slice, slice]:
        n = self.samples
        return slice(box[0].start * n, box[0].stop * n), slice(box[1].start * n, box[1].stop * n)

    def _box(self, item: SceneObject, location: np.ndarray) -> tuple[slice, slice] | None:
        """Return the box of pixels that may show the object; None if it is empty."""
        half = (item.reach, item.reach, item.half_height)
        corners = np.array(list(itertools.product((-1, 1), repeat=3))) * half + location
        return self._around(corners)

    def _shadow_box(self, item: SceneObject, location: np.ndarray) -> tuple[slice, slice] | None:
        """Return the box of pixels of ground that the object may darken; None if it is empty."""
        low, high = shadow_reach(item)
        corners = [
            (location[0] + x, location[1] + y, 0.0)
            for x, y in itertools.product((low[0], high[0]), (low[1], high[1]))
        ]
        return self._around(np.array(corners))

    def _around(self, corners: np.ndarray) -> tuple[slice, slice] | None:
        if np.min(self.camera.depth(corners)) < NEAREST:
            return None
        pixels = self.camera.project(corners)
        left, top = np.maximum(np.floor(pixels.min(axis=0)).astype(int), 0)
        right, bottom = np.ceil(pixels.max(axis=0)).astype(int)
        right, bottom = min(right, self.camera.width), min(bottom, self.camera.height)
        if left >= right or top >= bottom:
            return None
        return slice(top, bottom), slice(left, right)


def _bytes(planes: np.ndarray) -> np.ndarray:
    """Convert planes (3, H, W) of pixel values to a uint8 picture (H, W, 3)."""
    return np.clip(np.moveaxis(planes, 0, -1) + 0.5, 0, 255).astype(np.uint8, order="C")


def _floor(camera: Camera, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return pixel values (H, W, 3) of the empty ground, a smooth fit to CLEVRER's empty scene.

    The ground is grey, warmer towards the viewer, darker at the far edge, and bluish in the far
    left corner, near the fill lamp.
    """
    u = (x - camera.width / 2) / (camera.full_width / 2)
    v = (y - camera.height / 2) / (camera.full_width / 2)
    glow = np.exp(-(((u + 0.7) / 0.5) ** 2) - ((v + 0.6) / 0.25) ** 2)
    edge = np.exp(-(v + 2 / 3) / 0.1)
    terms = np.stack([np.ones_like(u), u, v, u * u, u * v, v * v, glow, edge], axis=-1)
    return terms @ np.array(
        [
            [135.4, 134.8, 134.2],
            [-0.2, -0.2, -0.3],
            [10.3, 8.8, 5.6],
            [-5.6, -5.5, -5.3],
            [-8.2, -7.3, -5.4],
            [-7.8, -7.8, -6.8],
            [20.0, 20.9, 23.9],
            [-11.7, -12.1, -13.9],
        ]
    )
