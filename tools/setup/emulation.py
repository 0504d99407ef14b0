#!/usr/bin/env python3
"""Compiles the CUDA kernels of csrc/cuda with the C++ compiler, to run on a CPU (csrc/emulation).

    python tools/setup/emulation.py                   into build/emulation, watched by the sanitizers of GCC
    python tools/setup/emulation.py --no-sanitizers   into build/emulation/plain, to run in any process, by any compiler

Neither CUDA nor a GPU is needed. Every .cu of csrc/cuda is compiled. ``make emulate`` runs the tests of the operators
with it; tests/ops/emulation.py loads it where AMMNET_SPARSE_EMULATION names it.
"""

import argparse
import os
import sys
from pathlib import Path

from build_kernels import (
    SOURCES,
    BuildSkipped,
    Toolchain,
    compile_all,
    cxx,
    find_torch,
    run_compiler,
    torch_flags,
    torch_link_flags,
    version_line,
)
from setuptools import Extension

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = Path("build") / "emulation"
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]


def main() -> int:
    parser = argparse.ArgumentParser(prog="emulation.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--no-sanitizers", action="store_true", help="without AddressSanitizer and UBSan")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="default: %(default)s")
    options = parser.parse_args()
    os.chdir(REPOSITORY)
    folder = options.folder / "plain" if options.no_sanitizers else options.folder
    try:
        library = build(folder, sanitizers=[] if options.no_sanitizers else SANITIZERS)
    except BuildSkipped as reason:
        print(f"emulation.py: {reason}", file=sys.stderr)
        return 1
    print(f"== built {library}")
    return 0


def build(folder: Path, *, sanitizers: list[str]) -> Path:
    """Compiles and links the library in ``folder``. Raises BuildSkipped."""
    extension = Extension("emulation", sources=sources(), depends=sorted(str(path) for path in SOURCES.rglob("*.h")))
    toolchain = emulation_toolchain(find_torch(), sanitizers=sanitizers)
    print(f"== CUDA kernels for the CPU with {toolchain.description}", flush=True)
    objects = compile_all(extension, folder / "objects", toolchain=toolchain)
    library = folder / "_kernels_emulation.so"
    run_compiler([*toolchain.link, *map(str, objects), "-o", str(library), *toolchain.link_libraries])
    return library


def sources() -> list[str]:
    """Every CUDA file, and what it runs on."""
    return sorted(str(path) for path in [*SOURCES.glob("cuda/*.cu"), *SOURCES.glob("emulation/*.cpp")])


def emulation_toolchain(torch_folder: Path, *, sanitizers: list[str]) -> Toolchain:
    compiler = cxx(os.environ)
    return Toolchain(
        description=" ".join([version_line(compiler), *sanitizers]),
        compile=[
            *compiler,
            "-c",
            "-fPIC",
            "-fvisibility=hidden",
            *torch_flags(torch_folder),
            "-O1",
            "-g1",
            "-DAMMNET_SPARSE_EMULATION",
            # In place of CUDA's own header of that name.
            f"-I{SOURCES / 'emulation'}",
            # Vectors of 16 bytes are read where elements lie.
            "-fno-strict-aliasing",
            "-Wall",
            "-Wextra",
            "-Wno-unknown-pragmas",
            *sanitizers,
            "-x",
            "c++",
        ],
        link=[*compiler, "-shared", *sanitizers],
        link_libraries=torch_link_flags(torch_folder),
    )


if __name__ == "__main__":
    sys.exit(main())
