"""tools/gpu_check.sh and tools/compare_devices.py, rehearsed without a GPU."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ammnet_sparse.cli import environment

REPOSITORY = Path(__file__).resolve().parents[2]


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
