"""A scene as seen by a camera (depth, shape index and color) and as fine voxels, compiled with numba."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"
import dataclasses
import functools
import math
import warnings

import numba
import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.data.grid import IGNORE_LABEL, IMAGE_SHAPE, GridShape
from ammnet_sparse.data.synthetic.scene import Kind, Scene, SceneLabel, Texture
from ammnet_sparse.data.volumes.camera import Camera
from ammnet_sparse.data.volumes.labels import FINE_GRID_SHAPE, FINE_VOXEL_SIZE

_BOX, _CYLINDER, _ELLIPSOID = int(Kind.BOX), int(Kind.CYLINDER), int(Kind.ELLIPSOID)
_STRIPES, _CHECKS, _GRAIN = int(Texture.STRIPES), int(Texture.CHECKS), int(Texture.GRAIN)
_SPECKLE, _TILES = int(Texture.SPECKLE), int(Texture.TILES)
_EMPTY = int(SceneLabel.EMPTY)
_NEAR = 1e-3
"""Meters along a ray before which nothing is hit."""


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """What a camera sees of a scene. Pixel axes are (row, column).

    Attributes:
        depth: float32, meters along the optical axis, 0 where nothing is hit.
        shape: int32, index of the shape hit, -1 where none is.
        color: [rows, columns, 3] float32 RGB, 0..1.
        incidence: float32, cosine between ray and surface normal, 0..1.
    """

    depth: NDArray[np.float32]
    shape: NDArray[np.int32]
    color: NDArray[np.float32]
    incidence: NDArray[np.float32]


def cast_depth(
    scene: Scene, pose: NDArray[np.float64], *, camera: Camera, image_shape: tuple[int, int] = IMAGE_SHAPE
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Depth in meters and shape index of every pixel, as in ``View``; ``pose`` is [4, 4] camera to world."""
    depth = np.full(image_shape, np.inf, dtype=np.float32)
    shape = np.full(image_shape, -1, dtype=np.int32)
    intrinsics = np.array(dataclasses.astuple(camera))
    _cast(scene.kind, scene.center, scene.half, scene.yaw, scene.label, pose, intrinsics, depth, shape)
    depth[shape < 0] = 0.0
    return depth, shape


def cast_view(scene: Scene, pose: NDArray[np.float64], *, camera: Camera) -> View:
    """A 480x640 view of the scene, without noise."""
    depth, shape = cast_depth(scene, pose, camera=camera)
    color = np.zeros((*IMAGE_SHAPE, 3), dtype=np.float32)
    incidence = np.zeros(IMAGE_SHAPE, dtype=np.float32)
    geometry = (scene.kind, scene.center, scene.half, scene.yaw)
    look = (scene.colors, scene.texture, scene.surface, scene.light)
    _shade(geometry, look, pose, np.array(dataclasses.astuple(camera)), depth, shape, color, incidence)
    return View(depth, shape, color, incidence)


def camera_pose(height: float, *, yaw: float, pitch: float, roll: float) -> NDArray[np.float64]:
    """Camera to world, [4, 4], of a camera at X = Y = 0.

    Args:
        height: meters above the floor.
        yaw: radians, heading counterclockwise from +Y seen from above.
        pitch: radians, upwards.
        roll: radians, clockwise as the camera sees itself.
    """
    forward = np.array([-math.sin(yaw) * math.cos(pitch), math.cos(yaw) * math.cos(pitch), math.sin(pitch)])
    right = np.array([math.cos(yaw), math.sin(yaw), 0.0])
    down = np.cross(forward, right)
    pose = np.eye(4)
    pose[:3, 0] = math.cos(roll) * right + math.sin(roll) * down
    pose[:3, 1] = math.cos(roll) * down - math.sin(roll) * right
    pose[:3, 2] = forward
    pose[2, 3] = height
    return pose


def _compiled(function):
    """``function`` compiled at its first call; the machine code is kept on disk if a folder for it can be written."""
    try:
        return numba.njit(cache=True, error_model="numpy")(function)
    except RuntimeError:  # neither the folder of the file nor the home of the user can be written
        _warn_of_no_cache()
        return numba.njit(error_model="numpy")(function)


@functools.cache
def _warn_of_no_cache():
    warnings.warn(
        "numba: no folder for compiled code can be written, so every process compiles it anew, which takes some "
        "seconds; set NUMBA_CACHE_DIR to a folder that can be written",
        UserWarning,
        stacklevel=3,
    )


