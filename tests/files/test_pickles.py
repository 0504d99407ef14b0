"""Pickles: arrays and plain values are read, and nothing else is, whatever the file claims."""

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ammnet_sparse.files.errors import DataError
from ammnet_sparse.files.pickles import read_pickled_dict

VALUES = {
    "bytes": np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
    "turned": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big-endian": np.arange(5, dtype=">i4"),
    "strided": np.arange(10, dtype=np.float32)[::3],
    "flags": np.array([True, False]),
    "nothing": np.zeros((0, 3)),
    "scalar": np.float64(2.5),
    "name": "posed_images/a/1.jpg",
    "list": [1, 2.5, None],
    "scalars": [np.float64(1.5), np.float64(2.5)],
}

NESTED = b"\x80\x04}" + b"K\x01" + b"2\x86" * 100 + b"K\x01s."  # a key of pairs of the same, 2**100 numbers


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_arrays_come_back(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(VALUES, protocol=protocol))
    found = read_pickled_dict(path)
    assert list(found) == list(VALUES)
    for key, value in VALUES.items():
        np.testing.assert_array_equal(found[key], value)
        assert not isinstance(value, np.ndarray) or found[key].dtype == value.dtype


class _Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("touched"),)


HUGE = b"\x80\x04cnumpy\nndarray\n(J\xff\xff\xff\x7f\x85tR."  # ndarray((2**31 - 1,)) alone
MEMO = b"\x80\x04}r\xff\xff\xff\x7f."  # LONG_BINPUT with a huge index
LONG = b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b"."  # BINBYTES8 of a terabyte


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (pickle.dumps({"a": _Runs()}), "pathlib"),
        (pickle.dumps({"a": OrderedDict()}), "collections.OrderedDict"),
        (pickle.dumps({"a": np.array([object(), None])}), "'O8'"),
        (pickle.dumps({"a": np.zeros(2, dtype=[("x", "f4")])}), "V4"),
        (pickle.dumps({"a": np.array(["text"])}), "U4"),
        (pickle.dumps([1, 2]), "list"),
        (pickle.dumps(VALUES)[:-40], "damaged"),
        (b"\x89PNG\r\n\x1a\n", "png image"),
        (b"", "empty"),
        (HUGE, ""),
        (MEMO, "memo index"),
        (LONG, "damaged"),
        (NESTED, "a tuple as key"),
        (pickle.dumps({"a": {(1, 2): 3}}), "a tuple as key"),
        (pickle.dumps({"a": {1, 2}}), "a set"),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, found: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.pkl"
    path.write_bytes(content)
    with pytest.raises(DataError, match="a.pkl: expected") as caught:
        read_pickled_dict(path)
    assert found in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["a.pkl"]


def test_a_false_length_and_a_large_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    content = pickle.dumps({"a": np.zeros(100, dtype=np.uint8)})
    path.write_bytes(content.replace(b"Kd\x85", b"K\xc8\x85"))  # of shape [200]
    with pytest.raises(DataError, match=r"100 bytes for uint8 of shape \(200,\)"):
        read_pickled_dict(path)
    path.write_bytes(content)
    with pytest.raises(DataError, match="larger file"):
        read_pickled_dict(path, most=100)
