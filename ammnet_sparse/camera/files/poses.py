"""Poses of a user's camera: matrices, quaternions, and trajectory files of many frames.

A pose maps camera coordinates (x right, y down, z forward, meters) to those of some world.
"""

import bisect
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.files.arrays import read_array
from ammnet_sparse.files.content import read_text
from ammnet_sparse.files.errors import DataError

Pose = NDArray[np.float64]

MAX_TIME_DIFFERENCE = 0.02
"""Largest difference in seconds between two files of a frame, or a frame and its pose, as in TUM's association."""
_WHAT = "a 4x4 camera-to-world matrix"
_EXPECTED = f"{_WHAT}, or tx ty tz qx qy qz qw"
_MOST_BYTES = 64 << 20
_ROTATION_TOLERANCE = 0.02


@dataclasses.dataclass(frozen=True, eq=False)
class Trajectory:
    """The poses of a file.

    Attributes:
        path: of the file.
        poses: [4, 4] each, in the order of the file; not checked yet, so that one bad pose does not affect the others.
        times: seconds, ascending, one per pose; None if the file has no time stamps.
    """

    path: Path
    poses: tuple[Pose, ...]
    times: tuple[float, ...] | None

    def pose_of(self, time: float | None, *, index: int | None = None, count: int = 1) -> Pose:
        """The pose of a frame.

        Args:
            time: the frame's time stamp in seconds, if it has one.
            index, count: place among all frames; a file without time stamps and with as many poses as there are
                frames is read in order.

        Raises:
            DataError: no pose at that time, or poses that cannot be assigned to frames.
        """
        if len(self.poses) == 1:
            return checked(self.poses[0], self.path)
        if self.times is not None and time is not None:
            after = bisect.bisect_left(self.times, time)
            nearest = min(
                (i for i in (after - 1, after) if 0 <= i < len(self.times)),
                key=lambda i: abs(self.times[i] - time),  # type: ignore[index]
            )
            if abs(self.times[nearest] - time) > MAX_TIME_DIFFERENCE:
                raise DataError(
                    f"{self.path}: expected a pose within {MAX_TIME_DIFFERENCE} s of {time:.4f}, found the nearest at "
                    f"{self.times[nearest]:.4f}; leave the frame out, or give its pose in a file of its own"
                )
            return checked(self.poses[nearest], self.path)
        if index is not None and count == len(self.poses):
            return checked(self.poses[index], self.path)
        stamps = "without time stamps" if self.times is None else "with time stamps, which the frame's name lacks"
        raise DataError(
            f"{self.path}: expected one pose, or one for each of {count} frames, found {len(self.poses)} {stamps}; "
            "name the frames' files by their time stamps, or give each its own pose"
        )


def read_pose(path: Path) -> Pose:
    """The camera-to-world matrix [4, 4] of a file of one pose (``read_trajectory``), its rotation made exact.

    Raises:
        DataError: not a rigid motion, or several poses.
    """
    return read_trajectory(path).pose_of(None)


def read_trajectory(path: Path) -> Trajectory:
    """The poses of a text file, with comments behind ``#``, or of an npy array.

    Either one 3x4 or 4x4 matrix (any line breaks); or one pose per line: ``tx ty tz qx qy qz qw`` with or without a
    time stamp before it (TUM), or the 12 or 16 numbers of a matrix (KITTI); or a line of three whole numbers before
    every 4x4 matrix (Redwood).

    Raises:
        DataError: unreadable, or none of these.
    """
    if path.suffix.lower() == ".npy":
        array = read_array(path, what=_WHAT, most_values=1 << 24).astype(np.float64)
        if array.ndim >= 2 and array.shape[-2:] in ((4, 4), (3, 4)):
            return Trajectory(path, tuple(matrix_of_rows(rows) for rows in array.reshape(-1, *array.shape[-2:])), None)
        lines = [list(map(float, row)) for row in array.reshape(-1, array.shape[-1] if array.ndim else 1)]
    else:
        lines = _lines(path)
    lengths = {len(line) for line in lines}
    numbers = [number for line in lines for number in line]
    if lengths <= {3, 4} and lengths != {3} and len(lines) % 5 == 0 and all(len(line) == 3 for line in lines[::5]):
        blocks = [np.array(lines[start + 1 : start + 5]) for start in range(0, len(lines), 5)]
        if all(block.shape == (4, 4) for block in blocks):
            return Trajectory(path, tuple(blocks), None)
    if lengths in ({7}, {8}):
        return _of_quaternions(path, np.array(lines))
    if len(numbers) in (12, 16):
        return Trajectory(path, (matrix_of_rows(np.array(numbers).reshape(-1, 4)),), None)
    if lengths in ({12}, {16}):
        return Trajectory(path, tuple(matrix_of_rows(np.array(line).reshape(-1, 4)) for line in lines), None)
    found = f"lines of {sorted(lengths)[:4]} numbers" if len(lines) > 4 else f"{len(numbers)} numbers"
    raise DataError(f"{path}: expected {_EXPECTED}, found {found}")


