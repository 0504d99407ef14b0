"""Cameras in files of other programs: JSON, TOML, YAML and XML documents, and sections of keys and values."""

import dataclasses
import json
import math
import re
import tomllib
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.files.errors import DataError
from ammnet_sparse.files.yaml_text import YamlProblem, parse_yaml, short

NUMBER = r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
"""A regular expression of a number in text."""
_ADVICE = "give fx,fy,cx,cy in pixels, or a text file with the 3x3 matrix of the camera"
_MOST_DEPTH = 12
_LONGEST_LINE = 1_000
"""Characters of a line of TOML."""
_MOST_NODES = 30_000
"""Values and keys of a YAML file; OpenCV's hold the points of the pictures of a calibration too."""
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
_COLMAP_MODELS = {
    "SIMPLE_PINHOLE": 1,
    "PINHOLE": 2,
    "SIMPLE_RADIAL": 1,
    "RADIAL": 1,
    "OPENCV": 2,
    "OPENCV_FISHEYE": 2,
    "FULL_OPENCV": 2,
}
"""Models of COLMAP and how many focal lengths they have, which come first, before the principal point."""
_WIDTHS, _HEIGHTS = (
    ("width", "image_width", "w", "resolution_width"),
    ("height", "image_height", "h", "resolution_height"),
)
_SCALES = {
    "depthmapfactor",
    "rgbddepthmapfactor",
    "depthscale",
    "depthfactor",
    "pngdepthscale",
    "integerdepthscale",
    "depthunitscalefactor",
}
"""Names of the depth scale, without anything but letters."""
_DISTORTION = ("distortion_coefficients", "distcoeffs", "coeffs", "d", "distortion", "dist_coeffs")


@dataclasses.dataclass(frozen=True)
class CameraEntry:
    """One camera found in a file: its position there, numbers, size and distortion."""

    place: str
    numbers: tuple[float, float, float, float]
    size: tuple[int, int] | None
    is_distorted: bool


def read_document(content: str, text: str) -> Any:
    """The content of a JSON, TOML, YAML or XML file, or of lines ``key = value``; ``text`` names the file in messages.

    Raises:
        DataError: none of these, a key given twice, or YAML that is nested deeply or larger than any calibration.
    """
    found = f"intrinsics {text}: expected numbers, JSON, TOML, YAML, XML or lines like 'fx = 520'"
    parsers: list[Callable[[str], Any]] = [json.loads]
    if max(map(len, content.splitlines()), default=0) <= _LONGEST_LINE:  # dotted keys take tomllib quadratic time
        parsers.append(tomllib.loads)
    for parse in parsers:
        try:
            return parse(content)
        except (ValueError, RecursionError):
            pass
    if content.lstrip().startswith("<"):
        return _read_xml(content, found)
    if sections := _read_sections(content, text):
        return sections
    # OpenCV writes a header and tags that YAML does not know.
    lines = [line for line in content.splitlines() if not line.startswith("%YAML")]
    cleaned = re.sub(r"!![\w-]+", "", "\n".join(lines))
    try:
        return parse_yaml(cleaned, most_nodes=_MOST_NODES, is_stream=True)
    except YamlProblem as error:
        raise DataError(f"{found}, found {error}; {_ADVICE}") from error


def _read_sections(content: str, text: str) -> dict[str, Any]:
    """Lines ``key = value`` by the ``[section]`` that they are in; those before any section are not nested."""
    document: dict[str, Any] = {}
    section = document
    for line in content.splitlines():
        line = re.split(r"[#;]|//", line)[0].strip()
        if header := re.fullmatch(r"\[([^\[\]]+)\]", line):
            section = document.setdefault(header[1].strip(), {})
            if not isinstance(section, dict):
                found = f"expected a key or a section {short(header[1])}, found both"
                raise DataError(f"intrinsics {text}: {found}; {_ADVICE}")
            continue
        # One pattern for both sides would take quadratic time over a run of blanks.
        key, _, value = (part.strip() for part in line.partition("="))
        if re.fullmatch(r"[A-Za-z][\w. ]*", key) and re.fullmatch(NUMBER, value):
            if key in section:
                raise DataError(f"intrinsics {text}: expected every key once, found {short(key)} twice; {_ADVICE}")
            section[key] = float(value)
    return {key: value for key, value in document.items() if value != {}}


