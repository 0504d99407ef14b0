"""What the numbers of a depth image mean: which of them mark invalid depth.

One rule for every type: a code for "nothing measured" is the same in images of integers, of floats and in meters.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGEST_CODE = 65535
"""The largest 16-bit number: invalid in an image of integers and in a float copy of it."""
FARTHEST = 60.0
"""Meters: no indoor camera measures farther. Renderers write 1e10, 65504 or 65535 where they hit nothing."""
_MIN_SPIKE_SHARE = 0.001
"""Of the valid pixels that must hold one code."""
_MIN_SPIKE = 20
_NEAR_CODES = (2047, 4095)
"""Largest numbers of 11 and 12 bits: "too far" of the first Kinect and of time-of-flight cameras."""
_FAR_CODE = 8190
"""From here on (millimeters; the largest number of 13 bits is 8191) an isolated group of pixels is invalid depth."""


_CODE_WIDTH = 4
"""Millimeters."""


def depth_in_meters(values: NDArray[Any], *, scale: float) -> NDArray[np.float32]:
    """Depth in meters, 0 where the values are invalid.

    Invalid are: 0, negative, infinite and NaN values; 65535 of any type, also divided by the scale; values
    beyond 60 m; and the "too far" codes of sensors: 2047 and 4095 if they are the image's largest value and
    many pixels have exactly it, and everything from 8.19 m on if nothing lies shortly before it.

    Args:
        values: [rows, columns], integers or floats.
        scale: units per meter.

    Returns:
        [rows, columns] float32.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        numbers = values.astype(np.float64)
        meters = numbers / scale
        # The same code after a division: a copy in meters of an image in millimeters.
        is_code = (numbers == LARGEST_CODE) | np.isclose(meters, LARGEST_CODE / 1000, rtol=0, atol=2e-3)
        valid = np.isfinite(meters) & (numbers > 0) & ~is_code & (meters <= FARTHEST)
    valid &= ~_too_far(meters, valid)
    return np.where(valid, meters, 0.0).astype(np.float32)


def _too_far(meters: NDArray[np.float64], valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels that hold a sensor's code for "too far"."""
    is_code = np.zeros(meters.shape, dtype=np.bool_)
    count = int(valid.sum())
    needed = max(_MIN_SPIKE, _MIN_SPIKE_SHARE * count)
    millimeters = np.where(valid, meters, 0.0) * 1000.0
    far = millimeters >= _FAR_CODE - 0.5
    # A hall continues without a gap; a code is isolated, with almost nothing in the meter before it.
    before = (millimeters >= _FAR_CODE - 1000) & ~far
    stands_alone = far.sum() >= needed and before.sum() < 0.05 * far.sum()
    # If it is most of the image it must be a single number: otherwise the unit is wrong, which is found elsewhere.
    if stands_alone and (far.sum() <= 0.5 * count or np.ptp(millimeters[far]) < _CODE_WIDTH):
        is_code |= far
    largest = float(millimeters[~is_code].max(initial=0.0))
    for code in _NEAR_CODES:
        exact = np.abs(millimeters - code) < 0.5
        before = (millimeters > code - 60) & ~exact & (millimeters < code)
        if abs(largest - code) < 0.5 and exact.sum() >= needed and before.sum() < 0.05 * exact.sum():
            is_code |= exact
    return is_code
