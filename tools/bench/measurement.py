"""What a step costs: multiplications, memory kept for the backward pass, peak memory, seconds."""

import contextlib
import ctypes
import dataclasses
import gc
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ammnet_sparse.sparse.convolutions import PointwiseConv3d, SiteConv3d, SiteConvTranspose3d
from ammnet_sparse.sparse.kernel_maps import KernelMap
from ammnet_sparse.sparse.sites import UP_KERNEL

MIB = 2**20


@dataclasses.dataclass
class LayerCounts:
    """Counts of a network's layers in its forward passes, by dotted name.

    Attributes:
        products: pairs of an input and an output position that a layer's weights joined. On sites those are the pairs
            of the kernel map; densely every output voxel has one for every tap, taps beyond the border included, as a
            dense convolution computes them.
    """

    products: dict[str, int] = dataclasses.field(default_factory=lambda: defaultdict(int))

    def multiplications(self, network: nn.Module) -> dict[str, int]:
        """Multiply-accumulates by layer, had ``network`` run: one of the same layers, of whatever width and device.

        Products do not depend on the number of channels, so a narrow network can be run for a wide one.

        Raises:
            KeyError: a network without one of the layers.
        """
        return {
            name: count * _weights_per_product(network.get_submodule(name)) for name, count in self.products.items()
        }


@contextlib.contextmanager
def counted_layers(network: nn.Module) -> Iterator[LayerCounts]:
    """Counts what convolutions and linear layers of a network do within the block."""
    counts = LayerCounts()
    with contextlib.ExitStack() as hooks:
        for name, module in network.named_modules():
            if isinstance(module, nn.Linear | _ConvNd):
                hooks.callback(module.register_forward_hook(_counter(counts, name)).remove)
        yield counts


def summed(values: Mapping[str, int], *, group_of: Callable[[str], str]) -> dict[str, int]:
    """Sums over groups of layers, in the order in which the groups first appear."""
    groups: dict[str, int] = {}
    for name, value in values.items():
        groups[group_of(name)] = groups.get(group_of(name), 0) + value
    return groups


