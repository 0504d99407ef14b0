"""Frames of a user's own camera: a color image and a registered depth image become a frame of the network.

Only intrinsics are needed: ``geometry/placement.py`` finds the camera's position, ``images.py`` converts any size to
that of the network, and TSDF and mapping follow the definitions of ``data/volumes``.
"""

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.camera.files.frame_files import FrameFiles
from ammnet_sparse.camera.files.stored import read_stored
from ammnet_sparse.camera.geometry.placement import Placement, place_camera
from ammnet_sparse.camera.images import CameraImages, camera_images
from ammnet_sparse.camera.settings import CameraSettings
from ammnet_sparse.data.frame import Frame
from ammnet_sparse.data.grid import FREE_TSDF, GRID_SHAPE, IMAGE_SHAPE, UNMAPPED, VOXEL_SIZE
from ammnet_sparse.data.volumes.camera import Camera, CameraView, own_frame_origin
from ammnet_sparse.data.volumes.tsdf import flip_tsdf, mapping_from_depth, tsdf_from_depth
from ammnet_sparse.files.errors import DataError

LITTLE = 0.1
"""Share of the depth in the grid below which a frame's completion says almost nothing about the view."""
_MOST = 0.5
_ADVICE = {
    "farther": "the room is larger than the grid, or the depth scale is wrong",
    "nearer": "the camera is very near, or the depth scale is wrong",
    "below the floor": "the detected floor is too high: give `camera_height`",
    "above": "the detected floor is too low, or the vertical is wrong: give `camera_height`, `pose` or `rotate`",
    "to the sides": "the view is wide, or the intrinsics belong to another image size",
}
_BEHIND = -0.5
"""Below this TSDF a voxel has label weight: it is well behind a surface."""
_MARGIN = 0.1 / VOXEL_SIZE
"""Voxels."""
_LEAST_FIELD_OF_VIEW = 15.0
"""Degrees from left to right; RGB-D cameras have 40 and more."""


@dataclasses.dataclass(frozen=True)
class Coverage:
    """The position of a view's depth relative to the grid.

    Attributes:
        share: of the pixels with depth that fall into the grid; 0 where no pixel has depth.
        outside: share of the pixels with depth in every direction outside, largest first; a pixel counts once.
        reach: the extent of the grid in words, seen from the camera.
    """

    share: float
    outside: tuple[tuple[str, float], ...]
    reach: str

    def describe(self) -> str:
        """Where the depth lies, and what to check."""
        parts = [f"{share:.0%} lies {where}" for where, share in self.outside if share >= 0.005]
        said = f"the grid covers {self.reach}" + (f"; of the depth {', '.join(parts)}" if parts else "")
        return f"{said}; {_ADVICE[self.outside[0][0]]}" if parts else said

    def advice(self) -> list[str]:
        """A line where most of the depth lies outside."""
        if self.share >= _MOST:
            return []
        return [f"advice: most of the depth lies outside the grid: {self.describe()}"]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class CameraFrame(Frame):
    """A frame of a user's camera, without label; its label weight is set wherever space is not observed free.

    Attributes:
        images: those that it was made of, with their intrinsics.
        placement: camera, floor and room in the world, and how sure that is.
        distance: [60, 36, 60] float32, the TSDF before any flipping: +1 observed free, -1 occluded, 0 unobserved.
        origin: [3] float64, world (X, Y, Z) in meters of the outer corner of voxel (0, 0, 0).
        reliable_mask: [60, 36, 60] bool, the kind of voxels that networks are trained on (``reliable_voxels``).
        coverage: how much of the depth lies in the grid.
        notes: messages about the files.
    """

    images: CameraImages
    placement: Placement
    distance: NDArray[np.float32]
    origin: NDArray[np.float64]
    reliable_mask: NDArray[np.bool_]
    coverage: Coverage
    notes: tuple[str, ...]

    def describe(self) -> list[str]:
        """Lines that say how the frame was made, what is uncertain, and which options would settle it."""
        num_hit, share = int((self.mapping != UNMAPPED).sum()), self.coverage.share
        shown = f"{share:.0%}" if share >= 0.01 else "less than 1%"
        grid = f"grid: {num_hit} voxels hit; {shown} of the depth lies in the grid"
        return [*self.notes, *self.placement.describe(), grid, *self.coverage.advice()]


