"""Intrinsics as people have them: numbers, matrices, and the files that cameras and other projects write.

Read are: ``fx,fy,cx,cy``; matrices of 3x3, 3x4 and 4x4, row by row or column by column; text files of these with
comments (TUM's with distortion, ScanNet's, ROS's P, COLMAP's cameras); key and value (``fx = 520``, ScanNet's
``fx_depth``); JSON (Open3D, RealSense, Azure Kinect, ARKit, and others with fx, fy, cx, cy or a named matrix); YAML
(ROS ``camera_info``, ORB-SLAM, OpenCV); npy.
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from ammnet_sparse.data.volumes.camera import Camera
from ammnet_sparse.files.arrays import read_array
from ammnet_sparse.files.content import read_text
from ammnet_sparse.files.errors import DataError

_WHAT = "fx,fy,cx,cy or a 3x3 matrix"
_ADVICE = "give fx,fy,cx,cy in pixels, or a text file with the 3x3 matrix of the camera"
_MOST_BYTES = 1 << 20
_MOST_DEPTH = 12
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_NAMES = (
    ("fx", "fy", "cx", "cy"),
    ("fx", "fy", "ppx", "ppy"),
    ("fl_x", "fl_y", "cx", "cy"),
    ("focal_x", "focal_y", "center_x", "center_y"),
    ("fx", "fy", "px", "py"),
    ("fx", "fy", "u0", "v0"),
    ("fx", "fy", "mx", "my"),
)
"""Names of focal lengths and principal point, without ``Camera.`` before and ``_depth`` or ``_color`` behind."""
_MATRICES = (
    "intrinsic_matrix",
    "camera_matrix",
    "cameramatrix",
    "projection_matrix",
    "intrinsics",
    "intrinsic",
    "k",
    "p",
    "camera",
    "left",
    "m1",
)
_WIDTHS, _HEIGHTS = (
    ("width", "image_width", "w", "resolution_width"),
    ("height", "image_height", "h", "resolution_height"),
)
_DISTORTION = ("distortion_coefficients", "distcoeffs", "coeffs", "d", "distortion", "dist_coeffs")


@dataclasses.dataclass(frozen=True)
class Intrinsics:
    """What a file or argument says of a camera.

    Attributes:
        camera: focal lengths and principal point in pixels.
        size: (rows, columns) of the image that they belong to; None where it is not said.
        depth_scale: units of the depth image a metre, where said.
        notes: what people should know, such as distortion.
        others: further cameras of the file, which ``fitting`` chooses from.
    """

    camera: Camera
    size: tuple[int, int] | None = None
    depth_scale: float | None = None
    notes: tuple[str, ...] = ()
    others: tuple["Intrinsics", ...] = ()

    def fitting(self, shapes: Sequence[tuple[int, ...]]) -> "Intrinsics":
        """Of several cameras in a file, the one that belongs to an image of these (rows, columns); else itself."""
        cameras = (self, *self.others)
        return next((one for shape in shapes for one in cameras if self.others and one.size == shape[:2]), self)


@dataclasses.dataclass(frozen=True)
class _Candidate:
    """One camera found in a file: its place there, numbers, size and distortion."""

    place: str
    numbers: tuple[float, float, float, float]
    size: tuple[int, int] | None
    is_distorted: bool


def parse_intrinsics(text: str) -> Camera:
    """The camera alone; as ``read_intrinsics``."""
    return read_intrinsics(text).camera


def read_intrinsics(text: str) -> Intrinsics:
    """Intrinsics from an argument or a file (see the top of this module).

    Args:
        text: numbers, or the path of a file. Of several cameras in it the color camera is taken, to which depth is
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
    except OSError:  # a name that is too long is no path
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
    colmap = re.search(rf"^\s*\d+\s+(?:OPENCV|PINHOLE)\s+((?:{_NUMBER}\s*){{6}})", plain, flags=re.MULTILINE)
    if colmap is not None:
        found = _of_numbers(_numbers(colmap.group(1)), text)
        # COLMAP's pixels have their middles at halves.
        camera = dataclasses.replace(found.camera, cx=found.camera.cx - 0.5, cy=found.camera.cy - 0.5)
        return dataclasses.replace(found, camera=camera)
    return _of_document(_document(content, text), text)


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
            notes.append(_distortion_note())
        numbers = numbers[:4]
    if numbers.size in (9, 12, 16):
        rows = {9: 3, 12: 3, 16: 4}[numbers.size]
        numbers, is_turned = _of_matrix(numbers.reshape(rows, -1), text)
        if is_turned:
            notes.append("intrinsics: the matrix is stored column by column, and was read so")
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


