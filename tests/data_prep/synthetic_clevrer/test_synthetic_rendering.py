"""Camera, shapes and drawing of the renderer of CLEVRER-like videos."""

import contextlib
import math

import numpy as np
import pytest

from data_prep.synthetic_clevrer import rendering, shading
from data_prep.synthetic_clevrer.camera import Camera
from data_prep.synthetic_clevrer.rendering import Renderer
from data_prep.synthetic_clevrer.scenes import HALF_SIDE, RADIUS, SHAPES, SceneObject
from data_prep.synthetic_clevrer.shapes import hit_distance, shading_normals

CAMERA = Camera(48, 72)


def thing(shape, color="red", material="rubber"):
    return SceneObject(color, material, shape, (0.0, 0.0))


def centre(item, x, y):
    return np.array([x, y, item.half_height])


def is_inside(shape, local):
    x, y, z = local
    if shape == "sphere":
        return x * x + y * y + z * z <= RADIUS**2
    if shape == "cylinder":
        return x * x + y * y <= RADIUS**2 and abs(z) <= RADIUS
    return max(abs(x), abs(y), abs(z)) <= HALF_SIDE


@pytest.mark.parametrize("shape", SHAPES)
def test_rays_meet_shapes_where_a_march_along_each_ray_enters_them(shape):
    item, yaw = thing(shape), 0.5
    location = centre(item, 0.3, -0.4)
    x, y = np.meshgrid(np.arange(72) + 0.5, np.arange(48) + 0.5)
    box = (slice(14, 34), slice(16, 40))
    rays = CAMERA.rays(x[box], y[box])
    found = hit_distance(item, location, yaw, CAMERA.position, tuple(rays.astype(np.float32)))
    c, s = math.cos(yaw), math.sin(yaw)
    turned = np.array([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]])
    middle = np.linalg.norm(location - CAMERA.position)
    step = 0.003
    disagreements = hits = 0
    for row in range(rays.shape[1]):
        for column in range(rays.shape[2]):
            ray = rays[:, row, column]
            entered = math.inf
            for reach in np.arange(middle - 0.4, middle + 0.4, step):
                local = turned @ (CAMERA.position + reach * ray - location)
                if is_inside(shape, local):
                    entered = reach
                    break
            hits += entered < math.inf
            if math.isinf(entered) != np.isinf(found[row, column]):
                # A march may step over a corner that a ray just grazes.
                disagreements += 1
            elif entered < math.inf:
                assert 0 <= entered - found[row, column] < step + 1e-4
    assert hits > 20
    assert disagreements <= 2
    assert np.isinf(found[0]).all()
    assert np.isinf(found[-1]).all()
    assert np.isinf(found[:, 0]).all()
    assert np.isinf(found[:, -1]).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_normals_are_unit_and_face_the_camera(shape):
    item, yaw = thing(shape), 0.5
    location = centre(item, 0.3, -0.4)
    x, y = np.meshgrid(np.arange(144) / 2, np.arange(96) / 2)
    rays = CAMERA.rays(x, y).astype(np.float32)
    reach = hit_distance(item, location, yaw, CAMERA.position, tuple(rays))
    hit = reach < np.inf
    points = tuple(
        np.float32(o) + reach[hit] * d[hit] for o, d in zip(CAMERA.position, rays, strict=True)
    )
    normals = np.stack(shading_normals(item, location, yaw, points))
    np.testing.assert_allclose(np.linalg.norm(normals, axis=0), 1.0, atol=1e-5)
    facing = -(normals * rays[:, hit]).sum(axis=0)
    # Bevels turn normals at the outline a little away.
    assert np.mean(facing > 0) > 0.9
    if shape == "sphere":
        expected = (np.stack(points) - location[:, None]) / RADIUS
        np.testing.assert_allclose(normals, expected, atol=2e-4)


