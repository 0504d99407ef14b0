"""The map of a room at one moment, as plain arrays: what files, pages and pictures of a map are made of."""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.data.set_info import NYU, SetInfo

UNKNOWN_LABEL = 255
"""Label of a voxel that no frame says anything about."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class MapVolume:
    """The smallest box that holds every known voxel of a map. The map's world is upright: Z up, floor at 0.

    Attributes:
        probabilities: [classes, X, height, Y] float16; 0 in all classes where unknown.
        num_views: [X, height, Y] uint16, frames that say something about the voxel; 0 where unknown.
        origin: [3] float64, world (X, Y, Z) in meters of the outer corner of voxel (0, 0, 0).
        poses: [N, 4, 4] float64, camera (x right, y down, z forward) to the map's world, of every frame in the map.
        names: of these frames.
        map_from_given: [4, 4] float64, from the world of the given poses to the map's.
        info: classes and size of a voxel.
    """

    probabilities: NDArray[np.float16]
    num_views: NDArray[np.uint16]
    origin: NDArray[np.float64]
    poses: NDArray[np.float64]
    names: tuple[str, ...]
    map_from_given: NDArray[np.float64]
    info: SetInfo = NYU

    @property
    def is_known(self) -> NDArray[np.bool_]:
        """[X, height, Y] bool, whether a frame says something about the voxel."""
        return self.num_views > 0

    @property
    def labels(self) -> NDArray[np.uint8]:
        """[X, height, Y] uint8, the most probable class; 0 is empty, 255 unknown."""
        bits = self.probabilities.view(np.uint16)  # have the order of the numbers, and take half of the time
        labels = bits.argmax(axis=0).astype(np.uint8)
        return np.where(self.is_known, labels, np.uint8(UNKNOWN_LABEL))

    @property
    def confidence(self) -> NDArray[np.float16]:
        """[X, height, Y] float16, probability of the most probable class; 0 where unknown."""
        return np.asarray(self.probabilities.max(axis=0), dtype=np.float16)