@_compiled
def _turn(yaw, vector):
    """World vector in the axes of a shape."""
    c, s = math.cos(yaw), math.sin(yaw)
    return np.array([c * vector[0] + s * vector[1], c * vector[1] - s * vector[0], vector[2]])


@_compiled
def _bounds(center, half, yaw, pose, intrinsics, rows, columns):
    """Pixel rectangle (first row, end row, first column, end column) that holds the projection of a shape."""
    c, s = math.cos(yaw), math.sin(yaw)
    low_u, high_u, low_v, high_v = np.inf, -np.inf, np.inf, -np.inf
    behind = 0
    for corner in range(8):
        x = half[0] * (1.0 if corner & 1 else -1.0)
        y = half[1] * (1.0 if corner & 2 else -1.0)
        z = half[2] * (1.0 if corner & 4 else -1.0)
        dx = center[0] + c * x - s * y - pose[0, 3]
        dy = center[1] + s * x + c * y - pose[1, 3]
        dz = center[2] + z - pose[2, 3]
        depth = pose[0, 2] * dx + pose[1, 2] * dy + pose[2, 2] * dz
        if depth < 0.02:
            behind += 1
            continue
        u = (pose[0, 0] * dx + pose[1, 0] * dy + pose[2, 0] * dz) / depth * intrinsics[0] + intrinsics[2]
        v = (pose[0, 1] * dx + pose[1, 1] * dy + pose[2, 1] * dz) / depth * intrinsics[1] + intrinsics[3]
        low_u, high_u, low_v, high_v = min(low_u, u), max(high_u, u), min(low_v, v), max(high_v, v)
    if behind == 8:
        return 0, 0, 0, 0
    if behind > 0:
        return 0, rows, 0, columns
    first_row, end_row = max(0.0, math.floor(low_v)), min(float(rows), math.ceil(high_v) + 1)
    first_column, end_column = max(0.0, math.floor(low_u)), min(float(columns), math.ceil(high_u) + 1)
    return int(first_row), int(end_row), int(first_column), int(end_column)


@_compiled
def _hit_box(o, x, y, z, half):
    near_x, far_x = (-half[0] - o[0]) / x, (half[0] - o[0]) / x
    near_y, far_y = (-half[1] - o[1]) / y, (half[1] - o[1]) / y
    near_z, far_z = (-half[2] - o[2]) / z, (half[2] - o[2]) / z
    near = max(max(min(near_x, far_x), min(near_y, far_y)), min(near_z, far_z))
    far = min(min(max(near_x, far_x), max(near_y, far_y)), max(near_z, far_z))
    return near if _NEAR < near <= far else np.inf


@_compiled
def _hit_ellipsoid(o, x, y, z, half):
    ox, oy, oz = o[0] / half[0], o[1] / half[1], o[2] / half[2]
    dx, dy, dz = x / half[0], y / half[1], z / half[2]
    a, b, c = dx * dx + dy * dy + dz * dz, ox * dx + oy * dy + oz * dz, ox * ox + oy * oy + oz * oz - 1.0
    root = b * b - a * c
    if root < 0.0:
        return np.inf
    t = (-b - math.sqrt(root)) / a
    return t if t > _NEAR else np.inf


@_compiled
def _hit_cylinder(o, x, y, z, half):
    ox, oy, dx, dy = o[0] / half[0], o[1] / half[1], x / half[0], y / half[1]
    a, b, c = dx * dx + dy * dy, ox * dx + oy * dy, ox * ox + oy * oy - 1.0
    root = b * b - a * c
    if root < 0.0:
        return np.inf
    side_in, side_out = (-b - math.sqrt(root)) / a, (-b + math.sqrt(root)) / a
    low, high = (-half[2] - o[2]) / z, (half[2] - o[2]) / z
    near, far = max(side_in, min(low, high)), min(side_out, max(low, high))
    return near if _NEAR < near <= far else np.inf


