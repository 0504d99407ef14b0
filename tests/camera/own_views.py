"""Views of generated rooms by a hand-held camera, with the truth about it."""

import dataclasses
import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.camera.files.intrinsics import Intrinsics
from ammnet_sparse.camera.settings import CameraSettings
from ammnet_sparse.data.grid import IMAGE_SHAPE
from ammnet_sparse.data.synthetic.label_map import kinect_depth
from ammnet_sparse.data.synthetic.raycast import camera_pose, cast_depth, cast_view
from ammnet_sparse.data.synthetic.rooms import make_room
from ammnet_sparse.data.synthetic.scene import Scene, SceneLabel
from ammnet_sparse.data.volumes.camera import NYU_CAMERA, Camera

Kind = Literal["floor", "no floor"]


@dataclasses.dataclass(frozen=True, eq=False)
class RoomView:
    """Depth like a Kinect's [480, 640] in meters, by ``NYU_CAMERA``; the room's walls run along X and Y."""

    scene: Scene
    depth: NDArray[np.float32]
    pose: NDArray[np.float64]

    @property
    def up(self) -> NDArray[np.float64]:
        """The vertical in camera coordinates."""
        return self.pose[2, :3]

    @property
    def height(self) -> float:
        return float(self.pose[2, 3])


def room_view(seed: int, kind: Kind) -> RoomView:
    """A view with 5 % of floor and more, or with none at all: pitch -45..8 or -20..20 degrees, roll 8 or 5 (deviation).

    The camera is 1.1 to 1.8 m above the floor and turned up to 43 degrees against the room.
    """
    rng = np.random.default_rng([seed, kind == "floor"])
    for attempt in range(100):
        if attempt % 6 == 0:
            scene = make_room(rng)
        low, high, deviation = (-45, 8, 8) if kind == "floor" else (-20, 20, 5)
        pose = camera_pose(
            rng.uniform(1.1, 1.8),
            yaw=rng.uniform(-0.75, 0.75),
            pitch=math.radians(rng.uniform(low, high)),
            roll=math.radians(rng.normal(0, deviation)),
        )
        depth, shape = cast_depth(scene, pose, camera=scaled_camera(1 / 8), image_shape=(60, 80))
        floor = (scene.label[shape] == SceneLabel.FLOOR).mean()
        if (depth < 0.7).mean() < 0.3 and (floor > 0.05 if kind == "floor" else floor == 0):
            break
    view = cast_view(scene, pose, camera=NYU_CAMERA)
    absorbing = np.isin(scene.label[view.shape], (SceneLabel.WINDOW, SceneLabel.TVS))
    return RoomView(scene, kinect_depth(view.depth, rng, incidence=view.incidence, absorbing=absorbing), pose)


def box_room(
    seed: int, *, height: float = 1.4, pitch: float = -20.0, roll: float = 0.0
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Depth [480, 640] without noise of a bare room with up to three boxes, by ``NYU_CAMERA``; and the pose.

    Args:
        height: meters of the camera above the floor.
        pitch, roll: degrees.
    """
    rng = np.random.default_rng(seed)
    width, length, ceiling = rng.uniform(3, 5), rng.uniform(3.5, 6), rng.uniform(2.4, 2.8)
    pose = camera_pose(height, yaw=rng.uniform(-0.4, 0.4), pitch=math.radians(pitch), roll=math.radians(roll))
    left = -rng.uniform(0.3, 0.7) * width
    back = -length / 2 if pitch < -60 else -rng.uniform(0.2, 1.0)
    v, u = np.mgrid[: IMAGE_SHAPE[0], : IMAGE_SHAPE[1]]
    x, y = (u - NYU_CAMERA.cx) / NYU_CAMERA.fx, (v - NYU_CAMERA.cy) / NYU_CAMERA.fy
    rays = np.stack([x, y, np.ones(u.shape)], axis=-1) @ pose[:3, :3].T
    eye = pose[:3, 3]
    low, high = np.array([left, back, 0.0]), np.array([left + width, back + length, ceiling])
    with np.errstate(divide="ignore", invalid="ignore"):
        depth = np.where(rays > 0, (high - eye) / rays, (low - eye) / rays).min(axis=-1)
        for _ in range(rng.integers(1, 4)):
            size = rng.uniform([0.4, 0.4, 0.3], [1.2, 1.0, 1.2])
            along = rng.uniform(-0.8, 0.8) if pitch < -60 else rng.uniform(1.2, back + length - 0.5)
            middle = np.array([rng.uniform(left + 0.5, left + width - 0.5), along, 0.0])
            first, second = middle - size / 2 * (1, 1, 0), middle + size * (0.5, 0.5, 1)
            one, other = (first - eye) / rays, (second - eye) / rays
            near, far = np.minimum(one, other).max(axis=-1), np.maximum(one, other).min(axis=-1)
            depth = np.where((near < far) & (near > 0.05), np.minimum(depth, near), depth)
    return depth.astype(np.float32), pose


def with_waves(view: RoomView, *, length: float, amplitude: float) -> NDArray[np.float32]:
    """The depth of a view with waves across its largest wall, both in meters; the wall fills a third or more of it."""
    v, u = np.mgrid[: IMAGE_SHAPE[0], : IMAGE_SHAPE[1]]
    rays = np.stack([(u - NYU_CAMERA.cx) / NYU_CAMERA.fx, (v - NYU_CAMERA.cy) / NYU_CAMERA.fy, np.ones(u.shape)], -1)
    across = rays @ view.pose[:2, :3].T * view.depth[..., None]  # from the camera along X and Y
    layers = [
        np.unique(np.round(offset[view.depth > 0] / 0.1), return_counts=True) for offset in np.moveaxis(across, 2, 0)
    ]
    axis = int(np.argmax([counts.max() for _, counts in layers]))
    level = 0.1 * layers[axis][0][layers[axis][1].argmax()]
    is_wall = np.abs(across[..., axis] - level) < 0.15
    assert is_wall.mean() > 0.33
    waves = amplitude * np.sin(2 * math.pi / length * across[..., 1 - axis])
    return (view.depth * np.where(is_wall, 1 + waves / level, 1)).astype(np.float32)


def scaled_camera(scale: float) -> Camera:
    """``NYU_CAMERA`` of an image of another size: the edges at -0.5 stay in place."""
    c = NYU_CAMERA
    return Camera(c.fx * scale, c.fy * scale, (c.cx + 0.5) * scale - 0.5, (c.cy + 0.5) * scale - 0.5)


def angle(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Degrees between two directions of length 1."""
    return math.degrees(math.acos(float(np.clip(first @ second, -1, 1))))


def heading_of(pose: NDArray[np.float64]) -> float:
    """Degrees from the world's Y to the camera's direction, counterclockwise seen from above, within 45 of a wall."""
    turn = math.degrees(math.atan2(-pose[0, 2], pose[1, 2]))
    return (turn + 45) % 90 - 45


def settings_of(camera: Camera = NYU_CAMERA, **more: Any) -> CameraSettings:
    return CameraSettings(intrinsics=Intrinsics(camera), **more)


def gray_image(shape: tuple[int, int] = IMAGE_SHAPE) -> NDArray[np.uint8]:
    return np.full((*shape, 3), 120, dtype=np.uint8)
