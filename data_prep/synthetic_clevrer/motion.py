"""Simulate the motion of the objects of a rendered CLEVRER scene, and annotate it.

Objects are rigid bodies on a plane seen from above (pymunk), slowed by friction with the ground.
"""

import math
from dataclasses import dataclass

import numpy as np
import pymunk

from data_prep.synthetic_clevrer.camera import Camera
from data_prep.synthetic_clevrer.scenes import HALF_SIDE, RADIUS, SceneObject

RESTITUTION = {"metal": 0.8, "rubber": 0.6}
CONTACT_FRICTION = 0.2
MASS = 1.0
STEPS_PER_SECOND = 500
"""Lowest rate of the simulation: a fast object moves about 2 % of its size per step."""
SEPARATION = 0.02
"""Gap in scene units after which two objects can collide again: a lasting contact counts once."""


@dataclass(frozen=True)
class Collision:
    """First contact of two objects.

    Args:
        frame: first frame at or after the contact.
        objects: indices of the two objects, ascending.
        location: (x, y, z) of the contact in scene units.
    """

    frame: int
    objects: tuple[int, int]
    location: tuple[float, float, float]


@dataclass(frozen=True)
class Motion:
    """Simulated motion of a scene.

    Args:
        location: (frames, objects, 3), centres in scene units.
        orientation: (frames, objects, 3), Euler angles in radians in the order XYZ: the rotation
            matrix is Rz @ Ry @ Rx.
        velocity: (frames, objects, 3), scene units per second.
        angular_velocity: (frames, objects, 3), radians per second about the scene's axes.
        collisions: the collisions in order of time.
    """

    location: np.ndarray
    orientation: np.ndarray
    velocity: np.ndarray
    angular_velocity: np.ndarray
    collisions: tuple[Collision, ...]


def simulate(objects: list[SceneObject], num_frames: int, fps: float) -> Motion:
    """Simulate the motion of objects; frame f is f / fps seconds after the start.

    Args:
        objects: objects of the scene.
        num_frames: number of frames to record.
        fps: frames per second.
    """
    space = pymunk.Space()
    space.iterations = 20
    space.collision_slop = 0.0
    bodies = [_add(space, item, number) for number, item in enumerate(objects)]
    substeps = math.ceil(STEPS_PER_SECOND / fps)
    dt = 1.0 / (fps * substeps)

    touching: set[tuple[int, int]] = set()
    collisions: list[Collision] = []
    step = 0

    def begin(arbiter: pymunk.Arbiter, space: pymunk.Space, data: object) -> None:
        first, second = sorted(shape.collision_type for shape in arbiter.shapes)
        frame = math.ceil(step / substeps)
        if (first, second) in touching or frame >= num_frames:
            return
        touching.add((first, second))
        points = arbiter.contact_point_set.points
        x = sum(p.point_a.x + p.point_b.x for p in points) / (2 * len(points))
        y = sum(p.point_a.y + p.point_b.y for p in points) / (2 * len(points))
        z = min(objects[first].half_height, objects[second].half_height)
        collisions.append(Collision(frame, (first, second), (x, y, z)))

    space.on_collision(begin=begin)

    waiting = set(range(len(objects)))

    def push(now: float) -> None:
        for number in sorted(waiting):
            if objects[number].start <= now:
                waiting.remove(number)
                bodies[number].velocity = objects[number].velocity
                bodies[number].angular_velocity = objects[number].spin

    push(0.0)
    shape = (num_frames, len(objects), 3)
    location, velocity, turn, orientation = (np.zeros(shape) for _ in range(4))
    rotations = [_about_z(item.yaw) for item in objects]
    for frame in range(num_frames):
        for number, (item, body) in enumerate(zip(objects, bodies, strict=True)):
            spin = [0.0, 0.0, body.angular_velocity]
            if item.shape == "sphere":
                # Rolling without slipping: the contact point does not move.
                spin[:2] = -body.velocity.y / RADIUS, body.velocity.x / RADIUS
                if frame:
                    middle = (turn[frame - 1, number] + spin) / 2
                    rotations[number] = _rotation_matrix(middle / fps) @ rotations[number]
            else:
                rotations[number] = _about_z(body.angle)
            location[frame, number] = *body.position, item.half_height
            velocity[frame, number, :2] = body.velocity
            turn[frame, number] = spin
            orientation[frame, number] = _euler(rotations[number])
        for _ in range(substeps if frame + 1 < num_frames else 0):
            for item, body in zip(objects, bodies, strict=True):
                _slow(item, body, dt)
            step += 1
            space.step(dt)
            touching -= {pair for pair in touching if _apart(bodies, pair)}
            push(step * dt)
    return Motion(location, orientation, velocity, turn, tuple(collisions))


