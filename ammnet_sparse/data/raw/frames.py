"""Raw frames of SSCNet: bit-rotated depth, run-length coded labels, and the volumes made from them."""

import dataclasses
import os
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.data.grid import IGNORE_LABEL, IMAGE_SHAPE
from ammnet_sparse.data.raw.plan import FoundFrames, PreparedFrame, SetPlan
from ammnet_sparse.data.volumes.camera import NYU_CAMERA, SSCNET_CAMERA, Camera, CameraView
from ammnet_sparse.data.volumes.labels import (
    FINE_GRID_SHAPE,
    NUM_RAW_LABELS,
    classes_from_raw,
    downsample_labels,
)
from ammnet_sparse.data.volumes.tsdf import Unobserved
from ammnet_sparse.files.content import read_bytes
from ammnet_sparse.files.errors import DataError, abbreviated
from ammnet_sparse.files.images import DepthEncoding, decode_rotated, guess_depth_encoding, read_image

IntrinsicsName = Literal["nyu", "nyucad"]

CAMERAS: dict[str, Camera] = {"nyu": NYU_CAMERA, "nyucad": SSCNET_CAMERA}
"""Intrinsics by the depth they belong to: a Kinect's of NYU, or rendered ones (NYUCAD, SSCNet, MonoScene)."""
_RAW_NAME = re.compile(r"NYU(\d{4})_0000", re.ASCII)
_NAMED_AFTER_FRAME = re.compile(r"NYU\d{4}_", re.ASCII)
RAW_TYPES = (".png", ".bin")
_PLAIN = "depth of plain millimeters, not bits rotated by 3 as SSCNet publishes them (`depth_encoding` says otherwise)"
_MOST_PNG_BYTES = 2**24
_PNG_END = b"IEND\xaeB`\x82"
_HEADER_BYTES = 4 * (3 + 16)
_MOST_BYTES = _HEADER_BYTES + 8 * (int(np.prod(FINE_GRID_SHAPE)) + 1)
"""Size of a file in which every voxel is a separate run."""


@dataclasses.dataclass(frozen=True)
class RawPlan(SetPlan):
    """A set from SSCNet's raw files.

    Attributes:
        raw: folder of the raw files.
        out: folder of the set, made if missing.
        intrinsics: key of ``CAMERAS``.
        split: name of the list that the frames are written to, ``train`` or ``test``.
        is_flipped: flipped TSDF in NYUCAD's layout.
        unobserved: what a flipped TSDF holds where nothing was observed (``flip_tsdf``).
        depth_encoding: how depth images store millimeters; None: detected for each image.
    """

    raw: Path
    out: Path
    intrinsics: IntrinsicsName
    split: str = "train"
    is_flipped: bool = False
    unobserved: Unobserved = "free"
    depth_encoding: DepthEncoding | None = None

    def find(self) -> FoundFrames:
        """The frames that have both files.

        A problem is a file that belongs to no frame, or lacks its partner. A note is a file of another type with the
        name of an existing frame (``NYU0003_reference.npz``), which people keep beside the raw files.
        """
        if not self.raw.is_dir():
            raise DataError(
                f"{self.raw}: expected the folder of the raw .png and .bin files, found none; check the path"
            )
        found: dict[str, set[str]] = {}
        others = []
        for path in sorted(self.raw.iterdir()):
            if path.name.startswith("."):
                continue
            match = _RAW_NAME.fullmatch(path.stem)
            if match is None or path.suffix not in RAW_TYPES or not path.is_file():
                others.append(path)
            else:
                found.setdefault(match[1], set()).add(path.suffix)
        if not found:
            raise DataError(
                f"{self.raw}: expected raw files such as NYU0003_0000.png and NYU0003_0000.bin, found "
                f"{abbreviated(sorted(path.name for path in self.raw.iterdir()))}; name the folder that holds them, "
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
                    f"{self.raw / f'NYU{frame_id}_0000{present}'}: expected its partner {lacking} beside it, found none"
                )
        complete = sorted(frame_id for frame_id, types in found.items() if len(types) == len(RAW_TYPES))
        return FoundFrames({self.split: complete}, tuple(problems), tuple(notes))

    def sources(self, frame_id: str) -> list[Path]:
        return [self.raw / f"NYU{frame_id}_0000{kind}" for kind in RAW_TYPES]

    def read(self, frame_id: str) -> PreparedFrame:
        depth_path, label_path = self.sources(frame_id)
        _check_whole_png(depth_path)
        depth, depth_note = read_depth(depth_path, self.depth_encoding)
        if not depth.any():
            raise DataError(f"{depth_path}: expected depth, found no valid pixel")
        raw = read_raw_labels(label_path)
        label = downsample_labels(classes_from_raw(raw.labels)).reshape(-1)
        try:
            view = CameraView(CAMERAS[self.intrinsics], raw.pose, raw.origin)
        except ValueError as error:
            raise DataError(f"{label_path}: {error}; the file is damaged or of another kind") from error
        frame = PreparedFrame.of(depth, label, view=view, depth_path=depth_path, label_path=label_path)
        return dataclasses.replace(frame, note="; ".join(filter(None, [depth_note, raw.note])))

    @property
    def record(self) -> dict[str, Any]:
        unobserved = {"unobserved": self.unobserved} if self.is_flipped else {}
        return {"intrinsics": self.intrinsics, "flipped": self.is_flipped, **unobserved}

    def paths(self, frame_id: str) -> dict[str, Path]:
        if not self.is_flipped:
            return super().paths(frame_id)
        folder, file = self.out / "NYUCAD" / self.split, f"NYU{frame_id}_0000_voxels.npz"
        label = self.out / "Label" / f"{frame_id}.npz"
        return {"TSDF": folder / "TSDF_lr" / file, "Mapping": folder / "mapping" / file, "Label": label}


