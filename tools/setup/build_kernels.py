"""Compiles csrc/ into the two libraries of kernels that the package loads; used by setup.py.

One library for the CPU and one for CUDA, both on libtorch's stable ABI: neither depends on the version of Python, nor
on that of PyTorch from 2.11 on. Compilers are called directly: PyTorch's extension builder refuses CUDA sources where
PyTorch itself has no CUDA, and here they are compiled there too, and without a GPU.

By default each library is built where its compiler is found, and a compiler that fails leaves it out with the reason.

    AMMNET_SPARSE_CPU=1, AMMNET_SPARSE_CUDA=1     demand it: without it the build fails
    AMMNET_SPARSE_CPU=0, AMMNET_SPARSE_CUDA=0     leave it out
    AMMNET_SPARSE_CUDA_ARCHITECTURES="9.0"        compute capabilities, with +PTX for code that later cards compile;
                                                  all: those of a wheel, 7.5 to 12.0, as far as nvcc knows them
    CUDA_HOME, CXX, CXXFLAGS, LDFLAGS, MAX_JOBS   as usual
"""

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension
from setuptools.command.build_ext import build_ext

SOURCES = Path("csrc")
DEFAULT_ARCHITECTURES = "7.5;8.0;8.6;8.9;9.0+PTX"
ALL_ARCHITECTURES = "7.5;8.0;8.6;8.9;9.0;10.0;12.0"
TORCH_TARGET_VERSION = "0x020b000000000000"
"""PyTorch 2.11: the version of the stable ABI that the libraries use."""
REPORT = "_kernels_build.json"
DEVICES = ("cpu", "cuda")


class BuildSkipped(Exception):
    """A library is not built; the message says why."""


class Toolchain(NamedTuple):
    """The commands that make one library: ``compile`` lacks source and object, ``link`` objects and library."""

    description: str
    compile: list[str]
    link: list[str]
    link_libraries: list[str]


def kernel_extensions() -> list[Extension]:
    """What setup() is told: names and sources. ``BuildKernels`` decides which are built."""
    folders = {"cpu": "*.cpp", "cuda": "*.cu"}
    return [
        Extension(
            f"ammnet_sparse._kernels_{device}",
            sources=sorted(str(path) for path in (SOURCES / device).glob(pattern)),
            depends=sorted(str(path) for path in SOURCES.rglob("*.h")),
        )
        for device, pattern in folders.items()
    ]


class BuildKernels(build_ext):
    """Builds the libraries that can be built, and says which and why not the others."""

    extensions: list[Extension]

    def run(self) -> None:
        self.report: dict[str, str] = {}
        super().run()
        # The libraries were made in build_lib and, for a build in place, copied from there.
        self.write_report()

    def build_extensions(self) -> None:
        built = []
        for extension in self.extensions:
            device = extension.name.rsplit("_", 1)[1]
            try:
                self.report[device] = self.build_library(extension, device)
                built.append(extension)
            except BuildSkipped as reason:
                if os.environ.get(switch(device)) == "1":
                    raise SystemExit(f"{switch(device)}=1 demands the {device} kernels: {reason}") from None
                self.report[device] = str(reason)
        self.extensions = built

    def build_library(self, extension: Extension, device: str) -> str:
        """Compiles and links one library and says with what. Raises BuildSkipped."""
        toolchain = find_toolchain(device, os.environ)
        print(f"== {device} kernels with {toolchain.description}", flush=True)
        objects = compile_all(extension, Path(self.build_temp) / device, toolchain=toolchain)
        library = Path(self.get_ext_fullpath(extension.name))
        library.parent.mkdir(parents=True, exist_ok=True)
        run_compiler([*toolchain.link, *map(str, objects), "-o", str(library), *toolchain.link_libraries])
        return f"built with {toolchain.description}"

    def write_report(self) -> None:
        """Beside the libraries, so that the package can say later why it has none: pip hides what a build prints."""
        folder = Path(self.get_ext_fullpath("ammnet_sparse.any")).parent
        folder.mkdir(parents=True, exist_ok=True)
        content = {**self.report, "sources": digest_of(SOURCES)}
        (folder / REPORT).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        for device, what in self.report.items():
            print(f"== {device} kernels: {what}", flush=True)
            if not what.startswith("built"):
                # A library from an earlier build would still be loaded.
                (folder / f"_kernels_{device}.so").unlink(missing_ok=True)

    def get_ext_filename(self, fullname: str) -> str:
        # No tag of a Python version: the libraries do not depend on Python.
        return os.path.join(*fullname.split(".")) + ".so"


