"""Poses of a user's camera: matrices, quaternions, and trajectory files of many frames.

A pose maps camera coordinates (meters) to those of some world. The camera's axes are x right, y down, z forward
(OpenCV's), or x right, y up, z back (OpenGL's, also ARKit's, nerfstudio's and Blender's).
"""

import array
import bisect
import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.files.arrays import read_array
from ammnet_sparse.files.content import read_text
from ammnet_sparse.files.errors import DataError, abbreviated, reason

Pose = NDArray[np.float64]
PoseConvention = Literal["opencv", "opengl"]
"""The camera's axes: x right, y down, z forward; or x right, y up, z back."""
POSE_CONVENTIONS: tuple[PoseConvention, ...] = ("opencv", "opengl")

_IMAGE_TYPES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff", ".exr", ".npy", ".JPG", ".PNG")
MAX_TIME_DIFFERENCE = 0.02
"""Largest difference in seconds between two files of a frame, or a frame and its pose, as in TUM's association."""
_WHAT = "a 4x4 camera-to-world matrix"
_EXPECTED = f"{_WHAT}, or tx ty tz qx qy qz qw"
_MOST_BYTES = 64 << 20
_MOST_LINES = 2_000_000
_LONGEST_LINE = 10_000
_SEPARATORS = str.maketrans(",;[]", "    ")
_MOST_DIGITS, _LARGEST_NUMBER = 15, 1e15
"""Numbers of frames are smaller."""
_ROTATION_TOLERANCE = 0.02
_MATRIX_KEYS = ("transform_matrix", "camera_to_world", "cam2world", "c2w", "pose", "cameraPoseARFrame", "matrix")
"""Keys of a camera-to-world matrix in JSON: nerfstudio's and NeRF's, and of apps of phones."""
_OPENGL_KEYS = ("transform_matrix", "cameraPoseARFrame")
"""Those of them whose formats define camera axes with y up and z back."""


