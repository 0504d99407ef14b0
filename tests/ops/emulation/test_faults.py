"""The emulation of CUDA threads catches what it is for: each of these kernels has one fault (faults.cu)."""

import os
import re
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
pytestmark = pytest.mark.emulation


@pytest.fixture(scope="module", autouse=True)
def implementation() -> None:
    """In place of that of conftest.py: no operator is called here."""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("faults") / "faults"
    command = [*os.environ.get("CXX", "c++").split(), "-std=c++20", "-O1", "-g1", "-fsanitize=address", "-x", "c++"]
    sources = [str(HERE / "faults.cu"), str(HERE / "threads.cpp")]
    subprocess.run([*command, f"-I{HERE}", *sources, "-o", str(path)], env=environment(), check=True, timeout=300)
    return path


def environment(seed: str = "") -> dict[str, str]:
    # The compiler and the program bring their own sanitizer.
    kept = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    return kept | {"AMMNET_SPARSE_EMULATION_SEED": seed}


def said_of(program: Path, fault: str, seed: str = "") -> str:
    done = subprocess.run([program, fault], env=environment(seed), capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr


@pytest.mark.parametrize("seed", ["", "0", "1", "2", "3"])
def test_a_kernel_without_a_fault_is_right_in_any_order(program: Path, seed: str) -> None:
    assert said_of(program, "none", seed).splitlines()[0] == "right"


@pytest.mark.parametrize("seed", ["", "0", "1"])
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing barrier", "^wrong$"),
        ("reads unwritten", "^wrong$"),
        ("wrong lane", "^wrong$"),
        ("lane outside", r"__shfl_sync, faults.cu:\d+: expected a lane of 0 .. 31, found [3-6]\d$"),
        ("out of bounds", "AddressSanitizer: heap-buffer-overflow"),
        (
            "ends before barrier",
            r"__syncthreads, faults.cu:\d+(, thread \d+: threads of the block have ended|: 63 of 64)",
        ),
        (
            "ends before warp",
            r"__any_sync, faults.cu:\d+: 31 of 64 threads of the block wait, and the others have ended",
        ),
        ("meets elsewhere", r"other lanes of the warp wait at __shfl_xor_sync, faults.cu:\d+"),
        ("takes half a warp", r"__ballot_sync, faults.cu:\d+, thread \d+: expected the full mask"),
        ("misaligned", "expected an address that is a multiple of 16, found one that leaves 4"),
        ("no block", "invalid configuration of a launch: blocks 0 x 1 x 1, threads 64 x 1 x 1"),
    ],
)
def test_a_fault_is_caught(program: Path, fault: str, message: str, seed: str) -> None:
    assert re.search(message, said_of(program, fault, seed), re.MULTILINE)


def test_a_seed_that_is_no_number_is_an_error(program: Path) -> None:
    assert "AMMNET_SPARSE_EMULATION_SEED: expected an integer, found 7x" in said_of(program, "none", "7x")
