"""One synthetic frame: room, camera, view, sensor noise, and the volumes by the definitions of ``data/volumes``."""

import dataclasses
import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.data.grid import IGNORE_LABEL
from ammnet_sparse.data.synthetic.label_map import camera_image, kinect_depth, predicted_label_map
from ammnet_sparse.data.synthetic.raycast import View, camera_pose, cast_depth, cast_view, fill_voxels
from ammnet_sparse.data.synthetic.rooms import make_room
from ammnet_sparse.data.synthetic.scene import Scene, SceneLabel
from ammnet_sparse.data.volumes.camera import NYU_CAMERA, Camera, CameraView
from ammnet_sparse.data.volumes.labels import FINE_VOXEL_SIZE, downsample_labels, label_weight_of
from ammnet_sparse.data.volumes.tsdf import mapping_from_depth, tsdf_from_depth

Rng = np.random.Generator
Noise = Literal["none", "kinect"]

SHELL_LABELS = (SceneLabel.WALL, SceneLabel.FLOOR, SceneLabel.CEILING)
MIN_SEEN_PIXELS = 60
"""Objects with fewer visible pixels are not labeled: annotators see one picture."""
EXTENT_MARGIN = 0.1
"""Meters around what is seen that still belong to the annotated room."""
VIEW_TRIES = 12
_PREVIEW = 8
"""Stride in pixels of trial views."""


@dataclasses.dataclass(frozen=True, eq=False)
class SyntheticImages:
    """What a camera records of a scene.

    Attributes:
        image: [480, 640, 3] uint8 RGB.
        depth: [480, 640] float32 meters, 0 where missing, with the noise asked for.
        label_map: [480, 640] uint8, 0..13, with errors.
        true_label_map: [480, 640] uint8, 0..13, without.
        view: what is seen without noise.
    """

    image: NDArray[np.uint8]
    depth: NDArray[np.float32]
    label_map: NDArray[np.uint8]
    true_label_map: NDArray[np.uint8]
    view: View


@dataclasses.dataclass(frozen=True, eq=False)
class SyntheticFrame(SyntheticImages):
    """A frame with its ground truth. Voxel arrays are flat, axes (X, height, Y) in C order, V = 129600.

    Attributes:
        label: [V] uint8, 0..11 or 255.
        tsdf: [V] float32, not flipped.
        mapping: [V] int32, pixel or -1.
        label_weight: [V] uint8, 0 or 1.
        pose: [4, 4] float64, camera to world.
        origin: [3] float64, world position of the grid's lower corner.
    """

    label: NDArray[np.uint8]
    tsdf: NDArray[np.float32]
    mapping: NDArray[np.int32]
    label_weight: NDArray[np.uint8]
    pose: NDArray[np.float64]
    origin: NDArray[np.float64]


def generate_frame(seed: int, index: int, *, noise: Noise) -> SyntheticFrame:
    """Frame ``index`` of the set with this seed; depends only on the arguments.

    Args:
        seed: of the set, at least 0.
        index: of the frame, at least 0.
        noise: of the depth: none, or like a Kinect's. Room, view and labels are the same with either.
    """
    # One generator per stage, so that changing a stage does not affect the others.
    layout, sensor, colors, errors = (np.random.default_rng([seed, index, stage]) for stage in range(4))
    scene, pose = _room_with_view(layout)
    images = take_images(scene, pose, noise=noise, sensor=sensor, colors=colors, errors=errors)
    camera_view = CameraView.of_own_frame(NYU_CAMERA, pose)
    label = _labels(scene, images.view, pose, camera_view.origin)
    tsdf = tsdf_from_depth(images.depth, view=camera_view)
    return SyntheticFrame(
        **vars(images),
        label=label,
        tsdf=tsdf,
        mapping=mapping_from_depth(images.depth, view=camera_view),
        label_weight=label_weight_of(label, tsdf),
        pose=pose,
        origin=camera_view.origin,
    )


def take_images(
    scene: Scene, pose: NDArray[np.float64], *, noise: Noise, sensor: Rng, colors: Rng, errors: Rng
) -> SyntheticImages:
    """The images of a scene by ``NYU_CAMERA``.

    Args:
        scene: what is seen.
        pose: [4, 4], camera to world.
        noise: of the depth.
        sensor: the source of that noise.
        colors: the source of the color image's.
        errors: the source of the label map's errors.
    """
    view = cast_view(scene, pose, camera=NYU_CAMERA)
    depth = view.depth
    if noise == "kinect":
        absorbing = np.isin(_of_shape(scene.label, view), (SceneLabel.WINDOW, SceneLabel.TVS))
        depth = kinect_depth(view.depth, sensor, incidence=view.incidence, absorbing=absorbing)
    true_label_map = _of_shape(scene.map_label, view)
    label_map = predicted_label_map(true_label_map, _of_shape(scene.instance, view), errors)
    return SyntheticImages(camera_image(view.color, colors), depth, label_map, true_label_map, view)


