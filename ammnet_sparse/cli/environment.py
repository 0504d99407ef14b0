#!/usr/bin/env python3
"""Says what this machine has for the project, and what it lacks: card, driver, versions, packages, compiled kernels.

    python tools/show_environment.py [--device cuda]

Exit code: 0 nothing is lacking for the device, 1 something is (each is named).
"""

import argparse
import ast
import importlib.util
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
_MODULES = {"pillow": "PIL", "pyyaml": "yaml"}
"""Names to import, where they differ from those to install."""
_DEVELOPMENT = ("pytest", "hypothesis", "ruff", "mypy")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="show_environment.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="what is asked of it (default: cpu)")
    options = parser.parse_args(arguments)
    print(f"Python {platform.python_version()}, {platform.platform()}")
    for command in (
        ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv"],
        ["nvcc", "--version"],
    ):
        print(_output_of(command))
    absent = missing_modules(required_packages())
    print(f"packages of development that are absent: {', '.join(missing_modules(_DEVELOPMENT)) or 'none'}")
    lacking = [f"package {name}" for name in absent]
    if not absent:
        lacking += _lacking_of_torch(options.device)
        lacking += _lacking_of_spconv(options.device)
    for what in lacking:
        print(f"LACKING: {what}")
    return 1 if lacking else 0


def required_packages() -> list[str]:
    """What setup.py requires, by name, read without running it; spconv stands for its wheels."""
    tree = ast.parse((REPOSITORY / "setup.py").read_text(encoding="utf-8"))
    lists = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id in ("TORCH_REQUIREMENTS", "REQUIREMENTS")
    }
    found = [text.partition(">")[0] for name in ("TORCH_REQUIREMENTS", "REQUIREMENTS") for text in lists[name]]
    return [*found, "spconv"]


def missing_modules(packages: Sequence[str]) -> list[str]:
    """Those of the packages that cannot be imported."""
    return [name for name in packages if importlib.util.find_spec(_MODULES.get(name, name)) is None]


def _lacking_of_torch(device: str) -> Iterator[str]:
    import torch

    from ammnet_sparse.ops import kernel_libraries

    print(f"PyTorch {torch.__version__}, CUDA {torch.version.cuda}")
    for name, library in kernel_libraries().items():
        print(f"kernels for {name}: {'loaded' if library.is_loaded else 'not loaded'} ({library.note})")
        if not library.is_loaded and name in ("cpu", device):
            yield f"compiled kernels for {name}: {library.note} (tools/gpu_check.sh --build)"
    if device == "cuda" and not torch.cuda.is_available():
        yield "a CUDA device that PyTorch finds"


def _lacking_of_spconv(device: str) -> Iterator[str]:
    try:
        import spconv.pytorch.functional
        from spconv.cppconstants import COMPILED_CUDA_GEMM_ARCHS, CPU_ONLY_BUILD
    except Exception as error:  # what it needs itself may be absent, or of another version
        yield f"an spconv that can be imported ({type(error).__name__}: {error})"
        return
    architectures = ", ".join(f"{major}.{minor}" for major, minor in sorted(COMPILED_CUDA_GEMM_ARCHS))
    print(f"spconv {spconv.__version__}, CUDA code for {architectures or 'no card'}")
    if device == "cuda" and CPU_ONLY_BUILD:
        yield "a CUDA wheel of spconv, such as spconv-cu126"


def _output_of(command: list[str]) -> str:
    if shutil.which(command[0]) is None:
        return f"{command[0]}: not found"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).strip()


if __name__ == "__main__":
    sys.exit(main())
