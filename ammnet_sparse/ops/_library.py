"""Registers operators with PyTorch; checks shared by operators.

Every operator ``ammnet_sparse::<name>`` has a schema, a reference for all devices, a fake for tracing and, where it
is differentiable, an autograd formula that calls ``<name>_backward``, an operator like any other. The reference is
registered as CompositeExplicitAutograd, so a kernel registered for the dispatch key ``CPU`` or ``CUDA`` takes over
without any other change.

The compiled kernels are in two libraries in the package, one for each device, and are loaded here.
``AMMNET_SPARSE_KERNELS=0`` disables them, so that the references run; ``kernel_libraries`` lists what is loaded.

The range of indices and labels is checked on the CPU only, because on a GPU the check would wait for the device. There
an index out of range reads and writes nothing, its row is zero, and the CUDA kernel sets a flag. With
``AMMNET_SPARSE_CHECK_INDICES=1`` every call waits for the device and raises IndexError if a flag is set.
"""

import ctypes
import json
import mmap
import os
import platform
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

NAMESPACE = "ammnet_sparse"
KERNELS_VARIABLE = "AMMNET_SPARSE_KERNELS"
CHECK_VARIABLE = "AMMNET_SPARSE_CHECK_INDICES"
_NOT_BUILT = "not built"
_PACKAGE = Path(__file__).resolve().parents[1]

INTEGER_TYPES = frozenset({torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64})
"""Types of labels and indices."""
FLOAT_TYPES = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
"""Types of features."""


def define_operator(
    name: str, schema: str, *, reference: Callable[..., Any], fake: Callable[..., Any]
) -> torch._ops.OpOverload:
    """Registers an operator and returns it.

    Args:
        name: the name after ``ammnet_sparse::``.
        schema: arguments and results, ``(Tensor features, ...) -> Tensor``. Sizes and seeds are ``SymInt``, so that
            a traced program does not depend on their values; a kernel receives them as int64.
        reference: runs on every device for which no compiled kernel is registered.
        fake: shapes, types and strides of the results, without values.
    """
    qualified = f"{NAMESPACE}::{name}"
    torch.library.define(qualified, schema, tags=torch.Tag.pt2_compliant_tag)
    torch.library.impl(qualified, "default", reference)
    torch.library.register_fake(qualified, fake)
    return getattr(getattr(torch.ops, NAMESPACE), name).default


class KernelLibrary(NamedTuple):
    """A library of compiled kernels: whether it is loaded, from where, or why not."""

    is_loaded: bool
    note: str


def _load_libraries() -> dict[str, KernelLibrary]:
    return {device: _load_library(device) for device in ("cpu", "cuda")}


def _load_library(device: str) -> KernelLibrary:
    path = _PACKAGE / f"_kernels_{device}.so"
    if not _is_switched_on(KERNELS_VARIABLE, default=True):
        return KernelLibrary(False, f"{KERNELS_VARIABLE}=0")
    if not path.is_file():
        return KernelLibrary(False, f"{_NOT_BUILT}: {_reason_not_built(device)}")
    if device == "cuda" and torch.version.cuda is None:
        return KernelLibrary(False, f"PyTorch {torch.__version__} is built without CUDA")
    if device == "cpu" and platform.machine() == "x86_64" and torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        return KernelLibrary(False, "the processor has no AVX2, or ATEN_CPU_CAPABILITY says not to use it")
    if device == "cuda" and (reason := _reason_of_driver(path)):
        return KernelLibrary(False, reason)
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return KernelLibrary(False, f"{path}: {error}")
    return KernelLibrary(True, str(path))