def _counter(counts: LayerCounts, name: str) -> Callable[..., None]:
    def count(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        counts.products[name] += _num_products(module, inputs, output)

    return count


def _num_products(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> int:
    if isinstance(module, SiteConv3d | SiteConvTranspose3d):
        kernel = module.kernel if isinstance(module, SiteConv3d) else UP_KERNEL
        return KernelMap(inputs[1], inputs[2], kernel).num_pairs
    if isinstance(module, nn.Linear | PointwiseConv3d):
        return output.numel() // output.shape[-1]
    assert isinstance(module, _ConvNd)
    positions = inputs[0] if module.transposed else output
    return positions.numel() // positions.shape[1] * math.prod(module.kernel_size)


def _weights_per_product(layer: nn.Module) -> int:
    assert isinstance(layer, nn.Linear | _ConvNd)
    return layer.weight.numel() // (math.prod(layer.kernel_size) if isinstance(layer, _ConvNd) else 1)


Kind = Literal["activations", "indices", "weights"]


@dataclasses.dataclass(frozen=True)
class KeptStorage:
    """Memory that a forward pass allocated and that outlives it.

    Attributes:
        num_bytes: its size.
        kind: ``indices`` are of an integer type, such as the pairs of kernel maps; ``weights`` are made from parameters
            alone (copies in another order or type: as large whatever the batch); the rest are ``activations``.
        layer: dotted name of the innermost module at work.
    """

    num_bytes: int
    kind: Kind
    layer: str


@dataclasses.dataclass(frozen=True)
class KeptMemory:
    """What a forward pass keeps, each storage once, without parameters, buffers, the batch and the outputs."""

    storages: tuple[KeptStorage, ...]

    def num_bytes(self, kind: Kind = "activations") -> int:
        return sum(storage.num_bytes for storage in self.storages if storage.kind == kind)

    def by_layer(self) -> dict[str, int]:
        """Bytes of activations by the layer that made them, in order of the forward pass."""
        sums: dict[str, int] = defaultdict(int)
        for storage in self.storages:
            if storage.kind == "activations":
                sums[storage.layer] += storage.num_bytes
        return dict(sums)


class Allocations(TorchDispatchMode):
    """Records what is allocated within the block, to find what is still alive afterwards.

    That is what the backward pass costs in memory, however it is kept: by autograd, by functions of our own, in hooks
    for saved tensors, by checkpointing. (Hooks for saved tensors see only what no inner hook has packed.)
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._network = network
        self._hooks = contextlib.ExitStack()
        self._layers: list[str] = []
        self._made: dict[int, tuple[StorageWeakRef, KeptStorage]] = {}
        # Weak references keep an address from being reused.
        self._existing: dict[int, StorageWeakRef] = {}
        self._weights: set[int] = set()
        for tensor in (*network.parameters(), *network.buffers()):
            self._weights.add(self._note_existing(tensor))

    def __enter__(self) -> "Allocations":
        for name, module in self._network.named_modules():
            enter = module.register_forward_pre_hook(lambda *_, name=name: self._layers.append(name))
            leave = module.register_forward_hook(self._leave_layer, always_call=True)
            self._hooks.callback(enter.remove)
            self._hooks.callback(leave.remove)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._hooks.close()

    def kept(self, outputs: Iterable[Tensor]) -> KeptMemory:
        """The block's allocations that are still alive, without ``outputs``, the results that the caller holds."""
        gc.collect()  # memory that garbage collection would free is not kept
        apart = {tensor.untyped_storage()._cdata for tensor in outputs}
        made = self._made.items()
        return KeptMemory(tuple(kept for key, (alive, kept) in made if key not in apart and not alive.expired()))

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        inputs = [self._note_existing(value) for value in tree_leaves((args, kwargs)) if _has_storage(value)]
        result = function(*args, **kwargs)
        is_weight = bool(inputs) and self._weights.issuperset(inputs)
        for value in tree_leaves(result):
            if _has_storage(value):
                self._note_made(value, is_weight=is_weight)
        return result

    def _note_existing(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        key: int = storage._cdata
        if key not in self._made and key not in self._existing:
            self._existing[key] = StorageWeakRef(storage)
        return key

    def _note_made(self, tensor: Tensor, *, is_weight: bool) -> None:
        storage = tensor.untyped_storage()
        key: int = storage._cdata
        if key in self._made or key in self._existing:
            return
        if is_weight:
            self._weights.add(key)
        is_index = not (tensor.is_floating_point() or tensor.dtype == torch.bool)
        kind: Kind = "indices" if is_index else "weights" if is_weight else "activations"
        layer = self._layers[-1] if self._layers else ""
        self._made[key] = StorageWeakRef(storage), KeptStorage(storage.nbytes(), kind, layer)

    def _leave_layer(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._layers.pop()


def _has_storage(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and value.untyped_storage().nbytes() > 0


class PeakMemory:
    """Peak memory from here on: of CUDA's allocator, or resident in the process (Linux)."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._was_reset = True
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak that VmHWM reports
        except OSError:
            self._was_reset = False

    def mebibytes(self) -> float | None:
        """The peak; None if the system does not report it."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / MIB
        return _process_mebibytes("VmHWM:") if self._was_reset else None


def held_mebibytes(device: torch.device) -> float | None:
    """Memory held now, after freeing what is unused: the baseline of ``PeakMemory``."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.memory_allocated(device) / MIB
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # glibc keeps freed memory for later
    return _process_mebibytes("VmRSS:")


def _process_mebibytes(key: str) -> float | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(key):
                return int(line.split()[1]) / 1024
    return None


class Stopwatch:
    """Seconds of the parts of a step, over several steps; the device is waited for at both ends of a part.

    Attributes:
        laps: for each step the seconds of its parts, a part that ran more than once summed.
        only: the part to time, without a wait for the others; None for all.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.laps: list[dict[str, float]] = []
        self.only: str | None = None
        self._lap: dict[str, float] = {}
        self._started: dict[str, float] = {}

    def start(self, part: str) -> None:
        if self.only in (None, part):
            self._started[part] = self._now()

    def stop(self, part: str) -> None:
        if part not in self._started:
            return
        self._lap[part] = self._lap.get(part, 0.0) + self._now() - self._started.pop(part)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds the time of the block to the part ``name``."""
        self.start(name)
        yield
        self.stop(name)

    def time_forward(self, module: nn.Module, part: str) -> None:
        """From here on adds the time of each forward pass of ``module`` to ``part``."""
        module.register_forward_pre_hook(lambda *_: self.start(part))
        module.register_forward_hook(lambda *_: self.stop(part))

    def end_lap(self) -> None:
        """Ends a step."""
        self.laps.append(self._lap)
        self._lap = {}

    def column(self, part: str) -> Sequence[float]:
        """The seconds of a part in every step, 0 in a step without it."""
        return [lap.get(part, 0.0) for lap in self.laps]

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