def _add(space: pymunk.Space, item: SceneObject, number: int) -> pymunk.Body:
    if item.shape == "cube":
        body = pymunk.Body(MASS, pymunk.moment_for_box(MASS, (2 * HALF_SIDE, 2 * HALF_SIDE)))
        shape: pymunk.Shape = pymunk.Poly.create_box(body, (2 * HALF_SIDE, 2 * HALF_SIDE))
    else:
        body = pymunk.Body(MASS, pymunk.moment_for_circle(MASS, 0.0, RADIUS))
        shape = pymunk.Circle(body, RADIUS)
    body.position, body.angle = item.position, item.yaw
    # pymunk multiplies the elasticities of the two shapes, hence the root.
    shape.elasticity = math.sqrt(RESTITUTION[item.material])
    shape.friction = math.sqrt(CONTACT_FRICTION)
    shape.collision_type = number
    space.add(body, shape)
    return body


def _slow(item: SceneObject, body: pymunk.Body, dt: float) -> None:
    """Reduce speed and spin by `dt` seconds of friction with the ground."""
    speed = body.velocity.length
    if speed > 0.0:
        body.velocity = body.velocity * max(0.0, 1.0 - item.deceleration * dt / speed)
    spin = abs(body.angular_velocity)
    if spin > 0.0:
        # Friction acts on a disc that spins on its face at 2/3 of its radius; its inertia is m r² /
        # 2.
        loss = 4.0 / 3.0 * item.deceleration / item.reach * dt
        body.angular_velocity *= max(0.0, 1.0 - loss / spin)


def _apart(bodies: list[pymunk.Body], pair: tuple[int, int]) -> bool:
    body, other = (bodies[k] for k in pair)
    (first,), (second,) = body.shapes, other.shapes
    if isinstance(first, pymunk.Circle) and isinstance(second, pymunk.Circle):
        gap = body.position.get_distance(other.position) - first.radius - second.radius
        return gap > SEPARATION
    if isinstance(second, pymunk.Circle):
        body, first, second = other, second, first
    if isinstance(first, pymunk.Circle):
        return second.point_query(body.position).distance - first.radius > SEPARATION
    corners = [
        (owner.local_to_world(corner), shape)
        for owner, own, shape in ((body, first, second), (other, second, first))
        for corner in own.get_vertices()
    ]
    return min(shape.point_query(corner).distance for corner, shape in corners) > SEPARATION


def _about_z(angle: float) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def _rotation_matrix(turn: np.ndarray) -> np.ndarray:
    """Return the rotation matrix of a rotation vector (Rodrigues' formula)."""
    angle = float(np.linalg.norm(turn))
    if angle == 0.0:
        return np.eye(3)
    x, y, z = turn / angle
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + math.sin(angle) * cross + (1.0 - math.cos(angle)) * cross @ cross


def _euler(rotation: np.ndarray) -> tuple[float, float, float]:
    """Return the angles (rx, ry, rz) for which Rz @ Ry @ Rx is the rotation matrix."""
    level = math.hypot(rotation[0, 0], rotation[1, 0])
    return (
        math.atan2(rotation[2, 1], rotation[2, 2]),
        math.atan2(-rotation[2, 0], level),
        math.atan2(rotation[1, 0], rotation[0, 0]),
    )


def annotation(index: int, objects: list[SceneObject], motion: Motion, camera: Camera) -> dict:
    """Return a scene's annotation in CLEVRER's schema.

    Lengths are in scene units, velocities in units per second, angular velocities in radians per
    second. CLEVRER's README does not state units. Orientations here are Blender's `rotation_euler`:
    angles in radians in the order XYZ. `inside_camera_view` is true if the object's centre projects
    into the frame.

    Args:
        index: number of the video.
        objects: objects of the scene.
        motion: motion of the objects.
        camera: camera of the video.

    Returns:
        The content of CLEVRER's annotation_XXXXX.json, ready for json.dump.
    """
    inside = camera.sees(motion.location)

    def numbers(values: np.ndarray) -> list[float]:
        # Adding zero changes -0.0 to 0.0.
        return [round(float(v), 6) + 0.0 for v in values]

    return {
        "scene_index": index,
        "video_filename": f"video_{index:05d}.mp4",
        "object_property": [
            {
                "object_id": number,
                "color": item.color,
                "material": item.material,
                "shape": item.shape,
            }
            for number, item in enumerate(objects)
        ],
        "motion_trajectory": [
            {
                "frame_id": frame,
                "objects": [
                    {
                        "object_id": number,
                        "location": numbers(motion.location[frame, number]),
                        "orientation": numbers(motion.orientation[frame, number]),
                        "velocity": numbers(motion.velocity[frame, number]),
                        "angular_velocity": numbers(motion.angular_velocity[frame, number]),
                        "inside_camera_view": bool(inside[frame, number]),
                    }
                    for number in range(len(objects))
                ],
            }
            for frame in range(len(motion.location))
        ],
        "collision": [
            {
                "frame_id": collision.frame,
                "object_ids": list(collision.objects),
                "location": numbers(np.asarray(collision.location)),
            }
            for collision in motion.collisions
        ],
    }
