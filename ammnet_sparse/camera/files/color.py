"""Color images of a user's camera, whatever they are stored as, and how they are to be turned."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.camera.files.arrays import FORMATS
from ammnet_sparse.files.errors import DataError
from ammnet_sparse.files.images import read_image

COLOR_TYPES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")
_WIDE_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
"""Pillow's modes of more than 8 bits, which it would cut off instead of scaling."""
_CLOCKWISE = {1: 0, 3: 180, 6: 90, 8: 270}
"""EXIF's orientation to the degrees by which a viewer turns the stored image clockwise; others are mirrored."""
_ADVICE = "replace the file"


def read_color(path: Path) -> tuple[NDArray[np.uint8], int]:
    """An RGB image [rows, columns, 3] uint8 as it is stored, and the degrees clockwise that EXIF turns it by.

    Gray images of 16 bits are scaled from their whole range, those of floats from 0..1 or 0..255.

    Raises:
        DataError: it cannot be read, is mirrored, or holds values that are not colors.
    """
    loaded = read_image(path, formats=FORMATS, what="a color image", upright=False, advice=_ADVICE)
    if loaded.orientation not in _CLOCKWISE:
        raise DataError(
            f"{path}: expected an image that is upright or turned, found a mirrored one (EXIF orientation "
            f"{loaded.orientation}); save color and depth unmirrored"
        )
    turn = _CLOCKWISE[loaded.orientation]
    if loaded.mode in _WIDE_MODES:
        gray = _eight_bits(loaded.pixels, path)
        return np.repeat(gray[..., None], 3, axis=2), turn
    if loaded.mode == "RGB":
        return loaded.pixels, turn
    return read_image(path, formats=FORMATS, what="a color image", mode="RGB", upright=False).pixels, turn


def _eight_bits(values: NDArray[Any], path: Path) -> NDArray[np.uint8]:
    """Gray of more than 8 bits as 8 bits."""
    numbers = values.astype(np.float64)
    low, high = (float(numbers.min()), float(numbers.max())) if numbers.size else (0.0, 0.0)
    if not np.isfinite([low, high]).all() or low < 0 or high > 65535:
        raise DataError(
            f"{path}: expected a color image of 8 or 16 bits, or floats in 0..1 or 0..255, found values {low:g} to "
            f"{high:g}; is it the depth image?"
        )
    if values.dtype.kind == "f":
        if high > 255:
            raise DataError(
                f"{path}: expected gray floats in 0..1 or 0..255, found values {low:g}..{high:g}; rescale them"
            )
        numbers *= 255.0 if high <= 1.0 else 1.0
    elif high > 255:
        numbers /= 257.0
    return np.rint(numbers).astype(np.uint8)
