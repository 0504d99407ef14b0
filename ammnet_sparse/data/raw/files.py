"""Reading the raw files that SSCNet publishes: bit-rotated depth and run-length coded labels.

A depth image in 16 bits holds millimeters as they are, or, as SSCNet and SUN RGB-D do, with their bits rotated by 3.
Read in the wrong way it still looks like a depth image: rotated values are eight times the millimeters, which passes
for another scale. So the encoding is detected from the values and reported.
"""

import dataclasses
import os
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.data.grid import IGNORE_LABEL, IMAGE_SHAPE
from ammnet_sparse.data.volumes.labels import FINE_GRID_SHAPE, NUM_RAW_LABELS
from ammnet_sparse.files.content import read_bytes
from ammnet_sparse.files.errors import DataError
from ammnet_sparse.files.images import read_image

DepthEncoding = Literal["plain", "rotated"]

_INVALID = (0, 65535)
_FEWEST_PIXELS, _FEWEST_VALUES = 100, 8
_ROTATED_SHARE, _PLAIN_SHARE = 0.9, 0.5
_PLAUSIBLE = (200, 12_000)
"""Millimeters of the median depth of a room."""


def decode_rotated(values: NDArray[Any]) -> NDArray[np.uint16]:
    """Millimeters of stored values whose bits are rotated by 3: ``(p >> 3) | (p << 13)``; integers, any shape."""
    stored = values.astype(np.uint16)
    decoded: NDArray[np.uint16] = (stored >> np.uint16(3)) | (stored << np.uint16(13))
    return decoded


def guess_depth_encoding(values: NDArray[Any]) -> DepthEncoding | None:
    """Tells rotated bits from plain values; None if the image does not show it.

    Rotated millimeters below 8192 are multiples of 8; of plain values an eighth are. In between (a camera that
    rounds, a room with much beyond 8.19 m) the smoother of the two readings is the right one: the wrong one makes a
    step of 1 mm one of 8 m.

    Args:
        values: [rows, columns] integers of 16 bits; 0 and 65535 are invalid.

    Returns:
        ``rotated``; ``plain``, meaning not rotated (the unit is not told); or None.
    """
    if values.ndim != 2 or values.dtype.kind not in "iu":
        return None
    is_valid = ~np.isin(values, _INVALID) & (values > 0) & (values < 65536)
    valid = values[is_valid]
    if valid.size < _FEWEST_PIXELS or np.unique(valid).size < _FEWEST_VALUES:
        return None
    share = float((valid % 8 == 0).mean())
    decoded = decode_rotated(values)
    if not _is_plausible(decoded[is_valid]):
        return "plain" if share < _PLAIN_SHARE else None
    if share >= _ROTATED_SHARE:
        return "rotated"
    as_it_is, turned = _roughness(values, is_valid), _roughness(decoded, is_valid)
    if as_it_is < turned / 2:
        return "plain"
    # Decoding divides equal values by 8, which alone makes them smoother.
    return "rotated" if turned < as_it_is / 4 and share > _PLAIN_SHARE else None


def _is_plausible(millimeters: NDArray[Any]) -> bool:
    return bool(_PLAUSIBLE[0] <= np.median(millimeters) <= _PLAUSIBLE[1])