def test_red_pixels_are_at_the_objects_projection():
    renderer = Renderer(Camera(96, 144))
    item = thing("sphere")
    for x, y in ((0.0, 0.0), (1.0, -1.0), (-1.0, 1.2)):
        location = centre(item, x, y)
        picture = renderer.frame([item], location[None], np.zeros(1)).astype(float)
        weight = np.clip(picture[..., 0] - picture[..., 1:].mean(axis=-1) - 15, 0, None)
        rows, columns = np.mgrid[:96, :144] + 0.5
        seen = [(weight * columns).sum() / weight.sum(), (weight * rows).sum() / weight.sum()]
        np.testing.assert_allclose(seen, renderer.camera.project(location), atol=0.6)
        radius = math.sqrt((weight > 0.4 * weight.max()).sum() / math.pi)
        expected = renderer.camera.focal * RADIUS / renderer.camera.depth(location)
        assert radius == pytest.approx(expected, rel=0.1)


def test_the_nearer_object_hides_the_other_in_any_order():
    renderer = Renderer(Camera(96, 144))
    near, far = thing("cylinder", "red"), thing("sphere", "blue")
    items = [near, far]
    # On one line of sight: the far one's centre projects onto the near one.
    away = -renderer.camera.axes[2] * [1, 1, 0]
    locations = np.stack([centre(near, 0.5, 0.0), centre(far, 0.5, 0.0) - 0.8 * away])
    yaws = np.zeros(2)
    one = renderer.frame(items, locations, yaws)
    other = renderer.frame(items[::-1], locations[::-1], yaws)
    np.testing.assert_array_equal(one, other)
    x, y = renderer.camera.project(locations[0]).astype(int)
    assert one[y, x, 0] > one[y, x, 2] + 40
    alone = renderer.frame([near], locations[:1], yaws[:1])
    np.testing.assert_array_equal(
        one[y - 3 : y + 4, x - 3 : x + 4], alone[y - 3 : y + 4, x - 3 : x + 4]
    )


def test_frames_do_not_depend_on_what_was_drawn_before():
    items = [thing("cube", "green", "metal"), thing("sphere", "yellow"), thing("cylinder", "cyan")]
    places = np.stack(
        [centre(i, x, y) for i, x, y in zip(items, (0, 0.2, 0.6), (0, 0.5, -0.6), strict=True)]
    )
    used, fresh = Renderer(CAMERA), Renderer(CAMERA)
    moved = places + np.array([0.1, -0.05, 0.0])
    used.frame(items, places, np.zeros(3))
    used.frame(items, moved, np.ones(3))
    half_moved = np.stack([places[0], moved[1], places[2]])
    np.testing.assert_array_equal(
        used.frame(items, half_moved, np.array([1.0, 0.0, 0.0])),
        fresh.frame(items, half_moved, np.array([1.0, 0.0, 0.0])),
    )


def test_shadows_of_objects_do_not_change_the_rest_of_the_floor():
    renderer = Renderer(Camera(96, 144))
    item = thing("sphere", "gray")
    empty = renderer.frame([], np.zeros((0, 3)), np.zeros(0)).astype(int)
    location = centre(item, 0.0, 0.0)
    picture = renderer.frame([item], location[None], np.zeros(1)).astype(int)
    foot = renderer.camera.project(np.array([0.12, -0.2, 0.0])).astype(int)
    assert picture[foot[1], foot[0]].mean() < 0.9 * empty[foot[1], foot[0]].mean()
    np.testing.assert_array_equal(picture[:, :36], empty[:, :36])
    np.testing.assert_array_equal(picture[:20], empty[:20])