def _reason_of_driver(path: Path) -> str:
    """Why the driver cannot run the library of CUDA kernels; nothing if it can, or if there is no driver.

    A driver runs code built with CUDA of its own major version and earlier ones. With a later one every launch
    fails, so the references run, with a warning if PyTorch itself can use the device.
    """
    driver = _driver_version()
    built = _version_in(path) if driver else None
    if not driver or not built or built // 1000 <= driver // 1000:
        return ""
    reason = (
        f"built with CUDA {_version_text(built)}, which the driver here, for CUDA {_version_text(driver)}, is too old "
        "for: update the driver, or build the kernels with an older CUDA (python setup.py build_ext --inplace)"
    )
    if int((torch.version.cuda or "0").partition(".")[0]) <= driver // 1000:
        warnings.warn(f"CUDA kernels of ammnet_sparse {reason}. Slower references run instead", stacklevel=2)
    return reason


def _driver_version() -> int | None:
    """The driver's CUDA version, 13000 for 13.0; None without a driver. Does not initialize CUDA: a fork may follow."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int(0)
    return version.value if driver.cuDriverGetVersion(ctypes.byref(version)) == 0 else None


def _version_in(path: Path) -> int | None:
    """The CUDA version that a library was built with, read from its file, as loading it would register its kernels."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = re.search(rb"ammnet_sparse: built with CUDA (\d+)\.", content)
        return int(found[1]) if found else None


