"""Reading the raw files that SSCNet publishes: bit-rotated depth and run-length coded labels."""

import dataclasses
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.data.grid import IGNORE_LABEL, IMAGE_SHAPE
from ammnet_sparse.data.volumes.labels import FINE_GRID_SHAPE, NUM_RAW_LABELS
from ammnet_sparse.files.content import read_bytes
from ammnet_sparse.files.errors import DataError
from ammnet_sparse.files.images import DepthEncoding, decode_rotated, read_image

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


def decoded_meters(values: NDArray[Any], encoding: DepthEncoding) -> NDArray[np.float32]:
    """Meters, float32, of the stored values of a depth image, any shape."""
    millimeters = decode_rotated(values) if encoding == "rotated" else values.astype(np.uint16)
    return (millimeters / 1000.0).astype(np.float32)


def read_depth_values(path: str | os.PathLike[str]) -> NDArray[Any]:
    """The stored values [480, 640] of a depth image. Raises RawFileError for any but a 16-bit png of one channel."""
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
