"""Reading an image of numbers (depth, classes) from the file types in which people keep them."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.files.arrays import array_names, read_array
from ammnet_sparse.files.content import open_file, read_head
from ammnet_sparse.files.errors import DataError, reason
from ammnet_sparse.files.images import MOST_PIXELS, read_image

FORMATS = ("PNG", "TIFF", "JPEG", "BMP", "WEBP", "PPM")
"""Pillow's names of the pictures that are opened."""
_ARRAY_NAMES = ("depth", "depth_map", "label", "labels", "label_map", "z", "arr_0")
"""Names of the array to take from an archive of several."""
_EXR_NAMES = ("Z", "depth.Z", "Depth.Z", "depth.V", "Depth.V", "ViewLayer.Depth.Z", "View Layer.Depth.Z", "depth", "Y")
"""Channels of depth in an exr file of several, as renderers name them."""
_ADVICE = "replace the file"


def image_array(path: Path, what: str) -> NDArray[Any]:
    """The numbers of an image as they are stored, without axes of length 1.

    Args:
        path: a picture of ``FORMATS``, exr, npy, or npz with one image (or one of a usual name). EXIF is not followed.
        what: what is expected, for messages, such as "a depth image".

    Raises:
        DataError: missing, unreadable, or too large.
    """
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return squeezed(read_array(path, what=what, most_values=MOST_PIXELS))
    if suffix == ".npz":
        names = array_names(path)
        chosen = next((name for name in _ARRAY_NAMES if name in names), None) if len(names) > 1 else None
        return squeezed(read_array(path, chosen, what=what, most_values=MOST_PIXELS))
    if suffix == ".exr":
        return _exr_array(path, what)
    return read_image(path, formats=FORMATS, what=what, upright=False, advice=_ADVICE).pixels


def squeezed(values: NDArray[Any]) -> NDArray[Any]:
    """Without leading and trailing axes of length 1, down to two axes."""
    while values.ndim > 2 and values.shape[0] == 1:
        values = values[0]
    while values.ndim > 2 and values.shape[-1] == 1:
        values = values[..., 0]
    return values


def _exr_array(path: Path, what: str) -> NDArray[Any]:
    """The channel of depth of an exr file: its only one, one of a usual name, or of three equal ones."""
    try:
        import OpenEXR
    except ImportError as error:
        raise DataError(f"{path}: reading exr needs the package OpenEXR: pip install OpenEXR") from error
    with open_file(path, what=what, advice=_ADVICE) as file:
        head = read_head(file)
    try:
        if not head.startswith(b"\x76\x2f\x31\x01"):
            raise ValueError("not an exr file by its first bytes")
        low, high = OpenEXR.File(str(path), header_only=True).header()["dataWindow"]
        if np.prod(np.maximum(high.astype(np.float64) - low + 1, 1)) > MOST_PIXELS:
            raise ValueError(f"a picture of more than {MOST_PIXELS} pixels")
        with OpenEXR.File(str(path), separate_channels=True) as image:
            channels = {name: np.array(channel.pixels) for name, channel in image.channels().items()}
    except Exception as error:  # of the library: RuntimeError, ValueError and others
        raise DataError.about(path, expected=f"a readable exr with {what}", found=reason(error)) from error
    if len(channels) == 1:
        return next(iter(channels.values()))
    for name in _EXR_NAMES:
        if name in channels:
            return channels[name]
    colors = [channels[name] for name in ("R", "G", "B") if name in channels]
    if len(colors) == 3 and all(np.array_equal(colors[0], other, equal_nan=True) for other in colors[1:]):
        return colors[0]
    raise DataError.about(
        path,
        expected=f"{what} as one channel, or one named Z",
        found=f"channels {sorted(channels)[:8]}",
        advice="write depth alone",
    )