def read_frame(files: FrameFiles, settings: CameraSettings) -> CameraFrame:
    """Reads the files of a frame and makes the frame; errors as ``read_stored``, ``camera_images``, ``make_frame``."""
    return make_frame(camera_images(read_stored(files), settings), settings, name=files.name)


def make_frame(
    images: CameraImages,
    settings: CameraSettings,
    *,
    name: str,
    previous: Placement | None = None,
    placement: Placement | None = None,
) -> CameraFrame:
    """The frame of the images of a camera.

    Args:
        images: color, depth and intrinsics at the network's size.
        settings: what is known about the camera, and the TSDF that the network reads.
        name: of the frame.
        previous: the placement of the previous frame of the same camera (``place_camera``).
        placement: the camera in a room that is known; nothing is searched then, and the grid is aligned with the
            voxels of that room (``aligned_origin``).

    Raises:
        DataError: no pixel of the depth falls into the grid.
    """
    if not images.depth.any():
        raise DataError(f"frame {name}: expected depth, found no valid pixel")
    if placement is None:
        placement = _placed(images, settings, previous=previous)
        view = CameraView.of_own_frame(images.camera, placement.pose)
    else:
        view = CameraView(images.camera, placement.pose, aligned_origin(placement.pose))
    covered = _coverage(images, view)
    mapping = mapping_from_depth(images.depth, view=view).reshape(GRID_SHAPE)
    tsdf = tsdf_from_depth(images.depth, view=view).reshape(GRID_SHAPE)
    is_hit = mapping != UNMAPPED
    if not is_hit.any():
        raise DataError(
            f"frame {name}: expected depth within the grid of 4.8 x 4.8 x 2.88 m before the camera, found none there: "
            f"{'; '.join([covered.describe(), *images.notes, 'check depth scale, intrinsics and pose'])}"
        )
    # Every fourth row and column is enough for the box around everything seen.
    rows, columns = _sampled(images.depth, step=4)
    seen = _voxel_positions(images, view, rows, columns)
    return CameraFrame(
        frame_id=name,
        tsdf=flip_tsdf(tsdf, unobserved=settings.unobserved) if settings.tsdf_is_flipped else tsdf,
        mapping=mapping,
        label_weight=(tsdf < FREE_TSDF) | is_hit,
        image=images.image,
        label_map=images.label_map,
        tsdf_is_flipped=settings.tsdf_is_flipped,
        images=images,
        placement=placement,
        distance=tsdf,
        origin=view.origin,
        reliable_mask=reliable_voxels(tsdf, is_hit, seen),
        coverage=covered,
        notes=(*images.notes, *_note_on_field_of_view(images.camera)),
    )


def aligned_origin(pose: NDArray[np.float64]) -> NDArray[np.float64]:
    """The lower corner of a frame's grid, at the nearest whole voxels of the world of its pose.

    The grids of all frames of a room then share their voxels, also after quarter turns about the vertical.
    """
    origin = own_frame_origin(pose)
    origin[:2] = np.round(origin[:2] / VOXEL_SIZE) * VOXEL_SIZE
    return origin


def _placed(images: CameraImages, settings: CameraSettings, *, previous: Placement | None) -> Placement:
    """The camera's placement by everything known about it."""
    return place_camera(
        images.depth,
        camera=images.camera,
        pose=images.pose,
        convention=images.convention,
        other_pose=images.other_pose,
        pose_up=settings.pose_up,
        camera_height=settings.camera_height,
        previous=previous,
        is_told_upright=images.is_told_upright,
    )


def _note_on_field_of_view(camera: Camera) -> list[str]:
    angle = 2 * math.degrees(math.atan(IMAGE_SHAPE[1] / 2 / camera.fx))
    if angle >= _LEAST_FIELD_OF_VIEW:
        return []
    return [
        f"intrinsics: the camera sees {angle:.1f} degrees from left to right, less than any RGB-D camera; are fx and "
        "fy in pixels of the image?"
    ]


