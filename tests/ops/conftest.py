"""Every test of the operators runs with the references and, where they are built, with the compiled kernels."""

from collections.abc import Iterator

import pytest

from ammnet_sparse.ops import kernel_libraries
from tests.ops.support import References


@pytest.fixture(scope="module", autouse=True, params=["reference", "compiled"])
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """What runs: ``reference`` or ``compiled``."""
    if request.param == "compiled":
        library = kernel_libraries()["cpu"]
        if not library.is_loaded:
            # That this does not happen unnoticed is for test_kernels.py.
            pytest.skip(f"no compiled kernels: {library.note}")
        yield "compiled"
        return
    with References():
        yield "reference"
