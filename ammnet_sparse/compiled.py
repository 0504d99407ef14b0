"""Functions compiled by numba, which is imported when one is first called."""

import functools
import warnings
from collections.abc import Callable
from typing import Any, Literal, TypeVar, cast

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
        return cast(Function, _Compiled(function, nogil=nogil, error_model=error_model))

    return decorate


class _Compiled:
    """A function that is compiled at its first call, with those of its module."""

    def __init__(self, function: Callable[..., object], **options: Any) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.options = options

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self.dispatcher(*arguments, **keywords)

    @functools.cached_property
    def dispatcher(self) -> Callable[..., Any]:
        """The function of numba; those that it calls are replaced by theirs too, as numba knows its own only."""
        _replace_in(self.function.__globals__)
        return self.made

    @functools.cached_property
    def made(self) -> Callable[..., Any]:
        import numba

        try:
            found = numba.njit(cache=True, **self.options)(self.function)
        except RuntimeError:  # neither the folder of the file nor the home of the user can be written
            _warn_of_no_cache()
            found = numba.njit(**self.options)(self.function)
        return cast(Callable[..., Any], found)


def _replace_in(names: dict[str, Any]) -> None:
    found = {name: value for name, value in names.items() if isinstance(value, _Compiled)}
    names.update({name: value.made for name, value in found.items()})
    for value in found.values():
        _replace_in(value.function.__globals__)


@functools.cache
def _warn_of_no_cache() -> None:
    warnings.warn(
        "numba: no folder for compiled code can be written, so every process compiles it anew, which takes some "
        "seconds; set NUMBA_CACHE_DIR to a folder that can be written",
        UserWarning,
        stacklevel=4,
    )