def digest_of(sources: Path) -> str:
    """Of the content of all files; `ammnet environment` computes the same."""
    files = sorted(path for path in sources.rglob("*") if path.suffix in (".h", ".cpp", ".cu"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def switch(device: str) -> str:
    """The environment variable that demands (1) or forbids (0) the kernels of a device."""
    return f"AMMNET_SPARSE_{device.upper()}"


def find_toolchain(device: str, environment: Mapping[str, str]) -> Toolchain:
    """How the library of ``device`` is built here. Raises BuildSkipped if it is not, SystemExit for a bad switch."""
    choice = environment.get(switch(device), "")
    if choice not in ("", "0", "1"):
        raise SystemExit(f"{switch(device)}: expected 0, 1 or nothing, found {choice!r}")
    if choice == "0":
        raise BuildSkipped(f"left out: {switch(device)}=0")
    return toolchain_with(find_torch(), device, environment)


def toolchain_with(torch_folder: Path, device: str, environment: Mapping[str, str]) -> Toolchain:
    """How the library of ``device`` is built with the PyTorch in a folder. Raises BuildSkipped if it is not."""
    finders: dict[str, Callable[[Path, Mapping[str, str]], Toolchain]] = {"cpu": cpu_toolchain, "cuda": cuda_toolchain}
    return finders[device](torch_folder, environment)


def find_torch() -> Path:
    try:
        import torch
    except ImportError as error:
        raise BuildSkipped(f"left out: PyTorch cannot be imported ({error}); install it first, then this package with "
                      "pip install --no-build-isolation") from None  # fmt: skip
    if tuple(int(number) for number in re.findall(r"\d+", torch.__version__)[:2]) < (2, 11):
        raise BuildSkipped(f"left out: expected PyTorch 2.11 or later, found {torch.__version__}")
    return Path(torch.__file__).parent


def cxx(environment: Mapping[str, str]) -> list[str]:
    """The C++ compiler, which may be two words (ccache g++)."""
    command = (environment.get("CXX") or "c++").split()
    if shutil.which(command[0]) is None:
        raise BuildSkipped(f"left out: there is no C++ compiler {command[0]!r} (apt-get install g++, or set CXX)")
    return command


def torch_flags(torch_folder: Path) -> list[str]:
    return [
        "-std=c++20",
        "-O3",
        f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}",
        "-isystem",
        f"{torch_folder}/include",
    ]


def torch_link_flags(torch_folder: Path) -> list[str]:
    # libtorch brings libtorch_cuda along where PyTorch has it; nothing refers to libtorch itself, hence no-as-needed.
    return [f"-L{torch_folder}/lib", "-Wl,--no-as-needed", "-ltorch", "-Wl,--as-needed"]


def cpu_toolchain(torch_folder: Path, environment: Mapping[str, str]) -> Toolchain:
    compiler = cxx(environment)
    # Every x86-64 since 2013; the package does not load the library on an older one.
    processor = ["-mavx2", "-mfma", "-mf16c"] if platform.machine() == "x86_64" else []
    # errno and floating-point traps are not used, and without them comparisons can be vectorized.
    arithmetic = ["-fno-math-errno", "-fno-trapping-math"]
    warnings = ["-Wall", "-Wextra"]
    extra = environment.get("CXXFLAGS", "").split()
    return Toolchain(
        description=" ".join([version_line(compiler), *processor]),
        compile=[
            *compiler,
            "-c",
            "-fPIC",
            "-fvisibility=hidden",
            *torch_flags(torch_folder),
            *processor,
            *arithmetic,
            *warnings,
            *extra,
        ],
        link=[*compiler, "-shared"],
        link_libraries=[*torch_link_flags(torch_folder), *environment.get("LDFLAGS", "").split()],
    )


def cuda_toolchain(torch_folder: Path, environment: Mapping[str, str]) -> Toolchain:
    compiler = cxx(environment)
    cuda_home = find_cuda_home(environment)
    nvcc = cuda_home / "bin" / "nvcc"
    architectures = environment.get("AMMNET_SPARSE_CUDA_ARCHITECTURES") or DEFAULT_ARCHITECTURES
    if architectures == "all":
        architectures = known_architectures(nvcc)
    return Toolchain(
        description=f"nvcc, {version_line([str(nvcc)], containing='release')}, for {architectures}",
        compile=[
            str(nvcc),
            "-c",
            "-ccbin",
            compiler[-1],
            "-Xcompiler",
            "-fPIC,-fvisibility=hidden,-Wall",
            "-Xptxas",
            "-v",
            "-DUSE_CUDA",
            *torch_flags(torch_folder),
            *architecture_flags(architectures),
        ],
        link=[*compiler, "-shared"],
        # The static runtime, its symbols kept inside: the library then runs with a PyTorch of another CUDA release.
        link_libraries=[
            *torch_link_flags(torch_folder),
            f"-L{runtime_folder(cuda_home)}",
            "-Wl,--exclude-libs,ALL",
            "-lcudart_static",
            "-lrt",
            "-lpthread",
            "-ldl",
        ],
    )


def find_cuda_home(environment: Mapping[str, str]) -> Path:
    """The folder of the CUDA toolkit: it holds include/cuda_runtime.h and bin/nvcc. Raises BuildSkipped without one."""
    candidates = [Path(environment[name]) for name in ("CUDA_HOME", "CUDA_PATH") if environment.get(name)]
    if not candidates:
        nvcc = shutil.which("nvcc", path=environment.get("PATH"))
        if nvcc:
            # The command may be a script that calls the real one, which reports its location.
            dry_run = subprocess.run([nvcc, "--dryrun", "-x", "cu", "/dev/null"], capture_output=True, text=True)
            candidates += [Path(top) for top in re.findall(r"^#\$ TOP=(.+)$", dry_run.stderr, re.MULTILINE)]
            candidates.append(Path(nvcc).resolve().parents[1])
        candidates += [Path("/usr/local/cuda"), Path("/opt/cuda")]
    for folder in candidates:
        if (folder / "include" / "cuda_runtime.h").is_file() and (folder / "bin" / "nvcc").is_file():
            return folder.resolve()
    looked = ", ".join(dict.fromkeys(map(str, candidates)))
    raise BuildSkipped(
        f"left out: no CUDA toolkit, that is include/cuda_runtime.h and bin/nvcc, in {looked} (set CUDA_HOME)"
    )


def runtime_folder(cuda_home: Path) -> Path:
    folders = ("lib64", "lib", f"targets/{platform.machine()}-linux/lib")
    for folder in folders:
        if (cuda_home / folder / "libcudart_static.a").is_file():
            return cuda_home / folder
    raise BuildSkipped(f"left out: no libcudart_static.a in {', '.join(folders)} of {cuda_home}")


def architecture_flags(architectures: str) -> list[str]:
    """nvcc's flags for compute capabilities such as ``8.0;9.0+PTX``."""
    flags = []
    for architecture in re.split(r"[;,\s]+", architectures.strip()):
        match = re.fullmatch(r"(\d+)\.(\d)(a?)(\+PTX)?", architecture)
        if not match:
            raise SystemExit(
                f"AMMNET_SPARSE_CUDA_ARCHITECTURES: expected for example 8.0;9.0+PTX, found {architecture!r}"
            )
        number = match[1] + match[2] + match[3]
        flags += ["-gencode", f"arch=compute_{number},code=sm_{number}"]
        if match[4]:
            flags += ["-gencode", f"arch=compute_{number},code=compute_{number}"]
    return flags


def known_architectures(nvcc: Path) -> str:
    """Those of ALL_ARCHITECTURES that nvcc compiles for, with PTX of the newest for cards to come."""
    listing = subprocess.run([str(nvcc), "--list-gpu-code"], capture_output=True, text=True, check=False).stdout.split()
    known = [number for number in ALL_ARCHITECTURES.split(";") if f"sm_{number.replace('.', '')}" in listing]
    if not known:
        raise BuildSkipped(f"left out: {nvcc} --list-gpu-code names none of {ALL_ARCHITECTURES}")
    return ";".join(known) + "+PTX"


def compile_all(extension: Extension, folder: Path, *, toolchain: Toolchain) -> list[Path]:
    """Compiles the sources of a library, several at once, into ``folder``; the objects. Raises BuildSkipped."""
    folder.mkdir(parents=True, exist_ok=True)
    headers = [Path(path) for path in extension.depends]
    jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
    with ThreadPoolExecutor(jobs) as pool:
        return list(
            pool.map(
                lambda source: compile_source(Path(source), folder, toolchain=toolchain, headers=headers),
                extension.sources,
            )
        )


def compile_source(source: Path, folder: Path, *, toolchain: Toolchain, headers: list[Path]) -> Path:
    """Compiles a file unless its object is newer than file and headers and was made by the same command."""
    target = folder / f"{source.stem}.o"
    log = folder / f"{source.stem}.log"
    command = [*toolchain.compile, str(source), "-o", str(target)]
    if (
        target.is_file()
        and log.is_file()
        and log.read_text(encoding="utf-8").startswith(f"{command}\n")
        and target.stat().st_mtime > max(path.stat().st_mtime for path in (source, *headers))
    ):
        return target
    output = run_compiler(command)
    log.write_text(f"{command}\n{output}", encoding="utf-8")
    return target


def run_compiler(command: list[str]) -> str:
    """Runs a compiler and returns what it says. Raises BuildSkipped with the end of that if it fails."""
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if result.returncode:
        print(result.stdout, flush=True)
        tail = "\n".join(result.stdout.splitlines()[-12:])
        raise BuildSkipped(f"left out: {' '.join(command)} failed:\n{tail}")
    # nvcc's account of registers (ptxas info) is for the log.
    said = [line for line in result.stdout.splitlines() if not re.match(r"ptxas info| +\d+ bytes stack", line)]
    if said:
        print("\n".join(said), flush=True)
    return result.stdout


def version_line(command: list[str], *, containing: str = "") -> str:
    """The first line of ``command --version``, or the first that contains a text."""
    result = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    lines = [line for line in result.stdout.splitlines() if containing in line]
    return lines[0] if lines else " ".join(command)
