"""Installs the package and its requirements into the Python that runs this; called by the Makefile.

With names of extras as arguments it installs what these need, and nothing else: install.py docs.

PyTorch comes first and the package after it without build isolation, so that setup.py sees the PyTorch that
the package will run with. Nothing is downloaded for what is already there.
"""

import importlib.metadata
import os
import runpy
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD_REQUIREMENTS = ["pip>=23.1", "setuptools>=77", "wheel", "packaging>=22"]


def main() -> None:
    print(f"== {sys.executable}: build tools", flush=True)
    pip("install", *BUILD_REQUIREMENTS)
    # Only now is there a setuptools that setup.py can import.
    metadata = runpy.run_path(str(ROOT / "setup.py"))
    chosen = metadata["spconv_requirements"](os.environ.get(metadata["SPCONV_VARIABLE"], ""))
    print("== PyTorch (about 3 GB where it has to be downloaded: some minutes)", flush=True)
    pip("install", *metadata["TORCH_REQUIREMENTS"])
    remove_other_spconv(chosen)
    print("== ammnet-sparse and its dependencies", flush=True)
    pip("install", "--no-build-isolation", "--editable", f"{ROOT}[dev]")
    check()


def install_extras(names: list[str]) -> None:
    """The requirements of the extras of pyproject.toml, without the package itself."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pip("install", "--quiet", *(text for name in names for text in project["optional-dependencies"][name]))


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", *arguments]
    if subprocess.run(command, check=False).returncode:
        sys.exit(
            f"\nSet-up stopped: {' '.join(command[1:])} failed, its message is above.\n"
            "  The network, the disk (7 GB) and the package index of pip's configuration are the usual causes; "
            "the same command goes on from here."
        )


def installed(family: str) -> dict[str, str]:
    """Version by name of what is installed of ``spconv`` or ``cumm``, each of which has a wheel per CUDA release."""
    found = {
        dist.metadata["Name"].replace("_", "-").lower(): dist.version for dist in importlib.metadata.distributions()
    }
    return {name: version for name, version in found.items() if name == family or name.startswith(f"{family}-")}


def remove_other_spconv(chosen: list[str]) -> None:
    """Uninstalls spconv wheels other than the chosen: they would write into one another's files."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    requirements = [Requirement(text) for text in chosen]
    wanted = {canonicalize_name(item.name) for item in requirements if item.marker is None or item.marker.evaluate()}
    if set(installed("spconv")) - wanted:
        print("== another spconv was chosen: removing the one that is there", flush=True)
        pip("uninstall", "--yes", *installed("spconv"), *installed("cumm"))


def check() -> None:
    """Imports the parts that fail if versions do not match, and prints what was installed."""
    spconv = ", ".join(f"{name} {version}" for name, version in installed("spconv").items())
    program = (
        "import torch, torchvision, ammnet_sparse as package; "
        "print(f'== ready: ammnet-sparse {package.__version__}, torch {torch.__version__}, torchvision ' "
        f"f'{{torchvision.__version__}}, {spconv}, CUDA device: {{torch.cuda.is_available()}}'); "
        "from ammnet_sparse.ops import kernel_libraries; "
        "[print(f'== {device} kernels: {\"loaded from \" * library.is_loaded}{library.note}') "
        "for device, library in kernel_libraries().items()]"
    )
    if subprocess.run([sys.executable, "-c", program], cwd=Path(sys.executable).parent, check=False).returncode:
        versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "torchvision"))
        sys.exit(
            f"\nSet-up stopped: found {versions}, and they cannot be imported together (the message is above).\n"
            "  Both must be builds of the same release and kind, CUDA or CPU. Delete the virtual environment\n"
            "  (make clean) and look for pip settings that add an index with another build of PyTorch."
        )


if __name__ == "__main__":
    install_extras(sys.argv[1:]) if sys.argv[1:] else main()
