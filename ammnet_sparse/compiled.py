"""Functions compiled by numba."""

import functools
import warnings
from collections.abc import Callable
from typing import Literal, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(
    *, nogil: bool = False, error_model: Literal["python", "numpy"] = "python"
) -> Callable[[Function], Function]:
    """A decorator like ``numba.njit`` that keeps the machine code on disk if a folder for it can be written.

    Args:
        nogil: let other threads run meanwhile.
        error_model: numpy: a division by zero gives infinity or NaN instead of an error.
    """

    def decorate(function: Function) -> Function:
        try:
            result = numba.njit(cache=True, nogil=nogil, error_model=error_model)(function)
        except RuntimeError:  # neither the folder of the file nor the home of the user can be written
            _warn_of_no_cache()
            result = numba.njit(nogil=nogil, error_model=error_model)(function)
        return cast(Function, result)

    return decorate


@functools.cache
def _warn_of_no_cache() -> None:
    warnings.warn(
        "numba: no folder for compiled code can be written, so every process compiles it anew, which takes some "
        "seconds; set NUMBA_CACHE_DIR to a folder that can be written",
        UserWarning,
        stacklevel=3,
    )
