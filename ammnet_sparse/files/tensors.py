"""Reading safetensors files: the library checks header and bounds, and nothing stays memory-mapped.

Truncating a mapped file kills the process with SIGBUS, and the library maps every file that it opens. So tensors are
made from the bytes of the file, and a packed set, which stays open for hours, reads its rows by their place in it.
"""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors

from ammnet_sparse.files.content import HEAD_BYTES, advice_for, describe_content, open_file, read_head
from ammnet_sparse.files.errors import DataError, FileError, reason

if TYPE_CHECKING:
    import torch

_LONGEST_HEADER = 100_000_000
"""Bytes, as the format has it."""


@dataclasses.dataclass(frozen=True)
class TensorEntry:
    """A tensor of a safetensors file: its type as the format calls it, its shape, and its bytes in the file."""

    type_name: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclasses.dataclass(frozen=True)
class TensorsHeader:
    """The checked header of a safetensors file: its tensors by name, and its metadata."""

    entries: dict[str, TensorEntry]
    metadata: dict[str, str]


def read_tensors_header(
    path: str | Path,
    *,
    what: str = "a safetensors file",
    advice: str = "replace the file",
    raises: type[FileError] = DataError,
) -> TensorsHeader:
    """The header of a safetensors file.

    Args:
        what: what the file is expected to be, for messages.
        advice: what to do about an unusable one, for messages.
        raises: the error to raise.

    Raises:
        FileError: as ``raises``: missing, no safetensors file, a damaged header, or one that does not fit the size of
            the file.
    """
    with open_file(path, what=what, advice=advice, raises=raises) as file:
        head = read_head(file)
        try:
            with safetensors.safe_open(path, framework="numpy"):  # checks the header, and that it fits the file
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length))
        except Exception as error:  # the library and Python's parser have errors of many types
            raise _unusable(path, head, error, what=what, advice=advice, raises=raises) from error
    metadata = header.pop("__metadata__", None) or {}
    entries = {name: _entry(value, 8 + length) for name, value in header.items()}
    return TensorsHeader(entries, metadata)


def read_tensors(
    path: str | Path,
    *,
    what: str = "a safetensors file",
    advice: str = "replace the file",
    raises: type[FileError] = DataError,
) -> dict[str, "torch.Tensor"]:
    """The tensors of a safetensors file by name, on the CPU; arguments and errors as ``read_tensors_header``."""
    import safetensors.torch  # PyTorch takes seconds, and `data check` does not need it

    with open_file(path, what=what, advice=advice, raises=raises) as file:
        content = file.read()
    try:
        return safetensors.torch.load(content)
    except Exception as error:  # SafetensorError, or KeyError for a type that PyTorch does not have
        raise _unusable(path, content[:HEAD_BYTES], error, what=what, advice=advice, raises=raises) from error


def is_safetensors(path: str | Path) -> bool:
    """Whether a file begins like a safetensors file; False if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return _begins_well(file.read(9))
    except (OSError, ValueError):
        return False


def _begins_well(head: bytes) -> bool:
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _LONGEST_HEADER


def _entry(value: dict[str, Any], offset: int) -> TensorEntry:
    start, end = value["data_offsets"]
    return TensorEntry(value["dtype"], tuple(value["shape"]), offset + start, offset + end)


def _unusable(
    path: str | Path, head: bytes, error: Exception, *, what: str, advice: str, raises: type[FileError]
) -> FileError:
    found = f"a damaged or truncated file ({reason(error)})" if _begins_well(head) else describe_content(head)
    return raises.about(path, expected=what, found=found, advice=advice_for(head, otherwise=advice))