def _lines(path: Path) -> list[list[float]]:
    """The numbers of every line that has any."""
    content = read_text(path, what=_WHAT, most=_MOST_BYTES, advice="check the path")
    try:
        parts = [re.split(r"[\s,;\[\]]+", line.split("#")[0].strip(" \t\r\n,;[]")) for line in content.splitlines()]
        return [[float(part) for part in line] for line in parts if line != [""]]
    except ValueError as error:
        raise DataError(f"{path}: expected {_EXPECTED}, found {error}") from error


def matrix_of_rows(rows: NDArray[np.float64]) -> Pose:
    """[4, 4] of a matrix whose last row, 0 0 0 1, may be missing: [3, 4] or [4, 4]."""
    pose = np.eye(4)
    pose[: len(rows)] = rows
    return pose


def _of_quaternions(path: Path, values: NDArray[np.float64]) -> Trajectory:
    """Poses of rows [N, 7] or, with time stamps, [N, 8]."""
    times = values[:, 0] if values.shape[1] == 8 else None
    if times is not None:
        values = values[np.argsort(times, kind="stable"), 1:]
        times = np.sort(times)
    poses = []
    for row in values:
        pose = np.eye(4)
        pose[:3, 3], quaternion = row[:3], row[3:]
        length = float(np.linalg.norm(quaternion))
        # A matrix that is not a rotation stays so, and is refused where it is used.
        is_rotation = np.isfinite(row).all() and abs(length - 1) <= _ROTATION_TOLERANCE
        pose[:3, :3] = _rotation(quaternion / length) if is_rotation else np.nan
        poses.append(pose)
    return Trajectory(path, tuple(poses), None if times is None else tuple(times.tolist()))


def _rotation(quaternion: NDArray[np.float64]) -> NDArray[np.float64]:
    """[3, 3] of a quaternion (x, y, z, w) of length 1."""
    x, y, z, w = quaternion
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def checked(pose: Pose, path: Path) -> Pose:
    """The pose with its rotation made exact. Raises DataError if it is not a rigid motion."""
    lost = "a lost camera is often written as infinity or zeros: leave such frames out"
    if not np.isfinite(pose).all():
        raise DataError(f"{path}: expected finite numbers, found {pose.tolist()}; {lost}")
    if pose[3, :3].any() and not pose[:3, 3].any() and abs(pose[3, 3] - 1) < 1e-6:
        raise DataError(
            f"{path}: expected the last row 0 0 0 1, found {pose[3].tolist()}, so the matrix is stored column by "
            "column; transpose the matrix"
        )
    left, scale, right = np.linalg.svd(pose[:3, :3])
    if np.abs(scale - 1).max() > _ROTATION_TOLERANCE or np.linalg.det(pose[:3, :3]) < 0:
        raise DataError(
            f"{path}: expected a rotation in the upper left 3x3 (or a quaternion of length 1), found "
            f"{pose[:3, :3].tolist()}; {lost}"
        )
    if np.abs(pose[3] - (0, 0, 0, 1)).max() > 1e-6:
        raise DataError(f"{path}: expected the last row 0 0 0 1, found {pose[3].tolist()}; transpose the matrix")
    exact = pose.copy()
    exact[:3, :3] = left @ right
    return exact


def time_stamp(name: str) -> float | None:
    """Seconds of a file name that is a time stamp, such as ``1305031102.175304``; None for any other name.

    Whole numbers of 13 and more digits are milliseconds, of 16 microseconds, of 19 nanoseconds.
    """
    if re.fullmatch(r"\d+\.\d+", name):
        return float(name)
    if re.fullmatch(r"\d{10,19}", name):
        return int(name) / 10.0 ** max(0, len(name) - 10)
    return None


def associate(
    first: Sequence[float], second: Sequence[float], *, max_difference: float = MAX_TIME_DIFFERENCE
) -> list[tuple[int, int]]:
    """Pairs of indices of matching time stamps, each used once, closest pairs first; in order of ``first``.

    Args:
        first, second: seconds, in any order.
        max_difference: seconds between the two of a pair.
    """
    order = np.argsort(second, kind="stable")
    ordered = np.asarray(second, dtype=np.float64)[order]
    candidates: list[tuple[float, int, int]] = []
    for index, time in enumerate(first):
        low, high = np.searchsorted(ordered, [time - max_difference, time + max_difference], side="left")
        candidates += [(abs(ordered[i] - time), index, int(order[i])) for i in range(low, min(high + 1, len(ordered)))]
    pairs: list[tuple[int, int]] = []
    used_first: set[int] = set()
    used_second: set[int] = set()
    for difference, one, other in sorted(candidates):
        if difference <= max_difference and one not in used_first and other not in used_second:
            pairs.append((one, other))
            used_first.add(one)
            used_second.add(other)
    return sorted(pairs)
