"""Maps of rooms for the navigation of robots: an image and its description, as ROS's map_server and Nav2 read them."""

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ammnet_sparse.data.grid import EMPTY_LABEL
from ammnet_sparse.files.writing import replacing_open, write_text
from ammnet_sparse.pictures.comparison import is_occupied
from ammnet_sparse.scene_map.volume import MapVolume

OCCUPIED, FREE, UNKNOWN = 0, 254, 205
"""Values of the image's pixels."""
HEIGHTS = (0.1, 1.5)
"""Meters above the floor between which a voxel is in the way of a robot."""
_FREE_THRESHOLD = 0.196
"""Nav2's default, 0.25, would take unknown pixels for free: their value is (255 - 205) / 255 = 0.1961."""
_LEVEL_CLASSES = ("floor", "ceiling")
_LEAST_KNOWN = 0.5
"""Share of the voxels between the heights that must be known to be empty where no floor is known."""


def occupancy(volume: MapVolume, *, heights: tuple[float, float] = HEIGHTS) -> NDArray[np.uint8]:
    """Whether a robot can be at each place of a map.

    A place is occupied if any voxel with its center between the heights is occupied by another class than floor and
    ceiling. Otherwise it is free if the map knows the floor there, or at least half of these voxels, and else unknown.
    Warns if no voxel has its center there.

    Args:
        volume: of the room.
        heights: lowest and highest, in meters above the floor.

    Returns:
        [X, Y] uint8, one of ``OCCUPIED``, ``FREE`` and ``UNKNOWN``.
    """
    labels, info = volume.labels, volume.info
    centers = volume.origin[2] + info.voxel_size * (np.arange(labels.shape[1]) + 0.5)
    is_between = (centers >= heights[0]) & (centers <= heights[1])
    if not is_between.any():
        warnings.warn(
            f"`map_heights={heights[0]:g} {heights[1]:g}`: expected heights with centers of voxels between them, found "
            f"centers {centers.min():.2f} to {centers.max():.2f} m above the floor; map.pgm shows nothing in the way",
            stacklevel=2,
        )
    level = [info.class_names.index(name) for name in _LEVEL_CLASSES if name in info.classes]
    is_level = np.isin(labels, level)
    is_in_the_way = is_occupied(labels) & ~is_level
    is_passable = (labels == EMPTY_LABEL) | is_level
    has_floor = (labels == info.class_names.index("floor")).any(axis=1) if "floor" in info.classes else False
    num_passable = is_passable[:, is_between].sum(axis=1)
    is_free = has_floor | (num_passable >= max(_LEAST_KNOWN * is_between.sum(), 1))
    found = np.where(is_free, FREE, UNKNOWN)
    return np.where(is_in_the_way[:, is_between].any(axis=1), OCCUPIED, found).astype(np.uint8)


def write_occupancy(
    folder: Path, volume: MapVolume, *, heights: tuple[float, float] = HEIGHTS, resolution: float | None = None
) -> list[Path]:
    """Writes ``map.pgm``, with the largest y in its first row, and ``map.yaml``; returns their paths.

    Args:
        folder: to write to.
        volume: of the room.
        heights: as for ``occupancy``.
        resolution: meters per pixel; a pixel has the value of the voxel at its center. None: a pixel per voxel.

    Raises:
        OSError: a file cannot be written.
    """
    voxel_size = volume.info.voxel_size
    places = occupancy(volume, heights=heights)
    resolution = voxel_size if resolution is None else resolution
    if resolution != voxel_size:
        places = _resampled(places, resolution / voxel_size)
    image, description = folder / "map.pgm", folder / "map.yaml"
    with replacing_open(image) as file:
        Image.fromarray(np.ascontiguousarray(places.T[::-1])).save(file, format="PPM")  # of gray it makes a PGM
    x, y, _ = volume.origin.tolist()
    write_text(
        description,
        f"image: {image.name}\nmode: trinary\nresolution: {resolution:g}\norigin: [{x:.6f}, {y:.6f}, 0.0]\nnegate: 0\n"
        f"occupied_thresh: 0.65\nfree_thresh: {_FREE_THRESHOLD}\n",
    )
    return [image, description]


def _resampled(places: NDArray[np.uint8], step: float) -> NDArray[np.uint8]:
    """The values at the centers of cells of ``step`` voxels; unknown beyond the last voxel."""
    padded = np.pad(places, (0, 1), constant_values=UNKNOWN)
    counts = [int(np.ceil(length / step - 1e-9)) for length in places.shape]
    x, y = (
        np.minimum((step * (np.arange(count) + 0.5)).astype(np.int64), length)
        for count, length in zip(counts, places.shape, strict=True)
    )
    return np.asarray(padded[np.ix_(x, y)])
