"""The compiled operators (tools/setup/build_kernels.py) and the requirements; all else is in pyproject.toml.

``make`` installs PyTorch first and then this with ``pip install --no-build-isolation``, which spares a second download.
``pip install .`` and ``pip wheel .`` build with a PyTorch of their own; the kernels run with any from 2.11 on.
"""

import os
import re
import sys
import tomllib
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools" / "setup"))
from build_kernels import BuildKernels, kernel_extensions  # noqa: E402

_OURS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ammnet-sparse"]
TORCH_REQUIREMENTS: list[str] = _OURS["torch"]
REQUIREMENTS: list[str] = _OURS["requirements"]

SPCONV_VARIABLE = "AMMNET_SPARSE_SPCONV"
SPCONV_VERSIONS = ">=2.3.6,<2.4"
SPCONV_PLATFORMS = 'sys_platform == "linux" and platform_machine == "x86_64" and python_version < "3.14"'
"""Where spconv has wheels; elsewhere our own convolutions serve (``gather``)."""
SPCONV_PATTERN = re.compile(r"(?P<name>spconv[-_.]cu\d{2,3})\s*(?P<rest>([<>=!~][^;@]*|@\s*\S.*)?)", re.IGNORECASE)


def spconv_requirements(choice: str = "") -> list[str]:
    """The requirement that brings spconv.

    Args:
        choice: what the environment variable AMMNET_SPARSE_SPCONV says: a CUDA wheel of spconv by name
            (``spconv-cu126``), optionally with versions (``spconv-cu126==2.3.8``) or a place
            (``spconv-cu126 @ file:///...``). Empty: spconv-cu120 up to Python 3.11, spconv-cu126 from 3.12, where it
            has wheels, decided where the package is installed, not where it is built.

    Raises:
        SystemExit: for anything else, the plain ``spconv`` wheel included.
    """
    choice = choice.strip()
    if not choice:
        return [
            f'spconv-cu120{SPCONV_VERSIONS}; {SPCONV_PLATFORMS} and python_version < "3.12"',
            f'spconv-cu126{SPCONV_VERSIONS}; {SPCONV_PLATFORMS} and python_version >= "3.12"',
        ]
    if re.fullmatch(r"spconv\b(?![-_.]).*", choice, re.IGNORECASE):
        raise SystemExit(
            f"{SPCONV_VARIABLE}: the plain spconv wheel cannot be used (found {choice!r}): on a CPU its backward pass "
            "fails and its forward pass is wrong with two threads. The CUDA wheels run without a GPU too: "
            "expected for example spconv-cu126"
        )
    match = SPCONV_PATTERN.fullmatch(choice)
    if not match:
        raise SystemExit(
            f"{SPCONV_VARIABLE}: expected a CUDA wheel of spconv, for example spconv-cu126 or spconv-cu126==2.3.8, "
            f"found {choice!r}. Unset it for the wheel that fits most cards"
        )
    return [choice if match["rest"] else choice + SPCONV_VERSIONS]


class BuildPython(build_py):
    """Copies the configurations into the package, where ``--config NAME`` finds them without a checkout."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return  # they are found in the checkout
        for source in sorted((ROOT / "configs").rglob("*.yaml")):
            target = Path(self.build_lib) / "ammnet_sparse" / "configs" / source.relative_to(ROOT / "configs")
            self.mkpath(str(target.parent))
            self.copy_file(str(source), str(target), preserve_mode=False)


class BuildWheel(bdist_wheel):
    """One wheel for every Python: the kernels use libtorch's stable ABI and nothing of Python's."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


if __name__ == "__main__":
    setup(
        install_requires=[
            *TORCH_REQUIREMENTS,
            *spconv_requirements(os.environ.get(SPCONV_VARIABLE, "")),
            *REQUIREMENTS,
        ],
        ext_modules=kernel_extensions(),
        cmdclass={"build_ext": BuildKernels, "build_py": BuildPython, "bdist_wheel": BuildWheel},
    )