def _read_xml(content: str, found: str) -> Any:
    """The elements of an XML file, such as OpenCV's, by their tags: numbers, lists of numbers, or nested."""
    if "<!DOCTYPE" in content or "<!ENTITY" in content:
        raise DataError(f"{found}, found XML with a document type; {_ADVICE}")
    try:
        return _value_of_element(ElementTree.fromstring(content))
    except (ElementTree.ParseError, RecursionError, ValueError) as error:
        raise DataError(f"{found}, found {error}; {_ADVICE}") from error


def _value_of_element(element: ElementTree.Element) -> Any:
    if len(element):
        return {child.tag: _value_of_element(child) for child in element}
    words = (element.text or "").split()
    if not words or not all(re.fullmatch(NUMBER, word) for word in words):
        return element.text
    numbers = [float(word) for word in words]
    return numbers[0] if len(numbers) == 1 else numbers


def colmap_entries(content: str) -> list[CameraEntry]:
    """The cameras of COLMAP's cameras.txt, whose pixels have their centers at halves; empty for other files."""
    entries = []
    for line in content.splitlines():
        words = line.split()
        if len(words) < 5 or words[1] not in _COLMAP_MODELS or not all(re.fullmatch(NUMBER, w) for w in words[2:]):
            continue
        width, height, *values = (float(word) for word in words[2:])
        num_focal_lengths = _COLMAP_MODELS[words[1]]
        if len(values) < num_focal_lengths + 2 or not 1 <= min(width, height) <= max(width, height) < math.inf:
            continue
        fx, fy = values[0], values[num_focal_lengths - 1]
        cx, cy, *distortion = values[num_focal_lengths:]
        numbers = (fx, fy, cx - 0.5, cy - 0.5)
        is_distorted = any(abs(value) > 1e-9 for value in distortion)
        entries.append(CameraEntry(f"camera {words[0]}", numbers, (int(height), int(width)), is_distorted))
    return entries


def camera_entries(value: Any, place: str, depth: int = 0) -> Iterator[CameraEntry]:
    """Every camera of a document, outermost first."""
    if depth > _MOST_DEPTH:
        return
    if isinstance(value, Sequence) and not isinstance(value, str):
        for index, item in enumerate(value[:64]):
            yield from camera_entries(item, f"{place}[{index}]", depth + 1)
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
                yield CameraEntry(place + suffix or "intrinsics", (fx, fy, cx, cy), size, is_distorted)
                break
    matrices = [name for name in _MATRICES if _matrix_numbers(keys.get(name)) is not None]
    if is_distorted and {"projection_matrix", "camera_matrix"} <= set(matrices):
        # ROS: P is the camera of the rectified image, K the camera of the distorted one.
        matrices.insert(0, "projection_matrix")
    elif is_distorted and {"k", "p"} <= set(matrices):
        matrices.insert(0, "p")
    for name in matrices[:1]:
        named = _matrix_numbers(keys[name])
        assert named is not None
        rectified = is_distorted and name in ("projection_matrix", "p")
        yield CameraEntry(place or name, named, size, is_distorted and not rectified)
    for key, item in value.items():
        name = f"{place}.{key}" if place else str(key)
        for found in camera_entries(item, name, depth + 1):
            yield found if found.size is not None else dataclasses.replace(found, size=size)


def what_is_wrong(value: Any, depth: int = 0) -> str | None:
    """What is wrong with the first camera of a document that is almost one; None if nothing looks like one."""
    if depth > _MOST_DEPTH:
        return None
    if isinstance(value, Sequence) and not isinstance(value, str):
        return next((found for item in value[:64] if (found := what_is_wrong(item, depth + 1))), None)
    if not isinstance(value, Mapping):
        return None
    keys = {_plain_key(str(key)): item for key, item in value.items()}
    for suffix in ("", "_color", "_depth"):
        names = max(_NAMES, key=lambda names: sum(name + suffix in keys for name in names))
        given = [name + suffix for name in names if name + suffix in keys]
        if len(given) < 2:
            continue
        wrong = [f"{name} = {short(keys[name])}" for name in given if not _is_number(keys[name])]
        lacking = [name + suffix for name in names if name + suffix not in keys]
        parts = [*wrong, *([f"no {' and no '.join(lacking)}"] if lacking else [])]
        return ", ".join(parts)[:120]
    for name in _MATRICES:
        matrix = keys.get(name)
        matrix = matrix.get("data") if isinstance(matrix, Mapping) else matrix
        if isinstance(matrix, np.ndarray):
            matrix = matrix.tolist()
        if isinstance(matrix, Sequence) and not isinstance(matrix, str):
            values = [item for row in matrix for item in (row if isinstance(row, Sequence) else [row])]
            if values and not any(isinstance(item, Mapping) for item in values):
                if not all(map(_is_number, values)):
                    return f"{name} = {short(matrix)}"[:120]
                if len(values) not in (9, 12, 16):
                    return f"{name} with {len(values)} numbers"
                return f"{name} = {short(matrix)}"[:120] + ", which is no camera matrix"
    return next((found for item in value.values() if (found := what_is_wrong(item, depth + 1))), None)


