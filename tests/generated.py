"""hypothesis, for tests on generated examples; where it is absent those tests skip and say so, and the others run.

Machines that only run things, such as one with a GPU and no network, often lack packages of development.
"""

import os
from collections.abc import Callable
from typing import Any

import pytest

__all__ = ["HAS_HYPOTHESIS", "given", "hnp", "settings", "st"]

try:
    from hypothesis import given, settings
    from hypothesis import strategies as st
    from hypothesis.extra import numpy as hnp

    HAS_HYPOTHESIS = True
    # A busy machine exceeds hypothesis' 200 ms an example without anything being wrong.
    settings.register_profile("project", deadline=None)
    settings.load_profile("project")
    if os.environ.get("AMMNET_SPARSE_EMULATION"):  # a GPU's threads on one of the CPU: a few examples have to do
        _settings = settings

        def settings(*arguments: Any, **options: Any) -> Any:  # type: ignore[no-redef]
            return _settings(*arguments, **{**options, "max_examples": min(options.get("max_examples", 100), 8)})
except ImportError:
    HAS_HYPOTHESIS = False

    class _Absent:
        """Stands for every strategy, and for what is made of them."""

        def __getattr__(self, name: str) -> "_Absent":
            return self

        def __call__(self, *arguments: Any, **options: Any) -> "_Absent":
            return self

    def given(*strategies: Any, **named: Any) -> Callable[..., Any]:  # type: ignore[no-redef]
        return pytest.mark.skip(reason="needs hypothesis, which is not installed")

    def settings(*arguments: Any, **options: Any) -> Callable[..., Any]:  # type: ignore[no-redef]
        return lambda function: function

    st = hnp = _Absent()  # type: ignore[assignment]
