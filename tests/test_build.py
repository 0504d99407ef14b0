"""Building the kernels: compilers and toolkits, the switches, and the contents of the libraries."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import ammnet_sparse.data.volumes.tsdf  # noqa: F401, registers operators
from ammnet_sparse.ops import kernel_libraries
from tests.ops.support import REFERENCES

REPOSITORY = Path(__file__).resolve().parents[1]
LIBRARIES = {device: REPOSITORY / "ammnet_sparse" / f"_kernels_{device}.so" for device in ("cpu", "cuda")}


@pytest.fixture(scope="module")
def build() -> SimpleNamespace:
    """What tools/setup/build_kernels.py defines."""
    return SimpleNamespace(**runpy.run_path(str(REPOSITORY / "tools" / "setup" / "build_kernels.py")))


def make_file(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return path


def make_toolkit(folder: Path) -> Path:
    make_file(folder / "include" / "cuda_runtime.h")
    make_file(folder / "bin" / "nvcc", "#!/bin/sh\n")
    return folder.resolve()


def test_every_source_is_built(build: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    extensions = build.kernel_extensions()
    assert [extension.name for extension in extensions] == ["ammnet_sparse._kernels_cpu", "ammnet_sparse._kernels_cuda"]
    sources = {Path(source) for extension in extensions for source in extension.sources}
    assert sources == {path for path in Path("csrc").rglob("*") if path.suffix in (".cpp", ".cu")}
    operators = {"projection", "fill_empty", "perturbation", "one_hot", "modulation", "normalization", "gather"}
    on_cpu = {source.stem.removesuffix("_backward") for source in sources if source.suffix == ".cpp"}
    assert on_cpu == operators | {"tsdf"}
    assert operators <= {source.stem for source in sources if source.suffix == ".cu"}


def test_cuda_home_contains_the_header(build: SimpleNamespace, tmp_path: Path) -> None:
    toolkit = make_toolkit(tmp_path / "toolkit")
    (tmp_path / "empty").mkdir()
    assert build.find_cuda_home({"CUDA_HOME": str(toolkit)}) == toolkit
    with pytest.raises(build.BuildSkipped, match="CUDA_HOME"):
        build.find_cuda_home({"CUDA_HOME": str(tmp_path / "empty")})


def test_architectures(build: SimpleNamespace) -> None:
    assert build.architecture_flags("8.0; 9.0a+PTX") == [
        "-gencode", "arch=compute_80,code=sm_80", "-gencode", "arch=compute_90a,code=sm_90a",
        "-gencode", "arch=compute_90a,code=compute_90a",
    ]  # fmt: skip
    default = build.architecture_flags(build.DEFAULT_ARCHITECTURES)
    assert re.findall(r"code=(\S+)", " ".join(default)) == ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "compute_90"]
    with pytest.raises(SystemExit, match="AMMNET_SPARSE_CUDA_ARCHITECTURES"):
        build.architecture_flags("hopper")


def test_switches_and_missing_compilers_are_reasons(build: SimpleNamespace, tmp_path: Path) -> None:
    for device, variable in (("cpu", "AMMNET_SPARSE_CPU"), ("cuda", "AMMNET_SPARSE_CUDA")):
        with pytest.raises(build.BuildSkipped, match=variable):
            build.find_toolchain(device, {variable: "0"})
        with pytest.raises(SystemExit, match=variable):
            build.find_toolchain(device, {variable: "yes"})
    with pytest.raises(build.BuildSkipped, match="no-such-compiler"):
        build.find_toolchain("cpu", {"CXX": "no-such-compiler"})
    with pytest.raises(build.BuildSkipped, match="CUDA"):
        build.find_toolchain("cuda", {"CUDA_HOME": str(tmp_path)})


def build_with(tmp_path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """``setup.py build_ext`` outside the source tree."""
    environment = os.environ | {"AMMNET_SPARSE_CUDA": "0", **variables}
    command = ["build_ext", "--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "objects")]
    return subprocess.run(
        [sys.executable, "setup.py", *command], cwd=REPOSITORY, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip


def test_a_machine_without_a_compiler_still_installs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMMNET_SPARSE_CPU", "")
    result = build_with(tmp_path, CXX="no-such-compiler")
    assert result.returncode == 0, result.stdout
    report = json.loads((tmp_path / "lib" / "ammnet_sparse" / "_kernels_build.json").read_text(encoding="utf-8"))
    assert "AMMNET_SPARSE_CUDA=0" in report["cuda"] and "no-such-compiler" in report["cpu"]
    assert not list(tmp_path.rglob("*.so"))


def test_kernels_are_left_out_where_the_compiler_fails_unless_demanded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMMNET_SPARSE_CPU", "")
    broken = make_file(tmp_path / "broken", "#!/bin/sh\necho 'error: too old for this'\nexit 1\n")
    result = build_with(tmp_path, CXX=str(broken))
    assert result.returncode == 0, result.stdout
    assert "error: too old for this" in result.stdout
    demanded = build_with(tmp_path, CXX=str(broken), AMMNET_SPARSE_CPU="1")
    assert demanded.returncode != 0 and "AMMNET_SPARSE_CPU" in demanded.stdout


@pytest.fixture(params=["cpu", "cuda"])
def library(request: pytest.FixtureRequest, build: SimpleNamespace) -> Path:
    """A library that the build made. Fails where its compiler is here and it is not."""
    device = request.param
    if os.environ.get(f"AMMNET_SPARSE_{device.upper()}") == "0":
        pytest.skip(f"AMMNET_SPARSE_{device.upper()}=0: the build left it out")
    try:
        build.find_toolchain(device, os.environ)
    except build.BuildSkipped as reason:
        pytest.skip(str(reason))
    assert LIBRARIES[device].is_file(), kernel_libraries()[device].note
    return LIBRARIES[device]


def test_library_registers_every_operator(library: Path) -> None:
    """Also the CUDA library on a machine without a GPU."""
    key = library.stem.rsplit("_", 1)[1].upper()
    names = [*REFERENCES, *(["take_out_of_range"] if key == "CUDA" else ["map_depth", "tsdf_of_depth"])]
    content = library.read_bytes()
    for name in ("ammnet_sparse", key, *names):
        assert f"{name}\0".encode() in content, name  # the linker merges equal ends of strings
    if key == "CPU" or torch.version.cuda:
        torch.ops.load_library(str(library))
        for name in names:
            assert torch._C._dispatch_has_kernel_for_dispatch_key(f"ammnet_sparse::{name}", key), name


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm (binutils)")
def test_library_uses_only_the_stable_abi_of_pytorch(library: Path) -> None:
    listing = subprocess.run(["nm", "-D", str(library)], capture_output=True, text=True, check=True).stdout
    needed = set(re.findall(r"^\s+[Uw] (\S+)$", listing, re.MULTILINE))
    of_pytorch = {name for name in needed if "torch" in name or "c10" in name or re.match(r"_ZN?K?2at", name)}
    assert of_pytorch and all(re.match(r"(aoti_)?torch_", name) for name in of_pytorch), sorted(of_pytorch)
    # Symbols of CUDA's runtime must not meet those of the one that PyTorch has loaded.
    assert not re.search(r" [TWV] (cuda|cu[A-Z])", listing)
