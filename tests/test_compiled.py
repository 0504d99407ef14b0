"""Functions that numba compiles at their first call."""

import subprocess
import sys
from typing import Any

import numba
import pytest

from ammnet_sparse import compiled as module


def test_without_a_folder_for_the_cache_functions_are_compiled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    original = numba.njit

    def njit(*functions: Any, cache: bool = False, **options: Any) -> Any:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return original(*functions, **options)

    monkeypatch.setattr(numba, "njit", njit)
    module._warn_of_no_cache.cache_clear()
    double = module.compiled(nogil=True)(lambda x: 2 * x)
    with pytest.warns(UserWarning, match="NUMBA_CACHE_DIR"):
        assert double(4) == 8


def test_a_prediction_does_not_wait_for_numba() -> None:
    """Importing it takes 0.4 s, and loading the code of a loop from its cache another second."""
    code = (
        "import sys, numpy, ammnet_sparse.completion, ammnet_sparse.cli.predict\n"
        "from ammnet_sparse.pictures.comparison import render_comparison\n"
        "render_comparison(numpy.ones((60, 36, 60), numpy.uint8), panel_size=8)\n"
        "sys.exit('numba' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
