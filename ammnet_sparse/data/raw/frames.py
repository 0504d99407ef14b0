"""One raw frame of SSCNet: its files, whether they are complete, and the volumes made from them."""

import dataclasses
import re
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.data.grid import UNMAPPED
from ammnet_sparse.data.raw.files import (
    RawFileError,
    decoded_meters,
    read_depth_values,
    read_raw_labels,
)
from ammnet_sparse.data.volumes.camera import NYU_CAMERA, SSCNET_CAMERA, Camera, CameraView
from ammnet_sparse.data.volumes.labels import classes_from_raw, downsample_labels, label_weight_of
from ammnet_sparse.data.volumes.tsdf import mapping_from_depth, tsdf_from_depth
from ammnet_sparse.files.content import read_bytes
from ammnet_sparse.files.errors import DataError, abbreviated
from ammnet_sparse.files.images import DepthEncoding, guess_depth_encoding

IntrinsicsName = Literal["nyu", "nyucad"]

CAMERAS: dict[str, Camera] = {"nyu": NYU_CAMERA, "nyucad": SSCNET_CAMERA}
"""Intrinsics by the depth they belong to: a Kinect's of NYU, or rendered ones (NYUCAD, SSCNet, MonoScene)."""
_RAW_NAME = re.compile(r"NYU(\d{4})_0000", re.ASCII)
_NAMED_AFTER_FRAME = re.compile(r"NYU\d{4}_", re.ASCII)
RAW_TYPES = (".png", ".bin")
_MOST_PNG_BYTES = 2**24
_PNG_END = b"IEND\xaeB`\x82"


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedFrame:
    """The volumes of a frame, each [129600], axes (X, height, Y) in C order.

    Attributes:
        label: uint8, 0..11 or 255.
        tsdf: float32, not flipped.
        label_weight: uint8, 0 or 1.
        mapping: int32, pixel or -1.
        note: a warning of the reader, or nothing.
        depth_encoding: how the depth image held its millimeters.
    """

    label: NDArray[np.uint8]
    tsdf: NDArray[np.float32]
    label_weight: NDArray[np.uint8]
    mapping: NDArray[np.int32]
    note: str = ""
    depth_encoding: DepthEncoding = "rotated"


def find_raw_frames(folder: Path) -> tuple[list[str], list[str], list[str]]:
    """The content of a folder: the ids of the frames that have both files, sorted; problems; and notes.

    A problem is a file that belongs to no frame, or lacks its partner. A note is a file of another type with the
    name of an existing frame (``NYU0003_reference.npz``), which people keep beside the raw files.

    Raises:
        DataError: no such folder, or no frame in it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: expected the folder of the raw .png and .bin files, found none; check the path")
    found: dict[str, set[str]] = {}
    others = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        match = _RAW_NAME.fullmatch(path.stem)
        if match is None or path.suffix not in RAW_TYPES or not path.is_file():
            others.append(path)
        else:
            found.setdefault(match[1], set()).add(path.suffix)
    if not found:
        raise DataError(
            f"{folder}: expected raw files such as NYU0003_0000.png and NYU0003_0000.bin, found "
            f"{abbreviated(sorted(path.name for path in folder.iterdir()))}; name the folder that holds them, "
            "such as NYUtrain of SSCNet's download"
        )
    problems, notes = [], []
    for path in others:
        if path.name[3:7] in found and _NAMED_AFTER_FRAME.match(path.name) and path.suffix not in RAW_TYPES:
            notes.append(f"{path}: not a raw file; ignored")
        else:
            problems.append(f"{path}: expected only files NYU0003_0000.png and .bin, found another; remove it")
    for frame_id, types in sorted(found.items()):
        for lacking in sorted(set(RAW_TYPES) - types):
            present = (types - {lacking}).pop()
            problems.append(
                f"{folder / f'NYU{frame_id}_0000{present}'}: expected its partner {lacking} beside it, found none"
            )
    complete = sorted(frame_id for frame_id, types in found.items() if len(types) == len(RAW_TYPES))
    return complete, problems, notes


def read_raw_frame(
    depth_path: Path, label_path: Path, *, camera: Camera, depth_encoding: DepthEncoding | None = None
) -> PreparedFrame:
    """The volumes of a raw frame, by the definitions of ``data/volumes``.

    Args:
        depth_encoding: how the depth image stores millimeters; None: detected, rotated if the values do not show it.

    Raises:
        RawFileError: a file that is empty, truncated, too long, of another kind, or of a scene without any voxel.
    """
    _check_whole_png(depth_path)
    values = read_depth_values(depth_path)
    encoding = depth_encoding or guess_depth_encoding(values) or "rotated"
    depth = decoded_meters(values, encoding)
    if not depth.any():
        raise RawFileError(f"{depth_path}: expected depth, found no valid pixel")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        raw = read_raw_labels(label_path)
    label = downsample_labels(classes_from_raw(raw.labels)).reshape(-1)
    try:
        view = CameraView(camera, raw.pose, raw.origin)
        mapping, tsdf = mapping_from_depth(depth, view=view), tsdf_from_depth(depth, view=view)
    except ValueError as error:
        raise RawFileError(f"{label_path}: {error}; the file is damaged or of another kind") from error
    if (mapping == UNMAPPED).all():
        raise RawFileError(
            f"{depth_path}: expected depth within the grid of {label_path.name}, found no pixel there; "
            "they may belong to different frames"
        )
    note = "; ".join(str(warning.message) for warning in caught)
    return PreparedFrame(label, tsdf, label_weight_of(label, tsdf), mapping, note, encoding)


def _check_whole_png(path: Path) -> None:
    content = read_bytes(path, what="a 16-bit png", most=_MOST_PNG_BYTES, raises=RawFileError)
    if not content:
        raise RawFileError(f"{path}: expected a 16-bit png, found an empty file")
    if content.startswith(b"\x89PNG") and not content.endswith(_PNG_END):
        end = content.rfind(_PNG_END)
        found = "none; the file is truncated" if end < 0 else f"{len(content) - end - len(_PNG_END)} bytes after it"
        raise RawFileError(f"{path}: expected a png that ends with its end mark, found {found}")
