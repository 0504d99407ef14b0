"""Prints the two tables of docs/kernels.md: bytes that the CUDA kernels must move, and what the compiler made of them.

    python tools/kernel_report.py                                   both tables, for the built library and sm_90
    python tools/kernel_report.py --architecture 8.6 --cuobjdump /usr/local/cuda/bin/cuobjdump

Needs no GPU; where there is one, Nsight Compute (`ncu`) measures what memory and caches really moved. Indices are those
of real frames (``--data``) or of generated rooms.
"""

import argparse
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from bench.cases import (
    BATCH_SIZE,
    CHANNELS,
    FRAMES_SIZE,
    MANY_ROWS,
    MANY_SIZE,
    MAP_SIZE,
    ROWS_OF_FRAME,
    encoder_sites,
    load_frames,
    mapped_pixels,
)

from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.grid import IMAGE_SHAPE, NUM_CLASSES
from ammnet_sparse.ops import kernel_libraries, projection
from ammnet_sparse.sparse.kernel_maps import neighbor_rows

ROOT = Path(__file__).resolve().parents[2]
BANDWIDTHS = (3.0e12, 936e9, 360e9)
"""GB/s of an H100, an RTX 3090 and an RTX 3060."""
INDEX = 8
"""Bytes of an index: the network's are int64."""
CELLS = BATCH_SIZE * MAP_SIZE[0] * MAP_SIZE[1]


def projection_bytes(batch: Batch, rows_of_frame: int, item: int) -> Iterator[tuple[str, int]]:
    pixel, sample = mapped_pixels(batch, rows_of_frame)
    cells = projection._reads(
        pixel, sample, batch_size=BATCH_SIZE, map_size=MAP_SIZE, image_size=IMAGE_SHAPE, align_corners=False,
        dtype=torch.float32,
    ).cells  # fmt: skip
    sites, row, indices = len(pixel), CHANNELS * item, 2 * INDEX * len(pixel)
    yield "project_features", indices + cells.unique().numel() * row + sites * row
    yield "project_features backward", indices + sites * row + CELLS * row


def filling_bytes(batch: Batch, item: int, *, is_large: bool) -> Iterator[tuple[str, int]]:
    sites, _ = encoder_sites(batch, is_large=is_large)
    once, indices = len(sites) * CHANNELS * item, INDEX * neighbor_rows(sites).numel()
    yield "fill_empty", indices + 2 * once
    yield "fill_empty backward", indices + 3 * once


def other_bytes(batch: Batch, rows: int, item: int, *, is_large: bool) -> Iterator[tuple[str, int]]:
    num_labels = MANY_ROWS if is_large else batch.mapping.numel()
    for name in ("erase_voxels", "shuffle_categories"):
        yield f"{name} ({num_labels} labels, uint8)", 2 * num_labels
    yield "one_hot_sites", rows * (INDEX + 1) + rows * NUM_CLASSES * item
    once = rows * CHANNELS * item
    yield "modulate", 4 * once
    yield "modulate backward", 5 * once
    yield "normalize_sites", 3 * once
    yield "normalize_sites backward", 5 * once


def all_bytes(batch: Batch, *, is_large: bool, item: int) -> dict[str, int]:
    """What each operator must move: every input and output once, of the indices what is read."""
    rows_of_frame = MANY_ROWS // BATCH_SIZE if is_large else ROWS_OF_FRAME
    return {
        **dict(projection_bytes(batch, rows_of_frame, item)),
        **dict(filling_bytes(batch, item, is_large=is_large)),
        **dict(other_bytes(batch, rows_of_frame * BATCH_SIZE, item, is_large=is_large)),
    }


def print_bytes(batch: Batch) -> None:
    times = " | ".join(f"{bandwidth / 1e9:.0f} GB/s" for bandwidth in BANDWIDTHS)
    for size, is_large in ((FRAMES_SIZE, False), (MANY_SIZE, True)):
        print(f"\n| {size} rows, float32 / float16 | MB | {times} |\n|---|--:|" + "--:|" * len(BANDWIDTHS))
        wide, short = (all_bytes(batch, is_large=is_large, item=item) for item in (4, 2))
        for name, full in wide.items():
            amounts = (full, short[name]) if full != short[name] else (full,)
            cells = [" / ".join(f"{amount / 1e6:.1f}" for amount in amounts)]
            cells += [" / ".join(f"{amount / bandwidth * 1e6:.1f}" for amount in amounts) for bandwidth in BANDWIDTHS]
            print(f"| {name} | {' | '.join(cells)} |")


class Kernel(NamedTuple):
    """A function of the library in one of its types: ``size`` elements make an access along channels."""

    name: str
    types: str
    resources: str
    loads: str
    stores: str
    local: int


TYPES = {"f": "float32", "d": "float64", "N3c104HalfE": "float16", "N3c108BFloat16E": "bfloat16", "h": "uint8",
         "a": "int8", "s": "int16", "i": "int32", "l": "int64", "j": "uint32"}  # fmt: skip


