"""Every test of the operators runs with the references and, where they are built, with the compiled kernels.

Under ``make emulate`` they run with the CUDA kernels on the CPU alone: what only the CPU's kernels do (marked
``no_emulation``) is left out and what only CUDA kernels do (marked ``emulation``) joins.
"""

from collections.abc import Iterator

import pytest

from ammnet_sparse.ops import kernel_libraries
from tests.ops.emulation.kernels import Emulated
from tests.ops.support import EMULATION, References

IMPLEMENTATIONS = ["emulated"] if EMULATION else ["reference", "compiled"]


@pytest.fixture(scope="module", autouse=True, params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """What runs: ``reference``, ``compiled`` or ``emulated``."""
    if request.param == "compiled":
        library = kernel_libraries()["cpu"]
        if not library.is_loaded:
            # That this does not happen unnoticed is for test_kernels.py.
            pytest.skip(f"no compiled kernels: {library.note}")
        yield "compiled"
        return
    with Emulated() if request.param == "emulated" else References():
        yield request.param


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what is not for the kernels that run."""
    foreign = {"no_emulation", "cuda"} if EMULATION else {"emulation"}
    chosen: dict[bool, list[pytest.Item]] = {False: [], True: []}
    for item in items:
        chosen[any(mark.name in foreign for mark in item.iter_markers())].append(item)
    if chosen[True]:
        config.hook.pytest_deselected(items=chosen[True])
        items[:] = chosen[False]
