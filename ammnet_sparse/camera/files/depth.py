"""Depth of a user's camera in meters, from the integers or floats in its files.

The meaning of the numbers (unit of floats, rotated bits) is detected if it is not given, and reported in notes. If two
readings both give a plausible room, nothing is guessed: an error names them.
"""

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.data.volumes.camera import FARTHEST, LARGEST_CODE, depth_in_meters
from ammnet_sparse.files.errors import DataError
from ammnet_sparse.files.images import decode_rotated, guess_depth_encoding

DepthEncoding = Literal["auto", "millimeters", "rotated", "meters", "plain"]
DEPTH_ENCODINGS: tuple[DepthEncoding, ...] = ("auto", "millimeters", "rotated", "meters", "plain")
DEPTH_SCALE = 1000.0
"""Units per meter of a depth image of which nothing else is known: millimeters."""
_PLAUSIBLE_DEPTH = (0.15, 20.0)
"""Meters of the median depth of a room."""
_USUAL_DEPTH = (0.5, 8.0)
"""Meters of the median depth beyond which the scale is questioned."""
_NEAREST_USUAL = 0.6
"""Meters of the median depth below which depth taken as millimeters may be in centimeters."""
_SCALES = (
    (1000.0, "millimeters"),
    (1.0, "meters"),
    (5000.0, "TUM's files"),
    (10000.0, "tenths of millimeters"),
    (100.0, "centimeters"),
)
_MIN_ROTATED_MEDIAN = 750
"""Median of decoded depth, in millimeters, below which plain depth with coarse steps is the more likely reading."""
_MAX_COARSE = 0.8
"""Share of multiples of 16 up to which multiples of 8 are taken for rotated bits; of those it is about half."""
_ENCODED_SCALES = {"millimeters": 1000.0, "rotated": 1000.0, "meters": 1.0}


def meters_from_values(
    values: NDArray[Any],
    *,
    name: str = "depth",
    scale: float | None = None,
    encoding: DepthEncoding = "auto",
    usual_scale: float | None = None,
) -> tuple[NDArray[np.float32], list[str]]:
    """Depth in meters, [rows, columns] float32, 0 where missing (``depth_in_meters``), and notes on what was detected.

    Args:
        values: [rows, columns] integers of 16 bits or more, or floats.
        name: of the image, for messages.
        scale: units per meter; None: millimeters for integers, and for floats meters if that gives a room.
        encoding: how the numbers are stored. ``millimeters`` and ``meters`` name the unit, ``rotated`` is 16-bit
            millimeters with bits rotated left by 3 (SUN RGB-D, SSCNet), ``plain`` none of these (``scale`` applies).
            ``auto`` notices rotated bits.
        usual_scale: units per meter that the intrinsics file names; used where ``scale`` is None.

    Raises:
        DataError: another form, contradicting arguments, or a median depth that no room has.
    """
    told = _ENCODED_SCALES.get(encoding)
    if told is not None and scale is not None and scale != told:
        raise DataError(
            f"depth encoding {encoding}: has {told:g} units per meter, but `depth_scale` says {scale:g}; omit one"
        )
    if values.ndim != 2 or values.dtype.kind not in "iuf" or values.dtype.itemsize < 2:
        raise DataError(
            f"{name}: expected a depth image with one channel of 16 bits, found {values.dtype} {list(values.shape)}; "
            "pictures of depth in color or 8 bits do not hold the measurements"
        )
    notes: list[str] = []
    is_rotated = encoding == "rotated" or (encoding == "auto" and _looks_rotated(values))
    if is_rotated:
        values, scale = _decoded(values, name, scale, encoding, notes)
    elif told is not None:
        scale = told
    elif scale is None:
        scale = _found_scale(values, usual_scale, notes)
    meters = depth_in_meters(values, scale=scale)
    _check_plausible(values, meters, name=name, scale=scale, is_rotated=is_rotated)
    median = float(np.median(meters[meters > 0])) if meters.any() else math.nan
    if not is_rotated and not notes and not _USUAL_DEPTH[0] <= median <= _USUAL_DEPTH[1]:
        notes.append(
            f"depth: a median of {median:.2g} m at {scale:g} units per meter is unusual for a room; is that scale "
            f"right?{_advice(values, median * scale, scale)}"
        )
    if encoding == "auto" and not is_rotated and values.dtype.kind in "iu" and _multiples_share(values, 8) > 0.9:
        notes.append(
            "depth: nearly all values are multiples of 8, but read as they are they form a room; if the bits are "
            "rotated (SUN RGB-D, SSCNet), give `depth_encoding='rotated'`"
        )
    if encoding == "auto" and not is_rotated and scale == DEPTH_SCALE and _looks_like_tum(values, meters):
        notes.append(
            "depth: taken as millimeters, but all values are multiples of 5, as in TUM's files of 5000 units per "
            "meter; give `depth_scale=5000` if they are"
        )
    return meters, notes


def _looks_rotated(values: NDArray[Any]) -> bool:
    """Whether 16-bit depth holds rotated bits; a camera whose steps are 16 mm and more has multiples of 8, too."""
    if values.dtype.kind not in "iu" or guess_depth_encoding(values) != "rotated":
        return False
    measured = values[(values > 0) & (values < LARGEST_CODE)]
    is_room = float(np.median(decode_rotated(measured))) >= _MIN_ROTATED_MEDIAN
    return is_room and _multiples_share(values, 16) <= _MAX_COARSE


