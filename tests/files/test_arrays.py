"""Arrays: judged by header and size before anything is allocated, whatever the archive claims."""

import io
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ammnet_sparse.files.arrays import array_names, read_array
from ammnet_sparse.files.errors import DataError


def npy(header: str, body: bytes = b"", *, version: int = 1) -> bytes:
    """An npy file with any header."""
    size = len(header).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + header.encode() + body


def write_zip(path: Path, members: dict[str, bytes], *, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def npy_of(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("dtype", ["uint8", ">i4", "float16", "float64", "bool"])
def test_arrays_come_back(tmp_path: Path, compression: int, dtype: str) -> None:
    values = np.arange(24).reshape(2, 3, 4).astype(dtype)
    path = write_zip(tmp_path / "a.npz", {"arr_0.npy": npy_of(values)}, compression=compression)
    for key in ("arr_0", None):
        found = read_array(path, key)
        assert found.dtype == values.dtype and found.flags.writeable
        np.testing.assert_array_equal(found, values)
    single = tmp_path / "a.npy"
    np.save(single, np.asfortranarray(values))
    np.testing.assert_array_equal(read_array(single), values)
    np.testing.assert_array_equal(np.load(path)["arr_0"], values)
    assert array_names(path) == ["arr_0"]


def test_a_bomb_takes_no_memory(tmp_path: Path) -> None:
    zeros = npy_of(np.zeros(50_000_000, dtype=np.uint8))
    path = write_zip(tmp_path / "bomb.npz", {"arr_0.npy": zeros})
    assert path.stat().st_size < 100_000
    header = "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }\n"
    claims = write_zip(tmp_path / "claims.npz", {"arr_0.npy": npy(header, b"\0" * 1000)})
    long_header = write_zip(tmp_path / "header.npz", {"arr_0.npy": npy("{" + " " * 50_000_000, version=2)})
    tracemalloc.start()
    for file in (path, claims, long_header):
        with pytest.raises(DataError):
            read_array(file, "arr_0", most_values=1000)
    with pytest.raises(DataError, match=r"8,000,000,000,000 bytes"):
        read_array(claims, "arr_0", most_values=2**50)
    with pytest.raises(DataError, match="three numbers"):
        read_array(path, "arr_0", what="three numbers", check=lambda header: f"shape {header.shape}")
    assert tracemalloc.get_traced_memory()[1] < 4_000_000
    tracemalloc.stop()


def _encrypted(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for place in (6, content.rfind(b"PK\x01\x02") + 8):
        content[place] |= 1
    path.write_bytes(bytes(content))


def _damaged(compression: int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        values = np.random.default_rng(0).integers(0, 9, 5000)
        write_zip(path, {"arr_0.npy": npy_of(values)}, compression=compression)
        content = bytearray(path.read_bytes())
        content[200:210] = b"\xff" * 10
        path.write_bytes(bytes(content))

    return damage


HEADERS = {
    "negative": "{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }",
    "object": "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
    "code": "__import__('os').getcwd()",
    "nested": "(" * 5000,
    "text": "{'descr': '<U9', 'fortran_order': False, 'shape': (1,), }",
    "structured": "{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (1,), }",
    "long": "{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }" + " " * 20_000,
}
BROKEN: dict[str, Callable[[Path], object]] = {
    "encrypted": _encrypted,
    "damaged deflate": _damaged(zipfile.ZIP_DEFLATED),
    "damaged LZMA": _damaged(zipfile.ZIP_LZMA),
    "damaged bzip2": _damaged(zipfile.ZIP_BZIP2),
    "damaged stored": _damaged(zipfile.ZIP_STORED),
    "empty": lambda path: path.write_bytes(b""),
    "empty zip": lambda path: write_zip(path, {}),
    "zeros": lambda path: path.write_bytes(b"\0" * 100),
    "pickle": lambda path: path.write_bytes(b"\x80\x04K\x01."),
    "png": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n..."),
    "html": lambda path: path.write_text("\n <HTML><body>"),
    "git-lfs": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
    "git-annex": lambda path: path.write_text("/annex/objects/SHA256E-s100--abc.npz\n"),
    "folder": lambda path: (path.unlink(), path.mkdir()),
    "missing": Path.unlink,
    **{
        f"header {name}": lambda path, text=text: write_zip(path, {"arr_0.npy": npy(text, b"\0" * 8)})  # type: ignore[misc]
        for name, text in HEADERS.items()
    },
}
NAMED = {"empty", "zeros", "pickle", "png", "git-lfs", "git-annex", "folder"}
"""Kinds of content that the message names; people act on that."""


@pytest.mark.parametrize("kind", BROKEN)
def test_other_content_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    path = write_zip(tmp_path / "a.npz", {"arr_0.npy": npy_of(np.zeros(3))})
    BROKEN[kind](path)
    with pytest.raises(DataError, match=kind if kind in NAMED else None) as caught:
        read_array(path, "arr_0")
    assert str(caught.value).startswith(f"{path}: ") and "pickled data" not in str(caught.value)


def test_npy_files_have_no_names_of_arrays(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.zeros(3))
    with pytest.raises(DataError, match=str(path)):
        read_array(path, "arr_0")
    with pytest.raises(DataError, match=str(path)):
        array_names(path)
    two = write_zip(tmp_path / "two.npz", {"a.npy": npy_of(np.zeros(1)), "b.npy": npy_of(np.zeros(1))})
    with pytest.raises(DataError, match=f"{two}"):
        read_array(two, what="depth")
    content = bytearray(path.read_bytes())
    content[40] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=str(path)):
        read_array(path)
