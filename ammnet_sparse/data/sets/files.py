"""Reads single files of a set, of any number type, and checks their content."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.data.grid import (
    IGNORE_LABEL,
    IMAGE_SHAPE,
    NUM_CLASSES,
    NUM_LABEL_MAP_CLASSES,
    TSDF_TOLERANCE,
    UNMAPPED,
    UNMAPPED_ON_DISK,
)
from ammnet_sparse.data.set_info import SET_FILE
from ammnet_sparse.files.arrays import ArrayHeader, read_array
from ammnet_sparse.files.errors import DataError
from ammnet_sparse.files.images import LABEL_MAP_FORMATS, read_image

VIEW_KEY = "view"
"""The array beside TSDF and label weight that holds 1 in the camera's field of view, where it is known."""
_COLOR_MODES = ("RGB", "RGBA", "L", "LA", "P")
_PIXEL_BYTES = {"b": 2, "i": 4, "u": 4, "f": 4}
"""Bytes that a type of that kind needs to represent every pixel index exactly."""
_REPLACE = "replace the file, or remove the frame from the list"


def read_npz_array(path: Path, key: str, *, grid_shape: tuple[int, int, int]) -> NDArray[Any]:
    """Array ``key`` of an npz file as [X, height, Y] of any number type.

    It may be stored flat, as [X, height, Y], or with leading axes of length 1. Nothing is allocated before the
    header has that shape.

    Raises:
        DataError: missing or unreadable file, no such key, another number of voxels, not numbers.
    """
    if not os.path.exists(path):
        raise missing_file(path)
    num_voxels = int(np.prod(grid_shape))

    def check(header: ArrayHeader) -> str | None:
        shape = header.shape
        while len(shape) > 1 and shape[0] == 1:
            shape = shape[1:]
        if shape in (grid_shape, (num_voxels,)):
            return None
        return f"shape {list(header.shape)}"

    what = f"{num_voxels} voxels (X, height, Y = {grid_shape})"
    values = read_array(path, key, what=what, check=check, most_values=num_voxels, advice=_REPLACE)
    return values.reshape(grid_shape)


def as_label(values: NDArray[Any], path: Path, *, num_classes: int = NUM_CLASSES) -> NDArray[np.uint8]:
    """Classes below ``num_classes`` or 255 as uint8, from any integer or float type.

    Raises:
        DataError: another value.
    """
    check_integral(values, path, name="label")
    outside = ((values < 0) | (values >= num_classes)) & (values != IGNORE_LABEL)
    if outside.any():
        found, advice = values[outside], _REPLACE
        if found.min() >= num_classes and np.unique(found).size > 1:
            advice = (
                f"of a longer list of classes? Map them to the {num_classes - 1} classes, or list theirs in {SET_FILE}"
            )
        raise _wrong_values(path, "label", f"classes 0..{num_classes - 1} or {IGNORE_LABEL}", found, advice=advice)
    return values.astype(np.uint8)


def as_mapping(values: NDArray[Any], path: Path) -> NDArray[np.int32]:
    """Pixel of each voxel as int32, -1 for none, from any integer or float type with 307200 for none.

    Raises:
        DataError: another value.
    """
    if values.dtype.itemsize < _PIXEL_BYTES[values.dtype.kind]:
        raise DataError(
            f"{path}: mapping: expected a type that holds {UNMAPPED_ON_DISK} exactly, such as int32, found "
            f"{values.dtype}; make the mapping again, or remove the frame from the list"
        )
    check_integral(values, path, name="mapping")
    outside = (values < 0) | (values > UNMAPPED_ON_DISK)
    if outside.any():
        allowed = f"pixels 0..{UNMAPPED_ON_DISK - 1}, or {UNMAPPED_ON_DISK} for none"
        raise _wrong_values(path, "mapping", allowed, values[outside])
    mapping = values.astype(np.int32)
    mapping[mapping == UNMAPPED_ON_DISK] = UNMAPPED
    return mapping