@dataclasses.dataclass(frozen=True, eq=False)
class Trajectory:
    """The poses of a file.

    Attributes:
        path: of the file.
        poses: [N, 4, 4], in the order of the file; not checked yet, so that one bad pose does not affect the others.
        times: seconds, ascending, one per pose, infinite where the file's is not finite; None without time stamps.
        numbers: of the frames, ascending, one per pose, as a ``.log`` or names like ``frame_00001.png`` say them.
        names: of the frames' images, without folder and ending.
        convention: of the cameras' axes, if the file's format defines it.
    """

    path: Path
    poses: NDArray[np.float64]
    times: Sequence[float] | None = None
    numbers: tuple[int, ...] | None = None
    names: tuple[str, ...] | None = None
    convention: PoseConvention | None = None

    def pose_of(
        self,
        time: float | None,
        *,
        names: Sequence[str] = (),
        index: int | None = None,
        count: int = 1,
        numbers: Sequence[int] | None = None,
    ) -> Pose:
        """The pose of a frame.

        Args:
            time: the frame's time stamp in seconds, if it has one.
            names: of the frame and its files, without endings.
            index, count: place among all frames; a file that names neither times nor frames and with as many poses as
                there are frames is read in order.
            numbers: of all frames.

        Raises:
            DataError: no pose of that time, name or number, or poses that cannot be assigned to frames.
        """
        if len(self.poses) == 1:
            return checked(self.poses[0], self.path)
        if self.names is not None and (found := [name for name in names if name in self.names]):
            return checked(self.poses[self.names.index(found[0])], self.path)
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
        if (
            index is not None
            and self.numbers is not None
            and numbers is not None
            # Frames may count from 1 and poses from 0, but only where neither has a gap.
            and not (len(numbers) == len(self.numbers) and _has_no_gap(numbers) and _has_no_gap(self.numbers))
        ):
            if numbers[index] not in self.numbers:
                raise DataError(
                    f"{self.path}: expected a pose of frame {numbers[index]}, found those of "
                    f"{abbreviated([str(number) for number in self.numbers], 5)}; leave the frame out"
                )
            return checked(self.poses[self.numbers.index(numbers[index])], self.path)
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
    """The poses of a text file, with comments behind ``#``, of an npy array, or of JSON.

    Either one 3x4 or 4x4 matrix (any line breaks); or one pose per line: ``tx ty tz qx qy qz qw`` with or without a
    time stamp before it (TUM), or the 12 or 16 numbers of a matrix (KITTI); or a line of three whole numbers, the first
    of which is the frame's, before every 4x4 matrix (Redwood). In JSON: one matrix or a list of them, as rows or as 12
    or 16 numbers, alone or as one of ``_MATRIX_KEYS``; or ``frames`` with ``file_path`` and such a key (nerfstudio).

    Raises:
        DataError: unreadable, or none of these.
    """
    if path.suffix.lower() == ".json":
        return _of_json(path)
    if path.suffix.lower() == ".npy":
        stored = read_array(path, what=_WHAT, most_values=1 << 24).astype(np.float64)
        if not stored.size:
            raise DataError(f"{path}: expected {_EXPECTED}, found an empty array of shape {list(stored.shape)}")
        if stored.ndim >= 2 and stored.shape[-2:] in ((4, 4), (3, 4)):
            return Trajectory(path, matrices_of_rows(stored.reshape(-1, *stored.shape[-2:])))
        values = stored.reshape(-1)
        counts = (
            np.full(stored.size // stored.shape[-1], stored.shape[-1]) if stored.ndim else np.ones(1, dtype=np.int64)
        )
    else:
        values, counts = _numbers_of_lines(path)
    if len(counts) % 5 == 0 and (counts.reshape(-1, 5) == (3, 4, 4, 4, 4)).all():
        blocks = values.reshape(-1, 19)
        numbers = blocks[:, 0]
        if (np.abs(numbers) < _LARGEST_NUMBER).all() and (numbers == np.round(numbers)).all():
            order = np.argsort(numbers, kind="stable")
            is_numbered = len(np.unique(numbers)) == len(blocks)
            return Trajectory(
                path,
                blocks[order, 3:].reshape(-1, 4, 4),
                numbers=tuple(map(int, numbers[order].tolist())) if is_numbered else None,
            )
    lengths = np.unique(counts).tolist()
    if lengths in ([7], [8]):
        return trajectory_of_quaternions(path, values.reshape(-1, lengths[0]))
    if len(values) in (12, 16) or lengths in ([12], [16]):
        size = len(values) if len(values) in (12, 16) else lengths[0]
        return Trajectory(path, matrices_of_rows(values.reshape(-1, size // 4, 4)))
    found = f"lines of {lengths[:4]} numbers" if len(counts) > 4 else f"{len(values)} numbers"
    raise DataError(f"{path}: expected {_EXPECTED}, found {found}")


def _has_no_gap(numbers: Sequence[int]) -> bool:
    return max(numbers) - min(numbers) + 1 == len(numbers)


def _of_json(path: Path) -> Trajectory:
    """The poses of a JSON file (``read_trajectory``)."""
    content = read_text(path, what=_WHAT, most=_MOST_BYTES, advice="check the path")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected JSON with {_WHAT}, found {reason(error)}") from error
    frames = document.get("frames") if isinstance(document, dict) else None
    if isinstance(frames, list) and frames and all(isinstance(frame, dict) for frame in frames):
        found = [(frame, _matrices(frame, path)) for frame in frames]
        if any(len(matrices) != 1 for _, (matrices, _) in found):
            raise DataError(f"{path}: expected one matrix as {' or '.join(_MATRIX_KEYS)} in every frame")
        names = [PurePosixPath(str(frame.get("file_path", ""))).name for frame, _ in found]
        stems = [PurePosixPath(name).stem if PurePosixPath(name).suffix in _IMAGE_TYPES else name for name in names]
        order = sorted(range(len(found)), key=lambda place: natural_order(stems[place]))
        named = tuple(stems[place] for place in order)
        digits = [re.findall(r"\d+", name)[-1:] for name in named]
        numbers = [int(last) for one in digits for last in one if len(last) <= _MOST_DIGITS]
        return Trajectory(
            path,
            np.concatenate([found[place][1][0] for place in order]),
            numbers=tuple(numbers) if len(set(numbers)) == len(found) else None,
            names=named if all(named) and len(set(named)) == len(named) else None,
            convention=found[0][1][1],
        )
    matrices, convention = _matrices(document, path)
    return Trajectory(path, matrices, convention=convention)


def _matrices(document: Any, path: Path) -> tuple[NDArray[np.float64], PoseConvention | None]:
    """The matrices [N, 4, 4] of a value in JSON, and the convention that their key has."""
    convention: PoseConvention | None = None
    if isinstance(document, dict):
        key = next((key for key in _MATRIX_KEYS if key in document), None)
        if key is None:
            raise DataError(
                f"{path}: expected {_WHAT} as {' or '.join(_MATRIX_KEYS)}, found the keys "
                f"{abbreviated([str(key) for key in document], 5)}"
            )
        document, convention = document[key], "opengl" if key in _OPENGL_KEYS else None
    try:
        matrices = np.asarray(document, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{path}: expected {_WHAT} of numbers, found {reason(error)}") from error
    if matrices.shape and matrices.shape[-1] in (12, 16):
        matrices = matrices.reshape(*matrices.shape[:-1], -1, 4)
    if matrices.ndim not in (2, 3) or matrices.shape[-2:] not in ((3, 4), (4, 4)) or not len(matrices):
        raise DataError(f"{path}: expected {_WHAT}, found JSON of shape {list(matrices.shape)}")
    return matrices_of_rows(matrices.reshape(-1, *matrices.shape[-2:])), convention


def _numbers_of_lines(path: Path) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The numbers of a text file in order, and how many there are in each line that has any."""
    content = read_text(path, what=_WHAT, most=_MOST_BYTES, advice="check the path")
    content = content.replace("\r\n", "\n").replace("\r", "\n")
    if content.count("\n") > _MOST_LINES:
        raise DataError(
            f"{path}: expected at most {_MOST_LINES:,} lines, found {content.count(chr(10)):,}; cut the file"
        )
    values, counts = array.array("d"), array.array("q")
    for line in content.split("\n"):
        if len(line) > _LONGEST_LINE:
            raise DataError(f"{path}: expected {_EXPECTED}, found a line of {len(line):,} characters")
        words = line.partition("#")[0].translate(_SEPARATORS).split()
        try:
            values.extend(map(float, words))
        except ValueError as error:
            raise DataError(f"{path}: expected {_EXPECTED}, found {error}") from error
        if words:
            counts.append(len(words))
    if not counts:
        raise DataError(f"{path}: expected {_EXPECTED}, found no numbers")
    return np.array(values), np.array(counts)


def matrices_of_rows(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """[N, 4, 4] of matrices [N, 3, 4] or [N, 4, 4], whose last row, 0 0 0 1, may be missing."""
    poses = np.tile(np.eye(4), (len(rows), 1, 1))
    poses[:, : rows.shape[1]] = rows
    return poses


def trajectory_of_quaternions(path: Path, values: NDArray[np.float64]) -> Trajectory:
    """Poses of rows ``tx ty tz qx qy qz qw`` [N, 7] or, with time stamps before them, [N, 8]."""
    times = None
    if values.shape[1] == 8:
        stamps = np.where(np.isfinite(values[:, 0]), values[:, 0], np.inf)  # fits no frame
        order = np.argsort(stamps, kind="stable")
        times, values = stamps[order].tolist(), values[order, 1:]
    quaternions = values[:, 3:]
    with np.errstate(all="ignore"):
        lengths = np.linalg.norm(quaternions, axis=1, keepdims=True)
        # A matrix that is not a rotation stays so, and is refused where it is used.
        is_rotation = np.isfinite(values).all(axis=1) & (np.abs(lengths[:, 0] - 1) <= _ROTATION_TOLERANCE)
        rotations = _rotations(quaternions / lengths)
    poses = matrices_of_rows(np.concatenate([rotations, values[:, :3, None]], axis=2))
    poses[~is_rotation, :3, :3] = np.nan
    return Trajectory(path, poses, times)


def _rotations(quaternions: NDArray[np.float64]) -> NDArray[np.float64]:
    """[N, 3, 3] of quaternions [N, 4] (x, y, z, w) of length 1."""
    x, y, z, w = quaternions.T
    rows = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    return np.moveaxis(rows, 2, 0)


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


def natural_order(name: str) -> tuple[tuple[str | tuple[int, str], ...], str]:
    """A key that sorts names by the numbers in them: 2 before 10, whether they are padded or not."""
    parts = re.split(r"(\d+)", name, flags=re.ASCII)
    digits = [part.lstrip("0") for part in parts]
    return tuple((len(digits[place]), digits[place]) if place % 2 else part for place, part in enumerate(parts)), name


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
