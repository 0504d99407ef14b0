"""Reading images: only in the formats that the caller names, judged by size before anything is decoded.

Pillow opens dozens of formats and starts a program for one of them (EPS); names say nothing about the content. So
the formats are always given explicitly, and an unexpected file is described by its first bytes.

A depth image in 16 bits holds millimeters as they are, or, as SSCNet and SUN RGB-D do, with their bits rotated by 3.
Read in the wrong way it still looks like a depth image: rotated values are eight times the millimeters, which passes
for another scale. So the encoding is detected from the values and reported.
"""

import dataclasses
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from ammnet_sparse.files.content import advice_for, describe_content, open_file, read_head
from ammnet_sparse.files.errors import DataError, FileError, reason

COLOR_FORMATS = ("PNG", "JPEG")
"""Pillow's names of the formats of color images."""
LABEL_MAP_FORMATS = ("PNG",)
"""Those of the label maps of a set."""
MOST_PIXELS = 2**26
"""Largest number of pixels of an image: 8192 x 8192."""

DepthEncoding = Literal["plain", "rotated"]
"""How the 16 bits of a value hold millimeters: as they are, or rotated by 3."""

_INVALID_DEPTH = (0, 65535)
_FEWEST_PIXELS, _FEWEST_VALUES = 100, 8
_ROTATED_SHARE, _PLAIN_SHARE = 0.9, 0.5
_PLAUSIBLE_MEDIAN = (200, 12_000)
"""Millimeters of the median depth of a room."""

_EXIF_ORIENTATION = 0x0112
_TIFF_WIDTH, _TIFF_HEIGHT = 0x0100, 0x0101
_TO_STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""What brings an upright picture back to how it is stored, by its orientation."""


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedImage:
    """A decoded image.

    Attributes:
        pixels: [rows, columns] or [rows, columns, channels] of the type that the file has (uint8, uint16, int32,
            float32 or bool; palette images are the numbers of their colors), or of the mode that was asked for.
        mode: Pillow's mode of the file, such as ``RGB``, ``L``, ``P``, ``I;16``, ``F``.
        orientation: EXIF's, 1 to 8; 1 is upright as stored. ``pixels`` follow it where the reader was told so.
    """

    pixels: NDArray[Any]
    mode: str
    orientation: int


def read_image(
    path: str | Path,
    *,
    formats: Sequence[str] = COLOR_FORMATS,
    what: str = "an image",
    mode: str | None = None,
    upright: bool = True,
    size: tuple[int, int] | None = None,
    advice: str = "replace the file",
    content: bytes | None = None,
) -> LoadedImage:
    """Decodes the first picture of an image file.

    Args:
        formats: Pillow's names of the formats to accept, whatever the file is called.
        what: what is expected, for messages.
        mode: convert to this mode of Pillow; None keeps the file's.
        upright: rotate the picture according to its EXIF orientation.
        size: (rows, columns) that it must have once it is upright; checked before it is decoded.
        advice: what to do about an unusable file, for messages.
        content: of the file, where it is in an archive; ``path`` then names it in messages.

    Raises:
        DataError: missing, unreadable, of another format or size.
    """
    names = " or ".join("jpg" if name == "JPEG" else name.lower() for name in formats)
    opened = open_file(path, what=what, advice=advice) if content is None else io.BytesIO(content)
    with opened as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about metadata
        try:
            head = read_head(file)
            with Image.open(file, formats=list(formats)) as image:
                # Before the orientation is asked for: of a png Pillow decodes everything to find it.
                can_turn = upright and image.size == size
                problem = _size_problem(image, size, is_turned=can_turn)
                orientation = 1 if problem else _orientation(image)
                is_turned = upright and orientation >= 5 and not _says_turned_size(image)
                problem = problem or _size_problem(image, size, is_turned=is_turned)
                if problem:
                    raise DataError.about(path, expected=problem[0], found=problem[1], advice=advice)
                image.load()
                picture: Image.Image = image
                if upright:
                    picture = ImageOps.exif_transpose(image)
                elif orientation != _orientation(image):  # Pillow turns a tiff while it decodes it
                    picture = image.transpose(_TO_STORED[orientation])
                pixels = np.array(picture if mode is None else picture.convert(mode))
                return LoadedImage(pixels, image.mode, orientation)
        except FileError:
            raise
        except UnidentifiedImageError:
            found, advice = describe_content(head), advice_for(head, otherwise=advice)
            expected = f"a readable {names} with {what}"
            raise DataError.about(path, expected=expected, found=found, advice=advice) from None
        # A damaged file makes Pillow raise nearly anything, SyntaxError included.
        except Exception as error:
            expected = f"a readable {names} with {what}"
            raise DataError.about(path, expected=expected, found=reason(error), advice=advice) from error


def _orientation(image: Image.Image) -> int:
    orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _says_turned_size(image: Image.Image) -> bool:
    """Whether Pillow gives the size of the upright picture, as of a tiff, and not that of the stored one."""
    tags = getattr(image, "tag_v2", {})
    return image.size == (tags.get(_TIFF_HEIGHT), tags.get(_TIFF_WIDTH))


def _size_problem(image: Image.Image, size: tuple[int, int] | None, *, is_turned: bool) -> tuple[str, str] | None:
    """The expected and the found size; None if they agree."""
    found = image.size if is_turned else image.size[::-1]
    channels = [] if len(image.getbands()) == 1 else [len(image.getbands())]
    shape = f"shape {[*found, *channels]}" + (", turned as its EXIF orientation says" if is_turned else "")
    if size is not None and found != size:
        return f"{size[0]} rows and {size[1]} columns", shape
    if found[0] * found[1] > MOST_PIXELS:
        return f"at most {MOST_PIXELS:,} pixels", shape
    return None


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
    is_valid = ~np.isin(values, _INVALID_DEPTH) & (values > 0) & (values < 65536)
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
    return bool(_PLAUSIBLE_MEDIAN[0] <= np.median(millimeters) <= _PLAUSIBLE_MEDIAN[1])


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
