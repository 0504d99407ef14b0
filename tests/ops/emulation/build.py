#!/usr/bin/env python3
"""Compiles the CUDA kernels of csrc/cuda with the C++ compiler, to run on a CPU.

    python tests/ops/emulation/build.py                   into build/emulation, watched by the sanitizers of GCC
    python tests/ops/emulation/build.py --no-sanitizers   into build/emulation/plain, for any process and compiler

Neither CUDA nor a GPU is needed. Every .cu of csrc/cuda is compiled. ``make emulate`` runs the tests of the operators
with it; kernels.py loads it where AMMNET_SPARSE_EMULATION names it.
"""

import argparse
import os
import sys
from pathlib import Path

from setuptools import Extension

REPOSITORY = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(REPOSITORY / "tools" / "setup"))
from build_kernels import (  # noqa: E402
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

HERE = Path("tests") / "ops" / "emulation"
FOLDER = Path("build") / "emulation"
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--no-sanitizers", action="store_true", help="without AddressSanitizer and UBSan")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="default: %(default)s")
    options = parser.parse_args()
    os.chdir(REPOSITORY)
    folder = options.folder / "plain" if options.no_sanitizers else options.folder
    try:
        library = build(folder, sanitizers=[] if options.no_sanitizers else SANITIZERS)
    except BuildSkipped as reason:
        print(f"{Path(__file__).name}: {reason}", file=sys.stderr)
        return 1
    print(f"== built {library}")
    return 0


def build(folder: Path, *, sanitizers: list[str]) -> Path:
    """Compiles and links the library in ``folder``. Raises BuildSkipped."""
    extension = Extension(
        "emulation", sources=sources(), depends=sorted(str(path) for path in [*SOURCES.rglob("*.h"), *HERE.glob("*.h")])
    )
    toolchain = emulation_toolchain(find_torch(), sanitizers=sanitizers)
    print(f"== CUDA kernels for the CPU with {toolchain.description}", flush=True)
    objects = compile_all(extension, folder / "objects", toolchain=toolchain)
    library = folder / "_kernels_emulation.so"
    run_compiler([*toolchain.link, *map(str, objects), "-o", str(library), *toolchain.link_libraries])
    return library


def sources() -> list[str]:
    """Every CUDA file, and what it runs on."""
    return sorted(str(path) for path in [*SOURCES.glob("cuda/*.cu"), *HERE.glob("*.cpp")])


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
            # cuda_runtime.h in place of CUDA's own header of that name, and emulation/launch.h.
            f"-I{HERE}",
            f"-I{HERE.parent}",
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
