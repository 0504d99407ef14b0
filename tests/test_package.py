"""Packaging: one version, the choice of spconv, installed use from any folder, and the advice of ``make``."""

import importlib.metadata
import os
import re
import runpy
import shlex
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from setuptools import find_packages

import ammnet_sparse

REPOSITORY = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))


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
    ("python_version", "expected"), [("3.11", "spconv-cu120"), ("3.12", "spconv-cu126"), ("3.13", "spconv-cu126")]
)
def test_python_version_picks_spconv(
    spconv_requirements: Callable[[str], list[str]], python_version: str, expected: str
) -> None:
    requirements = [Requirement(text) for text in spconv_requirements("")]
    environment = {"python_version": python_version}
    applicable = [item.name for item in requirements if item.marker is None or item.marker.evaluate(environment)]
    assert applicable == [expected]


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


@pytest.mark.parametrize("choice", ["spconv", "spconv==2.3.8", "SpConv >= 2.3"])
def test_plain_spconv_is_refused(spconv_requirements: Callable[[str], list[str]], choice: str) -> None:
    with pytest.raises(SystemExit, match=r"AMMNET_SPARSE_SPCONV: the plain spconv wheel .* backward .* spconv-cu126"):
        spconv_requirements(choice)


@pytest.mark.parametrize("choice", ["torch", "cu126", "spconv-gpu", "spconv-cu126; os_name", "spconv-cu126 --pre"])
def test_other_choices_are_refused(spconv_requirements: Callable[[str], list[str]], choice: str) -> None:
    with pytest.raises(SystemExit, match=rf"AMMNET_SPARSE_SPCONV: expected .* found '{re.escape(choice)}'"):
        spconv_requirements(choice)


def test_every_folder_of_the_package_is_packaged() -> None:
    folders = {path.parent for path in (REPOSITORY / "ammnet_sparse").rglob("*.py")}
    expected = {".".join(folder.relative_to(REPOSITORY).parts) for folder in folders}
    assert set(find_packages(str(REPOSITORY), include=["ammnet_sparse", "ammnet_sparse.*"])) == expected
    assert (REPOSITORY / "ammnet_sparse" / "py.typed").is_file()


def test_what_is_no_python_is_packaged(tmp_path: Path) -> None:
    """Shipped weights and templates reach what is installed (build_py, as in the wheel) and the source package."""
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


def test_imports_from_any_folder(tmp_path: Path) -> None:
    program = "import ammnet_sparse, ammnet_sparse.config as c; print(ammnet_sparse.__version__, c.load_config().loss)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.startswith(f"{ammnet_sparse.__version__} label_smoothing=")


def test_advice_names_the_supported_versions() -> None:
    script = (REPOSITORY / "tools" / "setup" / "environment.sh").read_text(encoding="utf-8")
    listed = re.search(r'^versions="([^"]+)"', script, re.MULTILINE)
    supported = SpecifierSet(PROJECT["project"]["requires-python"])
    assert listed
    assert listed[1].split() == [f"3.{minor}" for minor in range(30) if f"3.{minor}.5" in supported]


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


def make_command(path: Path, body: str) -> Path:
    """An executable shell script."""
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def test_make_alone_prints_help(tmp_path: Path) -> None:
    result = make(folder=tmp_path / "venv")
    assert result.returncode == 0
    for target in ("train", "test", "lint", "format", "setup", "clean"):
        assert f"\nmake {target} " in "\n" + result.stdout
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize("target", ["train", "test"])
@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("exit 1", "is not a Python that runs"),
        ("true", "is Python of no known version"),
        ("echo 3.10 3.10.13 Linux x86_64", "is Python 3.10.13"),
        ("echo 3.14 3.14.0 Linux x86_64", "is Python 3.14.0"),
    ],
)
def test_unfit_python_gets_advice(tmp_path: Path, target: str, body: str, found: str) -> None:
    python = make_command(tmp_path / "python", body)
    result = make(target, f"PYTHON={python}", folder=tmp_path / "venv")
    assert result.returncode != 0
    assert f"'{python}' {found}" in result.stderr
    assert "Supported are Python 3.11 3.12 3.13" in result.stderr
    assert "PYTHON=python3." in result.stderr
    assert not (tmp_path / "venv").exists()