@_compiled
def _cast(kind, center, half, yaw, label, pose, intrinsics, depth, shape):
    """Nearest hit per pixel; a shape is tried only on the pixels of its rectangle."""
    rows, columns = depth.shape
    fx, fy, cx, cy = intrinsics
    for n in range(kind.shape[0]):
        if label[n] == _EMPTY or label[n] == IGNORE_LABEL:
            continue
        first_row, end_row, first_column, end_column = _bounds(
            center[n], half[n], yaw[n], pose, intrinsics, rows, columns
        )
        o = _turn(yaw[n], pose[:3, 3] - center[n])
        right, down, forward = _turn(yaw[n], pose[:3, 0]), _turn(yaw[n], pose[:3, 1]), _turn(yaw[n], pose[:3, 2])
        for v in range(first_row, end_row):
            b = (v - cy) / fy
            for u in range(first_column, end_column):
                a = (u - cx) / fx
                x = right[0] * a + down[0] * b + forward[0]
                y = right[1] * a + down[1] * b + forward[1]
                z = right[2] * a + down[2] * b + forward[2]
                if kind[n] == _BOX:
                    t = _hit_box(o, x, y, z, half[n])
                elif kind[n] == _CYLINDER:
                    t = _hit_cylinder(o, x, y, z, half[n])
                else:
                    t = _hit_ellipsoid(o, x, y, z, half[n])
                if t < depth[v, u]:
                    depth[v, u] = t
                    shape[v, u] = n


@_compiled
def _surface_at(kind, half, p):
    """Unit normal at a point of a shape's surface, and two coordinates along the surface in meters."""
    normal = np.zeros(3)
    if kind == _ELLIPSOID:
        for axis in range(3):
            normal[axis] = p[axis] / (half[axis] * half[axis])
        normal /= math.sqrt(np.sum(normal * normal))
        return normal, math.atan2(p[1], p[0]) * half[0], p[2]
    if kind == _CYLINDER:
        if half[2] - abs(p[2]) < 1e-4:
            normal[2] = 1.0 if p[2] > 0 else -1.0
            return normal, p[0], p[1]
        normal[0], normal[1] = p[0] / (half[0] * half[0]), p[1] / (half[1] * half[1])
        normal /= math.sqrt(np.sum(normal * normal))
        return normal, math.atan2(p[1], p[0]) * half[0], p[2]
    face = np.argmax(np.abs(p) - half)
    normal[face] = 1.0 if p[face] > 0 else -1.0
    if face == 0:
        return normal, p[1], p[2]
    if face == 1:
        return normal, p[0], p[2]
    return normal, p[0], p[1]


@_compiled
def _hash(i, j):
    """A fixed pseudo-random number in 0..1 of two integers."""
    h = np.uint32(i * 374761393 + j * 668265263)
    h = np.uint32((h ^ (h >> np.uint32(13))) * np.uint32(1274126177))
    return float(h ^ (h >> np.uint32(16))) / 4294967295.0


@_compiled
def _noise(s, t):
    """Smooth noise in 0..1 with period about 1."""
    i, j = math.floor(s), math.floor(t)
    a, b = s - i, t - j
    a, b = a * a * (3 - 2 * a), b * b * (3 - 2 * b)
    i, j = int(i), int(j)
    low = _hash(i, j) * (1 - a) + _hash(i + 1, j) * a
    high = _hash(i, j + 1) * (1 - a) + _hash(i + 1, j + 1) * a
    return low * (1 - b) + high * b


@_compiled
def _mix(texture, scale, s, t):
    """Share of the accent color, 0..1."""
    s, t = s / scale, t / scale
    if texture == _STRIPES:
        return 1.0 if t - math.floor(t) < 0.5 else 0.0
    if texture == _CHECKS:
        return (0.5 if s - math.floor(s) < 0.5 else 0.0) + (0.5 if t - math.floor(t) < 0.5 else 0.0)
    if texture == _GRAIN:
        plank = _hash(int(math.floor(s)), 7)
        return 0.5 * plank + 0.5 * _noise(s * 6.0, t * 0.7 + 31.0 * plank)
    if texture == _SPECKLE:
        return _noise(s, t)
    if texture == _TILES:
        return 1.0 if min(s - math.floor(s), t - math.floor(t)) < 0.03 else 0.3 * _noise(s * 4, t * 4)
    return 0.0