@pytest.mark.parametrize(("height", "width"), [(48, 72), (96, 128), (64, 64), (80, 48)])
def test_frames_of_other_shapes_show_a_crop_of_the_same_view(height, width):
    camera = Camera(height, width)
    corners = camera.ground(np.array([0.0, width]), np.array([0.0, height]))
    wide = Camera(320, 480)
    pixels = wide.project(corners)
    assert np.all(pixels >= -1e-6)
    assert np.all(pixels <= np.array([480, 320]) + 1e-6)
    full = pixels[1] - pixels[0]
    assert math.isclose(full[0] / full[1], width / height, rel_tol=1e-6)
    assert math.isclose(full[0], 480, rel_tol=1e-6) or math.isclose(full[1], 320, rel_tol=1e-6)


def test_metal_shines_and_rubber_does_not():
    renderer = Renderer(Camera(96, 144))
    place = centre(thing("sphere"), 0.0, 0.0)[None]
    x, y = renderer.camera.project(place[0]).astype(int)
    brightest = {}
    for material in ("metal", "rubber"):
        picture = renderer.frame([thing("sphere", "red", material)], place, np.zeros(1))
        brightest[material] = int(picture[y - 3 : y + 4, x - 3 : x + 4, 1].max())
    assert brightest["metal"] > 140
    assert brightest["rubber"] < 80


def test_metal_tints_its_reflections_by_its_paint(monkeypatch):
    """Without lamps, metal differs between paints only in the tint of the mirrored floor and hall."""
    monkeypatch.setattr(shading, "LAMPS", ())
    rng = np.random.default_rng(0)
    normals, rays = (each / np.linalg.norm(each, axis=0) for each in rng.normal(size=(2, 3, 50)))
    points = rng.uniform(0, 1, (3, 50))
    light, tint = {}, {}
    for colour in ("red", "blue", "gray"):
        item = thing("sphere", colour, "metal")
        exposed = shading.shade(item, tuple(points), tuple(normals), tuple(rays), [])
        light[colour] = exposed / (1 - 0.55 * exposed)
        paint = shading.albedo(item).astype(float)
        tint[colour] = 0.8 * paint / paint.max() ** 0.6
    for colour in ("red", "blue"):
        seen = (light[colour] - light["gray"]) / (tint[colour] - tint["gray"])[:, None]
        np.testing.assert_allclose(seen, np.broadcast_to(seen[:1], seen.shape), rtol=2e-3)
        assert seen.min() > 0.05


@pytest.mark.parametrize("name", ["shade", "_bytes", "ground_light"])
def test_a_frame_after_an_interrupted_one_is_clean(name, monkeypatch):
    things = [thing("cube"), thing("sphere", "blue")]
    scenes = [
        (things, np.array([centre(item, x, y) for item in things]), np.zeros(2))
        for x, y in ((0.3, -0.4), (0.4, -0.2))  # their boxes overlap, their shapes less
    ]
    expected = Renderer(CAMERA).frame(*scenes[1])
    real, renderer = getattr(rendering, name), Renderer(CAMERA)
    for calls_before in range(4):
        calls = iter(range(10))

        def interrupted(*given, calls=calls, last=calls_before):
            if next(calls) == last:
                raise KeyboardInterrupt
            return real(*given)

        monkeypatch.setattr(rendering, name, interrupted)
        with contextlib.suppress(KeyboardInterrupt):
            renderer.frame(*scenes[0])
        monkeypatch.setattr(rendering, name, real)
        np.testing.assert_array_equal(renderer.frame(*scenes[1]), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_boxes_contain_all_pixels_of_objects(shape, monkeypatch):
    """Drawing objects in their boxes equals drawing them in the whole picture."""
    objects = [thing(shape), thing(shape, "blue")]
    locations = np.array([centre(objects[0], 0.3, -0.4), centre(objects[1], -1.2, 0.9)])
    found = Renderer(CAMERA).frame(objects, locations, np.array([0.5, 0.1]))
    whole = (slice(0, 48), slice(0, 72))
    monkeypatch.setattr(Renderer, "_box", lambda self, item, location: whole)
    expected = Renderer(CAMERA).frame(objects, locations, np.array([0.5, 0.1]))
    np.testing.assert_array_equal(found, expected)