def _of_shape(values: NDArray, view: View) -> NDArray:
    """Values per shape as an image, 0 where no shape is seen."""
    return np.where(view.shape >= 0, values[view.shape], values.dtype.type(0))


def _room_with_view(rng: Rng) -> tuple[Scene, NDArray[np.float64]]:
    """A room and a camera that sees something of it: the first good view, or the best one tried."""
    best: tuple[float, Scene, NDArray[np.float64]] | None = None
    for attempt in range(VIEW_TRIES):
        if attempt % 4 == 0:
            scene = make_room(rng)
        pose = _draw_pose(scene, rng)
        score = _view_score(scene, pose)
        if best is None or score > best[0]:
            best = score, scene, pose
        if score >= 1.0:
            break
    assert best is not None
    return best[1], best[2]


def _draw_pose(scene: Scene, rng: Rng) -> NDArray[np.float64]:
    """A hand-held camera at X = Y = 0 that points at the center of the room, slightly downwards."""
    interior = int(np.flatnonzero(scene.label == SceneLabel.EMPTY)[0])
    x = scene.center[interior, 0] + rng.uniform(-0.5, 0.5) * scene.half[interior, 0]
    y = max(1.5, scene.center[interior, 1] + rng.uniform(-0.2, 0.6) * scene.half[interior, 1])
    yaw = np.clip(math.atan2(-x, y) + rng.normal(0, math.radians(6)), -math.radians(40), math.radians(40))
    pitch = math.radians(float(np.clip(rng.normal(-14, 6), -28, 4)))
    roll = math.radians(rng.normal(0, 1.5))
    return camera_pose(rng.uniform(1.0, 1.75), yaw=float(yaw), pitch=pitch, roll=roll)


def _view_score(scene: Scene, pose: NDArray[np.float64]) -> float:
    """1 or more for a view worth taking: several objects, not blocked by something near, not all walls."""
    step = _PREVIEW
    camera = NYU_CAMERA
    small = Camera(camera.fx / step, camera.fy / step, (camera.cx + 0.5) / step - 0.5, (camera.cy + 0.5) / step - 0.5)
    depth, shape = cast_depth(scene, pose, camera=small, image_shape=(480 // step, 640 // step))
    labels = scene.label[shape]
    num_objects = len(np.unique(scene.instance[shape][~np.isin(labels, SHELL_LABELS)]))
    is_furnished = 1 - np.isin(labels, SHELL_LABELS).mean()
    conditions = (
        num_objects / 5,
        is_furnished / 0.2,
        float(np.median(depth)) / 1.6,
        0.15 / ((depth < 0.9).mean() + 0.01),
    )
    return min(1.0, *conditions)


def _labels(scene: Scene, view: View, pose: NDArray[np.float64], origin: NDArray[np.float64]) -> NDArray[np.uint8]:
    """[V] uint8: completed objects that the camera sees a part of, within the extent of what it sees."""
    seen = np.bincount(scene.instance[view.shape[view.shape >= 0]], minlength=int(scene.instance.max()) + 1)
    is_volume = np.isin(scene.label, (SceneLabel.EMPTY, SceneLabel.IGNORE))
    fine = fill_voxels(scene.select(is_volume | (seen[scene.instance] >= MIN_SEEN_PIXELS)), origin)
    _ignore_beyond(fine, view, pose, origin)
    return downsample_labels(fine).reshape(-1)


def _ignore_beyond(fine: NDArray[np.uint8], view: View, pose: NDArray[np.float64], origin: NDArray[np.float64]) -> None:
    """Sets to 255 what lies outside the rectangle on the floor that holds everything seen, as published labels do."""
    v, u = np.nonzero(view.depth > 0)
    d = view.depth[v, u].astype(np.float64)
    x, y = (u - NYU_CAMERA.cx) * d / NYU_CAMERA.fx, (v - NYU_CAMERA.cy) * d / NYU_CAMERA.fy
    for axis, grid_axis in ((0, 0), (1, 2)):
        world = pose[axis, 0] * x + pose[axis, 1] * y + pose[axis, 2] * d + pose[axis, 3] - origin[axis]
        first = max(0, math.floor((world.min() - EXTENT_MARGIN) / FINE_VOXEL_SIZE))
        end = max(0, math.ceil((world.max() + EXTENT_MARGIN) / FINE_VOXEL_SIZE))
        along = np.moveaxis(fine, grid_axis, 0)
        along[:first] = IGNORE_LABEL
        along[end:] = IGNORE_LABEL
