"""Reading what ``torch.save`` wrote: bounded, and without executing pickled code."""

import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray
from torch import Tensor

from ammnet_sparse.files.content import advice_for, describe_content, is_text, open_file, read_head
from ammnet_sparse.files.errors import DataError, FileError, reason

_GROWTH = 2
"""How many times larger than its file a torch checkpoint may be when decompressed: torch does not compress."""
_SHARING = 16
"""How many times larger than the file all tensors together may be: tensors may share memory."""


_NUMPY_GLOBALS: list[Any] = [
    np.ndarray,
    np.dtype,
    *{type(np.dtype(code)) for code in "?bBhHiIlLqQefd"},
    *(
        (function, f"numpy.{package}.multiarray.{name}")
        for package in ("core", "_core")  # before and since NumPy 2
        for name, function in (
            ("scalar", multiarray.scalar),
            ("_reconstruct", multiarray._reconstruct),
        )
    ),
]
"""What pickled numbers and arrays of NumPy name; their types exclude Python objects."""


def read_torch_file(
    path: str | Path,
    *,
    what: str = "a checkpoint of torch",
    advice: str = "download it again, or save only its state_dict",
    raises: type[FileError] = DataError,
) -> Any:
    """What ``torch.save`` wrote, on the CPU, if it holds tensors and plain values only; no code in it is executed.

    Numbers and arrays of NumPy are plain values: trainers store ``np.mean(...)`` of their scores beside the weights.

    Raises:
        FileError: as ``raises``: missing, damaged, other objects, or tensors that are larger than the file can hold
            (stride 0, compressed archives): they would not fit into memory.
    """
    with open_file(path, what=what, advice=advice, raises=raises) as file:
        size = os.fstat(file.fileno()).st_size
        head = read_head(file)
        found = describe_content(head)
        if not head or "instead of the file" in found or "zeros only" in found:
            raise raises.about(path, expected=what, found=found, advice=advice_for(head, otherwise=advice))
        try:
            if head.startswith(b"PK"):
                with zipfile.ZipFile(file) as archive:
                    unpacked = sum(info.file_size for info in archive.infolist())
                if unpacked > _GROWTH * size:
                    raise ValueError(f"an archive of {size:,} bytes that unpacks to {unpacked:,}")
                file.seek(0)
            with torch.serialization.safe_globals(_NUMPY_GLOBALS):
                contents = torch.load(file, map_location="cpu", weights_only=True)
            _check_logical_size(contents, size)
        # Damaged bytes make the readers raise nearly anything.
        except Exception as error:
            found = _torch_reason(error, head)
            raise raises.about(path, expected=what, found=found, advice=advice) from error
    return contents


def _torch_reason(error: Exception, head: bytes) -> str:
    """What the file is instead, without torch's advice to load it unsafely."""
    if isinstance(error, pickle.UnpicklingError):
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named:
            return f"Python objects ({named[1]}), which are never loaded"
        return describe_content(head) if is_text(head) else "a damaged file, or one with other Python objects"
    return str(error) if type(error) is ValueError else reason(error)


def _check_logical_size(contents: Any, size: int) -> None:
    """Raises ValueError if tensors claim more memory than their file can hold."""
    total = 0
    for name, tensor in _tensors(contents):
        if tensor.layout != torch.strided or tensor.is_nested or tensor.is_meta:
            continue  # judged by who uses it, by its name
        num_bytes = tensor.numel() * tensor.element_size()
        total += num_bytes
        if num_bytes > size or total > _SHARING * size:
            raise ValueError(
                f"{name}: {tensor.dtype} {list(tensor.shape)}, {num_bytes:,} bytes in a file of {size:,} (values that "
                "are repeated by a stride of 0)"
            )


def _tensors(contents: Any) -> list[tuple[str, Tensor]]:
    """Every tensor of nested dicts, lists and tuples, by its dotted name; each container once."""
    found, seen = [], set()
    waiting: list[tuple[str, Any]] = [("", contents)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, Tensor):
            found.append((name, value))
        elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            parts = value.items() if isinstance(value, Mapping) else enumerate(value)
            waiting += [(f"{name}.{part}".lstrip("."), inner) for part, inner in parts]
    return found
