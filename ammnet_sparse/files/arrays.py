"""Reading npy and npz files: the header first, then as many bytes as it and the caller allow, and never a pickle.

A small archive can claim arrays of many gigabytes, so nothing is allocated before the header's shape and
type are what the caller expects. No exception of the libraries below escapes for a damaged file: every
error names the file, what was expected, and what was found.
"""

import dataclasses
import io
import os
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.files.content import advice_for, describe_content, open_file, read_head
from ammnet_sparse.files.errors import DataError, FileError, reason

ArrayCheck = Callable[["ArrayHeader"], str | None]
"""What is wrong with an array judged by its header alone; None if nothing is."""

NUMBERS = "biuf"
"""Kinds of NumPy types that are plain numbers: booleans, integers, floats."""
MOST_VALUES = 2**27
"""Largest number of values if the caller gives none: an image of 11585 x 11585."""

_READABLE = "a readable npz file"
_LONGEST_HEADER = 10_000
_PARSING = threading.Lock()


@dataclasses.dataclass(frozen=True)
class ArrayHeader:
    """The header of an array: shape, type, and whether values are in Fortran order."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    is_fortran_order: bool

    @property
    def num_values(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def num_bytes(self) -> int:
        return self.num_values * self.dtype.itemsize

    def describe(self) -> str:
        return f"{self.dtype} of shape {list(self.shape)}"


class _Unusable(Exception):
    """What was expected of a file, or of the array ``key`` of it, and what was found."""

    def __init__(self, expected: str, found: str, *, key: str = "") -> None:
        super().__init__(expected, found)
        self.expected, self.found, self.key = expected, found, key


def read_array(
    path: str | Path,
    key: str | None = None,
    *,
    what: str = "an array",
    check: ArrayCheck | None = None,
    most_values: int = MOST_VALUES,
    advice: str = "replace the file",
) -> NDArray[Any]:
    """An array of numbers from an npz archive, or the one array of an npy file; by content, whatever the name.

    Args:
        key: name of the array in an archive. None: the only one of an archive, or the array of an npy file; with a
            name an npy file is an error.
        what: what is expected, for messages.
        check: judges the header before anything is allocated.
        most_values: values that the array may have.
        advice: what to do about an unusable file, for messages.

    Raises:
        DataError: missing or unreadable file, no such array, not plain numbers, more values than the
            file can hold or the caller allows, or what ``check`` says.
    """
    with open_file(path, what=what, advice=advice) as file:
        try:
            head = read_head(file)
            if head.startswith(b"\x93NUMPY"):
                if key is not None:
                    raise _Unusable("an npz archive", "a single array")
                size = os.fstat(file.fileno()).st_size
                return _read_stream(file, size, what=what, check=check, most_values=most_values)
            if not head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
                advice = advice_for(head, otherwise=advice)
                raise _Unusable(_READABLE if key else f"{what} as a readable npy or npz file", describe_content(head))
            return _read_npz(file, key, what=what, check=check, most_values=most_values)
        except FileError:
            raise
        except _Unusable as error:
            place = f"{path}: {error.key}" if error.key else path
            raise DataError.about(place, expected=error.expected, found=error.found, advice=advice) from None
        # A damaged file makes zipfile, zlib, lzma and NumPy raise nearly anything.
        except Exception as error:
            raise DataError.about(path, expected=_READABLE, found=reason(error), advice=advice) from error


def array_names(path: str | Path) -> list[str]:
    """Names of the arrays of an npz archive, sorted. Raises DataError for anything else."""
    what, advice = "an npz archive", "replace the file"
    with open_file(path, what=what, advice=advice) as file:
        try:
            head = read_head(file)
            if not head.startswith(b"PK"):
                raise DataError.about(
                    path, expected=what, found=describe_content(head), advice=advice_for(head, otherwise=advice)
                )
            with zipfile.ZipFile(file) as archive:
                return sorted(name.removesuffix(".npy") for name in archive.namelist())
        except FileError:
            raise
        except Exception as error:
            raise DataError.about(path, expected=what, found=reason(error), advice=advice) from error


def has_arrays(path: str | Path, *names: str) -> bool:
    """Whether a file is an npz archive that holds arrays of these names."""
    try:
        return set(names) <= set(array_names(path))
    except FileError:
        return False


def _read_npz(
    file: BinaryIO, key: str | None, *, what: str, check: ArrayCheck | None, most_values: int
) -> NDArray[Any]:
    with zipfile.ZipFile(file) as archive:
        names = {name.removesuffix(".npy"): name for name in archive.namelist()}
        if key is None:
            if len(names) != 1:
                raise _Unusable(f"{what}, alone in its archive", f"{len(names)} arrays {sorted(names)[:8]}")
            key = next(iter(names))
        if key not in names:
            raise _Unusable(f"an array named {key!r}", str(sorted(names)[:8]))
        info = archive.getinfo(names[key])
        if info.flag_bits & 1:
            raise _Unusable(_READABLE, "an encrypted one")
        with archive.open(info) as member:
            return _read_stream(member, info.file_size, key=key, what=what, check=check, most_values=most_values)


def _read_stream(
    stream: Any, size: int, *, what: str, check: ArrayCheck | None, most_values: int, key: str = ""
) -> NDArray[Any]:
    """The array of an npy stream of ``size`` bytes, as declared."""
    header, header_size = _read_header(stream)
    if header.dtype.hasobject:
        raise _Unusable("integers or floats", "pickled Python objects, which are never loaded", key=key)
    if header.dtype.kind not in NUMBERS:
        raise _Unusable("integers or floats", str(header.dtype), key=key)
    if check is not None and (wrong := check(header)):
        raise _Unusable(what, wrong, key=key)
    if header.num_values > most_values:
        raise _Unusable(f"{what} of at most {most_values:,} values", header.describe(), key=key)
    if header_size + header.num_bytes != size:
        expected = f"{header.num_bytes:,} bytes for {header.describe()}"
        raise _Unusable(expected, f"{size - header_size:,}: a damaged file", key=key)
    content = bytearray(header.num_bytes)
    view, filled = memoryview(content), 0
    while filled < len(content):
        count = stream.readinto(view[filled:])
        if not count:
            raise _Unusable(_READABLE, f"an end after {filled:,} of {len(content):,} bytes: a truncated file")
        filled += count
    stream.read(1)  # at the end an archive's checksum is compared
    values: NDArray[Any] = np.frombuffer(content, dtype=header.dtype)
    return values.reshape(header.shape, order="F" if header.is_fortran_order else "C")


def _read_header(stream: Any) -> tuple[ArrayHeader, int]:
    """The header of an npy stream and its length in bytes, without reading more than a header's length."""
    prefix = stream.read(8)
    if len(prefix) < 8 or not prefix.startswith(b"\x93NUMPY"):
        raise _Unusable(_READABLE, f"not a NumPy array but {describe_content(prefix)}")
    version = (prefix[6], prefix[7])
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise _Unusable(_READABLE, f"version {version[0]}.{version[1]} of npy files, which is unknown")
    length_size = 2 if version == (1, 0) else 4
    length_bytes = stream.read(length_size)
    length = int.from_bytes(length_bytes, "little")
    if len(length_bytes) < length_size or length > _LONGEST_HEADER:
        raise _Unusable(_READABLE, f"a header of {length:,} bytes: a damaged file")
    text = stream.read(length)
    if len(text) < length:
        raise _Unusable(_READABLE, "a truncated header")
    packed = io.BytesIO(length_bytes + text)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    # NumPy parses the header as Python, and Python 3.11 parses wrongly in two threads at once, though seldom
    # ("AST constructor recursion depth mismatch").
    with _PARSING:
        try:
            shape, is_fortran_order, dtype = read(packed, max_header_size=_LONGEST_HEADER)
        except Exception as error:
            raise _Unusable(_READABLE, f"a damaged header ({reason(error)})") from error
    if any(not 0 <= size < 2**62 for size in shape):
        raise _Unusable(_READABLE, f"shape {list(shape)}: a damaged header")
    return ArrayHeader(tuple(int(size) for size in shape), dtype, bool(is_fortran_order)), 8 + length_size + length
