"""tools/gpu_check.sh and what it runs, rehearsed without a GPU: parts, verdicts, limits, and two devices compared."""

import io
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ammnet_sparse.cli import environment
from tests.training.support import GRID, tiny_set

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "tools" / "gpu_check.sh"
PARTS = ["environment", "convolutions", "kernels", "model", "devices", "tests", "sanitizer"]
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


def gpu_check(*arguments: object, **variables: object) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("OUT", "CUDA_HOME")}
    environment |= {name: str(value) for name, value in variables.items()}
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
    for part in ("environment", "convolutions", "tests", "devices"):
        assert found[part][:2] == ["passed", "0"]
    assert found["kernels"][:2] == ["FAILED", "3"]
    assert found["model"][:4] == ["out", "of", "time", "124"]
    for part in PARTS:
        assert (out / f"{part}.log").is_file()
    tests = (out / "tests.log").read_text()
    assert re.search(r"ran -m pytest -q .* -n \d+ .* tests -m cuda$", tests, re.MULTILINE)
    # Both comparisons of devices run, and the end of a failed log is shown.
    assert (out / "devices.log").read_text().count("ran tools/compare_devices.py") == 2
    assert "    ran tools/bench_kernels.py --device cpu" in done.stdout


def test_parts_are_chosen(python: Path, tmp_path: Path) -> None:
    for more, expected in ((("--only", "devices,tests"), ["devices", "tests"]), (("--skip", "kernels,model"), None)):
        out = tmp_path / more[0]
        done = gpu_check("--device", "cpu", "--python", python, "--out", out, *more)
        assert done.returncode == 0, done.stdout
        assert list(summary_of(out)) == (expected or [part for part in PARTS if part not in ("kernels", "model")])


