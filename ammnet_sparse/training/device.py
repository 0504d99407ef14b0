"""The device of a run: precision, convolution backend, determinism, and what to do if its memory is exhausted."""

import contextlib
import ctypes
import os
import warnings

import torch

from ammnet_sparse.config import Config, ConfigError
from ammnet_sparse.ops._library import CHECK_VARIABLE, CHECKS_DEVICE_INDICES
from ammnet_sparse.processes import make_current, num_processes
from ammnet_sparse.sparse.convolutions import Backend
from ammnet_sparse.sparse.graphs import BlockGraphs

_KEPT_MIB = {"off": 985.0, "elementwise": 517.0, "blocks": 233.0, "full": 112.0}
"""Kept for the backward pass of the generator by ``training.recompute``, per frame of NYU at width 256 in float32, as
the benchmark bench_model measures it (docs/results.md); about proportional to the width."""
_WIDTH = 256
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Options of glibc's ``mallopt``."""


def prepare_device(config: Config, device: torch.device) -> Backend:
    """Makes a CUDA device the current one, and algorithms deterministic on request; returns the convolution backend.

    On a CPU the process keeps the memory that it frees, for the next step.

    Raises:
        ConfigError: a configuration that cannot run on this device.
    """
    if config.training.uses_fp16 and device.type != "cuda":
        raise ConfigError(
            f"training.mixed_precision: fp16 needs a CUDA device, found {device}; set it to bf16 or false"
        )
    make_current(device)
    if device.type == "cpu":
        _keep_freed_memory()
    if config.training.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is initialized
        torch.use_deterministic_algorithms(True, warn_only=True)
    return convolution_backend(config, device)


def _keep_freed_memory() -> None:
    """glibc does not return freed memory to the system: every 4 KiB that come back cost a page fault."""
    with contextlib.suppress(OSError, TypeError, AttributeError):  # another libc
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def convolution_backend(config: Config, device: torch.device) -> Backend:
    """The convolution backend of a run.

    Deterministic runs on CUDA avoid spconv, which chooses its algorithms by timing in each process.

    Raises:
        ConfigError: a deterministic run on CUDA with spconv.
    """
    backend = config.training.convolution_backend
    if not config.training.deterministic or device.type != "cuda":
        return backend
    if backend == "spconv":
        raise ConfigError(
            "training.convolution_backend: spconv chooses its algorithms by timing, so that a run with "
            "training.deterministic=true is not reproducible; set it to auto or gather"
        )
    return "gather" if backend == "auto" else backend


def block_graphs(config: Config, device: torch.device) -> BlockGraphs | None:
    """The CUDA graphs of a run, nothing captured yet; None without them.

    Warns:
        UserWarning: ``training.cuda_graphs=true`` where there can be none, with the reason.
    """
    training = config.training
    if not training.cuda_graphs:
        return None
    reasons = {
        f"device {device}": device.type != "cuda",
        f"training.recompute={training.recompute}": training.recompute != "off",
        f"training.accumulate={training.accumulate}": training.accumulate > 1,  # gradients would be overwritten
        "training.deterministic=true": training.deterministic,  # a resumed run begins with a step without graphs
        "training.convolution_backend=spconv": training.convolution_backend == "spconv",
        f"{num_processes()} processes": num_processes() > 1,
        f"{CHECK_VARIABLE}=1": CHECKS_DEVICE_INDICES,
    }
    reason = next((reason for reason, holds in reasons.items() if holds), None)
    if reason is None:
        return BlockGraphs()
    if training.cuda_graphs is True:
        warnings.warn(f"training.cuda_graphs: none with {reason}", stacklevel=2)
    return None


def memory_advice(config: Config) -> str:
    """Keys to set, those that do not change the result first, with the share of the memory that each leaves."""
    training, model = config.training, config.model
    scale = model.width / _WIDTH * (0.5 if training.mixed_precision else 1.0)

    def kept(level: str, batch_size: int) -> str:
        return f"about {_KEPT_MIB[level] * scale * batch_size:.0f} MiB"

    lines = [
        f"A step keeps {kept(training.recompute, training.batch_size)} for its backward pass, beside weights and "
        "working memory. To need less, in this order:"
    ]
    levels = list(_KEPT_MIB)
    for level in levels[levels.index(training.recompute) + 1 :]:
        lines.append(f"  training.recompute={level}: {kept(level, training.batch_size)}")
    least = levels[-1]
    if training.batch_size % 2 == 0:
        half = training.batch_size // 2
        lines.append(
            f"  training.batch_size={half} training.accumulate={2 * training.accumulate}: "
            f"{kept(least, half)} with training.recompute={least} (normalization then sees {half} frames at a time)"
        )
    elif training.batch_size > 1:
        lines.append("  training.batch_size=1 with a larger training.accumulate")
    if not training.mixed_precision:
        lines.append("  training.mixed_precision=true, on a GPU: half of it")
    if config.data.on_device:
        lines.append("  data.on_device=false: the frames stay in the memory of the machine")
    lines.append("  a smaller model.width, for a new run")
    return "\n".join(lines)
