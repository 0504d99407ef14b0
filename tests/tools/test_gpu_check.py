"""tools/gpu_check.sh and tools/compare_devices.py, rehearsed without a GPU."""

import json
import os
import re
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ammnet_sparse.cli import environment
from tests.training.support import GRID, tiny_set

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_set(tmp_path_factory.mktemp("set"))


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """Stands for Python: prints its arguments; benchmarks of kernels fail, benchmarks of models never end."""
    path = tmp_path / "python"
    path.write_text(
        '#!/bin/sh\necho "ran $*"\ncase "$*" in\n*bench_kernels*) exit 3 ;;\n*bench_model*) sleep 60 & wait ;;\nesac\n',
        encoding="utf-8",
    )
    path.chmod(0o755)
    return path


def gpu_check(*arguments: object, **variables: object) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if name not in ("OUT", "CUDA_HOME")} | variables
    return subprocess.run(
        ["bash", str(REPOSITORY / "tools" / "gpu_check.sh"), *map(str, arguments)],
        env={name: str(value) for name, value in variables.items()},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def summary_of(folder: Path) -> dict[str, str]:
    lines = (folder / "summary.txt").read_text(encoding="utf-8").splitlines()[1:]
    return {line.split()[0]: line[13:26].strip() for line in lines}


def test_every_part_has_its_log_and_its_verdict(python: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    parts = "environment,convolutions,devices,kernels,tests"
    done = gpu_check("--device", "cpu", "--only", parts, PYTHON=python, OUT=out)
    assert done.returncode == 1, done.stderr
    expected = dict.fromkeys(parts.split(","), "passed") | {"kernels": "FAILED"}
    assert summary_of(out) == expected
    assert re.search(r"ran -m pytest -q .* -n \d+ .* tests -m cuda$", (out / "tests.log").read_text(), re.MULTILINE)
    # What is named exists, and the end of a failed log is shown.
    tools = set(re.findall(r"tools/\w+\.py", "".join((out / f"{part}.log").read_text() for part in expected)))
    assert len(tools) == 3 and all((REPOSITORY / tool).is_file() for tool in tools)
    assert "    ran tools/bench_kernels.py --device cpu" in done.stdout


def test_a_part_that_does_not_end_is_stopped_and_the_next_are_not_begun(python: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = gpu_check("--device", "cpu", "--out", out, "--only", "model,tests", "--total", 7, PYTHON=python)
    assert done.returncode == 1
    assert summary_of(out) == {"model": "out of time", "tests": "not begun"}


def test_carried_packages_come_first(python: Path, tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    carry = runpy.run_path(str(REPOSITORY / "tools" / "setup" / "carry_packages.py"))
    with zipfile.ZipFile(packages / "carried-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried_module/__init__.py", "")
        wheel.writestr("carried-1.dist-info/METADATA", "Name: carried\nRequires-Dist: the_core==2.50.5\n")
    assert carry["pins"](packages) == {"the-core": "the_core==2.50.5"}
    carry["repack"](packages / "carried-1-py3-none-any.whl")
    assert [path.name for path in packages.iterdir()] == ["carried-1-py3-none-any.tar.xz"]
    (packages / "other-1-py3-none-any.whl").touch()
    given = ("--device", "cpu", "--out", tmp_path / "out", "--packages", packages, "--only", "environment")
    done = gpu_check(*given, PYTHON=python, TMPDIR=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "ammnet_sparse_site" / "carried_module" / "__init__.py").is_file()
    assert re.search(r"ran -m pip install .*--no-index .*/other-1-py3-none-any\.whl", done.stdout)


def test_environment_names_missing_packages(capsys: pytest.CaptureFixture[str]) -> None:
    required = environment.required_packages()
    assert {"torch", "torchvision", "spconv", "timm", "pyyaml"} <= set(required) and len(required) > 12
    assert environment.missing_modules(required) == []
    assert environment.missing_modules(["torch", "no_such_package"]) == ["no_such_package"]
    code = environment.main(["--device", "cuda"])
    has_device = torch.cuda.is_available()
    assert ("LACKING: a CUDA device" in capsys.readouterr().out) is not has_device
    assert (code == 0) is has_device


def test_an_spconv_that_cannot_be_imported_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its wheels are often carried by hand, without their own requirements."""
    monkeypatch.setitem(sys.modules, "spconv.pytorch.functional", None)
    assert environment.main([]) == 1
    assert "LACKING: an spconv" in capsys.readouterr().out


@pytest.fixture(scope="module")
def tool() -> SimpleNamespace:
    """The definitions of tools/compare_devices.py."""
    return SimpleNamespace(**runpy.run_path(str(REPOSITORY / "tools" / "compare_devices.py")))


def compared(tool: SimpleNamespace, root: Path, path: Path, *more: object) -> tuple[int, dict]:
    """Exit code and figures of three steps of two frames."""
    given = ["--data", root, "--second", "cpu", "--steps", 3, "--batch", 2, "--json", path, *more]
    code = tool.main([*map(str, given), "model.width=8", f"model.grid_shape={list(GRID)}"])
    return code, json.loads(path.read_text(encoding="utf-8"))


def test_a_device_equals_itself(tool: SimpleNamespace, root: Path, tmp_path: Path) -> None:
    code, result = compared(tool, root, tmp_path / "devices.json", "--tolerance", "0", "--later-tolerance", "0")
    assert code == 0 and result["is_within"] and result["agreement"] == 1
    for step in result["steps"]:
        assert step["first"] == step["second"] and set(step["apart"].values()) == {0}
        assert {"loss", "scene", "adversarial", "discriminator", "generator_gradient_norm"} <= step["apart"].keys()
    assert len({step["first"]["loss"] for step in result["steps"]}) == 3


def test_norms_that_overflow_in_mixed_precision_are_not_compared(tool: SimpleNamespace) -> None:
    figures = {"scene": 1.0, "generator_gradient_norm": 2.0}
    overflowed, lost = figures | {"generator_gradient_norm": float("inf")}, figures | {"scene": float("inf")}
    for one, other, is_within in ((figures, overflowed, True), (overflowed, figures, False), (figures, lost, False)):
        (step,) = tool.compare([one], [other], dtypes=("float32", "float16"), tolerances=(1.0, 1.0))
        assert step["is_within"] == is_within