def compiled_kernels(library: Path, *, cuobjdump: str, architecture: str) -> list[Kernel]:
    """Every kernel of ``library`` for an architecture such as ``sm_90``, by name."""

    def run(what: str) -> str:
        command = [cuobjdump, what, "-arch", architecture, str(library)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    names = {
        name
        for path in (ROOT / "csrc" / "cuda").glob("*.cu")
        for name in re.findall(r"__global__ void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\(", path.read_text("utf-8"))
    }
    resources = dict(re.findall(r"Function (\S+):\s+(REG:\d+ STACK:\d+ SHARED:\d+)", run("-res-usage")))
    kernels = []
    for part in run("-sass").split("Function : ")[1:]:
        mangled = part.split()[0]
        name = max((name for name in names if f"{len(name)}{name}" in mangled), key=len, default=mangled)
        after = mangled.partition(f"{len(name)}{name}")[2]
        kernels.append(
            Kernel(
                name, _types(after), _resources(resources[mangled]), _widths(r"\bLDG\.(\S+)", part),
                _widths(r"\bSTG\.(\S+)", part), len(re.findall(r"\b(?:LDL|STL)\b", part)),
            )
        )  # fmt: skip
    return sorted(kernels)


def _types(mangled: str) -> str:
    """The template arguments in words, from what follows a kernel's name."""
    argument = r"N3c104HalfE|N3c108BFloat16E|NS_\d(?:Erase|Shuffle)I[a-z]+EE?|L[ib]\d+E|[fdhasilj]"
    found = re.match(rf"I((?:{argument})+)E", mangled)
    words = []
    for entry in re.findall(argument, found[1]) if found else []:
        operator = re.search("Erase|Shuffle", entry)
        size = re.fullmatch(r"L([ib])(\d+)E", entry)
        if size:
            words.append(f"x {size[2]}" if size[1] == "i" else ("unaligned", "aligned")[int(size[2])])
        else:
            words.append(operator[0] if operator else TYPES[entry])
    return " ".join(words)


def _resources(text: str) -> str:
    registers, stack, shared = map(int, re.findall(r":(\d+)", text))
    return f"{registers} | {stack} | {shared}"


def _widths(pattern: str, text: str) -> str:
    widths = Counter(next((width for width in ("128", "64", "16", "8") if re.search(rf"\b[US]?{width}\b", entry)), "32")
                     for entry in re.findall(pattern, text))  # fmt: skip
    return ", ".join(f"{count} x {width}" for width, count in sorted(widths.items(), key=lambda item: -int(item[0])))


def print_kernels(library: Path, *, cuobjdump: str, architecture: str, is_complete: bool) -> None:
    print(f"\n| kernel ({architecture}) | type | registers | stack | shared | loads | stores | spills |\n"
          "|---|---|--:|--:|--:|---|---|--:|")  # fmt: skip
    for kernel in compiled_kernels(library, cuobjdump=cuobjdump, architecture=architecture):
        # gather_taps copies words of so many bytes; 32-bit numbers serve all but the largest results.
        if not is_complete and re.search(r"float64|^x (2|4|8)\b|^x 16 int64", kernel.types):
            continue
        if not is_complete and re.search(r"^\w+ x 1\b|unaligned| int(8|16|32)$|^int", kernel.types):
            continue
        print(f"| {kernel.name} | {kernel.types} | {kernel.resources} | {kernel.loads} | {kernel.stores} "
              f"| {kernel.local} |")  # fmt: skip


def find_cuobjdump() -> str | None:
    """On the path, or the one that Triton brings with PyTorch's wheels."""
    try:
        import triton
    except ImportError:
        return shutil.which("cuobjdump")
    beside = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return shutil.which("cuobjdump") or (str(beside) if beside.is_file() else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of a set in the published layout; else generated rooms")
    parser.add_argument("--architecture", default="9.0", help="compute capability (%(default)s)")
    parser.add_argument(
        "--all", action="store_true", help="also kernels for rows that no 16-byte access fits, and rarer types"
    )
    parser.add_argument("--no-bytes", action="store_true", help="the second table alone")
    parser.add_argument("--cuobjdump", default=find_cuobjdump(), help="of the CUDA toolkit, or Triton's")
    arguments = parser.parse_args()
    if not arguments.no_bytes:
        print_bytes(load_frames(arguments.data))
    library = ROOT / "ammnet_sparse" / "_kernels_cuda.so"
    if not library.is_file():
        parser.error(f"{library.name}: {kernel_libraries()['cuda'].note}")
    if arguments.cuobjdump is None:
        parser.error("--cuobjdump: expected the program of the CUDA toolkit, found none on the path")
    print_kernels(
        library,
        cuobjdump=arguments.cuobjdump,
        architecture="sm_" + arguments.architecture.replace(".", ""),
        is_complete=arguments.all,
    )
