"""tools/gpu_check.sh and what it runs, rehearsed without a GPU: parts, verdicts, limits, and two devices compared."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ammnet_sparse.cli import environment
from tests.training.support import GRID, tiny_set

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "tools" / "gpu_check.sh"
PARTS = ["environment", "tests", "sanitizer", "kernels", "model", "devices"]
Tool = Callable[[list[str]], int]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_set(tmp_path_factory.mktemp("set"))


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """Stands for Python: says what it was asked for; benchmarks of kernels fail, those of models never end."""
    path = tmp_path / "python"
    path.write_text(
        '#!/bin/sh\necho "ran $*"\ncase "$*" in\n*bench_kernels*) exit 3 ;;\n*bench_model*) sleep 60 & wait ;;\nesac\n',
        encoding="utf-8",
    )
    path.chmod(0o755)
    return path


def gpu_check(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("OUT", "CUDA_HOME")}
    given = [str(argument) for argument in arguments]
    return subprocess.run(
        ["bash", SCRIPT, *given], env=environment, capture_output=True, text=True, check=False, timeout=60
    )


def summary_of(folder: Path) -> dict[str, list[str]]:
    lines = (folder / "summary.txt").read_text(encoding="utf-8").splitlines()[1:]
    return {line.split()[0]: line[13:].split() for line in lines}


def test_every_part_has_its_log_and_its_verdict(python: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = gpu_check("--device", "cpu", "--python", python, "--out", out, "--limit", "20", "--limit", "model=1")
    assert done.returncode == 1, done.stderr
    found = summary_of(out)
    assert list(found) == PARTS
    for part in ("environment", "tests", "devices"):
        assert found[part][:2] == ["passed", "0"]
    assert found["kernels"][:2] == ["FAILED", "3"]
    assert found["model"][:4] == ["out", "of", "time", "124"]
    for part in PARTS:
        assert (out / f"{part}.log").is_file()
    assert "ran -m pytest" in (out / "tests.log").read_text()
    # Both comparisons of devices run, and the end of a failed log is shown.
    assert (out / "devices.log").read_text().count("ran tools/compare_devices.py") == 2
    assert "    ran tools/bench_kernels.py --device cpu" in done.stdout


def test_parts_are_chosen(python: Path, tmp_path: Path) -> None:
    for more, expected in ((("--only", "devices,tests"), ["tests", "devices"]), (("--skip", "kernels,model"), None)):
        out = tmp_path / more[0]
        done = gpu_check("--device", "cpu", "--python", python, "--out", out, *more)
        assert done.returncode == 0, done.stdout
        assert list(summary_of(out)) == (expected or [part for part in PARTS if part not in ("kernels", "model")])


def test_dry_run_names_the_commands_of_a_gpu(python: Path, root: Path, tmp_path: Path) -> None:
    done = gpu_check(
        "--dry-run", "--build", "--python", python, "--out", tmp_path, "--data", root, "--pytest", "tests -x"
    )
    assert done.returncode == 0, done.stderr
    commands = [line for line in done.stdout.splitlines() if line.startswith("$ ")]
    for part in (
        "setup.py build_ext --inplace",
        "tests -x",
        "--tool memcheck",
        "--tool racecheck",
        f"bench_kernels.py --device cuda --data {root}",
        "--width 256 --batch 4",
        f"--first cpu --second cuda --data {root}",
    ):
        assert any(part in command for command in commands), part
    assert not (tmp_path / "summary.txt").exists()
    # What is named is there.
    tools = {word for command in commands for word in command.split() if word.startswith("tools/")}
    assert len(tools) == 5 and all((REPOSITORY / tool).is_file() for tool in tools)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "tests,abacus"], "--only: expected environment, tests, .* found abacus"),
        (["--limit", "soon"], "--limit: expected seconds or part=seconds, found soon"),
        (["--device", "tpu"], "--device: expected cpu or cuda, found tpu"),
        (["--data", "no/such/set"], "--data: expected a set, found nothing at no/such/set"),
        (["--abacus"], "--abacus: unknown"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = gpu_check("--out", tmp_path, *arguments)
    assert done.returncode == 2
    assert re.search(message, done.stderr)


def test_sanitizer_is_demanded_of_a_gpu(python: Path, tmp_path: Path) -> None:
    path = "/usr/bin:/bin"
    if shutil.which("compute-sanitizer", path=path):
        pytest.skip(f"needs a PATH without compute-sanitizer, and it lies in {path}")
    environment = {**os.environ, "PATH": path, "CUDA_HOME": str(tmp_path)}
    command = ["bash", str(SCRIPT), "--only", "sanitizer", "--python", str(python), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "compute-sanitizer: not found" in done.stdout


def test_environment_names_what_is_lacking(capsys: pytest.CaptureFixture[str]) -> None:
    required = environment.required_packages()
    assert {"torch", "torchvision", "spconv", "timm", "pyyaml"} <= set(required) and len(required) > 12
    assert environment.missing_modules(required) == []
    assert environment.missing_modules(["torch", "no_such_package"]) == ["no_such_package"]
    code = environment.main(["--device", "cuda"])
    printed = capsys.readouterr().out
    assert f"PyTorch {torch.__version__}" in printed
    has_device = torch.cuda.is_available()
    assert ("LACKING: a CUDA device" in printed) is not has_device
    assert (code == 0) is has_device


def test_an_spconv_that_cannot_be_imported_is_lacking(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its wheels are often carried by hand, and without what they need."""
    environment.main([])
    printed = capsys.readouterr().out
    assert "spconv 2." in printed and "spconv that can" not in printed
    monkeypatch.setitem(sys.modules, "spconv.pytorch.functional", None)
    assert environment.main([]) == 1
    assert "LACKING: an spconv that can be imported (" in capsys.readouterr().out