def _roughness(values: NDArray[Any], is_valid: NDArray[np.bool_]) -> float:
    """Mean difference of neighbors in rows and columns; a tenth, the edges of things, is left out."""
    wide = values.astype(np.int64)
    steps = np.sort(
        np.concatenate(
            [
                np.abs(np.diff(wide, axis=1))[is_valid[:, 1:] & is_valid[:, :-1]],
                np.abs(np.diff(wide, axis=0))[is_valid[1:] & is_valid[:-1]],
            ]
        )
    )
    smooth = steps[: steps.size * 9 // 10]
    return float(smooth.mean()) if smooth.size else 0.0


_HEADER_BYTES = 4 * (3 + 16)
_MOST_BYTES = _HEADER_BYTES + 8 * (int(np.prod(FINE_GRID_SHAPE)) + 1)
"""Size of a file in which every voxel is a separate run."""


class RawFileError(DataError):
    """A raw file in another form than published; the message names the file, what was expected and what was found."""


@dataclasses.dataclass(frozen=True, eq=False)
class RawLabels:
    """A decoded ``.bin`` file.

    Attributes:
        labels: [240, 144, 240] uint8, axes (X, height, Y), voxels of 0.02 m: raw label 0..36, or 255 for ignore.
        origin: [3] float64, world position in meters of the lower corner of voxel (0, 0, 0), as (X, Y, Z).
        pose: [4, 4] float64, camera to world.
    """

    labels: NDArray[np.uint8]
    origin: NDArray[np.float64]
    pose: NDArray[np.float64]


def read_raw_depth(path: str | os.PathLike[str]) -> NDArray[np.float32]:
    """Depth of a raw SSCNet png, with rotated bits: [480, 640] float32 in meters, 0 where missing.

    Raises:
        RawFileError: not a readable 480x640 single-channel 16-bit image.
    """
    return decoded_meters(read_depth_values(path), "rotated")


def decoded_meters(values: NDArray[Any], encoding: DepthEncoding) -> NDArray[np.float32]:
    """Meters, float32, of the stored values of a depth image, any shape."""
    millimeters = decode_rotated(values) if encoding == "rotated" else values.astype(np.uint16)
    return (millimeters / 1000.0).astype(np.float32)


def read_depth_values(path: str | os.PathLike[str]) -> NDArray[Any]:
    """The stored values [480, 640] of a 16-bit depth image; errors as ``read_raw_depth``."""
    loaded = read_image(
        Path(path), formats=("PNG",), what="a 16-bit depth image", upright=False, size=IMAGE_SHAPE, raises=RawFileError
    )
    values = loaded.pixels
    if values.ndim != 2 or values.dtype.kind not in "iu" or values.dtype.itemsize < 2:
        raise RawFileError(
            f"{path}: expected a 16-bit depth image of {IMAGE_SHAPE}, found {values.dtype} {list(values.shape)}; "
            "replace the file"
        )
    return values


def read_raw_labels(path: str | os.PathLike[str]) -> RawLabels:
    """Labels, origin and camera pose of a raw SSCNet ``.bin`` file.

    A file whose runs end one voxel short is completed with its last value, with a warning.

    Raises:
        RawFileError: a truncated file, runs that fill another number of voxels, or unknown labels.
    """
    content = read_bytes(Path(path), what="run-length coded labels", most=_MOST_BYTES, raises=RawFileError)
    if len(content) < _HEADER_BYTES + 8 or (len(content) - _HEADER_BYTES) % 8:
        found = f"{len(content)} bytes; the file seems truncated" if content else "an empty file"
        raise RawFileError(
            f"{path}: expected {_HEADER_BYTES} bytes of header and then (value, run length) pairs of 8 bytes, "
            f"found {found}"
        )
    header = np.frombuffer(content, dtype="<f4", count=19).astype(np.float64)
    if not np.isfinite(header).all():
        raise RawFileError(f"{path}: expected finite origin and camera pose, found {header.tolist()}")
    pairs = np.frombuffer(content, dtype="<u4", offset=_HEADER_BYTES).reshape(-1, 2)
    return RawLabels(_expand_runs(path, pairs), header[:3], header[3:].reshape(4, 4))


def _expand_runs(path: str | os.PathLike[str], pairs: NDArray[np.uint32]) -> NDArray[np.uint8]:
    values, lengths = pairs[:, 0], pairs[:, 1].astype(np.int64)
    unknown = np.unique(values[(values >= NUM_RAW_LABELS) & (values != IGNORE_LABEL)])
    if unknown.size:
        raise RawFileError(
            f"{path}: expected labels 0..{NUM_RAW_LABELS - 1} or {IGNORE_LABEL}, found {unknown[:8].tolist()}; "
            "the file is damaged, of another kind, or has extra bytes at its end"
        )
    expected, found = int(np.prod(FINE_GRID_SHAPE)), int(lengths.sum())
    if found == expected - 1:
        warnings.warn(f"{path}: runs end one voxel short; the last value is repeated", stacklevel=3)
        lengths[-1] += 1
    elif found != expected:
        raise RawFileError(f"{path}: expected runs that fill {expected} voxels, found {found}")
    if not lengths.all():  # they fill nothing, so the count of voxels does not reveal trailing data
        raise RawFileError(
            f"{path}: expected runs of 1 voxel and more, found {int((lengths == 0).sum())} of none; "
            "the file is longer than it should be, or damaged"
        )
    return np.repeat(values.astype(np.uint8), lengths).reshape(FINE_GRID_SHAPE)
