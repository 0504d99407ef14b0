"""Arrays: judged by header and size before anything is allocated, whatever the archive claims."""

import io
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ammnet_sparse.files.arrays import array_names, read_array
from ammnet_sparse.files.errors import DataError, FileError


class OtherError(FileError):
    pass


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
    with pytest.raises(DataError, match="expected 8,000,000,000,000 bytes for float64"):
        read_array(claims, "arr_0", most_values=2**50)
    with pytest.raises(DataError, match="expected three numbers, found shape"):
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
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "encrypted": (_encrypted, "found an encrypted one"),
    "damaged deflate": (_damaged(zipfile.ZIP_DEFLATED), "expected a readable npz file"),
    "damaged LZMA": (_damaged(zipfile.ZIP_LZMA), "expected a readable npz file"),
    "damaged bzip2": (_damaged(zipfile.ZIP_BZIP2), "expected a readable npz file"),
    "damaged stored": (_damaged(zipfile.ZIP_STORED), "expected a readable npz file"),
    "empty": (lambda path: path.write_bytes(b""), "found an empty file"),
    "empty zip": (lambda path: write_zip(path, {}), "expected an array named 'arr_0', found"),
    "zeros": (lambda path: path.write_bytes(b"\0" * 100), "found zeros only, as of an interrupted download"),
    "pickle": (lambda path: path.write_bytes(b"\x80\x04K\x01."), "found a pickle"),
    "png": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n..."), "found a png image"),
    "html": (lambda path: path.write_text("\n <HTML><body>"), "an HTML page .*; the download was answered with a page"),
    "git-lfs": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "'git lfs pull'"),
    "git-annex": (lambda path: path.write_text("/annex/objects/SHA256E-s100--abc.npz\n"), "'git annex get'"),
    "folder": (lambda path: (path.unlink(), path.mkdir()), "found a folder"),
    "missing": (lambda path: path.unlink(), "found no such file"),
    **{
        f"header {name}": (
            lambda path, text=text: write_zip(path, {"arr_0.npy": npy(text, b"\0" * 8)}),
            "arr_0|readable",
        )
        for name, text in HEADERS.items()
    },
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_no_archive_of_numbers_is_named(tmp_path: Path, kind: str) -> None:
    path = write_zip(tmp_path / "a.npz", {"arr_0.npy": npy_of(np.zeros(3))})
    change, message = BROKEN[kind]
    change(path)
    with pytest.raises(OtherError, match=message) as caught:
        read_array(path, "arr_0", raises=OtherError)
    assert str(caught.value).startswith(f"{path}: ") and "pickled data" not in str(caught.value)


def test_a_single_array_has_no_names(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.zeros(3))
    with pytest.raises(DataError, match="expected an npz archive, found a single array"):
        read_array(path, "arr_0")
    with pytest.raises(DataError, match="expected an npz archive, found a NumPy array"):
        array_names(path)
    two = write_zip(tmp_path / "two.npz", {"a.npy": npy_of(np.zeros(1)), "b.npy": npy_of(np.zeros(1))})
    with pytest.raises(DataError, match=r"alone in its archive, found 2 arrays \['a', 'b'\]"):
        read_array(two, what="depth")
    content = bytearray(path.read_bytes())
    content[40] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match="damaged header"):
        read_array(path)
