"""Reading single files of a set and checking what they hold: whatever type the numbers are stored in."""

import io
import threading
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ammnet_sparse.data.grid import (
    IGNORE_LABEL,
    IMAGE_SHAPE,
    NUM_CLASSES,
    NUM_LABEL_MAP_CLASSES,
    UNMAPPED,
    UNMAPPED_ON_DISK,
)

_TSDF_TOLERANCE = 1e-3
"""How far a stored |TSDF| may exceed 1 by rounding (float16 has steps of 1e-3 there)."""

_PARSING = threading.Lock()
_REPLACE = "replace the file, or take the frame out of the list of frames"


class DataError(ValueError):
    """A file or list of a set that cannot be used; the message names it, what was expected, found, and what to do."""


def read_npz_array(path: Path, key: str, *, grid_shape: tuple[int, int, int]) -> NDArray[Any]:
    """Array ``key`` of an npz file as [X, height, Y] of any number type.

    It may be stored flat, as [X, height, Y], or with leading axes of length 1.

    Raises:
        DataError: missing or unreadable file, no such key, another number of voxels, not numbers.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise DataError(f"{path}: expected an npz archive, found a single array; {_REPLACE}")
        with loaded as archive:
            if key not in archive.files:
                raise DataError(f"{path}: expected an array named {key!r}, found {sorted(archive.files)}; {_REPLACE}")
            values = _read_member(archive, key)
    except DataError:
        raise
    except FileNotFoundError as error:
        raise missing_file(path) from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, KeyError) as error:
        raise DataError(f"{path}: expected a readable npz file, found {_reason(error)}; {_REPLACE}") from error
    if values.dtype.kind not in "biuf":
        raise DataError(f"{path}: {key}: expected integers or floats, found {values.dtype}; {_REPLACE}")
    shape = values.shape
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    if shape not in (grid_shape, (int(np.prod(grid_shape)),)):
        raise DataError(
            f"{path}: {key}: expected {int(np.prod(grid_shape))} voxels (X, height, Y = {grid_shape}), "
            f"found shape {list(values.shape)}; {_REPLACE}"
        )
    return values.reshape(grid_shape)


def _read_member(archive: np.lib.npyio.NpzFile, key: str) -> NDArray[Any]:
    """``archive[key]``, which several threads may do at once.

    NumPy reads the header of an array by parsing Python, and Python 3.11 parses wrongly in two threads at once, though
    seldom ("AST constructor recursion depth mismatch").
    """
    assert archive.zip is not None
    names = archive.zip.namelist()
    packed = io.BytesIO(archive.zip.read(f"{key}.npy" if f"{key}.npy" in names else key))
    with _PARSING:
        values: NDArray[Any] = np.lib.format.read_array(packed, allow_pickle=False)
    return values


def as_label(values: NDArray[Any], path: Path) -> NDArray[np.uint8]:
    """Classes 0..11 or 255 as uint8, from any integer or float type.

    Raises:
        DataError: another value.
    """
    _check_integral(values, path, name="label")
    outside = ((values < 0) | (values >= NUM_CLASSES)) & (values != IGNORE_LABEL)
    if outside.any():
        raise _wrong_values(path, "label", f"classes 0..{NUM_CLASSES - 1} or {IGNORE_LABEL}", values[outside])
    return values.astype(np.uint8)


def as_mapping(values: NDArray[Any], path: Path) -> NDArray[np.int32]:
    """Pixel of each voxel as int32, -1 for none, from any integer or float type with 307200 for none.

    Raises:
        DataError: another value.
    """
    _check_integral(values, path, name="mapping")
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
    tsdf = values.astype(np.float32)
    outside = ~(np.abs(tsdf) <= 1 + _TSDF_TOLERANCE)  # negated, so that NaN is outside
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
    """An RGB image [480, 640, 3] uint8 from png or jpg; grey and transparent images are converted.

    Raises:
        DataError: missing, unreadable, another size, or more than 8 bits a channel.
    """
    with _open_image(path) as image:
        if image.mode not in ("RGB", "RGBA", "L", "LA", "P"):
            raise DataError(f"{path}: expected an 8-bit colour image, found Pillow mode {image.mode!r}; {_REPLACE}")
        pixels = _pixels(image, path, mode="RGB")
    if pixels.shape != (*IMAGE_SHAPE, 3):
        raise _wrong_image_shape(path, pixels)
    return pixels


def read_label_map(path: Path) -> NDArray[np.uint8]:
    """A 2D label map [480, 640] uint8, 0..13, from a png with one channel, palette images included.

    Raises:
        DataError: missing, unreadable, another size, several channels, or other values.
    """
    # Pillow itself, not imageio: imageio expands the palette, and the class numbers are gone.
    with _open_image(path) as image:
        pixels = _pixels(image, path)
    if pixels.shape != IMAGE_SHAPE:
        raise _wrong_image_shape(path, pixels)
    outside = (pixels < 0) | (pixels >= NUM_LABEL_MAP_CLASSES)
    if outside.any():
        raise _wrong_values(path, "label map", f"classes 0..{NUM_LABEL_MAP_CLASSES - 1}", pixels[outside])
    return pixels.astype(np.uint8)


def missing_file(path: Path) -> DataError:
    """The error of a file that is not there."""
    return DataError(f"{path}: expected a file, found none; add it, or take the frame out of the list of frames")


def _open_image(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except FileNotFoundError as error:
        raise missing_file(path) from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: expected a readable png or jpg, found {_reason(error)}; {_REPLACE}") from error


def _pixels(image: Image.Image, path: Path, *, mode: str | None = None) -> NDArray[Any]:
    try:
        return np.array(image if mode is None else image.convert(mode))
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise DataError(f"{path}: expected a readable png or jpg, found {_reason(error)}; {_REPLACE}") from error


def _check_integral(values: NDArray[Any], path: Path, *, name: str) -> None:
    if values.dtype.kind == "f":
        fractional = ~(values == np.rint(values))  # negated, so that NaN is found
        if fractional.any():
            raise _wrong_values(path, name, "whole numbers", values[fractional])


def _wrong_values(path: Path, name: str, expected: str, found: NDArray[Any]) -> DataError:
    examples = ", ".join(str(value) for value in np.unique(found)[:4].tolist())
    return DataError(f"{path}: {name}: expected {expected}, found {found.size} other values ({examples}); {_REPLACE}")


def _wrong_image_shape(path: Path, pixels: NDArray[Any]) -> DataError:
    rows, columns = IMAGE_SHAPE
    expected = f"{rows} rows and {columns} columns"
    if pixels.ndim == 3 and pixels.shape[:2] == IMAGE_SHAPE:
        expected += ", one channel of class numbers"
    return DataError(f"{path}: expected {expected}, found shape {list(pixels.shape)}; {_REPLACE}")


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