def as_tsdf(values: NDArray[Any], path: Path) -> NDArray[np.float32]:
    """TSDF as float32, from any float type.

    Raises:
        DataError: integers, NaN or infinity, or a magnitude above 1.
    """
    if values.dtype.kind != "f":
        raise DataError(f"{path}: TSDF: expected floats in -1..1, found {values.dtype}; {_REPLACE}")
    with np.errstate(over="ignore"):  # beyond float32 is outside as well
        tsdf = values.astype(np.float32)
    outside = ~(np.abs(tsdf) <= 1 + TSDF_TOLERANCE)  # negated, so that NaN is outside
    if outside.any():
        raise _wrong_values(path, "TSDF", "finite floats in -1..1", tsdf[outside])
    return tsdf


def as_label_weight(values: NDArray[Any], path: Path) -> NDArray[np.bool_]:
    """The mask of voxels that loss and evaluation look at: True where the stored weight is above 0.

    Raises:
        DataError: a value other than 0 and 1.
    """
    outside = (values != 0) & (values != 1)
    if outside.any():
        raise _wrong_values(path, "label weight", "0 or 1", values[outside])
    return values > 0


def read_color_image(path: Path) -> NDArray[np.uint8]:
    """An RGB image [480, 640, 3] uint8 from png or jpg, rotated according to its EXIF; gray and transparent ones, too.

    Raises:
        DataError: missing, unreadable, another format or size, or more than 8 bits per channel.
    """
    if not os.path.exists(path):
        raise missing_file(path)
    loaded = read_image(path, what="a color image", mode="RGB", size=IMAGE_SHAPE, advice=_REPLACE)
    if loaded.mode not in _COLOR_MODES:
        raise DataError(f"{path}: expected an 8-bit color image, found Pillow mode {loaded.mode!r}; {_REPLACE}")
    return loaded.pixels


def read_label_map(path: Path) -> NDArray[np.uint8]:
    """A 2D label map [480, 640] uint8, 0..13, from a png with one channel, palette images included.

    Raises:
        DataError: missing, unreadable, another format or size, several channels, or other values.
    """
    if not os.path.exists(path):
        raise missing_file(path)
    loaded = read_image(path, what="a label map", formats=LABEL_MAP_FORMATS, size=IMAGE_SHAPE, advice=_REPLACE)
    return as_label_map(loaded.pixels, path)


def as_label_map(values: NDArray[Any], path: Path) -> NDArray[np.uint8]:
    """Classes 0..13 of a 2D label map as uint8 [rows, columns], from any integer or float type.

    Raises:
        DataError: another number of axes, another value.
    """
    if values.ndim != 2:
        raise DataError(
            f"{path}: expected an image with one channel of class numbers, found shape {list(values.shape)}; {_REPLACE}"
        )
    check_integral(values, path, name="label map")
    outside = (values < 0) | (values >= NUM_LABEL_MAP_CLASSES)
    if outside.any():
        raise _wrong_values(path, "label map", f"classes 0..{NUM_LABEL_MAP_CLASSES - 1}", values[outside])
    return values.astype(np.uint8)


def missing_file(path: Path) -> DataError:
    """The error for a missing file."""
    return DataError(f"{path}: expected a file, found none; add it, or remove the frame from the list")


def check_integral(values: NDArray[Any], path: Path, *, name: str) -> None:
    """Raises DataError if values of a float type are not whole numbers (NaN and infinity are not)."""
    if values.dtype.kind == "f":
        fractional = ~(np.isfinite(values) & (values == np.rint(values)))
        if fractional.any():
            raise _wrong_values(path, name, "whole numbers", values[fractional])


def _wrong_values(path: Path, name: str, expected: str, found: NDArray[Any], *, advice: str = _REPLACE) -> DataError:
    examples = ", ".join(str(value) for value in np.unique(found)[:4].tolist())
    return DataError(f"{path}: {name}: expected {expected}, found {found.size} other values ({examples}); {advice}")
