"""Reading safetensors files: header first, bounded, and without memory maps.

Truncating a memory-mapped file kills the process with SIGBUS. Here the bytes are read, so a truncated file is an
error with its name; the page cache still shares them between processes. PyTorch is imported only when a
tensor is made: `data check` does not need it.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.files.content import advice_for, describe_content, open_file, read_head
from ammnet_sparse.files.errors import DataError, FileError, reason

if TYPE_CHECKING:
    import torch

_TYPES = {
    "BOOL": ("bool", 1),
    "U8": ("uint8", 1),
    "I8": ("int8", 1),
    "U16": ("uint16", 2),
    "I16": ("int16", 2),
    "U32": ("uint32", 4),
    "I32": ("int32", 4),
    "U64": ("uint64", 8),
    "I64": ("int64", 8),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F32": ("float32", 4),
    "F64": ("float64", 8),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "C64": ("complex64", 8),
}
"""Types of the safetensors format: PyTorch's name and the bytes of a value."""
_NUMPY_TYPES = {
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "U16": "<u2",
    "I16": "<i2",
    "U32": "<u4",
    "I32": "<i4",
    "U64": "<u8",
    "I64": "<i8",
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
}
_LONGEST_HEADER = 100_000_000
"""Bytes, as the format has it."""
_LARGEST_DIMENSION = 2**48


@dataclasses.dataclass(frozen=True)
class TensorEntry:
    """A tensor of a safetensors file: its type as the format calls it, its shape, and its bytes in the file."""

    type_name: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def dtype(self) -> "torch.dtype":
        """PyTorch's type."""
        import torch

        dtype: torch.dtype = getattr(torch, _TYPES[self.type_name][0])
        return dtype


class SafetensorsFile:
    """An open safetensors file whose header has been checked; a context manager.

    Args:
        path: the file.
        what: what it is expected to be, for messages.
        advice: what to do about an unusable one, for messages.
        raises: the error to raise.

    Attributes:
        entries: the tensors by name.
        metadata: text by key.

    Raises:
        FileError: as ``raises``: missing, no safetensors file, a damaged header, or one that does not fit the size of
            the file.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        what: str = "a safetensors file",
        advice: str = "replace the file",
        raises: type[FileError] = DataError,
    ) -> None:
        self.path = Path(path)
        self._what, self._advice, self._raises = what, advice, raises
        self._file: BinaryIO = open_file(path, what=what, advice=advice, raises=raises)
        try:
            self.metadata, self.entries = self._read_header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "SafetensorsFile":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def read(self, name: str) -> "torch.Tensor":
        """A tensor on the CPU, in memory of its own.

        Raises:
            FileError: the file was truncated after it was opened.
            KeyError: no tensor of that name.
        """
        import torch

        entry = self.entries[name]
        content = self._bytes(name, entry.start, entry.end)
        if not content:
            return torch.empty(entry.shape, dtype=entry.dtype)
        return torch.frombuffer(content, dtype=entry.dtype).reshape(entry.shape)

    def read_rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Rows ``start`` to ``stop`` of the first axis, for types that NumPy has; otherwise as ``read``."""
        entry = self.entries[name]
        rows = entry.shape[0]
        stop = rows if stop is None else stop
        if not 0 <= start <= stop <= rows:
            raise IndexError(f"{self.path}: {name}: expected rows within 0..{rows}, found {start}..{stop}")
        row_bytes = (entry.end - entry.start) // max(rows, 1)
        content = self._bytes(name, entry.start + start * row_bytes, entry.start + stop * row_bytes)
        values: NDArray[Any] = np.frombuffer(content, dtype=np.dtype(_NUMPY_TYPES[entry.type_name]))
        return values.reshape(stop - start, *entry.shape[1:])

    def _bytes(self, name: str, start: int, end: int) -> bytearray:
        content = bytearray(end - start)
        view, filled = memoryview(content), 0
        while filled < len(content):
            try:
                count = os.preadv(self._file.fileno(), [view[filled : filled + 2**30]], start + filled)
            except OSError as error:
                raise self._error(f"{name}, which cannot be read ({reason(error)})") from error
            if count == 0:
                raise self._error(f"an end within {name}: the file was cut while it was in use")
            filled += count
        return content

    def _read_header(self) -> tuple[dict[str, str], dict[str, TensorEntry]]:
        size = os.fstat(self._file.fileno()).st_size
        head = read_head(self._file)
        length = int.from_bytes(head[:8], "little")
        if size < 10 or length > min(size - 8, _LONGEST_HEADER) or head[8:9] != b"{":
            advice = advice_for(head, otherwise=self._advice)
            is_cut = size >= 10 and head[8:9] == b"{" and length <= _LONGEST_HEADER
            found = "an end within its header: a truncated file" if is_cut else describe_content(head)
            raise self._raises.about(self.path, expected=self._what, found=found, advice=advice)
        try:
            self._file.seek(8)
            header = json.loads(self._file.read(length), object_pairs_hook=_unique)
            metadata = header.pop("__metadata__", None) or {}
            if not all(isinstance(text, str) for text in metadata.values()):
                raise ValueError("metadata that is not text")
            entries = {name: _entry(name, value, 8 + length) for name, value in header.items()}
            _check_layout(entries, 8 + length, size)
        # A hostile header makes the parser raise nearly anything, RecursionError included.
        except Exception as error:
            found = str(error) if type(error) is ValueError else reason(error)
            raise self._error(f"a damaged header: {found[:300]}") from error
        return dict(metadata), entries

    def _error(self, found: str) -> FileError:
        return self._raises.about(self.path, expected=self._what, found=found, advice=self._advice)


def is_safetensors(path: str | Path) -> bool:
    """Whether a file begins like a safetensors file; False if it cannot be read."""
    try:
        with open(path, "rb") as file:
            head = file.read(9)
    except (OSError, ValueError):
        return False
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _LONGEST_HEADER


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a duplicate name")
    return values


def _entry(name: str, value: Any, offset: int) -> TensorEntry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name[:80]}: expected dtype, shape and data_offsets")
    type_name, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if type_name not in _TYPES:
        raise ValueError(f"{name[:80]}: unknown type {str(type_name)[:40]!r}")
    for numbers in (shape, offsets):
        is_list = isinstance(numbers, list) and all(type(number) is int for number in numbers)
        if not is_list or not all(0 <= number < _LARGEST_DIMENSION for number in numbers):
            raise ValueError(f"{name[:80]}: expected lists of whole numbers from 0 on")
    count = 1
    for length in shape:
        count *= length
    if len(offsets) != 2 or offsets[1] - offsets[0] != count * _TYPES[type_name][1]:
        raise ValueError(f"{name[:80]}: expected as many bytes as {type_name} {shape} takes, found {offsets}")
    return TensorEntry(type_name, tuple(shape), offset + offsets[0], offset + offsets[1])


def _check_layout(entries: Mapping[str, TensorEntry], start: int, size: int) -> None:
    """Checks that the tensors are contiguous and fill the file."""
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != start:
            raise ValueError(f"{name[:80]}: overlaps another tensor, or leaves a gap")
        start = entry.end
    if start != size:
        what = "a truncated file" if start > size else "more bytes behind its end"
        raise ValueError(f"{start:,} bytes of tensors and header in a file of {size:,}: {what}")