def _of_matrix(matrix: NDArray[np.float64], text: str) -> tuple[NDArray[np.float64], bool]:
    """fx, fy, cx, cy of a camera matrix [3, 3], [3, 4] or [4, 4], and whether it was stored column by column."""
    if matrix.shape == (3, 4) and _looks_column_by_column(matrix.reshape(4, 3).T[:, :3]):
        matrix = matrix.reshape(4, 3).T
    elif matrix.shape == (4, 4) and matrix[:3, 3].any() and not matrix[3, :3].any():
        matrix = np.delete(matrix, 3, axis=1) if not matrix[:3, 2].any() else matrix
    inner = matrix[:3, :3]
    is_turned = False
    upper, lower = inner[[0, 1], [2, 2]], inner[[2, 2], [0, 1]]
    if not upper.any() and lower.any() and abs(inner[2, 2] - 1) < 1e-6 and inner[1, 0] == 0 and lower.min() > 1.5:
        inner, is_turned = inner.T, True
    below = inner[[1, 2, 2], [0, 0, 1]]
    if np.abs(below).max() > 1e-6 or abs(inner[2, 2] - 1) > 1e-6:
        raise DataError(f"intrinsics {text}: expected 0 below the diagonal and 1 at its end, found {inner.tolist()}")
    if abs(inner[0, 1]) > 1e-3 * abs(inner[0, 0]):
        raise DataError(f"intrinsics {text}: expected no skew, found {inner[0, 1]:g}; rectify the images")
    return inner[[0, 1, 0, 1], [0, 1, 2, 2]], is_turned


def _looks_column_by_column(inner: NDArray[np.float64]) -> bool:
    zeros = inner[[0, 1, 2, 2], [1, 0, 0, 1]]
    return not zeros.any() and abs(inner[2, 2] - 1) < 1e-6 and bool((inner[[0, 1], [2, 2]] > 1.5).all())


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


def _distortion_note() -> str:
    return "intrinsics: coefficients of distortion are given and not used; the images must be undistorted"


def _numbers(text: str) -> NDArray[np.float64]:
    """Numbers between commas, semicolons, spaces, lines and brackets. Raises ValueError for anything else."""
    stripped = text.strip(" \t\r\n,;[]\ufeff")
    if len(stripped) > 10_000:
        raise ValueError("too long for numbers")
    return np.array([float(part) for part in re.split(r"[\s,;\[\]]+", stripped)])


# Documents: JSON, YAML, key and value.


def _document(content: str, text: str) -> Any:
    """The content of a JSON or YAML file, or of lines ``key = value``."""
    found = f"intrinsics {text}: expected numbers, JSON, YAML or lines like 'fx = 520'"
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        pass
    pairs = re.findall(rf"^\s*([A-Za-z][\w. ]*?)\s*=\s*({_NUMBER})\s*$", content, flags=re.MULTILINE)
    if pairs:
        return {key.strip(): float(value) for key, value in pairs}
    # OpenCV writes a header and tags that YAML does not know.
    lines = [line for line in content.splitlines() if not line.startswith("%YAML")]
    cleaned = re.sub(r"!![\w-]+", "", "\n".join(lines))
    try:
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(cleaned, Loader=yaml.SafeLoader)):
            raise DataError(f"{found}, found YAML with aliases; write the values out")
        documents = [part for part in yaml.safe_load_all(cleaned) if part is not None]
    except DataError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{found}, found {reason}; {_ADVICE}") from error
    return documents[0] if documents else None


def _of_document(document: Any, text: str) -> Intrinsics:
    candidates = list(_candidates(document, ""))
    if not candidates:
        raise DataError(
            f"intrinsics {text}: expected 4 or 9 numbers, or fx, fy, cx and cy by name, found none; {_ADVICE}"
        )
    by_color = [c for c in candidates if re.search(r"colou?r|rgb|pv0", c.place.lower())]
    first = (by_color or candidates)[0]
    ordered = [first, *(c for c in candidates if c.numbers != first.numbers)]
    found = []
    for candidate in ordered:
        notes = [_distortion_note()] if candidate.is_distorted else []
        if len(ordered) > 1:
            notes.append(f"intrinsics: of several cameras in the file, '{candidate.place}' is used")
        camera = _camera(candidate.numbers, text)
        found.append(Intrinsics(camera, candidate.size, _depth_scale(document), tuple(notes)))
    return dataclasses.replace(found[0], others=tuple(found[1:]))


