"""The images of a frame as stored in their files: depth, color and label map; and the pose."""

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from ammnet_sparse.camera.files.frame_files import FrameFiles
from ammnet_sparse.camera.files.poses import Pose, PoseConvention, Trajectory, read_trajectory
from ammnet_sparse.files.arrays import array_names, read_array
from ammnet_sparse.files.content import open_file, read_head
from ammnet_sparse.files.errors import DataError, abbreviated, reason
from ammnet_sparse.files.images import MOST_PIXELS, read_image

FORMATS = ("PNG", "TIFF", "JPEG", "BMP", "WEBP", "PPM")
"""Pillow's names of the pictures that are opened."""
_ARRAY_NAMES = ("depth", "depth_map", "label", "labels", "label_map", "z", "arr_0")
"""Names of the array to take from an archive of several."""
_EXR_NAMES = ("Z", "depth.Z", "Depth.Z", "depth.V", "Depth.V", "ViewLayer.Depth.Z", "View Layer.Depth.Z", "depth", "Y")
"""Channels of depth in an exr file of several, as renderers name them."""
_WIDE_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
"""Pillow's modes of more than 8 bits, which it would cut off instead of scaling."""
_MOST_OF_FEW_BITS = 4095
"""Largest value of a 12-bit camera in a 16-bit file; a picture of 16 bits without larger values would be black."""
_CLOCKWISE = {1: 0, 3: 180, 6: 90, 8: 270}
"""EXIF's orientation to the degrees by which a viewer turns the stored image clockwise; others are mirrored."""
_ADVICE = "replace the file"


@dataclasses.dataclass(frozen=True, eq=False)
class StoredImages:
    """The images of one frame as they are stored.

    Attributes:
        name: of the frame, for people and files.
        color: [rows, columns, 3] uint8 RGB, or None.
        depth: [rows, columns] numbers as the sensor gives them, registered to the color image as that is stored.
        label_map: [rows, columns] numbers of classes, or None.
        pose: [4, 4] camera to world, or None.
        pose_convention: the pose's camera axes, where its file says so.
        exif_turn: degrees clockwise by which EXIF turns the color image: 0, 90, 180 or 270.
        files: where they come from, for messages.
    """

    name: str
    color: NDArray[np.uint8] | None
    depth: NDArray[Any]
    label_map: NDArray[Any] | None = None
    pose: NDArray[np.float64] | None = None
    exif_turn: int = 0
    pose_convention: PoseConvention | None = None
    files: FrameFiles | None = None


def read_stored(files: FrameFiles) -> StoredImages:
    """Reads the files of a frame.

    Raises:
        DataError: a file that cannot be read.
    """
    color, exif_turn = (None, 0) if files.color is None else read_color(files.color)
    pose, convention = (None, None) if files.pose is None else read_pose(files, files.pose)
    return StoredImages(
        files.name,
        color,
        image_array(files.depth, "a depth image"),
        None if files.label_map is None else image_array(files.label_map, "a label map"),
        pose,
        exif_turn,
        convention,
        files,
    )


def read_pose(files: FrameFiles, path: Path) -> tuple[Pose, PoseConvention | None]:
    """The pose of a frame in a file of one or many, and its convention, where the file has one. Raises DataError."""
    try:
        status = path.stat()
        trajectory = _trajectory(path, status.st_mtime_ns, status.st_size)
    except OSError:
        trajectory = read_trajectory(path)  # which says what is wrong
    if isinstance(trajectory, DataError):
        raise trajectory
    names = [files.name, *(image.stem for image in (files.color, files.depth) if image is not None)]
    pose = trajectory.pose_of(files.time, names=names, index=files.index, count=files.count, numbers=files.numbers)
    return pose, trajectory.convention


@functools.lru_cache(maxsize=1)
def _trajectory(path: Path, changed: int, size: int) -> Trajectory | DataError:
    """The poses of a file in its present state, read once for all frames; or why it cannot be read."""
    try:
        return read_trajectory(path)
    except DataError as error:
        return error


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


def as_array(values: ArrayLike, name: str, expected: str) -> NDArray[Any]:
    """An array of numbers; of a tensor of any layout, device and type. Raises DataError for anything else."""
    if isinstance(values, torch.Tensor):
        values = _numpy_of(values, name, expected)
    if isinstance(values, np.ma.MaskedArray):
        values = values.filled(0)  # no depth, void, black
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:  # lists of unequal lengths, arrays of other devices
        raise DataError(f"{name}: expected {expected} of numbers, found {reason(error)}") from error
    if array.dtype.kind not in "iufb":
        raise DataError(f"{name}: expected {expected} of numbers, found {type(values).__name__} of {array.dtype}")
    return array


