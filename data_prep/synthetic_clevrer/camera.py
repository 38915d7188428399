"""The fixed pinhole camera of the rendered CLEVRER scenes."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

# Chosen so that ground tilt, horizon and object size match CLEVRER's frames. In the middle of the
# frame, an object of 0.4 units covers about a tenth of the frame's width. +x points at the viewer,
# +y to the right.
TARGET = (0.2, 0.0, 0.2)
DISTANCE = 5.3
ELEVATION = np.deg2rad(28.0)
AZIMUTH = np.deg2rad(-12.0)
FOCAL = 34.6 / 32.0
"""Focal length in frame widths, at CLEVRER's 3:2 frame."""
ASPECT = 1.5


@dataclass(frozen=True)
class Camera:
    """Projects the scene to a frame of `height` × `width` pixels.

    The camera has CLEVRER's 3:2 view; a frame of another aspect ratio shows the largest centred
    crop of that view.

    Args:
        height: frame height in pixels.
        width: frame width in pixels.
    """

    height: int
    width: int

    @property
    def full_width(self) -> float:
        """Width in pixels of the whole 3:2 view of which the frame is a crop."""
        return max(float(self.width), ASPECT * self.height)

    @property
    def focal(self) -> float:
        """Focal length in pixels."""
        return FOCAL * self.full_width

    @cached_property
    def position(self) -> np.ndarray:
        """Position of the camera in scene units."""
        toward = [
            np.cos(ELEVATION) * np.cos(AZIMUTH),
            np.cos(ELEVATION) * np.sin(AZIMUTH),
            np.sin(ELEVATION),
        ]
        return np.asarray(TARGET) + DISTANCE * np.asarray(toward)

    @cached_property
    def axes(self) -> np.ndarray:
        """Unit vectors to the right, downwards and forward, as rows (3, 3)."""
        forward = (np.asarray(TARGET) - self.position) / DISTANCE
        right = np.cross(forward, [0.0, 0.0, 1.0])
        right /= np.linalg.norm(right)
        return np.stack([right, np.cross(forward, right), forward])

    def depth(self, points: np.ndarray) -> np.ndarray:
        """Return the distance (...) of scene points (..., 3) along the camera's forward axis.

        It is negative for points behind the camera.
        """
        return (np.asarray(points, dtype=np.float64) - self.position) @ self.axes[2]

    def project(self, points: np.ndarray) -> np.ndarray:
        """Return the pixel coordinates of scene points.

        Args:
            points: (..., 3) in scene units, in front of the camera.

        Returns:
            (..., 2) as (x, y); pixel (row i, column j) covers [j, j + 1) × [i, i + 1).
        """
        seen = (np.asarray(points, dtype=np.float64) - self.position) @ self.axes.T
        centre = np.array([self.width / 2, self.height / 2])
        return centre + self.focal * seen[..., :2] / seen[..., 2:]

    def rays(self, x: ArrayLike, y: ArrayLike) -> np.ndarray:
        """Return unit directions (3, *x.shape) of the rays through pixel coordinates `x`, `y`."""
        across = (np.asarray(x, dtype=np.float64) - self.width / 2) / self.focal
        down = (np.asarray(y, dtype=np.float64) - self.height / 2) / self.focal
        directions = np.stack(
            [across * r + down * d + f for r, d, f in zip(*self.axes, strict=True)]
        )
        return directions / np.linalg.norm(directions, axis=0)

    def ground(self, x: ArrayLike, y: ArrayLike, height: float = 0.0) -> np.ndarray:
        """Return the points (..., 3) `height` above the ground that project to (`x`, `y`)."""
        directions = self.rays(x, y)
        reach = (height - self.position[2]) / directions[2]
        return np.moveaxis(self.position.reshape(3, *[1] * np.ndim(x)) + reach * directions, 0, -1)

    def sees(self, points: np.ndarray) -> np.ndarray:
        """Mark the scene points (..., 3) that project into the frame: bool (...)."""
        pixel = self.project(points)
        ahead = self.depth(points) > 0
        return ahead & np.all((pixel >= 0) & (pixel < (self.width, self.height)), axis=-1)
