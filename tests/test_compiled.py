"""Compiled functions where nothing can be written."""

from types import SimpleNamespace
from typing import Any

import numba
import pytest

from ammnet_sparse import compiled as module


def test_without_a_folder_for_the_cache_functions_are_compiled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    def njit(*, cache: bool = False, **options: Any) -> Any:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return numba.njit(**options)

    monkeypatch.setattr(module, "numba", SimpleNamespace(njit=njit))
    module._warn_of_no_cache.cache_clear()
    with pytest.warns(UserWarning, match="NUMBA_CACHE_DIR"):
        double = module.compiled(nogil=True)(lambda x: 2 * x)
    assert double(4) == 8
