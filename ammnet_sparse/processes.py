"""The processes of one training, started by torchrun: ranks and collectives.

Every function that communicates is collective: all processes call it in the same order. In a training of one process
nothing is communicated, at no cost.
"""

import contextlib
import datetime
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_TIMEOUT = datetime.timedelta(minutes=10)
"""How long a process waits for the others; a process that has ended is noticed at once."""
_BUCKET_BYTES = 32 * 2**20
"""Size of the gradients that are summed at once: bounds the memory of their copy."""
_LOST_PEER_SIGNS = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")


class ProcessError(RuntimeError):
    """Processes that cannot train together, or a process that has ended; the message says what to do."""


def num_processes() -> int:
    """Processes that train together; 1 without torchrun."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0; process 0 writes and prints."""
    return dist.get_rank() if num_processes() > 1 else 0


def make_current(device: torch.device) -> None:
    """Makes a numbered CUDA device the current one: spconv and NCCL compute on the stream of the current device."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


@contextlib.contextmanager
def joined_processes(device: str | None) -> Iterator[str | None]:
    """Within the block this process trains together with the others started by torchrun, if any.

    Args:
        device: ``cpu`` or ``cuda``; None: cuda if available. Process i of a machine gets card i.

    Yields:
        The device of this process; without torchrun ``device`` unchanged.

    Raises:
        ProcessError: a numbered card for several processes, fewer cards than processes, or a process that has ended.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield device
        return
    own = _own_device(device, local_rank=int(os.environ.get("LOCAL_RANK", "0")))
    make_current(torch.device(own))
    try:
        dist.init_process_group("nccl" if own.startswith("cuda") else "gloo", timeout=_TIMEOUT)
        yield own
        dist.destroy_process_group()  # after an error this could wait for the others; the end of the process does it
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or any(sign in str(error) for sign in _LOST_PEER_SIGNS):
            raise ProcessError(
                f"process {os.environ.get('RANK')}: another process of this training has ended; its message says why"
            ) from error
        raise


def _own_device(device: str | None, *, local_rank: int) -> str:
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda:"):
        raise ProcessError(f"`device={device}`: expected cuda or cpu: each process takes a card of its own")
    if device == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise ProcessError(
                f"process {local_rank} of this machine: expected a card for each process, found "
                f"{torch.cuda.device_count()}; lower --nproc_per_node"
            )
        return f"cuda:{local_rank}"
    return device


def sum_over_processes(values: Tensor) -> Tensor:
    """Sums of equally shaped tensors over processes, bit-identical in each, without gradients; may be ``values``."""
    if num_processes() == 1:
        return values
    total = values.detach().clone()
    dist.all_reduce(total)
    return total


def sum_gradients(parameters: Sequence[Tensor]) -> None:
    """Replaces the gradients of parameters by their sums over all processes, in place."""
    if num_processes() == 1:
        return
    bucket: list[Tensor] = []
    for gradient in [parameter.grad for parameter in parameters if parameter.grad is not None]:
        num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in bucket)
        if bucket and (gradient.dtype != bucket[0].dtype or num_bytes > _BUCKET_BYTES):
            _sum_in_place(bucket)
            bucket = []
        bucket.append(gradient)
    _sum_in_place(bucket)


def _sum_in_place(tensors: Sequence[Tensor]) -> None:
    if not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(list(tensors), [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)])


def any_process(flag: bool, *, device: torch.device) -> bool:
    """Whether ``flag`` is set in any process."""
    if num_processes() == 1:
        return flag
    value = torch.tensor(int(flag), device=device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value)


def from_first_process(value: Any) -> Any:
    """The plain value that process 0 passed; those of the others are ignored."""
    if num_processes() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def of_all_processes(value: Any) -> list[Any]:
    """The values of all processes, plain ones or tensors on the CPU, by rank."""
    if num_processes() == 1:
        return [value]
    values: list[Any] = [None] * num_processes()
    dist.all_gather_object(values, value)
    return values


def wait_for_all() -> None:
    """Returns once every process has called it."""
    if num_processes() > 1:
        dist.barrier()