def _version_text(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def _is_switched_on(variable: str, *, default: bool) -> bool:
    value = os.environ.get(variable, "")
    if value not in ("", "0", "1"):
        raise ValueError(f"{variable}: expected 0 or 1, found {value!r}")
    return default if value == "" else value == "1"


def _reason_not_built(device: str) -> str:
    """The notes that setup.py left when building the package."""
    report = _PACKAGE / "_kernels_build.json"
    if not report.is_file():
        return "the package was not built here (python setup.py build_ext --inplace, or install it again)"
    return str(json.loads(report.read_text(encoding="utf-8")).get(device, "the build left no reason"))


def _warn_of_missing(libraries: Mapping[str, KernelLibrary]) -> None:
    """Warns of kernels that were not built for a device that is here: results are the same, only slower."""
    for device, library in libraries.items():
        if library.is_loaded or not library.note.startswith(_NOT_BUILT):
            continue
        if device == "cpu" or (torch.version.cuda is not None and _driver_version() is not None):
            warnings.warn(
                f"the {device.upper()} kernels of ammnet_sparse are {library.note}. Slower references run instead: on "
                f"a CPU a frame takes 1.3 to 1.8 times as long ({KERNELS_VARIABLE}=0 accepts that without a warning)",
                UserWarning,
                stacklevel=3,
            )


_LIBRARIES = _load_libraries()
_warn_of_missing(_LIBRARIES)
CHECKS_DEVICE_INDICES = _is_switched_on(CHECK_VARIABLE, default=False)


def kernel_libraries() -> dict[str, KernelLibrary]:
    """The libraries of compiled kernels by device, ``cpu`` and ``cuda``. If one is not loaded, references run."""
    return dict(_LIBRARIES)


def _take_out_of_range_reference(like: Tensor) -> Tensor:
    return torch.zeros(1, dtype=torch.int32, device=like.device)


# The flags (csrc/cuda/common.h) of operators whose CUDA kernels met an index out of range since the last call.
_take_out_of_range = define_operator(
    "take_out_of_range",
    "(Tensor like) -> Tensor",
    reference=_take_out_of_range_reference,
    fake=lambda like: like.new_empty(1, dtype=torch.int32),
)
_BITS = {1: "project_features", 2: "fill_empty", 4: "shuffle_categories", 8: "one_hot_sites", 16: "gather_taps"}


def out_of_range_operators(like: Tensor) -> list[str]:
    """Names of the operators whose kernels met an index out of range since the last call.

    Waits for the device of ``like``. Always empty on the CPU, where such an index is an error, and for references.
    """
    bits = int(_take_out_of_range(like))
    return [name for bit, name in _BITS.items() if bits & bit]


def checked(result: Tensor) -> Tensor:
    """``result``; with AMMNET_SPARSE_CHECK_INDICES=1 raises IndexError if an index on CUDA was out of range."""
    if CHECKS_DEVICE_INDICES and result.device.type == "cuda" and (names := out_of_range_operators(result)):
        raise IndexError(f"{', '.join(names)}: found an index out of range on {result.device}, run on the CPU for more")
    return result


def register_autograd(
    operator: torch._ops.OpOverload, backward: Callable[..., Any], *, setup_context: Callable[..., None]
) -> None:
    """Registers the gradient of an operator: ``setup_context`` saves what ``backward`` needs.

    An operator may change buffers without gradient in place.
    """
    if not operator._schema.is_mutable:
        torch.library.register_autograd(operator, backward, setup_context=setup_context)
        return
    # torch.library has no formulas for operators that change an argument.
    names = [argument.name for argument in operator._schema.arguments]
    changed = [i for i, argument in enumerate(operator._schema.arguments) if argument.is_write]

    def compute(*arguments: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            result = operator(*arguments)
        for position in changed:
            buffer = arguments[position]
            if buffer is not None and not buffer.is_inference():
                torch.autograd.graph.increment_version(buffer)
        return result

    class Formula(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Any:
            result = compute(*arguments)
            setup_context(ctx=ctx, inputs=arguments, output=result)
            return result

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return backward(ctx, *grads)

    def differentiable(*arguments: Any, **keywords: Any) -> Any:
        arguments = (*arguments, *(keywords[name] for name in names[len(arguments) :]))
        needs_gradient = torch.is_grad_enabled() and any(
            isinstance(argument, Tensor) and argument.requires_grad for argument in arguments
        )
        return Formula.apply(*arguments) if needs_gradient else compute(*arguments)

    torch.library.impl(operator.name(), "Autograd", differentiable)


def forbid_autograd(operator: torch._ops.OpOverload) -> None:
    """Makes a gradient through ``operator``, itself a backward formula, an error instead of silently missing."""

    def backward(ctx: Any, *grads: Tensor) -> NoReturn:
        raise NotImplementedError(
            f"{operator}: second derivatives are not implemented; call backward() without create_graph=True"
        )

    torch.library.register_autograd(operator, backward)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The accumulation type: float64 for float64, float32 for all shorter types."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_features(name: str, features: Tensor, *, ndim: int) -> None:
    """Raises TypeError or ValueError unless ``features`` has floating type and ``ndim`` axes."""
    if features.dtype not in FLOAT_TYPES:
        raise TypeError(f"{name}: expected float16, bfloat16, float32 or float64, found {features.dtype}")
    if features.ndim != ndim:
        raise ValueError(f"{name}: expected {ndim} axes, found shape {list(features.shape)}")


def check_integers(name: str, values: Tensor) -> None:
    """Raises TypeError unless ``values`` has an integer type (bool does not count)."""
    if values.dtype not in INTEGER_TYPES:
        raise TypeError(f"{name}: expected uint8, int8, int16, int32 or int64, found {values.dtype}")


def check_same_device(first: Tensor, **others: Tensor) -> None:
    """Raises ValueError if one of ``others`` is on another device than ``first``."""
    for name, other in others.items():
        if other.device != first.device:
            raise ValueError(f"{name}: expected on {first.device} like the first argument, found on {other.device}")


def check_seed(seed: int) -> None:
    """Raises ValueError for a seed that does not fit 64 bits."""
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed: expected a signed 64-bit integer, found {seed}")


def check_range(name: str, values: Tensor, *, low: int, high: int) -> None:
    """Raises IndexError if an element of ``values`` on the CPU is outside ``low`` .. ``high``, both included."""
    if values.device.type != "cpu" or values.numel() == 0:
        return
    smallest, largest = (int(bound) for bound in values.aminmax())
    if smallest < low or largest > high:
        raise IndexError(f"{name}: expected values in {low} .. {high}, found {smallest} .. {largest}")