def _multiples_share(values: NDArray[Any], factor: int) -> float:
    """Share of multiples of ``factor`` among the integers that may be depth."""
    measured = values[(values > 0) & (values < LARGEST_CODE)]
    return float((measured % factor == 0).mean()) if measured.size else 0.0


def _decoded(
    values: NDArray[Any], name: str, scale: float | None, encoding: DepthEncoding, notes: list[str]
) -> tuple[NDArray[Any], float]:
    """Millimeters of values whose bits are rotated."""
    if values.dtype.kind not in "iu" or int(values.max(initial=0)) > LARGEST_CODE or int(values.min(initial=0)) < 0:
        raise DataError(f"{name}: depth encoding rotated: expected integers of 16 bits, found {values.dtype}")
    said = f"{_multiples_share(values, 8):.0%} of the values are multiples of 8"
    if scale is not None and scale != DEPTH_SCALE:
        raise DataError(
            f"{name}: {said}, so these look like millimeters whose bits are rotated by 3 (SUN RGB-D, SSCNet); at "
            f"{scale:g} units per meter, distant surfaces would appear in front of the camera. Omit `depth_scale`, "
            "or give `depth_encoding='plain'` if the scale is right"
        )
    if encoding == "auto":
        notes.append(
            f"depth: {said}: taken as millimeters whose bits are rotated by 3, as SUN RGB-D and SSCNet store them "
            "(`depth_encoding='plain'` would take them as they are)"
        )
    return decode_rotated(values), DEPTH_SCALE


def _found_scale(values: NDArray[Any], usual_scale: float | None, notes: list[str]) -> float:
    """Units per meter if none are given."""
    if usual_scale is not None and _is_plausible(_median(values, usual_scale)):
        if usual_scale != DEPTH_SCALE:
            notes.append(f"depth: {usual_scale:g} units per meter, as the intrinsics file says")
        return usual_scale
    if values.dtype.kind == "f" and _is_plausible(_median(values, 1.0)):
        notes.append("depth: floats, taken as meters (`depth_scale=1000` would take them as millimeters)")
        return 1.0
    median = _median(values, DEPTH_SCALE)
    if usual_scale is None and median < _NEAREST_USUAL:
        notes.append(
            f"depth: taken as millimeters, a median of {median:.2f} m; if it is in centimeters, give `depth_scale=100`"
        )
    return DEPTH_SCALE


def _median(values: NDArray[Any], scale: float) -> float:
    """The median of the valid depths in meters, NaN if there are none."""
    numbers = values.astype(np.float64)
    with np.errstate(invalid="ignore"):
        measured = numbers[np.isfinite(numbers) & (numbers > 0) & (numbers != LARGEST_CODE) & (numbers < 1e9)]
    return float(np.median(measured)) / scale if measured.size else math.nan


def _is_plausible(median: float) -> bool:
    return _PLAUSIBLE_DEPTH[0] <= median <= _PLAUSIBLE_DEPTH[1]


def _check_plausible(
    values: NDArray[Any], meters: NDArray[np.float32], *, name: str, scale: float, is_rotated: bool
) -> None:
    measured = meters[meters > 0]
    raw_median = _median(values, scale)
    if math.isnan(raw_median) or (not measured.size and _is_plausible(raw_median)):
        raise DataError(f"{name}: expected depth, found no valid pixel")
    median = float(np.median(measured)) if measured.size else raw_median
    # Pixels discarded as too far count here: with a wrong scale they are almost all.
    if measured.size < 0.5 * np.isfinite(values).sum() and raw_median > FARTHEST:
        median = raw_median
    if _is_plausible(median):
        return
    if is_rotated:
        raise DataError(f"{name}: expected the depth of a room, found a median of {median:.3g} m with its bits decoded")
    raise DataError(
        f"{name}: expected the depth of a room, found a median of {median:.3g} m at {scale:g} units per meter; "
        f"correct the depth scale{_advice(values, median * scale, scale)}"
    )


def _advice(values: NDArray[Any], raw_median: float, scale: float) -> str:
    """The scales that give a plausible room, without those that put pixels at impossible distances."""
    measured = values[(values > 0) & np.isfinite(values)]
    nearest = float(measured.min()) if measured.size else 0.0
    fitting = [
        f"{units:g} for {unit} gives {raw_median / units:.2g} m"
        for units, unit in _SCALES
        if units != scale and 0.3 <= raw_median / units <= 10.0 and nearest / units >= 0.1
    ]
    if not fitting:
        return "; no usual one gives a room, so check that the file holds depth"
    return f" ({', '.join(fitting)}); the camera's documentation or its intrinsics file names it"


def _looks_like_tum(values: NDArray[Any], meters: NDArray[np.float32]) -> bool:
    """Whether depth taken as millimeters is suspiciously far and has steps of 5."""
    if values.dtype.kind not in "iu":
        return False
    is_far = float(np.median(meters[meters > 0])) > 4.0
    return is_far and _multiples_share(values, 5) > 0.99 and _multiples_share(values, 10) < 0.9
