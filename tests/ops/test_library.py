"""Loading the compiled kernels: a driver that is too old for them leaves the references."""

import warnings
from pathlib import Path

import pytest
import torch

from ammnet_sparse.ops import _library

pytestmark = pytest.mark.no_emulation


@pytest.fixture(scope="module", autouse=True)
def implementation() -> None:
    """In place of that of conftest.py: no operator is called here."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with a library built with CUDA 13.0, which can't be loaded: whoever tries says so."""
    content = b"\x7fELF..." + b"ammnet_sparse: built with CUDA 13000.\0" + bytes(99)
    (tmp_path / "_kernels_cuda.so").write_bytes(content)
    monkeypatch.setattr(_library, "_PACKAGE", tmp_path)
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    monkeypatch.delenv(_library.KERNELS_VARIABLE, raising=False)
    return tmp_path


def test_an_old_driver_leaves_the_references_with_a_warning(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_library, "_driver_version", lambda: 12080)
    with pytest.warns(UserWarning, match=r"13\.0.*12\.8"):
        library = _library._load_library("cuda")
    assert not library.is_loaded


def test_no_warning_where_pytorch_cannot_use_the_device_either(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_library, "_driver_version", lambda: 12080)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not _library._load_library("cuda").is_loaded


@pytest.mark.parametrize("driver", [13000, 13010, 14000, None])
def test_other_drivers_load_it(folder: Path, monkeypatch: pytest.MonkeyPatch, driver: int | None) -> None:
    monkeypatch.setattr(_library, "_driver_version", lambda: driver)
    library = _library._load_library("cuda")
    assert not library.is_loaded and library.note.startswith(f"{folder / '_kernels_cuda.so'}: ")


def test_the_library_holds_the_version_of_its_cuda() -> None:
    path = Path(_library.__file__).parents[1] / "_kernels_cuda.so"
    if not path.is_file():
        pytest.skip(f"no CUDA kernels: {_library.kernel_libraries()['cuda'].note}")
    version = _library._version_in(path)
    assert version is not None and version >= 12000


@pytest.mark.parametrize(
    ("note", "is_loaded", "is_warned"),
    [("not built: no compiler", False, True), ("AMMNET_SPARSE_KERNELS=0", False, False), ("/kernels.so", True, False)],
)
def test_missing_kernels_are_reported(note: str, is_loaded: bool, is_warned: bool) -> None:
    libraries = {device: _library.KernelLibrary(is_loaded, note) for device in ("cpu", "cuda")}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _library._warn_of_missing(libraries)
    assert any(note in str(warning.message) for warning in caught) == is_warned