@_compiled
def _shade(geometry, look, pose, intrinsics, depth, shape, color, incidence):
    """Color of every pixel: a lamp in the room, some light from the camera's side, ambient light, glow."""
    kind, center, half, yaw = geometry
    colors, texture, surface, light = look
    fx, fy, cx, cy = intrinsics
    eye = pose[:3, 3].copy()
    ray = np.empty(3)
    for v in range(depth.shape[0]):
        for u in range(depth.shape[1]):
            n = shape[v, u]
            if n < 0:
                continue
            a, b = (u - cx) / fx, (v - cy) / fy
            for axis in range(3):
                ray[axis] = pose[axis, 0] * a + pose[axis, 1] * b + pose[axis, 2]
            point = eye + ray * np.float64(depth[v, u])
            normal, s, t = _surface_at(kind[n], half[n], _turn(yaw[n], point - center[n]))
            normal = _turn(-yaw[n], normal)
            cosine = abs(np.sum(normal * ray)) / math.sqrt(np.sum(ray * ray))
            incidence[v, u] = cosine
            to_light = light - point
            distance = math.sqrt(np.sum(to_light * to_light)) + 1e-9
            lamp = max(0.0, np.sum(normal * to_light) / distance) / (0.7 + 0.1 * distance * distance)
            bounce = 0.1 if normal[2] < -0.5 else 0.0  # light from the floor on what faces down
            brightness = 0.42 + bounce + 0.4 * lamp + 0.18 * cosine + surface[n, 1]
            share = _mix(texture[n], surface[n, 0], s, t)
            for channel in range(3):
                base = colors[n, 0, channel] * (1 - share) + colors[n, 1, channel] * share
                color[v, u, channel] = min(1.0, base * brightness)


def fill_voxels(
    scene: Scene, origin: NDArray[np.float64], *, grid_shape: GridShape = FINE_GRID_SHAPE
) -> NDArray[np.uint8]:
    """Classes of fine voxels: [X, height, Y] uint8, 0..11, or 255 outside the room.

    A voxel belongs to a shape that reaches within half a voxel of its center, so that what is seen lies on
    labeled voxels and thin shapes stay whole. ``origin`` is the world position of the grid's lower corner.
    """
    labels = np.full(grid_shape, IGNORE_LABEL, dtype=np.uint8)
    _fill(scene.kind, scene.center, scene.half, scene.yaw, scene.label, origin, FINE_VOXEL_SIZE, labels)
    return labels


@_compiled
def _holds(kind, half, x, y, z):
    """True where a point in the axes of a shape lies inside it."""
    if kind == _BOX:
        return abs(x) <= half[0] and abs(y) <= half[1] and abs(z) <= half[2]
    radial = (x / half[0]) ** 2 + (y / half[1]) ** 2
    if kind == _CYLINDER:
        return radial <= 1.0 and abs(z) <= half[2]
    return radial + (z / half[2]) ** 2 <= 1.0


@_compiled
def _fill(kind, center, half, yaw, label, origin, size, labels):
    for n in range(kind.shape[0]):
        # The interior must not grow into the walls' far side; everything else reaches half a voxel further.
        grown = half[n] + (0.0 if label[n] == _EMPTY else size / 2)
        c, s = math.cos(yaw[n]), math.sin(yaw[n])
        reach_x, reach_y = abs(c) * grown[0] + abs(s) * grown[1], abs(s) * grown[0] + abs(c) * grown[1]
        first_i = max(0, int(math.floor((center[n, 0] - reach_x - origin[0]) / size)))
        first_j = max(0, int(math.floor((center[n, 1] - reach_y - origin[1]) / size)))
        first_k = max(0, int(math.floor((center[n, 2] - grown[2] - origin[2]) / size)))
        end_i = min(labels.shape[0], int(math.floor((center[n, 0] + reach_x - origin[0]) / size)) + 1)
        end_j = min(labels.shape[2], int(math.floor((center[n, 1] + reach_y - origin[1]) / size)) + 1)
        end_k = min(labels.shape[1], int(math.floor((center[n, 2] + grown[2] - origin[2]) / size)) + 1)
        for i in range(first_i, end_i):
            dx = origin[0] + (i + 0.5) * size - center[n, 0]
            for k in range(first_k, end_k):
                dz = origin[2] + (k + 0.5) * size - center[n, 2]
                for j in range(first_j, end_j):
                    dy = origin[1] + (j + 0.5) * size - center[n, 1]
                    if _holds(kind[n], grown, c * dx + s * dy, c * dy - s * dx, dz):
                        labels[i, k, j] = label[n]
