"""Frames of a user's own camera: a colour image and a registered depth image become a frame of the network.

Nothing but intrinsics is needed; ``placement.py`` finds out where the camera stands, ``camera_images.py`` brings any
size to that of the network, and TSDF and mapping follow by the definitions of ``data/volumes``.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.data.camera.images import (
    DEPTH_SCALE,
    CameraImages,
    read_color,
    read_depth,
    read_own_label_map,
    read_pose,
    to_network_images,
)
from ammnet_sparse.data.camera.placement import Placement, place_camera
from ammnet_sparse.data.frame import Frame
from ammnet_sparse.data.grid import FREE_TSDF, GRID_SHAPE, UNMAPPED, VOXEL_SIZE
from ammnet_sparse.data.sets.files import DataError
from ammnet_sparse.data.sets.splits import some
from ammnet_sparse.data.volumes.camera import Camera, own_frame_origin
from ammnet_sparse.data.volumes.mapping import mapping_from_depth
from ammnet_sparse.data.volumes.tsdf import flip_tsdf, tsdf_from_depth

_BEHIND = -0.5
"""Below this TSDF a voxel has label weight: it is well behind a surface."""
_MARGIN = 0.1 / VOXEL_SIZE
"""Voxels."""

_COLOR_TYPES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")
_DEPTH_TYPES = (".png", ".tif", ".tiff", ".pgm", ".npy")
_POSE_TYPES = (".txt",)
_LABEL_MAP_TYPES = (".png",)
_WORDS = {
    "color": "colou?r|rgb|image|img",
    "depth": "depth",
    "pose": "pose",
    "label_map": "label[_-]?maps?|labels?|seg|seg2d",
}
"""Words in file names that say what a file is; frames are matched by what is left of their names."""


@dataclasses.dataclass(frozen=True)
class OwnFramePaths:
    """The files of one frame; its name is what their names have in common."""

    name: str
    color: Path
    depth: Path
    pose: Path | None = None
    label_map: Path | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class OwnFrame:
    """A frame with where it lies in the world.

    Attributes:
        frame: what the network reads: without label; its label weight is set wherever space is not observed free.
        images: the images of the network's size that it was made of, and their intrinsics.
        placement: camera, floor and room in the world, and how sure that is.
        origin: [3] float64, world (X, Y, Z) in metres of the outer corner of voxel (0, 0, 0).
        reliable_mask: [60, 36, 60] bool, the voxels of the kind that networks are trained on (``reliable_voxels``).
    """

    frame: Frame
    images: CameraImages
    placement: Placement
    origin: NDArray[np.float64]
    reliable_mask: NDArray[np.bool_]

    def describe(self) -> list[str]:
        """Lines that say how the frame was made, what is doubtful, and what could be given to make it sure."""
        num_hit = int((self.frame.mapping != UNMAPPED).sum())
        seen = seen_positions(self.images, self.placement.pose, self.origin)
        share = float(((seen >= 0) & (seen < GRID_SHAPE)).all(axis=1).mean())
        lines = [*self.placement.describe(), f"grid: {num_hit} voxels hit; {share:.0%} of the depth lies in the grid"]
        if share < 0.5:
            lines.append(
                "advice: most of the depth lies outside the grid, which reaches from 1.0 to 5.8 m before the camera; "
                "check its scale and the intrinsics"
            )
        return lines


def find_own_frames(
    color: Path, depth: Path, *, pose: Path | None = None, label_map: Path | None = None
) -> tuple[list[OwnFramePaths], list[str]]:
    """The frames of files or folders.

    In folders, files are matched by name without the words that say what they are (color, rgb, depth, pose, label,
    ...) and without ending: ``frame-000000.color.jpg``, ``frame-000000.depth.png`` and ``frame-000000.pose.txt`` are
    one frame, as are ``rgb/0007.jpg`` and ``depth/0007.png``. All kinds may stand in one folder. One pose for a
    folder of frames may be a file: a camera that stands still.

    Returns:
        The frames by name, and the files in these folders that lack a partner.

    Raises:
        DataError: a missing file or folder, a file beside a folder, two files of one frame, or no frame at all.
    """
    for name, path in (("color", color), ("depth", depth), ("pose", pose), ("label map", label_map)):
        if path is not None and not path.exists():
            raise DataError(f"{name} {path}: expected a file or a folder, found nothing; check the path")
    if color.is_dir() != depth.is_dir():
        raise DataError(f"expected two files or two folders, found {color} and {depth}; name two of a kind")
    if color.is_file():
        for name, path in (("pose", pose), ("label map", label_map)):
            if path is not None and path.is_dir():
                raise DataError(f"{name} {path}: expected a file for one frame, found a folder; name the file")
        name = _key(color, "color") or color.resolve().parent.name or color.stem
        return [OwnFramePaths(name, color, depth, pose, label_map)], []
    colors, depths = _files_by_key(color, _COLOR_TYPES, "color"), _files_by_key(depth, _DEPTH_TYPES, "depth")
    poses = _files_by_key(pose, _POSE_TYPES, "pose") if pose is not None and pose.is_dir() else None
    maps = _files_by_key(label_map, _LABEL_MAP_TYPES, "label_map") if label_map is not None else None
    if label_map is not None and label_map.is_file():
        raise DataError(f"label map {label_map}: expected a folder for a folder of frames, found a file")
    complete = set(colors) & set(depths)
    for others in (poses, maps):
        complete &= complete if others is None else set(others)
    if not complete:
        raise DataError(
            f"{color} and {depth}: expected frames whose files have a name in common, found colour images "
            f"{some(sorted(colors), 3)} and depth images {some(sorted(depths), 3)} with no match"
            f"{'' if poses is None and maps is None else ' (poses and label maps included)'}; rename the files"
        )
    lonely = [str(path) for files in (colors, depths) for key, path in files.items() if key not in complete]
    frames = [
        OwnFramePaths(
            key,
            colors[key],
            depths[key],
            pose if poses is None else poses[key],
            None if maps is None else maps[key],
        )
        for key in sorted(complete)
    ]
    return frames, sorted(lonely)


def read_own_frame(
    paths: OwnFramePaths,
    *,
    camera: Camera,
    depth_scale: float = DEPTH_SCALE,
    pose_up: str | None = None,
    camera_height: float | None = None,
    tsdf_is_flipped: bool = False,
) -> OwnFrame:
    """Reads the files of a frame and makes the frame; arguments as ``make_own_frame`` and ``read_depth``.

    Raises:
        DataError: a file that cannot be used; see ``camera_images.py``.
    """
    images = to_network_images(
        read_color(paths.color),
        read_depth(paths.depth, scale=depth_scale),
        camera=camera,
        label_map=None if paths.label_map is None else read_own_label_map(paths.label_map),
    )
    return make_own_frame(
        images,
        name=paths.name,
        pose=None if paths.pose is None else read_pose(paths.pose),
        pose_up=pose_up,
        camera_height=camera_height,
        tsdf_is_flipped=tsdf_is_flipped,
    )


def make_own_frame(
    images: CameraImages,
    *,
    name: str,
    pose: NDArray[np.float64] | None = None,
    pose_up: str | None = None,
    camera_height: float | None = None,
    tsdf_is_flipped: bool = False,
) -> OwnFrame:
    """The frame of a view.

    Args:
        images: colour, depth and intrinsics at the network's size.
        name: of the frame.
        pose, pose_up, camera_height: what is known of the camera, as ``place_camera`` takes it.
        tsdf_is_flipped: the TSDF in the flipped convention, for networks trained on NYUCAD.

    Raises:
        DataError: no pixel of the depth falls into the grid.
    """
    placement = place_camera(
        images.depth, camera=images.camera, pose=pose, pose_up=pose_up, camera_height=camera_height
    )
    origin = own_frame_origin(placement.pose)
    view = {"camera": images.camera, "pose": placement.pose, "origin": origin}
    mapping = mapping_from_depth(images.depth, **view)  # type: ignore[arg-type]
    tsdf = tsdf_from_depth(images.depth, **view)  # type: ignore[arg-type]
    is_hit = mapping != UNMAPPED
    if not is_hit.any():
        raise DataError(
            f"frame {name}: expected depth within the grid of 4.8 x 4.8 x 2.88 m before the camera, found none there; "
            "check depth scale, intrinsics and pose"
        )
    frame = Frame(
        frame_id=name,
        tsdf=(flip_tsdf(tsdf) if tsdf_is_flipped else tsdf).reshape(GRID_SHAPE),
        mapping=mapping.reshape(GRID_SHAPE),
        label_weight=((tsdf < FREE_TSDF) | is_hit).reshape(GRID_SHAPE),
        image=images.image,
        label_map=images.label_map,
        tsdf_is_flipped=tsdf_is_flipped,
    )
    seen = seen_positions(images, placement.pose, origin)
    mask = reliable_voxels(tsdf.reshape(GRID_SHAPE), is_hit.reshape(GRID_SHAPE), seen)
    return OwnFrame(frame, images, placement, origin, mask)


def reliable_voxels(
    tsdf: NDArray[np.float32], is_hit: NDArray[np.bool_], seen: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """The voxels that are worth showing of a prediction where no truth says which.

    Networks are trained on what is occupied and what lies well behind a surface (TSDF below -0.5), within the box
    around all that is seen: beyond it the labels say 255. Here accordingly: hit voxels, their neighbours behind the
    surface, and TSDF below -0.5, within that box and 0.1 m more. What a network says elsewhere (beyond the walls, just
    before a surface, along the edges of the picture) was never compared with anything.

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
    # A few wrong depths must not stretch the box.
    low, high = np.percentile(seen, [0.5, 99.5], axis=0)
    for axis, size in enumerate(tsdf.shape):
        centre = np.arange(size) + 0.5
        inside = (centre > low[axis] - _MARGIN) & (centre < high[axis] + _MARGIN)
        if axis == 1:
            inside |= centre < high[axis]  # down to the floor, seen or not
        mask &= inside.reshape([-1 if other == axis else 1 for other in range(3)])
    return mask


