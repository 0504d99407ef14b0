"""Functions that numba compiles at their first call."""

import subprocess
import sys
from typing import Any

import numba
import pytest

from ammnet_sparse import compiled as module


def test_without_a_folder_for_the_cache_functions_are_compiled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    original = numba.njit

    def njit(*, cache: bool = False, **options: Any) -> Any:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return original(**options)

    monkeypatch.setattr(numba, "njit", njit)
    module._warn_of_no_cache.cache_clear()
    double = module.compiled(nogil=True)(lambda x: 2 * x)
    with pytest.warns(UserWarning, match="NUMBA_CACHE_DIR"):
        assert double(4) == 8


def test_a_prediction_does_not_wait_for_numba() -> None:
    """Importing it takes 0.4 s; the loops of predictions are among the compiled kernels."""
    code = "import sys, ammnet_sparse.completion, ammnet_sparse.cli.predict; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