def _check_whole_png(path: Path) -> None:
    content = read_bytes(path, what="a 16-bit png", most=_MOST_PNG_BYTES)
    if not content:
        raise DataError(f"{path}: expected a 16-bit png, found an empty file")
    if content.startswith(b"\x89PNG") and not content.endswith(_PNG_END):
        end = content.rfind(_PNG_END)
        found = "none; the file is truncated" if end < 0 else f"{len(content) - end - len(_PNG_END)} bytes after it"
        raise DataError(f"{path}: expected a png that ends with its end mark, found {found}")


@dataclasses.dataclass(frozen=True, eq=False)
class RawLabels:
    """A decoded ``.bin`` file.

    Attributes:
        labels: [240, 144, 240] uint8, axes (X, height, Y), voxels of 0.02 m: raw label 0..36, or 255 for ignore.
        origin: [3] float64, world position in meters of the lower corner of voxel (0, 0, 0), as (X, Y, Z).
        pose: [4, 4] float64, camera to world.
        note: what was repaired, or nothing.
    """

    labels: NDArray[np.uint8]
    origin: NDArray[np.float64]
    pose: NDArray[np.float64]
    note: str = ""


def read_depth(path: Path, encoding: DepthEncoding | None = None) -> tuple[NDArray[np.float32], str]:
    """The meters [480, 640] of a depth image, and a note if they were stored otherwise than SSCNet publishes them.

    Args:
        path: a 16-bit png.
        encoding: how it stores millimeters; None: detected, rotated if the values do not show it.
    """
    values = read_depth_values(path)
    found = encoding or guess_depth_encoding(values) or "rotated"
    millimeters = decode_rotated(values) if found == "rotated" else values.astype(np.uint16)
    is_noted = encoding is None and found == "plain"
    return (millimeters / 1000.0).astype(np.float32), _PLAIN if is_noted else ""


def read_depth_values(path: str | os.PathLike[str]) -> NDArray[Any]:
    """The stored values [480, 640] of a depth image. Raises DataError for any but a 16-bit png of one channel."""
    loaded = read_image(Path(path), formats=("PNG",), what="a 16-bit depth image", upright=False, size=IMAGE_SHAPE)
    values = loaded.pixels
    if values.ndim != 2 or values.dtype.kind not in "iu" or values.dtype.itemsize < 2:
        raise DataError(
            f"{path}: expected a 16-bit depth image of {IMAGE_SHAPE}, found {values.dtype} {list(values.shape)}; "
            "replace the file"
        )
    return values


def read_raw_labels(path: str | os.PathLike[str]) -> RawLabels:
    """Labels, origin and camera pose of a raw SSCNet ``.bin`` file.

    A file whose runs end one voxel short is completed with its last value.

    Raises:
        DataError: a truncated file, runs that fill another number of voxels, or unknown labels.
    """
    content = read_bytes(Path(path), what="run-length coded labels", most=_MOST_BYTES)
    if len(content) < _HEADER_BYTES + 8 or (len(content) - _HEADER_BYTES) % 8:
        found = f"{len(content)} bytes; the file seems truncated" if content else "an empty file"
        raise DataError(
            f"{path}: expected {_HEADER_BYTES} bytes of header and then (value, run length) pairs of 8 bytes, "
            f"found {found}"
        )
    header = np.frombuffer(content, dtype="<f4", count=19).astype(np.float64)
    if not np.isfinite(header).all():
        raise DataError(f"{path}: expected finite origin and camera pose, found {header.tolist()}")
    pairs = np.frombuffer(content, dtype="<u4", offset=_HEADER_BYTES).reshape(-1, 2)
    labels, note = _expand_runs(path, pairs)
    return RawLabels(labels, header[:3], header[3:].reshape(4, 4), note)


def _expand_runs(path: str | os.PathLike[str], pairs: NDArray[np.uint32]) -> tuple[NDArray[np.uint8], str]:
    values, lengths = pairs[:, 0], pairs[:, 1].astype(np.int64)
    unknown = np.unique(values[(values >= NUM_RAW_LABELS) & (values != IGNORE_LABEL)])
    if unknown.size:
        raise DataError(
            f"{path}: expected labels 0..{NUM_RAW_LABELS - 1} or {IGNORE_LABEL}, found {unknown[:8].tolist()}; "
            "the file is damaged, of another kind, or has extra bytes at its end"
        )
    expected, found, note = int(np.prod(FINE_GRID_SHAPE)), int(lengths.sum()), ""
    if found == expected - 1:
        note = f"{path}: runs end one voxel short; the last value is repeated"
        lengths[-1] += 1
    elif found != expected:
        raise DataError(f"{path}: expected runs that fill {expected} voxels, found {found}")
    if not lengths.all():  # they fill nothing, so the count of voxels does not reveal trailing data
        raise DataError(
            f"{path}: expected runs of 1 voxel and more, found {int((lengths == 0).sum())} of none; "
            "the file is longer than it should be, or damaged"
        )
    return np.repeat(values.astype(np.uint8), lengths).reshape(FINE_GRID_SHAPE), note
