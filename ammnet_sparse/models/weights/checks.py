"""Whether tensors of a file can be the weights of a network: kind, type, shape, values."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ammnet_sparse.files.errors import FileError, abbreviated

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Types in which weights may be stored; in the network they are float32."""
_INTEGERS = (torch.int64, torch.int32)
_VARIANCE = "running_var"


class WeightsError(FileError):
    """Weights that cannot be used; the message names the file, what was expected and what was found."""


def kind_problem(value: Tensor) -> str | None:
    """Why a tensor is not plain numbers in memory; None if it is."""
    kinds = {
        "a nested tensor": value.is_nested,
        "a tensor without values (meta device)": value.is_meta,
        "a quantized tensor": value.is_quantized,
        f"a sparse tensor ({value.layout})": value.layout != torch.strided,
        f"8-bit floats ({value.dtype})": "float8" in str(value.dtype),
    }
    return next((what for what, is_so in kinds.items() if is_so), None)


def type_problem(value: Tensor, *, is_floating: bool) -> str | None:
    """What is wrong with the type of a weight, or of an integer counter; None if nothing is."""
    if is_floating and value.dtype not in FLOATS:
        return f"expected floats of 16 to 64 bits, found {value.dtype}"
    if not is_floating and value.dtype not in _INTEGERS:
        return f"expected int64, found {value.dtype}"
    return None


def value_problem(name: str, value: Tensor) -> str | None:
    """What is wrong with the values of a plain tensor of weights; None if nothing is."""
    if not value.dtype.is_floating_point:
        return None
    if not bool(torch.isfinite(value.float()).all()):
        return "expected finite numbers in float32, found infinite ones or NaN"
    if name.endswith(_VARIANCE) and bool((value < 0).any()):
        return "expected variances from 0 on, found negative ones"
    return None


def check_plain(state: Mapping[str, Tensor], *, source: object) -> None:
    """Raises WeightsError naming tensors that are not plain numbers in memory."""
    unusable = [f"{name} ({what})" for name, value in state.items() if (what := kind_problem(value))]
    if unusable:
        raise WeightsError(
            f"{source}: expected plain tensors, found {abbreviated(unusable)}; convert them with "
            "tensor.to_dense().dequantize().float() as far as they need it, and save the state_dict again"
        )


def check_state(
    expected: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    *,
    source: object,
    what: str,
    may_lack: Sequence[str] = (),
    given_as: Mapping[str, str] | None = None,
) -> None:
    """Raises one error that names everything missing, unknown or unusable in a state dict.

    Args:
        expected: the network's own state dict; its values do not matter, so it may be on the meta device.
        source: where ``state`` comes from, for messages.
        what: whose weights are expected, for messages.
        may_lack: parts (``image_encoder.backbone``, ``discriminator``) that ``state`` need not hold.
        given_as: the names of ``state`` in the file, for messages; None: the same.

    Raises:
        WeightsError: missing or unknown names, wrong shapes or types, sparse, quantized or nested tensors, values
            that are not finite, negative variances.
    """
    check_plain(state, source=source)
    shown = given_as or {name: name for name in state}
    missing = [
        name for name in expected if name not in state and not any(name.startswith(f"{part}.") for part in may_lack)
    ]
    problems: dict[str, list[str]] = {"missing names": missing}
    for name, value in state.items():
        if name not in expected:
            problems.setdefault("unknown names", []).append(shown[name])
        elif value.shape != expected[name].shape:
            sizes = f"expected {list(expected[name].shape)}, found {list(value.shape)}"
            problems.setdefault("wrong shapes", []).append(f"{shown[name]} ({sizes})")
        elif wrong := type_problem(value, is_floating=expected[name].is_floating_point()):
            problems.setdefault("wrong types", []).append(f"{shown[name]} ({wrong})")
        elif wrong := value_problem(name, value):
            problems.setdefault("wrong values", []).append(f"{shown[name]} ({wrong})")
    if any(problems.values()):
        found = "; ".join(f"{title}: {abbreviated(names)}" for title, names in problems.items() if names)
        raise WeightsError(f"{source}: expected the weights of this {what}; found {found}")