def _numpy_of(tensor: torch.Tensor, name: str, expected: str) -> NDArray[Any]:
    """The values of a tensor without its gradient; floats that NumPy lacks (bfloat16) become float32."""
    try:
        if tensor.layout != torch.strided:
            if tensor.numel() > 4 * MOST_PIXELS:
                raise ValueError(f"a sparse tensor of {tensor.numel():,} values")
            tensor = tensor.to_dense()
        plain = tensor.detach().cpu().resolve_conj().resolve_neg()
        if plain.is_quantized:
            plain = plain.dequantize()
        elif plain.is_floating_point() and plain.dtype not in (torch.float16, torch.float32, torch.float64):
            plain = plain.float()
        found: NDArray[Any] = plain.numpy()
    except (RuntimeError, TypeError, ValueError) as error:  # meta, nested and others hold no such values
        raise DataError(f"{name}: expected {expected} of numbers, found {reason(error)}") from error
    return found


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
        shape = np.maximum(high.astype(np.int64) - low + 1, 1)[::-1]
        if math.prod(shape.tolist()) > MOST_PIXELS:
            raise ValueError(f"a picture of more than {MOST_PIXELS} pixels")
        image = OpenEXR.InputFile(str(path))  # reads single channels, where File decodes all of them
        channels = image.header()["channels"]
        colors = [name for name in ("R", "G", "B") if name in channels]
        chosen = [*channels] if len(channels) == 1 else [name for name in _EXR_NAMES if name in channels][:1]
        found = [_exr_channel(image, name, shape) for name in chosen or (colors if len(colors) == 3 else [])]
    except Exception as error:  # of the library: RuntimeError, ValueError and others
        raise DataError.about(path, expected=f"a readable exr with {what}", found=reason(error)) from error
    if found and all(np.array_equal(found[0], other, equal_nan=True) for other in found[1:]):
        return found[0]
    raise DataError.about(
        path,
        expected=f"{what} as one channel, or one named Z",
        found=f"channels {abbreviated(sorted(channels))}",
        advice="write depth alone",
    )


def _exr_channel(image: Any, name: str, shape: NDArray[np.int64]) -> NDArray[Any]:
    """One channel of an open exr file, [rows, columns]."""
    content, kind = image.channel(name), str(image.header()["channels"][name].type)
    dtype = np.float16 if "HALF" in kind else np.uint32 if "UINT" in kind else np.float32
    return np.frombuffer(content, dtype=dtype).reshape(shape)


def read_color(path: Path) -> tuple[NDArray[np.uint8], int]:
    """An RGB image [rows, columns, 3] uint8 as it is stored, and the degrees clockwise that EXIF turns it by.

    Images of 16 bits are scaled from their whole range, or from the 8, 10 or 12 bits that they use; gray images of
    floats from 0..1 or 0..255.

    Raises:
        DataError: it cannot be read, is mirrored, or holds values that are not colors.
    """
    loaded = read_image(path, formats=FORMATS, what="a color image", upright=False, advice=_ADVICE)
    if loaded.orientation not in _CLOCKWISE:
        raise DataError(
            f"{path}: expected an image that is upright or turned, found a mirrored one (EXIF orientation "
            f"{loaded.orientation}); save color and depth unmirrored"
        )
    turn = _CLOCKWISE[loaded.orientation]
    if loaded.mode in _WIDE_MODES:
        gray = _eight_bits(loaded.pixels, path)
        return np.repeat(gray[..., None], 3, axis=2), turn
    pixels = loaded.pixels
    if loaded.mode != "RGB":
        pixels = read_image(path, formats=FORMATS, what="a color image", mode="RGB", upright=False).pixels
    if loaded.mode in ("RGB", "RGBA") and pixels.max(initial=0) <= _MOST_OF_FEW_BITS >> 8:
        low = _low_bytes(path)
        if low is not None and low.shape == pixels.shape:
            values = pixels.astype(np.uint16) << 8 | low
            return np.rint(values / _divisor(int(values.max()))).astype(np.uint8), turn
    return pixels, turn


def _low_bytes(path: Path) -> NDArray[np.uint8] | None:
    """The lower bytes of the colors of a 16-bit png or tiff, of which Pillow keeps the upper ones; None of others."""
    swapped = {"RGB;16B": "RGB;16L", "RGB;16L": "RGB;16B", "RGBA;16B": "RGBA;16L", "RGBA;16L": "RGBA;16B"}
    with Image.open(path, formats=FORMATS) as image:
        tiles = []
        for codec, extents, offset, args in image.tile:
            mode = args if isinstance(args, str) else (args or ("",))[0]
            if mode not in swapped:
                return None
            other = swapped[mode]
            tiles.append((codec, extents, offset, other if isinstance(args, str) else (other, *(args or ())[1:])))
        if not tiles:
            return None
        image.tile = tiles  # type: ignore[assignment]
        return np.asarray(image.convert("RGB"))


def _divisor(largest: int) -> float:
    """The divisor that brings 16-bit values, which use 8, 10, 12 or all of their bits, to 8 bits."""
    return next(most for most in (255, 1023, _MOST_OF_FEW_BITS, 65535) if largest <= most) / 255


def _eight_bits(values: NDArray[Any], path: Path) -> NDArray[np.uint8]:
    """Gray of more than 8 bits as 8 bits."""
    numbers = values.astype(np.float64)
    low, high = (float(numbers.min()), float(numbers.max())) if numbers.size else (0.0, 0.0)
    if not np.isfinite([low, high]).all() or low < 0 or high > 65535:
        raise DataError(
            f"{path}: expected a color image of 8 or 16 bits, or floats in 0..1 or 0..255, found values {low:g} to "
            f"{high:g}; is it the depth image?"
        )
    if values.dtype.kind == "f":
        if high > 255:
            raise DataError(
                f"{path}: expected gray floats in 0..1 or 0..255, found values {low:g}..{high:g}; rescale them"
            )
        numbers *= 255.0 if high <= 1.0 else 1.0
    else:
        numbers /= _divisor(int(high))
    return np.rint(numbers).astype(np.uint8)