def test_dry_run_names_the_commands_of_a_gpu(python: Path, root: Path, tmp_path: Path) -> None:
    done = gpu_check(
        "--dry-run", "--build", "--python", python, "--out", tmp_path, "--data", root, "--pytest", "tests -x",
        "--jobs", 3,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    commands = [line for line in done.stdout.splitlines() if line.startswith("$ ")]
    for part in (
        "setup.py build_ext --inplace",
        "-n 3 ",
        "tests -x",
        "--tool memcheck",
        "test_projection.py",
        "bench_convolutions.py",
        f"bench_kernels.py --device cuda --data {root}",
        "--width 256 --batch 4",
        f"compare_devices.py --data {root} --first cpu --second cuda",
        "--second-dtype float16 --width 256",
    ):
        assert any(part in command for command in commands), part
    assert not (tmp_path / "summary.txt").exists()
    # What decides most comes first, and shared memory is watched in its tests.
    order = [commands.index(next(line for line in commands if name in line)) for name in ("convolutions", "-m pytest")]
    assert order == sorted(order)
    (races,) = (line for line in commands if "racecheck" in line)
    assert "test_projection.py" in races and "test_modulation.py" not in races
    # What is named is there.
    tools = {word for command in commands for word in command.split() if word.startswith("tools/")}
    assert len(tools) == 4 and all((REPOSITORY / tool).is_file() for tool in tools)


def test_results_are_appended_and_packed_as_they_come(python: Path, tmp_path: Path) -> None:
    out, pack = tmp_path / "out", tmp_path / "pack"
    given = ("--device", "cpu", "--python", python, "--out", out, "--pack", pack)
    assert gpu_check(*given, "--only", "environment").returncode == 0
    assert gpu_check(*given, "--only", "kernels,tests").returncode == 1
    assert list(summary_of(out)) == ["environment", "kernels", "tests"]
    assert sorted(path.name for path in pack.iterdir()) == ["results.tar.xz.0", "summary.txt"]
    with tarfile.open(pack / "results.tar.xz.0") as archive:
        names = {Path(name).name for name in archive.getnames()}
    assert {"summary.txt", "environment.log", "kernels.log", "tests.log"} <= names


def test_large_results_are_split(python: Path, tmp_path: Path) -> None:
    out, pack = tmp_path / "out", tmp_path / "pack"
    out.mkdir()
    content = os.urandom(17 * 2**20)
    (out / "large.bin").write_bytes(content)
    given = ("--device", "cpu", "--python", python, "--out", out, "--pack", pack, "--only", "environment")
    assert gpu_check(*given).returncode == 0
    pieces = sorted(pack.glob("results.tar.xz.*"))
    assert [piece.name[-1] for piece in pieces] == ["0", "1"]
    assert max(piece.stat().st_size for piece in pieces) <= 16 * 2**20
    whole = b"".join(piece.read_bytes() for piece in pieces)
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        (member,) = (entry for entry in archive.getmembers() if entry.name.endswith("large.bin"))
        extracted = archive.extractfile(member)
        assert extracted is not None and extracted.read() == content


def test_parts_that_come_too_late_are_not_begun(python: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = gpu_check("--device", "cpu", "--python", python, "--out", out, "--only", "environment,tests", "--total", 5)
    assert done.returncode == 1
    assert {part: found[:2] for part, found in summary_of(out).items()} == {
        "environment": ["not", "begun"],
        "tests": ["not", "begun"],
    }


def test_carried_packages_come_first(python: Path, tmp_path: Path) -> None:
    packages, content = tmp_path / "packages", tmp_path / "content"
    (content / "carried_module").mkdir(parents=True)
    (content / "carried_module" / "__init__.py").touch()
    packages.mkdir()
    carry = runpy.run_path(str(REPOSITORY / "tools" / "setup" / "carry_packages.py"))
    with zipfile.ZipFile(packages / "carried-1-py3-none-any.whl", "w") as wheel:
        wheel.write(content / "carried_module" / "__init__.py", "carried_module/__init__.py")
        wheel.writestr("carried-1.dist-info/METADATA", "Name: carried\nRequires-Dist: the_core==2.50.5\n")
    assert carry["pins"](packages) == {"the-core": "the_core==2.50.5"}
    carry["repack"](packages / "carried-1-py3-none-any.whl")
    assert [path.name for path in packages.iterdir()] == ["carried-1-py3-none-any.tar.xz"]
    (packages / "other-1-py3-none-any.whl").touch()
    out = tmp_path / "out"
    given = ("--device", "cpu", "--python", python, "--out", out, "--packages", packages, "--only", "environment")
    done = gpu_check(*given, TMPDIR=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "ammnet_sparse_site" / "carried_module" / "__init__.py").is_file()
    assert re.search(r"ran -m pip install .*--no-index .*/other-1-py3-none-any\.whl", done.stdout)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "tests,abacus"], "--only: expected environment, convolutions, .* found abacus"),
        (["--jobs", "many"], "--jobs: expected a whole number, found many"),
        (["--packages", "no/such/folder"], "--packages: expected a folder, found none at no/such/folder"),
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
    """The discriminator normalizes over two values a channel here, so its gradients answer to any rounding."""
    file = tmp_path / "devices.json"
    double = ("--second-dtype", "float64", "--agreement", "0", "--json", file)
    assert compare(arguments(root, *double, "--tolerance", "1e6", "--later-tolerance", "1e6")) == 0
    first, *_ = json.loads(file.read_text(encoding="utf-8"))["steps"]
    assert 0 < first["apart"]["scene"] < 1e-5
    capsys.readouterr()
    assert compare(arguments(root, *double, "--tolerance", "1e-12")) == 1
    assert "TOO FAR" in capsys.readouterr().out


def test_mixed_precision_needs_a_gpu_and_may_leave_out_a_step(
    compare: Tool, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(arguments(root, "--second-dtype", "float16")) == 2
    assert "float16: mixed precision needs a CUDA device, found cpu" in capsys.readouterr().err
    tools = runpy.run_path(str(REPOSITORY / "tools" / "compare_devices.py"))
    options = tools["_parse"](["--second-dtype", "float16", "--agreement", "0"])
    figures = {"scene": 1.0, "generator_gradient_norm": 2.0}
    overflowed = figures | {"generator_gradient_norm": float("inf")}
    trained, labels = tools["Trained"], torch.zeros(3)
    judged = tools["_compare"](trained([figures], labels), trained([overflowed], labels), options)
    assert judged["is_within"]
    # A loss that overflows, or a norm in float32, is no such step.
    assert not tools["_compare"](trained([overflowed], labels), trained([figures], labels), options)["is_within"]
    lost = figures | {"scene": float("inf")}
    assert not tools["_compare"](trained([figures], labels), trained([lost], labels), options)["is_within"]


def test_devices_that_are_not_there(compare: Tool, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(["--data", str(root), "--second", "cuda:99"]) == 2
    assert "--device: expected one of" in capsys.readouterr().err
