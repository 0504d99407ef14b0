"""How a 16-bit depth image holds millimeters: as they are, or with their bits rotated by 3 as SSCNet and SUN RGB-D do.

Read in the wrong way, a depth image still looks like one: rotated values are eight times the millimeters, which passes
for another scale. So the encoding is detected from the values and reported.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

DepthEncoding = Literal["plain", "rotated"]

_INVALID = (0, 65535)
_FEWEST_PIXELS, _FEWEST_VALUES = 100, 8
_ROTATED_SHARE, _PLAIN_SHARE = 0.9, 0.5
_PLAUSIBLE = (200, 12_000)
"""Millimeters of the median depth of a room."""


def decode_rotated(values: NDArray[Any]) -> NDArray[np.uint16]:
    """Millimeters of stored values whose bits are rotated by 3: ``(p >> 3) | (p << 13)``; integers, any shape."""
    stored = values.astype(np.uint16)
    decoded: NDArray[np.uint16] = (stored >> np.uint16(3)) | (stored << np.uint16(13))
    return decoded


def guess_depth_encoding(values: NDArray[Any]) -> DepthEncoding | None:
    """Tells rotated bits from plain values; None if the image does not show it.

    Rotated millimeters below 8192 are multiples of 8; of plain values an eighth are. In between (a camera that
    rounds, a room with much beyond 8.19 m) the smoother of the two readings is the right one: the wrong one makes a
    step of 1 mm one of 8 m.

    Args:
        values: [rows, columns] integers of 16 bits; 0 and 65535 are invalid.

    Returns:
        ``rotated``; ``plain``, meaning not rotated (the unit is not told); or None.
    """
    if values.ndim != 2 or values.dtype.kind not in "iu":
        return None
    is_valid = ~np.isin(values, _INVALID) & (values > 0) & (values < 65536)
    valid = values[is_valid]
    if valid.size < _FEWEST_PIXELS or np.unique(valid).size < _FEWEST_VALUES:
        return None
    share = float((valid % 8 == 0).mean())
    decoded = decode_rotated(values)
    if not _is_plausible(decoded[is_valid]):
        return "plain" if share < _PLAIN_SHARE else None
    if share >= _ROTATED_SHARE:
        return "rotated"
    as_it_is, turned = _roughness(values, is_valid), _roughness(decoded, is_valid)
    if as_it_is < turned / 2:
        return "plain"
    # Decoding divides equal values by 8, which alone makes them smoother.
    return "rotated" if turned < as_it_is / 4 and share > _PLAIN_SHARE else None


def _is_plausible(millimeters: NDArray[Any]) -> bool:
    return bool(_PLAUSIBLE[0] <= np.median(millimeters) <= _PLAUSIBLE[1])


def _roughness(values: NDArray[Any], is_valid: NDArray[np.bool_]) -> float:
    """Mean difference of neighbors in rows and columns; a tenth, the edges of things, is left out."""
    wide = values.astype(np.int64)
    steps = np.sort(
        np.concatenate(
            [
                np.abs(np.diff(wide, axis=1))[is_valid[:, 1:] & is_valid[:, :-1]],
                np.abs(np.diff(wide, axis=0))[is_valid[1:] & is_valid[:-1]],
            ]
        )
    )
    smooth = steps[: steps.size * 9 // 10]
    return float(smooth.mean()) if smooth.size else 0.0