def _candidates(value: Any, place: str, depth: int = 0) -> Iterator[_Candidate]:
    """Every camera of a document, outermost first."""
    if depth > _MOST_DEPTH:
        return
    if isinstance(value, Sequence) and not isinstance(value, str):
        for index, item in enumerate(value[:64]):
            yield from _candidates(item, f"{place}[{index}]", depth + 1)
    if not isinstance(value, Mapping):
        return
    keys = {_plain_key(str(key)): item for key, item in value.items()}
    size, is_distorted = _size_of(keys), _is_distorted(keys)
    if "modelparameters" in keys or "sensorwidth" in value or "sensorwidth" in keys:
        azure = _azure_camera(value, place)
        if azure is not None:
            yield azure
            return
    for suffix in ("", "_color", "_depth"):
        for names in _NAMES:
            numbers = [keys.get(name + suffix) for name in names]
            if all(_is_number(number) for number in numbers):
                fx, fy, cx, cy = (float(number) for number in numbers)  # type: ignore[arg-type]
                yield _Candidate(place + suffix or "intrinsics", (fx, fy, cx, cy), size, is_distorted)
                break
    matrices = [name for name in _MATRICES if _matrix_numbers(keys.get(name)) is not None]
    if is_distorted and {"projection_matrix", "camera_matrix"} <= set(matrices):
        # ROS: P is the camera of the rectified image, K that of the distorted one.
        matrices.insert(0, "projection_matrix")
    elif is_distorted and {"k", "p"} <= set(matrices):
        matrices.insert(0, "p")
    for name in matrices[:1]:
        numbers_of_matrix = _matrix_numbers(keys[name])
        assert numbers_of_matrix is not None
        rectified = is_distorted and name in ("projection_matrix", "p")
        yield _Candidate(place or name, numbers_of_matrix, size, is_distorted and not rectified)
    for key, item in value.items():
        name = f"{place}.{key}" if place else str(key)
        for found in _candidates(item, name, depth + 1):
            yield found if found.size is not None else dataclasses.replace(found, size=size)


def _plain_key(key: str) -> str:
    """``Camera.fx`` and ``Camera1.fx`` are ``fx``; case does not matter."""
    return re.sub(r"^camera\d*[._]", "", key.strip().lower()) if key.lower() not in _MATRICES else key.lower()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _matrix_numbers(value: Any) -> tuple[float, float, float, float] | None:
    """fx, fy, cx, cy of a matrix as a list, nested or flat, or as ``{rows, cols, data}``; None for anything else."""
    if isinstance(value, Mapping):
        value = value.get("data")
    try:
        numbers = np.array(value, dtype=np.float64).reshape(-1)
        if numbers.size not in (9, 12, 16) or not np.isfinite(numbers).all():
            return None
        fx, fy, cx, cy = _of_matrix(numbers.reshape(4 if numbers.size == 16 else 3, -1), "")[0].tolist()
    except (ValueError, TypeError, OverflowError):
        return None
    return (fx, fy, cx, cy) if fx > 0 and fy > 0 else None


def _size_of(keys: Mapping[str, Any]) -> tuple[int, int] | None:
    width = next((keys[name] for name in _WIDTHS if _is_number(keys.get(name))), None)
    height = next((keys[name] for name in _HEIGHTS if _is_number(keys.get(name))), None)
    if width is None or height is None or min(width, height) < 1:
        return None
    return int(height), int(width)


def _is_distorted(keys: Mapping[str, Any]) -> bool:
    """Whether coefficients of distortion other than 0 are given."""
    values: list[Any] = [keys.get(name) for name in ("k1", "k2", "k3", "p1", "p2")]
    for name in _DISTORTION:
        value = keys.get(name)
        value = value.get("data") if isinstance(value, Mapping) else value
        values += list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
    return any(_is_number(value) and abs(value) > 1e-9 for value in values)


def _azure_camera(value: Mapping[Any, Any], place: str) -> _Candidate | None:
    """A camera of Azure Kinect's raw calibration: cx, cy, fx, fy as shares of the sensor, and distortion."""
    intrinsics = value.get("Intrinsics", value)
    parameters = intrinsics.get("ModelParameters") if isinstance(intrinsics, Mapping) else None
    width, height = value.get("SensorWidth"), value.get("SensorHeight")
    if not isinstance(parameters, Sequence) or len(parameters) < 4 or not (_is_number(width) and _is_number(height)):
        return None
    if not all(_is_number(number) for number in parameters[:4]):
        return None
    assert isinstance(width, int | float) and isinstance(height, int | float)
    cx, cy, fx, fy = (float(number) for number in parameters[:4])
    numbers = (fx * width, fy * height, cx * width - 0.5, cy * height - 0.5)
    where = str(value.get("Location") or value.get("Purpose") or place)
    is_distorted = any(_is_number(number) and abs(number) > 1e-9 for number in parameters[4:12])
    return _Candidate(where, numbers, (int(height), int(width)), is_distorted)


def _depth_scale(document: Any) -> float | None:
    """Units a metre as a file names them: ORB-SLAM's DepthMapFactor, Open3D's 1000, RealSense's 0.001 metres a unit."""
    if not isinstance(document, Mapping):
        return None
    for key, value in document.items():
        name = re.sub(r"[^a-z]", "", str(key).lower())
        if name in ("depthmapfactor", "rgbddepthmapfactor", "depthscale", "depthfactor") and _is_number(value):
            if value <= 0:
                return None
            return float(value) if value >= 1 else 1.0 / float(value)
        if isinstance(value, Mapping) and (nested := _depth_scale(value)) is not None:
            return nested
    return None
