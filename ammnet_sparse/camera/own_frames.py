"""Frames of a user's own camera: a color image and a registered depth image become a frame of the network.

Only intrinsics are needed: ``geometry/placement.py`` finds the camera's position, ``images/resizing.py`` converts any
size to that of the network, and TSDF and mapping follow the definitions of ``data/volumes``. This module does not read
files (see ``files/reading.py``).
"""

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.camera.coverage import Coverage, coverage, voxel_positions
from ammnet_sparse.camera.geometry.placement import Placement, place_camera
from ammnet_sparse.camera.images.resizing import CameraImages
from ammnet_sparse.camera.images.turning import View
from ammnet_sparse.data.frame import Frame
from ammnet_sparse.data.grid import FREE_TSDF, GRID_SHAPE, IMAGE_SHAPE, UNMAPPED, VOXEL_SIZE
from ammnet_sparse.data.volumes.camera import CameraView
from ammnet_sparse.data.volumes.mapping import mapping_from_depth
from ammnet_sparse.data.volumes.tsdf import Unobserved, flip_tsdf, tsdf_from_depth
from ammnet_sparse.files.errors import DataError

_BEHIND = -0.5
"""Below this TSDF a voxel has label weight: it is well behind a surface."""
_MARGIN = 0.1 / VOXEL_SIZE
"""Voxels."""
_LEAST_FIELD_OF_VIEW = 15.0
"""Degrees from left to right; RGB-D cameras have 40 and more."""


@dataclasses.dataclass(frozen=True, eq=False)
class OwnFrame:
    """A frame and its position in the world.

    Attributes:
        frame: what the network reads: without label; its label weight is set wherever space is not observed free.
        images: the images of the network's size that it was made of, and their intrinsics.
        placement: camera, floor and room in the world, and how sure that is.
        origin: [3] float64, world (X, Y, Z) in meters of the outer corner of voxel (0, 0, 0).
        reliable_mask: [60, 36, 60] bool, the kind of voxels that networks are trained on (``reliable_voxels``).
        coverage: how much of the depth lies in the grid.
        notes: messages about the files.
    """

    frame: Frame
    images: CameraImages
    placement: Placement
    origin: NDArray[np.float64]
    reliable_mask: NDArray[np.bool_]
    coverage: Coverage
    notes: tuple[str, ...] = ()

    @property
    def grid_share(self) -> float:
        """Share of the depth that lies in the grid, 0..1."""
        return self.coverage.share

    def describe(self) -> list[str]:
        """Lines that say how the frame was made, what is uncertain, and which options would settle it."""
        num_hit = int((self.frame.mapping != UNMAPPED).sum())
        share = f"{self.grid_share:.0%}" if self.grid_share >= 0.01 else "less than 1%"
        grid = f"grid: {num_hit} voxels hit; {share} of the depth lies in the grid"
        return [*self.notes, *self.placement.describe(), grid, *self.coverage.advice()]


def own_frame_from_view(
    view: View,
    *,
    name: str = "frame",
    pose: NDArray[np.float64] | None = None,
    pose_up: str | None = None,
    camera_height: float | None = None,
    previous: Placement | None = None,
    is_told_upright: bool = False,
    tsdf_is_flipped: bool = False,
    unobserved: Unobserved = "free",
) -> OwnFrame:
    """The frame of images of any size; arguments and errors as ``make_own_frame`` and ``View.to_network_images``."""
    return make_own_frame(
        view.to_network_images(),
        name=name,
        pose=pose,
        pose_up=pose_up,
        camera_height=camera_height,
        previous=previous,
        is_told_upright=is_told_upright,
        tsdf_is_flipped=tsdf_is_flipped,
        unobserved=unobserved,
    )


def make_own_frame(
    images: CameraImages,
    *,
    name: str,
    pose: NDArray[np.float64] | None = None,
    pose_up: str | None = None,
    camera_height: float | None = None,
    previous: Placement | None = None,
    is_told_upright: bool = False,
    tsdf_is_flipped: bool = False,
    unobserved: Unobserved = "free",
    notes: tuple[str, ...] = (),
) -> OwnFrame:
    """The frame of a view.

    Args:
        images: color, depth and intrinsics at the network's size.
        name: of the frame.
        pose, pose_up, camera_height, previous, is_told_upright: what is known about the camera, as ``place_camera``
            takes it.
        tsdf_is_flipped: the TSDF in the flipped convention, for networks trained on NYUCAD.
        unobserved: what a flipped TSDF holds in unobserved space (``flip_tsdf``); as the network was trained.
        notes: messages about the files, shown with the frame.

    Raises:
        DataError: no pixel of the depth falls into the grid.
    """
    if not images.depth.any():
        raise DataError(f"frame {name}: expected depth, found no valid pixel")
    angle = _field_of_view(images)
    if angle < _LEAST_FIELD_OF_VIEW:
        notes = (
            *notes,
            f"intrinsics: the camera sees {angle:.1f} degrees from left to right, less than any RGB-D camera; are fx "
            "and fy in pixels of the image?",
        )
    placement = place_camera(
        images.depth,
        camera=images.camera,
        pose=pose,
        pose_up=pose_up,
        camera_height=camera_height,
        previous=previous,
        is_told_upright=is_told_upright,
    )
    view = CameraView.of_own_frame(images.camera, placement.pose)
    covered = coverage(images, view)
    mapping, tsdf = mapping_from_depth(images.depth, view=view), tsdf_from_depth(images.depth, view=view)
    is_hit = mapping != UNMAPPED
    if not is_hit.any():
        raise DataError(
            f"frame {name}: expected depth within the grid of 4.8 x 4.8 x 2.88 m before the camera, found none there: "
            f"{covered.describe()}; check depth scale, intrinsics and pose"
        )
    frame = Frame(
        frame_id=name,
        tsdf=(flip_tsdf(tsdf, unobserved=unobserved) if tsdf_is_flipped else tsdf).reshape(GRID_SHAPE),
        mapping=mapping.reshape(GRID_SHAPE),
        label_weight=((tsdf < FREE_TSDF) | is_hit).reshape(GRID_SHAPE),
        image=images.image,
        label_map=images.label_map,
        tsdf_is_flipped=tsdf_is_flipped,
    )
    # Every fourth row and column is enough for the box around everything seen.
    rows, columns = (4 * index for index in np.nonzero(images.depth[::4, ::4]))
    seen = voxel_positions(images, view, rows, columns)
    mask = reliable_voxels(tsdf.reshape(GRID_SHAPE), is_hit.reshape(GRID_SHAPE), seen)
    return OwnFrame(frame, images, placement, view.origin, mask, covered, notes)


def _field_of_view(images: CameraImages) -> float:
    """Degrees from left to right."""
    return 2 * math.degrees(math.atan(IMAGE_SHAPE[1] / 2 / images.camera.fx))


def reliable_voxels(
    tsdf: NDArray[np.float32], is_hit: NDArray[np.bool_], seen: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """The voxels of a prediction that are worth showing if there is no ground truth.

    Networks are trained on what is occupied and what lies well behind a surface (TSDF below -0.5), within the box
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