def test_tests_run_without_hypothesis(tmp_path: Path) -> None:
    (tmp_path / "hypothesis.py").write_text("raise ImportError", encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:hypothesispytest", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(
        [*command, "tests/ops/test_one_hot.py"],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout and "needs hypothesis, which is not installed" in done.stdout


@pytest.fixture(scope="module")
def compare() -> Tool:
    return runpy.run_path(str(REPOSITORY / "tools" / "compare_devices.py"))["main"]


def arguments(root: Path, *more: object) -> list[str]:
    given = ["--data", root, "--second", "cpu", "--grid", *GRID, "--width", 8, "--steps", 3, "--batch", 2, *more]
    return [str(value) for value in given]


def test_a_device_equals_itself(compare: Tool, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "devices.json"
    assert compare(arguments(root, "--json", file, "--tolerance", "0", "--later-tolerance", "0")) == 0
    result = json.loads(file.read_text(encoding="utf-8"))
    assert result["is_within"] and result["agreement"] == 1
    assert [row["step"] for row in result["steps"]] == [1, 2, 3]
    for row in result["steps"]:
        assert row["first"] == row["second"] and set(row["apart"].values()) == {0}
        assert {"loss", "scene", "adversarial", "discriminator", "generator_gradient_norm"} <= row["apart"].keys()
    losses = [row["first"]["loss"] for row in result["steps"]]
    assert len(set(losses)) == 3
    assert "3 steps of 2 frames, width 8" in capsys.readouterr().out


def test_rounding_is_seen_and_judged(
    compare: Tool, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The discriminator normalises over two values a channel here, so its gradients answer to any rounding."""
    file = tmp_path / "devices.json"
    double = ("--second-dtype", "float64", "--agreement", "0", "--json", file)
    assert compare(arguments(root, *double, "--tolerance", "1e6", "--later-tolerance", "1e6")) == 0
    first, *_ = json.loads(file.read_text(encoding="utf-8"))["steps"]
    assert 0 < first["apart"]["scene"] < 1e-5
    capsys.readouterr()
    assert compare(arguments(root, *double, "--tolerance", "1e-12")) == 1
    assert "TOO FAR" in capsys.readouterr().out


def test_devices_that_are_not_there(compare: Tool, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(["--data", str(root), "--second", "cuda:99"]) == 2
    assert "--device: expected one of" in capsys.readouterr().err