def _plain_key(key: str) -> str:
    """``Camera.fx`` and ``Camera1.fx`` are ``fx``; case does not matter."""
    return re.sub(r"^camera\d*[._]", "", key.strip().lower()) if key.lower() not in _MATRICES else key.lower()


def _is_number(value: Any) -> bool:
    """Whether it is a finite number that a float can hold, which whole numbers of hundreds of digits are not."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def _matrix_numbers(value: Any) -> tuple[float, float, float, float] | None:
    """fx, fy, cx, cy of a matrix as a list, nested or flat, or as ``{rows, cols, data}``; None for anything else."""
    if isinstance(value, Mapping):
        value = value.get("data")
    try:
        numbers = np.array(value, dtype=np.float64).reshape(-1)
        if numbers.size not in (9, 12, 16) or not np.isfinite(numbers).all():
            return None
        fx, fy, cx, cy = numbers_of_matrix(numbers.reshape(4 if numbers.size == 16 else 3, -1), "")[0].tolist()
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
        value = value.reshape(-1).tolist() if isinstance(value, np.ndarray) else value
        values += list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
    return any(_is_number(value) and abs(value) > 1e-9 for value in values)


def _azure_camera(value: Mapping[Any, Any], place: str) -> CameraEntry | None:
    """A camera of Azure Kinect's raw calibration: cx, cy, fx, fy as shares of the sensor, and distortion."""
    intrinsics = value.get("Intrinsics", value)
    parameters = intrinsics.get("ModelParameters") if isinstance(intrinsics, Mapping) else None
    width, height = value.get("SensorWidth"), value.get("SensorHeight")
    if not isinstance(parameters, Sequence) or len(parameters) < 4 or not (_is_number(width) and _is_number(height)):
        return None
    if not all(_is_number(number) for number in parameters[:4]):
        return None
    assert isinstance(width, Real) and isinstance(height, Real)
    width, height = float(width), float(height)
    cx, cy, fx, fy = (float(number) for number in parameters[:4])
    numbers = (fx * width, fy * height, cx * width - 0.5, cy * height - 0.5)
    where = str(value.get("Location") or value.get("Purpose") or place)
    is_distorted = any(_is_number(number) and abs(number) > 1e-9 for number in parameters[4:12])
    return CameraEntry(where, numbers, (int(height), int(width)), is_distorted)


def depth_scale_of(document: Any, text: str, depth: int = 0) -> float | None:
    """Units per meter as a file names them: ORB-SLAM's DepthMapFactor, Open3D's 1000, RealSense's 0.001 m per unit.

    Plain ``scale`` (Replica) counts only beside the numbers of a camera.
    """
    if not isinstance(document, Mapping) or depth > _MOST_DEPTH:
        return None
    names = _SCALES | ({"scale"} if any(_plain_key(str(key)) in ("fx", "fl_x") for key in document) else set())
    for key, value in document.items():
        if re.sub(r"[^a-z]", "", str(key).lower()) in names and _is_number(value):
            if value <= 0:
                raise DataError(f"intrinsics {text}: expected {key} above 0, found {value:g}; correct or remove it")
            return float(value) if value >= 1 else 1.0 / float(value)
        if isinstance(value, Mapping) and (nested := depth_scale_of(value, text, depth + 1)) is not None:
            return nested
    return None


def numbers_of_matrix(matrix: NDArray[np.float64], text: str) -> tuple[NDArray[np.float64], bool]:
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