def seen_positions(images: CameraImages, pose: NDArray[np.float64], origin: NDArray[np.float64]) -> NDArray[np.float64]:
    """[N, 3] positions in voxels along (X, height, Y) of every fourth pixel both ways; outside of the grid too."""
    depth, camera = images.depth[::4, ::4], images.camera
    rows, columns = np.nonzero(depth)
    z = depth[rows, columns].astype(np.float64)
    points = np.stack([(4 * columns - camera.cx) * z / camera.fx, (4 * rows - camera.cy) * z / camera.fy, z], axis=1)
    world = points @ pose[:3, :3].T + pose[:3, 3] - origin
    return np.asarray(world[:, [0, 2, 1]] / VOXEL_SIZE, dtype=np.float64)


def _files_by_key(folder: Path, types: Sequence[str], kind: str) -> Mapping[str, Path]:
    """Files of a folder by the name of their frame, without those that say to be of another kind only."""
    found: dict[str, Path] = {}
    others = "|".join(word for other, word in _WORDS.items() if other != kind)
    for path in sorted(folder.iterdir()):
        is_other = _has_word(path, others) and not _has_word(path, _WORDS[kind])
        if is_other or path.suffix.lower() not in types or not path.is_file():
            continue
        key = _key(path, kind)
        if key in found:
            raise DataError(
                f"{folder}: expected one {kind.replace('_', ' ')} file a frame, found {found[key].name} and "
                f"{path.name}; take one away, or put the kinds into folders of their own"
            )
        found[key] = path
    return found


def _has_word(path: Path, words: str) -> bool:
    return re.search(rf"(?<![a-z])(?:{words})(?![a-z])", path.stem.lower()) is not None


def _key(path: Path, kind: str) -> str:
    """What is left of a file's name without ending and without the word for its kind."""
    left = re.sub(rf"(?<![a-z])(?:{_WORDS[kind]})(?![a-z])", "", path.stem, flags=re.IGNORECASE)
    return re.sub(r"([._-])[._-]+", r"\1", left).strip("._- ")
