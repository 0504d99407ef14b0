"""Packaging: one version, the choice of spconv, installed use from any folder, and the environment of ``make``."""

import importlib.metadata
import os
import re
import runpy
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from setuptools import find_packages

import ammnet_sparse

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def setup_script() -> dict:
    """What setup.py defines, without running the set-up."""
    return runpy.run_path(str(REPOSITORY / "setup.py"))


@pytest.fixture(scope="module")
def spconv_requirements(setup_script: dict) -> Callable[[str], list[str]]:
    return setup_script["spconv_requirements"]


def test_version_has_one_source() -> None:
    citation = (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", ammnet_sparse.__version__)
    assert importlib.metadata.version("ammnet-sparse") == ammnet_sparse.__version__
    assert f"\nversion: {ammnet_sparse.__version__}\n" in citation


@pytest.mark.parametrize(
    ("python_version", "machine", "expected"),
    [
        ("3.11", "x86_64", ["spconv-cu120"]),
        ("3.12", "x86_64", ["spconv-cu126"]),
        ("3.13", "x86_64", ["spconv-cu126"]),
        ("3.14", "x86_64", []),
        ("3.12", "aarch64", []),
    ],
)
def test_spconv_is_required_where_it_has_wheels(
    spconv_requirements: Callable[[str], list[str]], python_version: str, machine: str, expected: list[str]
) -> None:
    requirements = [Requirement(text) for text in spconv_requirements("")]
    environment = {"python_version": python_version, "platform_machine": machine}
    applicable = [item.name for item in requirements if item.marker is None or item.marker.evaluate(environment)]
    assert applicable == expected


@pytest.mark.parametrize(
    ("choice", "name", "specifier"),
    [
        ("spconv-cu126", "spconv-cu126", "<2.4,>=2.3.6"),
        (" spconv_cu118 ", "spconv_cu118", "<2.4,>=2.3.6"),
        ("spconv-cu126==2.3.8", "spconv-cu126", "==2.3.8"),
        ("spconv-cu124 >= 2.3.7, < 3", "spconv-cu124", "<3,>=2.3.7"),
        ("spconv-cu128 @ file:///wheels/spconv_cu128.whl", "spconv-cu128", ""),
    ],
)
def test_variable_picks_spconv(
    spconv_requirements: Callable[[str], list[str]], choice: str, name: str, specifier: str
) -> None:
    (requirement,) = (Requirement(text) for text in spconv_requirements(choice))
    assert (requirement.name, str(requirement.specifier), requirement.marker) == (name, specifier, None)


@pytest.mark.parametrize(
    "choice",
    ["spconv", "spconv==2.3.8", "SpConv >= 2.3", "torch", "cu126", "spconv-gpu", "spconv-cu126; os_name",
     "spconv-cu126 --pre"],
)  # fmt: skip
def test_other_choices_of_spconv_are_refused(spconv_requirements: Callable[[str], list[str]], choice: str) -> None:
    with pytest.raises(SystemExit, match="AMMNET_SPARSE_SPCONV"):
        spconv_requirements(choice)


def test_every_folder_of_the_package_is_packaged() -> None:
    folders = {path.parent for path in (REPOSITORY / "ammnet_sparse").rglob("*.py")}
    expected = {".".join(folder.relative_to(REPOSITORY).parts) for folder in folders}
    assert set(find_packages(str(REPOSITORY), include=["ammnet_sparse", "ammnet_sparse.*"])) == expected
    assert (REPOSITORY / "ammnet_sparse" / "py.typed").is_file()


def test_files_that_are_not_python_are_packaged(tmp_path: Path) -> None:
    """Weights, templates and configurations reach what is installed (build_py, as in the wheel) and the source."""
    commands = ["egg_info", "--egg-base", str(tmp_path), "build_py", "--build-lib", str(tmp_path / "wheel")]
    commands += ["sdist", "--dist-dir", str(tmp_path / "sdist")]
    subprocess.run([sys.executable, "setup.py", "--quiet", *commands], cwd=REPOSITORY, check=True, capture_output=True)
    package = REPOSITORY / "ammnet_sparse"
    data = {*package.glob("weights/*.safetensors"), *package.glob("pictures/templates/*"), package / "py.typed"}
    names = {path.relative_to(REPOSITORY).as_posix() for path in data}
    assert "ammnet_sparse/weights/nyu_seg2d_w64.safetensors" in names
    (archive,) = (tmp_path / "sdist").iterdir()
    with tarfile.open(archive) as source:
        packed = {name.partition("/")[2] for name in source.getnames()}
    assert names <= packed
    assert all((tmp_path / "wheel" / name).read_bytes() == (REPOSITORY / name).read_bytes() for name in names)
    program = "from ammnet_sparse.cli.configs import find_config; print(find_config('nyu_seg2d'))"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "wheel")}
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(tmp_path / "wheel" / "ammnet_sparse" / "configs" / "nyu_seg2d.yaml")


def make(*arguments: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs make in the repository with the virtual environment in ``folder``, apart from a make that runs the tests."""
    inherited = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "PYTHON", "CXX", "ARGS", "AMMNET_SPARSE_SPCONV")
    environment = {name: value for name, value in os.environ.items() if name not in inherited} | variables
    return subprocess.run(
        ["make", *arguments, f"VENV={folder}"],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_make_does_not_delete_a_folder_that_is_not_an_environment(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept", encoding="utf-8")
    for target in ("test", "clean"):
        result = make(target, f"PYTHON={sys.executable}", folder=tmp_path)
        assert result.returncode != 0
    assert (tmp_path / "precious").read_text(encoding="utf-8") == "kept"
