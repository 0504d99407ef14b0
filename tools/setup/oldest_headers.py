#!/usr/bin/env python3
"""Compiles csrc/ with the headers of the oldest PyTorch that the libraries are for; ``make oldest`` and CI call it.

The libraries are made with the PyTorch that is installed, mostly a newer one, whose headers have what the oldest lack.
Its wheel is downloaded into build/oldest once (0.5 GB), and nothing of it but the headers is unpacked or installed.

Exit code: 0 everything compiles, 1 something does not, 2 the wheel cannot be had.
"""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from build_kernels import TORCH_TARGET_VERSION, BuildSkipped, compile_all, kernel_extensions, toolchain_with

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = Path("build") / "oldest"
ARCHITECTURE = "8.0"
"""One architecture is enough to check that it compiles."""


def main() -> int:
    os.chdir(REPOSITORY)
    major, minor = divmod(int(TORCH_TARGET_VERSION, 16) >> 48, 256)
    release = f"{major}.{minor}"
    torch_folder = FOLDER / release / "torch"
    if not torch_folder.is_dir():
        try:
            unpack_headers(download(release, FOLDER), torch_folder.parent)
        except subprocess.CalledProcessError as error:
            print(f"oldest_headers.py: PyTorch {release} cannot be had ({error})", file=sys.stderr)
            return 2
    try:
        environment = {**os.environ, "AMMNET_SPARSE_CUDA_ARCHITECTURES": ARCHITECTURE}
        for extension in kernel_extensions():
            device = extension.name.rsplit("_", 1)[1]
            toolchain = toolchain_with(torch_folder, device, environment)
            print(f"== {device} kernels with the headers of PyTorch {release} and {toolchain.description}", flush=True)
            compile_all(extension, FOLDER / release / device, toolchain=toolchain)
    except BuildSkipped as reason:
        print(f"oldest_headers.py: {reason}", file=sys.stderr)
        return 1
    return 0


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


if __name__ == "__main__":
    sys.exit(main())