def test_unsupported_platform_gets_advice(tmp_path: Path) -> None:
    python = make_command(tmp_path / "python", "echo 3.12 3.12.1 Darwin arm64")
    result = make("test", f"PYTHON={python}", folder=tmp_path / "venv")
    assert result.returncode != 0
    assert "this is Darwin on arm64" in result.stderr
    assert "Linux on x86-64" in result.stderr


@pytest.mark.parametrize(
    ("compiler", "found"), [("no-such-compiler", "there is no C++ compiler"), ("false", "does not compile C++20")]
)
def test_unfit_compiler_gets_advice(tmp_path: Path, compiler: str, found: str) -> None:
    result = make("test", f"PYTHON={sys.executable}", f"CXX={compiler}", folder=tmp_path / "venv")
    assert result.returncode != 0
    assert found in result.stderr
    assert "apt-get install g++" in result.stderr
    assert not (tmp_path / "venv").exists()


def test_python_without_venv_gets_advice(tmp_path: Path) -> None:
    """Debian's python3 has no ensurepip until python3-venv is installed."""
    for module in ("ensurepip", "virtualenv"):
        (tmp_path / f"{module}.py").write_text("raise ImportError", encoding="utf-8")
    result = make("test", f"PYTHON={sys.executable}", folder=tmp_path / "venv", PYTHONPATH=str(tmp_path))
    assert result.returncode != 0
    assert "apt-get install python3-venv" in result.stderr
    assert not (tmp_path / "venv").exists()


def test_a_folder_that_is_no_environment_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept", encoding="utf-8")
    for target in ("test", "clean"):
        result = make(target, f"PYTHON={sys.executable}", folder=tmp_path)
        assert result.returncode != 0
        assert "no virtual environment" in result.stderr
    assert (tmp_path / "precious").read_text(encoding="utf-8") == "kept"


def make_finished_environment(folder: Path, *, spconv: str) -> None:
    """What `make setup` leaves behind, with a Python that prints its arguments."""
    (folder / "bin").mkdir(parents=True)
    make_command(folder / "bin" / "python", 'echo "ran $*"')
    (folder / ".installed").write_text(f"{spconv}\n", encoding="utf-8")


def test_second_run_costs_nothing(tmp_path: Path) -> None:
    make_finished_environment(tmp_path / "venv", spconv="")
    for target, command in (
        ("train", "ran tools/train.py --help"),
        ("test", "ran -m pytest -n 2 --dist loadfile --no-loadscope-reorder --help"),
    ):
        result = make(target, "ARGS=--help", "PYTHON=false", folder=tmp_path / "venv")
        assert result.returncode == 0, result.stderr
        assert command in result.stdout.splitlines()
        assert "setting up" not in result.stdout


@pytest.mark.parametrize(
    ("installed", "chosen", "is_installed_again"),
    [
        ("", "", False),
        ("spconv-cu126", "spconv-cu126", False),
        ("", "spconv-cu126", True),
        ("spconv-cu126", "", True),
    ],
)
def test_another_spconv_is_installed(tmp_path: Path, installed: str, chosen: str, is_installed_again: bool) -> None:
    make_finished_environment(tmp_path / "venv", spconv=installed)
    result = make("--dry-run", "setup", folder=tmp_path / "venv", AMMNET_SPARSE_SPCONV=chosen)
    assert result.returncode == 0, result.stderr
    assert ("tools/setup/install.py" in result.stdout) is is_installed_again


def test_ci_runs_what_make_offers() -> None:
    script = (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")
    commands = [shlex.split(line) for line in script.splitlines() if line.startswith("make ")]
    assert commands == [["make", "test"], ["make", "lint"], ["make", "emulate"]]
    assert os.access(REPOSITORY / ".ci" / "run", os.X_OK)
