"""One place that says how closely two computations in the same type must agree."""

import torch

_TOLERANCES = {
    torch.float64: {"rtol": 1e-10, "atol": 1e-10},
    torch.float32: {"rtol": 2e-5, "atol": 5e-6},
    # One rounding of a result that was summed in float32: half a unit in the last place, with a little room.
    torch.float16: {"rtol": 1e-3, "atol": 1e-4},
    torch.bfloat16: {"rtol": 8e-3, "atol": 1e-3},
}


def tolerances(dtype: torch.dtype) -> dict[str, float]:
    """``rtol`` and ``atol`` for ``torch.testing.assert_close`` between results of type ``dtype``."""
    return _TOLERANCES[dtype]
