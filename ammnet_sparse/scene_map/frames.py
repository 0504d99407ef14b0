"""The frames of a map: their poses, and how to read them again."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.camera.files.stored import StoredImages
from ammnet_sparse.files.writing import replacing_open
from ammnet_sparse.scene_map.room import GivenPose

ReadFrame = Callable[[], StoredImages]
"""Reads a frame; raises DataError if it cannot be read."""
_ARRAYS = ("color", "depth", "label_map", "pose")


@dataclasses.dataclass(frozen=True, eq=False)
class MapFrame:
    """A frame in a map: its name, its pose, and how to read it again (None: it cannot be)."""

    name: str
    given: GivenPose
    read: ReadFrame | None


def kept_images(stored: StoredImages, path: Path) -> ReadFrame:
    """Writes the images of a frame without loss; returns how to read them again. Raises OSError if the disk is full."""
    arrays: dict[str, NDArray[Any]] = {name: value for name in _ARRAYS if (value := getattr(stored, name)) is not None}
    with replacing_open(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    return functools.partial(_read_kept, path, stored.name, stored.exif_turn)


def _read_kept(path: Path, name: str, exif_turn: int) -> StoredImages:
    with np.load(path, allow_pickle=False) as kept:
        color, depth, label_map, pose = (kept[one] if one in kept.files else None for one in _ARRAYS)
    assert depth is not None
    return StoredImages(name, color, depth, label_map, pose, exif_turn)
