"""Intrinsics in the forms that people have: numbers, matrices, and files of cameras and other projects.

Accepted are: ``fx,fy,cx,cy``; matrices of 3x3, 3x4 and 4x4, row by row or column by column; text files of these with
comments (TUM's with distortion, ScanNet's, ROS's P, COLMAP's cameras); key and value (``fx = 520``, ScanNet's
``fx_depth``), also in sections (ini, ZED); JSON (Open3D, RealSense, Azure Kinect, ARKit, and others with fx, fy, cx, cy
or a named matrix); TOML; YAML (ROS ``camera_info``, ORB-SLAM, OpenCV); OpenCV's XML; npy.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.camera.files.calibration import (
    CameraEntry,
    camera_entries,
    colmap_entries,
    depth_scale_of,
    numbers_of_matrix,
    read_document,
    what_is_wrong,
)
from ammnet_sparse.camera.files.stored import as_array
from ammnet_sparse.data.volumes.camera import Camera
from ammnet_sparse.files.arrays import read_array
from ammnet_sparse.files.content import read_text
from ammnet_sparse.files.errors import DataError

_WHAT = "fx,fy,cx,cy or a 3x3 matrix"
_ADVICE = "give fx,fy,cx,cy in pixels, or a text file with the 3x3 matrix of the camera"
_DISTORTION_NOTE = "intrinsics: coefficients of distortion are given and not used; the images must be undistorted"
_MOST_BYTES = 1 << 20
_NO_PREFERENCE = 2
_CENTERED = 0.1
"""Largest distance of the principal point from the center, as a fraction of the image, of a camera that fits it."""


@dataclasses.dataclass(frozen=True)
class Intrinsics:
    """A camera of a file or argument.

    Attributes:
        camera: focal lengths and principal point in pixels.
        size: (rows, columns) of the image that they belong to; None if unknown.
        depth_scale: units of the depth image per meter, if given.
        notes: warnings for people, such as distortion.
        others: further cameras of the file, from which ``fitting`` chooses.
        name: of the camera in a file of several; empty for a single one.
    """

    camera: Camera
    size: tuple[int, int] | None = None
    depth_scale: float | None = None
    notes: tuple[str, ...] = ()
    others: tuple["Intrinsics", ...] = ()
    name: str = ""

    def fitting(self, shapes: Sequence[tuple[int, ...]]) -> "Intrinsics":
        """Of several cameras in a file, the one that belongs to an image of these (rows, columns).

        That is a camera of one of the sizes; or, of those without a size, one whose principal point is near the center
        of the image. If that leaves several, the color camera is taken, or else the left one.

        Raises:
            DataError: no camera fits, or several do and none is preferred.
        """
        cameras = (self, *self.others)
        if not self.others:
            return self
        groups = [
            *([one for one in cameras if one.size == shape[:2]] for shape in shapes),
            *([one for one in cameras if one.size is None and one._is_centered(shape)] for shape in shapes),
            [one for one in cameras if _preference(one.name) == 0],  # the images were resized
        ]
        fitting = next((group for group in groups if group), [])
        best = min((_preference(one.name) for one in fitting), default=_NO_PREFERENCE)
        chosen = [one for one in fitting if _preference(one.name) == best]
        if chosen and (best < _NO_PREFERENCE or all(one.camera == chosen[0].camera for one in chosen)):
            return chosen[0]
        rows, columns = shapes[0][:2]
        raise DataError(
            f"intrinsics: expected a camera of an image of {columns} x {rows} in the file, found "
            f"{', '.join(one._description for one in cameras[:8])}; give the numbers of one, fx,fy,cx,cy"
        )

    def _is_centered(self, shape: tuple[int, ...]) -> bool:
        rows, columns = shape[:2]
        return abs(self.camera.cx / columns - 0.5) < _CENTERED and abs(self.camera.cy / rows - 0.5) < _CENTERED

    @property
    def _description(self) -> str:
        size = "" if self.size is None else f" of {self.size[1]} x {self.size[0]}"
        return f"'{self.name}'{size}"


GivenIntrinsics = Sequence[float] | Mapping[str, Any] | NDArray[Any] | str | Path | Intrinsics
"""(fx, fy, cx, cy), these by name, a matrix, or a file."""


def intrinsics_of(value: GivenIntrinsics) -> Intrinsics:
    """Intrinsics from an argument: numbers, numbers by name, a matrix or a file (``read_intrinsics``).

    Raises:
        DataError: anything else.
    """
    if isinstance(value, Intrinsics):
        return value
    if isinstance(value, Mapping):
        plain = {
            key: as_array(one, f"intrinsics {key}", "one number or a matrix").tolist()
            if hasattr(one, "tolist")
            else one
            for key, one in value.items()
        }
        return _of_document(plain, "given")
    if isinstance(value, str | Path):
        return read_intrinsics(str(value))
    numbers = as_array(value, "intrinsics", "(fx, fy, cx, cy), a matrix or a file").astype(np.float64)
    if numbers.shape in ((4,), (3, 3), (3, 4), (4, 4)):
        return _of_numbers(numbers.ravel(), ",".join(map(str, numbers.ravel().tolist())))
    raise DataError(f"intrinsics: expected (fx, fy, cx, cy), a matrix or a file, found shape {list(numbers.shape)}")


def read_intrinsics(text: str) -> Intrinsics:
    """Intrinsics from an argument or a file (see the top of this module).

    Args:
        text: numbers, or the path of a file. Of several cameras in it, the color camera comes first, to which depth is
            registered; ``Intrinsics.fitting`` chooses by the images' size.

    Raises:
        DataError: anything else; the message says what was expected and found.
    """
    try:
        return _of_numbers(_numbers(text), text)
    except ValueError as error:
        if isinstance(error, DataError):
            raise
    path = Path(text)
    try:
        is_missing = not path.exists()
    except OSError:  # a name that is too long cannot be a path
        is_missing = True
    if is_missing:
        raise DataError(f"{text}: expected {_WHAT}, as numbers or as a file of them, found no such file; {_ADVICE}")
    if path.suffix.lower() in (".npy", ".npz"):
        matrix = read_array(path, what="a camera matrix", most_values=16)
        return _of_numbers(matrix.astype(np.float64).reshape(-1), text)
    content = read_text(path, what="the intrinsics of a camera", most=_MOST_BYTES, advice=_ADVICE)
    return _of_content(content, text)


def _of_content(content: str, text: str) -> Intrinsics:
    plain = "\n".join(re.split(r"#|//|%", line)[0] for line in content.splitlines())
    try:
        return _of_numbers(_numbers(plain), text)
    except ValueError as error:
        if isinstance(error, DataError):
            raise
    if colmap := colmap_entries(plain):
        return _of_entries(colmap, text, depth_scale=None)
    return _of_document(read_document(content, text), text)


def _of_numbers(numbers: NDArray[np.float64], text: str) -> Intrinsics:
    """Intrinsics of 4 numbers, of a matrix, or of TUM's 9 (four and five of distortion)."""
    if not np.isfinite(numbers).all():
        raise DataError(f"intrinsics {text}: expected finite numbers, found {numbers.tolist()}; {_ADVICE}")
    notes: list[str] = []
    size = None
    if numbers.size == 6:
        numbers, size = _without_size(numbers)
    if numbers.size in (5, 8, 9) and _is_four_with_distortion(numbers):
        if np.abs(numbers[4:]).max() > 0:
            notes.append(_DISTORTION_NOTE)
        numbers = numbers[:4]
    if numbers.size in (9, 12, 16):
        rows = {9: 3, 12: 3, 16: 4}[numbers.size]
        numbers, is_turned = numbers_of_matrix(numbers.reshape(rows, -1), text)
        if is_turned:
            notes.append("intrinsics: the matrix is column-major and was read as such")
    if numbers.size != 4:
        raise DataError(f"intrinsics {text}: expected 4 or 9 numbers, found {numbers.size}; {_ADVICE}")
    return Intrinsics(_camera(numbers.tolist(), text), size, notes=tuple(notes))


