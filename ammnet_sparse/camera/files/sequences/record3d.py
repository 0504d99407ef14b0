"""Recordings of Record3D, an app for phones with LiDAR: ``.r3d``, a zip archive.

It holds ``metadata`` (JSON: the matrix ``K`` of the color image of ``w`` x ``h``, depth of ``dw`` x ``dh``, and
``poses``, camera to world as qx qy qz qw tx ty tz with ARKit's axes, y up and z back), and for each frame
``rgbd/N.jpg`` and ``rgbd/N.depth``: meters in float32, compressed with LZFSE.
"""

import json
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.camera.files.intrinsics import Intrinsics, intrinsics_of
from ammnet_sparse.camera.files.poses import checked, trajectory_of_quaternions
from ammnet_sparse.camera.files.sequences.sequence import PosedFrame, PosedSequence
from ammnet_sparse.camera.files.stored import StoredImages
from ammnet_sparse.files.content import describe_content, open_file, read_head
from ammnet_sparse.files.errors import DataError, reason
from ammnet_sparse.files.images import read_image

_WHAT, _ADVICE = "a recording of Record3D (.r3d)", "export it from the app again"
_MOST_BYTES = 1 << 26
"""Largest size of a file in the archive."""
_LIDAR_SIZE = (256, 192)
"""Rows and columns of depth where the metadata of older versions does not tell."""


def open_record3d(path: Path, *, intrinsics: Intrinsics | None = None, reads_poses: bool = True) -> PosedSequence:
    """The frames of a recording.

    Args:
        intrinsics: used in place of its own.
        reads_poses: False leaves them out.

    Raises:
        DataError: not a recording, or the package ``lzfse`` is not installed.
    """
    decompress = _lzfse()
    recording = _Recording(path)
    metadata = recording.metadata()
    size, rows = _depth_size(metadata), metadata.get("poses") if reads_poses else None
    poses = None if rows is None else _poses(path, rows)
    frames, problems = [], []
    for number in recording.numbers():
        try:
            pose = None if poses is None or number >= len(poses) else checked(poses[number], path)
        except DataError as error:
            problems.append(f"frame {number}: {error}")
            continue
        read = partial(recording.read_images, number, size=size, decompress=decompress)
        frames.append(PosedFrame(f"{number:06d}", pose, read, "opengl"))
    return PosedSequence(
        path=path,
        layout="Record3D",
        frames=frames,
        intrinsics=intrinsics or intrinsics_of({key: metadata.get(key) for key in ("K", "w", "h")}),
        depth_scale=1.0,
        problems=tuple(problems),
    )


class _Recording:
    """An archive, open only while it is read. Raises DataError, which names the file in it, for a damaged one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with open_file(path, what=_WHAT, advice="check the path") as file:
            head = read_head(file)
        try:
            with zipfile.ZipFile(path) as archive:
                self._names = archive.namelist()
        except (zipfile.BadZipFile, OSError) as error:
            found = describe_content(head)
            raise DataError.about(path, expected=_WHAT, found=f"{found}: {reason(error)}", advice=_ADVICE) from error

    def numbers(self) -> list[int]:
        """Those of the frames that have depth, ascending."""
        found = (re.fullmatch(r"rgbd/(\d{1,9})\.depth", name) for name in self._names)
        return sorted(int(one[1]) for one in found if one is not None)

    def metadata(self) -> dict[str, Any]:
        """The JSON object ``metadata``."""
        name = "metadata"
        (content,) = self._contents(name)
        try:
            document = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise self._problem(name, "a JSON object", reason(error)) from error
        if not isinstance(document, dict):
            raise self._problem(name, "a JSON object", type(document).__name__)
        return document

    def read_images(self, number: int, *, size: tuple[int, int], decompress: Callable[[bytes], bytes]) -> StoredImages:
        """Color and depth of a frame."""
        color_name, name = f"rgbd/{number}.jpg", f"rgbd/{number}.depth"
        color_content, content = self._contents(color_name, name)
        place, expected = self._path / color_name, 4 * size[0] * size[1]
        color = read_image(place, mode="RGB", upright=False, content=color_content, advice=_ADVICE).pixels
        try:
            found = _decompressed_size(content)
            fits = found == expected <= _MOST_BYTES
            depth = np.frombuffer(decompress(content) if fits else b"", dtype=np.float32)
        except Exception as error:  # the library has an exception of its own
            raise self._problem(name, "depth compressed with LZFSE", reason(error)) from error
        if depth.nbytes != expected:
            said = f"depth of {size[1]} x {size[0]} in {expected} bytes, at most {_MOST_BYTES}"
            raise self._problem(name, said, f"{found} bytes")
        return StoredImages(f"{number:06d}", color, depth.reshape(size))

    def _contents(self, *names: str) -> list[bytes]:
        name, found = "", []
        try:
            with zipfile.ZipFile(self._path) as archive:
                for name in names:
                    if archive.getinfo(name).file_size > _MOST_BYTES:
                        raise self._problem(name, f"at most {_MOST_BYTES:,} bytes", "more")
                    found.append(archive.read(name))
        except (KeyError, OSError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
            raise self._problem(name, "a file in the archive", reason(error)) from error
        return found

    def _problem(self, name: str, expected: str, found: str) -> DataError:
        return DataError(f"{self._path / name}: expected {expected}, found {found}; {_ADVICE}")


def _decompressed_size(content: bytes) -> int:
    """Bytes that the headers of LZFSE's blocks announce. Raises struct.error or ValueError for other content."""
    total = at = 0
    while content[at : at + 4] != b"bvx$":
        kind, size = struct.unpack_from("<4sI", content, at)
        total += size
        if kind == b"bvx-":  # not compressed
            at += 8 + size
        elif kind == b"bvxn":  # LZVN
            at += 12 + struct.unpack_from("<I", content, at + 8)[0]
        elif kind == b"bvx2":  # sizes of literals, of matches and of the header itself are packed in three numbers
            literals, matches, header = struct.unpack_from("<3Q", content, at + 8)
            at += max(header & 0xFFFFFFFF, 32) + (literals >> 20 & 0xFFFFF) + (matches >> 40 & 0xFFFFF)
        else:
            raise ValueError(f"a block of kind {kind!r}")
    return total


def _depth_size(metadata: Mapping[str, Any]) -> tuple[int, int]:
    """Rows and columns of the depth images."""
    rows, columns = metadata.get("dh"), metadata.get("dw")
    if isinstance(rows, int) and isinstance(columns, int) and min(rows, columns) > 0:
        return rows, columns
    return _LIDAR_SIZE


def _poses(path: Path, rows: Any) -> NDArray[np.float64]:
    """[N, 4, 4] of rows qx qy qz qw tx ty tz, not checked yet."""
    try:
        values = np.asarray(rows, dtype=np.float64).reshape(-1, 7)
    except (TypeError, ValueError, OverflowError) as error:
        what = "poses as lists of seven numbers"
        raise DataError.about(path / "metadata", expected=what, found=reason(error), advice=_ADVICE) from error
    return trajectory_of_quaternions(path, values[:, [4, 5, 6, 0, 1, 2, 3]]).poses


def _lzfse() -> Callable[[bytes], bytes]:
    try:
        import lzfse
    except ImportError as error:
        raise DataError(
            "recordings of Record3D: expected the package lzfse, found none; pip install ammnet-sparse[record3d]"
        ) from error
    decompress: Callable[[bytes], bytes] = lzfse.decompress
    return decompress
