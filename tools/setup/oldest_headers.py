#!/usr/bin/env python3
"""Compiles csrc/ with the headers of the oldest PyTorch that setup.py allows; ``make oldest`` and CI call it.

The libraries are made with the PyTorch that is installed, mostly a newer one, whose headers have what the oldest lack.
Its wheel is downloaded into build/oldest once (0.5 GB), and nothing of it but the headers is unpacked or installed.

Exit code: 0 everything compiles, 1 something does not, 2 the wheel cannot be had.
"""

import os
import re
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from build_kernels import LeftOut, Toolchain, compile_source, cpu_toolchain, cuda_toolchain, kernel_extensions

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = Path("build") / "oldest"
ARCHITECTURE = "8.0"
"""One is enough to see whether it compiles."""


def main() -> int:
    os.chdir(REPOSITORY)
    release = oldest_release((REPOSITORY / "setup.py").read_text("utf-8"))
    torch_folder = FOLDER / release / "torch"
    if not torch_folder.is_dir():
        try:
            unpack_headers(download(release, FOLDER), torch_folder.parent)
        except subprocess.CalledProcessError as error:
            print(f"oldest_headers.py: PyTorch {release} cannot be had ({error})", file=sys.stderr)
            return 2
    try:
        environment = {**os.environ, "AMMNET_SPARSE_CUDA_ARCHITECTURES": ARCHITECTURE}
        finders = {"cpu": cpu_toolchain, "cuda": cuda_toolchain}
        for extension in kernel_extensions():
            device = extension.name.rsplit("_", 1)[1]
            toolchain = finders[device](torch_folder, environment)
            print(f"== {device} kernels with the headers of PyTorch {release} and {toolchain.description}", flush=True)
            compile_all(extension.sources, extension.depends, toolchain, FOLDER / release / device)
    except LeftOut as reason:
        print(f"oldest_headers.py: {reason}", file=sys.stderr)
        return 1
    return 0


def oldest_release(setup: str) -> str:
    """The release in ``torch>=RELEASE`` of setup.py, for example 2.11."""
    match = re.search(r'"torch>=([\d.]+)"', setup)
    if not match:
        raise SystemExit('oldest_headers.py: setup.py: expected a requirement like "torch>=2.11", found none')
    return match[1]


def download(release: str, folder: Path) -> Path:
    """The wheel of a release. Raises subprocess.CalledProcessError."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    subprocess.run([*command, "--dest", str(folder), f"torch=={release}.*"], check=True)
    return max(folder.glob(f"torch-{release}.*.whl"))


def unpack_headers(wheel: Path, folder: Path) -> None:
    """torch/include of a wheel, into a folder that appears when it is whole; the wheel is deleted."""
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unfinished, [name for name in archive.namelist() if name.startswith("torch/include/")])
    unfinished.replace(folder)
    wheel.unlink()


def compile_all(sources: list[str], headers: list[str], toolchain: Toolchain, folder: Path) -> None:
    """Raises LeftOut, with what the compiler says, for the first that does not compile."""
    folder.mkdir(parents=True, exist_ok=True)
    depends = [Path(path) for path in headers]
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
        list(
            pool.map(lambda source: compile_source(Path(source), folder, toolchain=toolchain, headers=depends), sources)
        )


if __name__ == "__main__":
    sys.exit(main())