def _without_size(numbers: NDArray[np.float64]) -> tuple[NDArray[np.float64], tuple[int, int] | None]:
    """Six numbers are fx, fy, cx, cy with width and height before or behind them; otherwise they stay."""
    for size, rest in ((numbers[:2], numbers[2:]), (numbers[4:], numbers[:4])):
        is_whole = bool((size == np.round(size)).all() and (size >= 16).all())
        if is_whole and (np.abs(rest[2:] / size - 0.5) < 0.2).all():
            return rest, (int(size[1]), int(size[0]))
    return numbers, None


def _is_four_with_distortion(numbers: NDArray[np.float64]) -> bool:
    """Whether the numbers are fx, fy, cx, cy and coefficients of distortion, and not a matrix."""
    return bool((numbers[:4] > 10).all() and np.abs(numbers[4:]).max() < 10)


def _camera(numbers: Sequence[float], text: str) -> Camera:
    if all(0 < number < 5 for number in numbers[:2]) and all(0 < number < 1 for number in numbers[2:]):
        raise DataError(
            f"intrinsics {text}: expected pixels, found {list(numbers)}, which look like shares of the image's width "
            "and height; multiply fx and cx by the width, fy and cy by the height"
        )
    try:
        return Camera(*(float(number) for number in numbers))
    except ValueError as error:
        raise DataError(f"intrinsics {text}: {error}; {_ADVICE}") from error


def _numbers(text: str) -> NDArray[np.float64]:
    """Numbers between commas, semicolons, spaces, lines and brackets. Raises ValueError for anything else."""
    stripped = text.strip(" \t\r\n,;[]\ufeff")
    if len(stripped) > 10_000:
        raise ValueError("too long for numbers")
    return np.array([float(part) for part in re.split(r"[\s,;\[\]]+", stripped)])


def _of_document(document: Any, text: str) -> Intrinsics:
    candidates = list(camera_entries(document, ""))
    if not candidates:
        wrong = what_is_wrong(document) or "none"
        raise DataError(
            f"intrinsics {text}: expected 4 or 9 numbers, or fx, fy, cx and cy by name, found {wrong}; {_ADVICE}"
        )
    return _of_entries(candidates, text, depth_scale=depth_scale_of(document, text))


def _of_entries(entries: Sequence[CameraEntry], text: str, *, depth_scale: float | None) -> Intrinsics:
    """The preferred camera of a file, with its others."""
    first = min(entries, key=lambda entry: _preference(entry.place))
    ordered = [first, *(entry for entry in entries if entry.numbers != first.numbers)]
    found = []
    for entry in ordered:
        notes = [_DISTORTION_NOTE] if entry.is_distorted else []
        if len(ordered) > 1:
            notes.append(f"intrinsics: of several cameras in the file, '{entry.place}' is used")
        name = entry.place if len(ordered) > 1 else ""
        found.append(Intrinsics(_camera(entry.numbers, text), entry.size, depth_scale, tuple(notes), name=name))
    return dataclasses.replace(found[0], others=tuple(found[1:]))


def _preference(name: str) -> int:
    """Rank of a camera's name: first color, to which depth is registered; then left of a stereo camera; then others."""
    lowered = name.lower()
    if re.search(r"colou?r|rgb|pv0", lowered):
        return 0
    return 1 if "left" in lowered else _NO_PREFERENCE
