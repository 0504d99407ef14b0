"""Lists what this machine has and what is missing: card, driver, versions, packages, compiled kernels.

    ammnet environment [--device cuda]

Exit code: 0 nothing is missing for the device, 1 something is (each is named), 2 wrong usage, 130 interrupted.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import platform
import re
import shutil
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from ammnet_sparse.cli.errors import UsageError, command
from ammnet_sparse.cli.options import CommandParser, add_device_option

_PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
_SOURCES = _PROJECT.with_name("csrc")
"""Of a checkout, which need not be installed here."""
_BUILD = Path(__file__).resolve().parents[1] / "_kernels_build.json"
_MODULES = {"pillow": "PIL", "pyyaml": "yaml"}
"""Import names that differ from the names of the packages."""
_DEVELOPMENT = ("pytest", "hypothesis", "ruff", "mypy")


@command("environment")
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``ammnet environment``; returns its exit code."""
    parser = CommandParser("environment", __doc__)
    add_device_option(parser)
    device = parser.parse(arguments).device
    if device is not None and device.partition(":")[0] not in ("cpu", "cuda"):
        raise UsageError(f"--device: expected cpu, cuda or cuda:0, found {device!r}")
    print(f"Python {platform.python_version()}, {platform.platform()}")
    for program in (
        ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv"],
        ["nvcc", "--version"],
    ):
        print(_output_of(program))
    absent = missing_modules(required_packages())
    print(f"packages for development that are absent: {', '.join(missing_modules(_DEVELOPMENT)) or 'none'}")
    lacking = [f"package {name}" for name in absent]
    if not absent:
        import torch

        kind = ("cuda" if torch.cuda.is_available() else "cpu") if device is None else device.partition(":")[0]
        lacking += _lacking_of_torch(kind)
        lacking += _lacking_of_spconv(kind)
        _print_weights()
    for what in lacking:
        print(f"LACKING: {what}")
    return 1 if lacking else 0


def required_packages() -> list[str]:
    """The packages' requirements by name; where spconv has wheels, ``spconv`` stands for all of them.

    Read from pyproject.toml in a checkout, from the metadata of an installed package.
    """
    if _PROJECT.is_file():
        ours = tomllib.loads(_PROJECT.read_text(encoding="utf-8"))["tool"]["ammnet-sparse"]
        requirements = [*ours["torch"], *ours["requirements"]]
    else:
        requirements = [text for text in importlib.metadata.requires("ammnet-sparse") or () if "extra ==" not in text]
    names = [re.split(r"[^A-Za-z0-9._-]", text, maxsplit=1)[0] for text in requirements]
    names = [name for name in names if not name.startswith("spconv")]
    return [*names, "spconv"] if _has_spconv_wheels() else names


def _has_spconv_wheels() -> bool:
    """As SPCONV_PLATFORMS of setup.py says; elsewhere our own convolutions serve (``gather``)."""
    return platform.system() == "Linux" and platform.machine() == "x86_64" and sys.version_info < (3, 14)


def missing_modules(packages: Sequence[str]) -> list[str]:
    """The packages that cannot be imported."""
    return [name for name in packages if importlib.util.find_spec(_MODULES.get(name, name)) is None]


def _lacking_of_torch(device: str) -> Iterator[str]:
    import torch

    from ammnet_sparse.ops import kernel_libraries

    print(f"PyTorch {torch.__version__}, CUDA {torch.version.cuda}")
    is_of_other_sources = _is_of_other_sources()
    for name, library in kernel_libraries().items():
        print(f"kernels for {name}: {'loaded' if library.is_loaded else 'not loaded'} ({library.note})")
        if not library.is_loaded and name in ("cpu", device):
            yield f"compiled kernels for {name}: {library.note} (install the package where a compiler is found)"
        elif library.is_loaded and is_of_other_sources:
            yield f"kernels for {name} of the present csrc (python setup.py build_ext --inplace)"
    if device == "cuda" and not torch.cuda.is_available():
        yield "a CUDA device that PyTorch finds"


def _is_of_other_sources() -> bool:
    """Whether the kernels were built from other files than those of the checkout, or by a build that did not say."""
    if not _SOURCES.is_dir() or not _BUILD.is_file():
        return False
    built = json.loads(_BUILD.read_text(encoding="utf-8")).get("sources")
    files = sorted(path for path in _SOURCES.rglob("*") if path.suffix in (".h", ".cpp", ".cu"))
    present = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    return bool(built != present)


def _print_weights() -> None:
    """The shipped weights with their metadata."""
    from ammnet_sparse.models.weights.files import read_weights
    from ammnet_sparse.models.weights.shipped import FOLDER, list_models

    for name in list_models():
        said = read_weights(FOLDER / f"{name}.safetensors")[2]
        parts = [
            f"epoch {said['epoch']} of their last training, on {said['data']}" if "data" in said else "",
            f"validation {said['validation']}" if "validation" in said else "",
            f"made by version {said['version']}" if "version" in said else "",
        ]
        print(f"weights {name}: {'; '.join(part for part in parts if part) or 'no metadata'}")


def _lacking_of_spconv(device: str) -> Iterator[str]:
    if not _has_spconv_wheels() and missing_modules(["spconv"]):
        print("spconv: no wheels for this Python and processor; convolutions use gather")
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # spconv's own, about PyTorch's newer names
            import spconv.pytorch.functional
        from spconv.cppconstants import COMPILED_CUDA_GEMM_ARCHS, CPU_ONLY_BUILD
    except Exception as error:  # its own dependencies may be missing, or of another version
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
