#!/usr/bin/env python3
"""Downloads the wheels that a machine without a network is missing, to be copied there.

    python tools/setup/carry_packages.py build/carried                    what is rarely installed beside PyTorch
    python tools/setup/carry_packages.py build/carried plyfile pydantic   these
    tools/gpu_report.py --packages build/carried ...                      there: installs them

Dependencies are not followed: which of them the machine has is not known here. `ammnet environment` names there
what is still lacking. A wheel of more than --repack MiB (spconv's has 80) becomes a .tar.xz, about two thirds as large.

Exit code: 0 everything is there, 1 something cannot be had.
"""

import argparse
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

PACKAGES = (
    "spconv-cu126>=2.3.6,<2.4",
    "cumm-cu126>=0.7.11,<0.8",
    "pccm",
    "ccimport",
    "fire",
    "lark",
    "termcolor",
    "pydantic",
    "pydantic-core",
    "typing-extensions",
    "annotated-types",
    "typing-inspection",
    "plyfile",
)
"""The package's requirements beside PyTorch and the usual packages, with their own requirements."""

PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
MIB = 2**20


def main(arguments: Sequence[str] | None = None) -> int:
    description, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="carry_packages.py",
        description=description,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="receives the wheels and archives")
    parser.add_argument("packages", nargs="*", default=PACKAGES, metavar="package", help="default: see above")
    parser.add_argument("--python", default="3.12", metavar="V", help="of that machine (default: %(default)s)")
    parser.add_argument("--repack", type=float, default=16, metavar="MIB", help="default: %(default)s")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    try:
        for requirement in options.packages:
            wanted = pins(options.folder).get(requirement.lower().replace("_", "-"), requirement)
            download(wanted, options.folder, python=options.python)
    except subprocess.CalledProcessError as error:
        print(f"carry_packages.py: cannot be had: {error.cmd[-1]}", file=sys.stderr)
        return 1
    for wheel in sorted(options.folder.glob("*.whl")):
        if wheel.stat().st_size > options.repack * MIB:
            repack(wheel)
    for path in sorted(options.folder.iterdir()):
        print(f"{path.stat().st_size / MIB:8.1f} MiB  {path.name}")
    return 0


def download(requirement: str, folder: Path, *, python: str) -> None:
    """The wheel for x86-64 Linux. Raises subprocess.CalledProcessError."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", python, "--implementation", "cp"]
    for platform in PLATFORMS:
        command += ["--platform", platform]
    subprocess.run([*command, "--dest", str(folder), requirement], check=True)


def pins(folder: Path) -> dict[str, str]:
    """Requirements of one version that wheels of a folder have, by name: pydantic's of pydantic-core."""
    found = {}
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            metadata = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
            text = archive.read(metadata).decode("utf-8")
        for name, version in re.findall(r"^Requires-Dist: *([\w.-]+) *\(?==([\w.]+)\)?$", text, re.MULTILINE):
            found[name.lower().replace("_", "-")] = f"{name}=={version}"
    return found


def repack(wheel: Path) -> Path:
    """The same files as a .tar.xz, to be unpacked where the wheel would be installed; the wheel is deleted."""
    archive = wheel.with_suffix(".tar.xz")
    unfinished = archive.with_name(f"{archive.name}.unfinished")
    with tempfile.TemporaryDirectory() as temporary:
        with zipfile.ZipFile(wheel) as source:
            source.extractall(temporary)
        with tarfile.open(unfinished, "w:xz", preset=9) as target:
            target.add(temporary, arcname=".")
    unfinished.replace(archive)
    wheel.unlink()
    return archive


if __name__ == "__main__":
    sys.exit(main())