def reliable_voxels(
    tsdf: NDArray[np.float32], is_hit: NDArray[np.bool_], seen: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """The voxels of a prediction that are worth showing if there is no ground truth.

    Networks are trained on occupied voxels and those well behind a surface (TSDF below -0.5), within the box
    around everything seen (beyond it labels are 255). Accordingly these are hit voxels, their neighbors behind the
    surface, and TSDF below -0.5, within that box enlarged by 0.1 m. Predictions elsewhere (beyond the walls, just in
    front of a surface, along the edges of the image) were never compared with the truth.

    Args:
        tsdf: [X, H, Y], not flipped.
        is_hit: [X, H, Y], hit by a pixel.
        seen: [N, 3] positions of seen points in voxels along (X, height, Y).
    """
    near = np.pad(is_hit, 1)
    for axis in range(3):
        near = near | np.roll(near, 1, axis) | np.roll(near, -1, axis)
    mask = (near[1:-1, 1:-1, 1:-1] & (tsdf < 0)) | (tsdf < _BEHIND) | is_hit
    if not len(seen):
        return mask
    # Outliers must not enlarge the box.
    low, high = np.percentile(seen, [0.5, 99.5], axis=0)
    for axis, size in enumerate(tsdf.shape):
        center = np.arange(size) + 0.5
        inside = (center > low[axis] - _MARGIN) & (center < high[axis] + _MARGIN)
        if axis == 1:
            inside |= center < high[axis]  # down to the floor, seen or not
        mask &= inside.reshape([-1 if other == axis else 1 for other in range(3)])
    return mask


def _coverage(images: CameraImages, view: CameraView) -> Coverage:
    """The coverage of the images at the network's size by the grid of a view."""
    # Every second row and column is enough for shares.
    rows, columns = _sampled(images.depth, step=2)
    positions = _voxel_positions(images, view, rows, columns)
    low, high = positions < 0, positions >= np.array(GRID_SHAPE)
    count = max(1, len(positions))
    # In this order, so that points beyond the far wall are not reported as above.
    masks = {
        "farther": high[:, 2],
        "nearer": low[:, 2],
        "to the sides": low[:, 0] | high[:, 0],
        "below the floor": low[:, 1],
        "above": high[:, 1],
    }
    left = np.ones(len(positions), dtype=np.bool_)
    shares: dict[str, float] = {}
    for where, mask in masks.items():
        shares[where] = float((mask & left).sum() / count)
        left &= ~mask
    ordered = tuple(sorted(shares.items(), key=lambda item: -item[1]))
    return Coverage(float(left.sum() / count) if len(positions) else 0.0, ordered, _reach(view))


def _sampled(depth: NDArray[np.float32], *, step: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of valid pixels in every ``step``-th row and column; if those are few, of as many others."""
    rows, columns = (step * index for index in np.nonzero(depth[::step, ::step]))
    if step**2 * len(rows) >= 0.5 * np.count_nonzero(depth):
        return rows, columns
    rows, columns = (index[:: step**2] for index in np.nonzero(depth))
    return rows, columns


def _voxel_positions(
    images: CameraImages, view: CameraView, rows: NDArray[np.intp], columns: NDArray[np.intp]
) -> NDArray[np.float64]:
    """[N, 3] positions in voxels along (X, height, Y) of the pixels at ``rows`` and ``columns``, which have depth."""
    camera = images.camera
    z = images.depth[rows, columns].astype(np.float64)
    points = np.stack([(columns - camera.cx) * z / camera.fx, (rows - camera.cy) * z / camera.fy, z], axis=1)
    world = points @ view.pose[:3, :3].T + view.pose[:3, 3] - view.origin
    return np.asarray(world[:, [0, 2, 1]] / VOXEL_SIZE, dtype=np.float64)


def _reach(view: CameraView) -> str:
    """The extent of the grid along the world's axes, seen from the camera, whose direction it depends on."""
    low = view.origin - view.pose[:3, 3]
    high = low + np.array(GRID_SHAPE)[[0, 2, 1]] * VOXEL_SIZE
    from_to = f"{-low[1]:.1f} m behind the camera to" if low[1] < 0 else f"{low[1]:.1f} to"
    return (
        f"{from_to} {high[1]:.1f} m ahead of the camera, {-low[0]:.1f} m to its left to {high[0]:.1f} m to its right, "
        f"and {-view.origin[2]:.2f} m below the floor to {view.origin[2] + GRID_SHAPE[1] * VOXEL_SIZE:.2f} m above it"
    )
