"""Reading pickled dictionaries of text, numbers and NumPy arrays; anything else in them is refused, and nothing is run.

A pickle is a program. Its opcodes are read first, without running them: the classes that it names must be those of
arrays, and its sizes must be possible. Then the program runs with substitutes of these classes, which only keep
numbers. So no function of NumPy is called by the file, whose arguments could allocate anything or forge objects.
"""

import io
import math
import pickle
import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.files.content import HEAD_BYTES, advice_for, describe_content, read_bytes
from ammnet_sparse.files.errors import DataError, reason
from ammnet_sparse.files.yaml_text import short

MOST_BYTES = 2**27
"""Largest file by default."""
_NUMBER_TYPE = re.compile(r"([<>|=]?)(b1|[iu][1248]|f[248])", re.ASCII)


class _DType:
    """In place of ``numpy.dtype``: the type of plain numbers."""

    def __init__(self, name: object, *_: object) -> None:
        found = _NUMBER_TYPE.fullmatch(name) if isinstance(name, str) else None
        if found is None:
            raise pickle.UnpicklingError(f"an array of type {short(name)} instead of numbers")
        self.dtype = np.dtype(f"{found[1]}{found[2]}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("an array of structures instead of numbers")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """In place of ``numpy.ndarray``: its numbers, once its state has been set."""

    values: NDArray[Any] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, is_fortran, content = state
        self.values = _values(content, kind, shape, order="F" if is_fortran else "C")


def _values(content: Any, kind: Any, shape: Any, *, order: Any) -> NDArray[Any]:
    if not isinstance(kind, _DType) or not isinstance(content, bytes | bytearray) or not isinstance(shape, tuple):
        raise pickle.UnpicklingError("an array of anything but numbers")
    if any(type(size) is not int or size < 0 for size in shape) or len(content) != (
        math.prod(shape) * kind.dtype.itemsize
    ):
        raise pickle.UnpicklingError(f"{len(content)} bytes for {kind.dtype} of shape {short(shape)}")
    return np.frombuffer(content, dtype=kind.dtype).reshape(shape, order=order)


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _from_buffer(content: object, kind: object, shape: object, order: object) -> _Array:
    array = _Array()
    array.values = _values(content, kind, shape, order="F" if order == "F" else "C")
    return array


def _scalar(kind: object, content: object) -> _Array:
    return _from_buffer(content, kind, (), "C")


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _reconstruct,
    ("numpy", "dtype"): _DType,
    **{
        (f"numpy.{core}.{module}", name): function
        for core in ("core", "_core")
        for module, name, function in (
            ("multiarray", "_reconstruct", _reconstruct),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _from_buffer),  # protocol 5
        )
    },
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        function = _ALLOWED.get((module, name))
        if function is None:
            raise pickle.UnpicklingError(f"{short(f'{module}.{name}')}, which is not an array's and is never run")
        return lambda *arguments: function(*arguments)  # a new one, because a pickle can set attributes

    def persistent_load(self, pid: object) -> Any:
        raise pickle.UnpicklingError("a reference to something outside of the file")


def read_pickled_dict(
    path: Path,
    *,
    what: str = "a pickled dictionary of arrays",
    most: int = MOST_BYTES,
    advice: str = "replace the file",
) -> dict[str, Any]:
    """The dictionary in a pickle: arrays of plain numbers, NumPy's scalars as arrays, and Python's own plain values.

    Arrays may be values, or entries of a list or tuple that is a value.

    Arrays cannot be written to.

    Args:
        what: what the file is expected to be, for messages.
        most: largest number of bytes of the file.

    Raises:
        DataError: missing, too large, damaged, not a dictionary, or with anything but these in it.
    """
    content = read_bytes(path, what=what, most=most, advice=advice)
    if content[:1] != b"\x80":  # protocol 2 and later
        head = content[:HEAD_BYTES]
        raise DataError.about(
            path, expected=what, found=describe_content(head), advice=advice_for(head, otherwise=advice)
        )
    try:
        _check(content)
        found = _Unpickler(io.BytesIO(content)).load()
    # A damaged pickle makes the module raise nearly anything.
    except Exception as error:
        text = str(error) if type(error) is pickle.UnpicklingError else f"a damaged one ({reason(error)})"
        raise DataError.about(path, expected=what, found=text, advice=advice) from error
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise DataError.about(path, expected=what, found=f"a pickled {type(found).__name__}", advice=advice)
    return {
        key: [_plain(entry) for entry in value] if isinstance(value, list | tuple) else _plain(value)
        for key, value in found.items()
    }


def _plain(value: Any) -> Any:
    return value.values if isinstance(value, _Array) else value


def _check(content: bytes) -> None:
    """Raises an error for what would take gigabytes or forever.

    Lengths beyond the end of the file, indices that would allocate a huge table, sets, and tuples as keys: of tuples
    within tuples a hash may take forever. Follows the stack of the program: whether each of its values is a tuple, or
    was made with one.
    """
    stack: list[bool] = []
    marks: list[int] = []
    memo: dict[object, bool] = {}
    for opcode, argument, _ in pickletools.genops(content):  # raises ValueError for lengths beyond the end
        name, before = opcode.name, opcode.stack_before
        if ("SET" in name and "ITEM" not in name) or name == "ADDITEMS":
            raise pickle.UnpicklingError("a set")
        if name == "MARK":
            marks.append(len(stack))
        elif "PUT" in name or name == "MEMOIZE":
            index = len(memo) if argument is None else argument
            if not (isinstance(index, int) and 0 <= index <= len(content)):
                raise pickle.UnpicklingError(f"a memo index of {index}")
            memo[index] = stack[-1]
        elif "GET" in name:
            stack.append(memo[argument])
        else:
            num_fixed = before.index(pickletools.markobject) if pickletools.markobject in before else len(before)
            start = marks.pop() if num_fixed < len(before) else len(stack)
            first = start - num_fixed
            if first < (marks[-1] if marks else 0):
                raise pickle.UnpicklingError("a damaged one")
            popped = stack[first:]
            keys = {"SETITEM": popped[1:2], "SETITEMS": popped[1::2], "DICT": popped[::2]}.get(name, [])
            if any(keys):
                raise pickle.UnpicklingError("a tuple as key")
            stack[first:] = [any(popped) or "TUPLE" in name] * len(opcode.stack_after)
