"""CUDA graphs of DDR blocks on full grids: the host starts a recorded pass with one launch instead of one per kernel.

From half the resolution on every cell is a site, so the blocks there have the same shapes in every step, and the host
reads no values. In the first step they run as usual and their inputs are noted. Before the second step each run of
blocks is captured, its forward and its backward pass, and compared with the usual result.
"""

import contextlib
import dataclasses
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ammnet_sparse.sparse.blocks import DDRBlock, static_blocks_by
from ammnet_sparse.sparse.convolutions import weights_cast
from ammnet_sparse.sparse.normalization import SiteBatchNorm
from ammnet_sparse.sparse.sites import SiteSet

_Result = TypeVar("_Result")


class Recorder(Protocol):
    """Records the work that a device is given, to repeat it on the same memory."""

    def warm_up(self, run: Callable[[], object]) -> None:
        """Calls ``run`` until it no longer initializes or builds anything."""

    def record(self, run: Callable[[], _Result]) -> tuple[_Result, Callable[[], None]]:
        """What ``run`` returns, and a function that repeats its work, which changes the values of that result."""


class CudaRecorder:
    """Records CUDA graphs; the recordings of one recorder share memory and are repeated in the order of recording."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()

    def warm_up(self, run: Callable[[], object]) -> None:
        torch.cuda.synchronize()
        with torch.cuda.stream(self._stream):
            for _ in range(3):
                run()
        torch.cuda.synchronize()

    def record(self, run: Callable[[], _Result]) -> tuple[_Result, Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        # Threads of a data loader allocate pinned memory meanwhile, which fails in the default mode.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            result = run()
        return result, graph.replay


@dataclasses.dataclass(frozen=True)
class _Call:
    """Blocks, and everything that decides what they do with their features.

    ``dtype`` is the type of autocast, None outside of it.
    """

    blocks: tuple[DDRBlock, ...]
    sites: SiteSet
    num_groups: int
    shape: torch.Size
    feature_dtype: torch.dtype
    needs_gradient: bool
    dtype: torch.dtype | None
    is_trained: bool
    has_unchanged_statistics: bool

    @classmethod
    def of(cls, blocks: Sequence[DDRBlock], features: Tensor, sites: SiteSet, num_groups: int) -> "_Call":
        device = features.device.type
        return cls(
            tuple(blocks),
            sites,
            num_groups,
            features.shape,
            features.dtype,
            features.requires_grad,
            torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None,
            blocks[0].conv1.weight.requires_grad,
            blocks[0].norm1.has_unchanged_statistics,
        )


class BlockGraphs:
    """Runs blocks on full grids from graphs, within ``used``.

    Evaluation, passes without gradients, other shapes, and blocks whose last pass still waits for its backward pass run
    as usual.

    Args:
        make_recorder: makes a recorder for each run of blocks.
    """

    def __init__(self, make_recorder: Callable[[], Recorder] = CudaRecorder) -> None:
        self._make_recorder = make_recorder
        self._seen: dict[_Call, Tensor] | None = {}
        self._repeated: set[_Call] = set()
        self._graphs: dict[_Call, _Graph] = {}

    @property
    def num_graphs(self) -> int:
        """Runs of blocks that are captured."""
        return len(self._graphs)

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """For one step: the first notes the blocks, the others repeat their graphs."""
        if self._seen:
            self._capture(self._seen)
            self._seen = None
        with static_blocks_by(self._run):
            yield

    def _run(
        self, blocks: Sequence[DDRBlock], features: Tensor, sites: SiteSet, num_groups: int
    ) -> tuple[Tensor, SiteSet] | None:
        call = _Call.of(blocks, features, sites, num_groups)
        if not (blocks[0].training and torch.is_grad_enabled() and (call.needs_gradient or call.is_trained)):
            return None
        if self._seen is not None:
            if call in self._seen:
                self._repeated.add(call)
            self._seen[call] = features.detach().clone()
        graph = self._graphs.get(call)
        return None if graph is None or graph.is_in_flight else (graph(features), graph.part.target)

    def _capture(self, seen: dict[_Call, Tensor]) -> None:
        """Captures every call that a step makes once; none if one of them fails or differs."""
        try:
            for call, example in seen.items():
                if call in self._repeated:
                    continue
                part = _Part(call)
                with part.as_called():
                    graph = _Graph(part, example, self._make_recorder())
                    fault = _difference(graph)
                if fault is not None:
                    raise _Differs(f"{fault} of {len(call.blocks)} blocks on {list(call.shape)}")
                self._graphs[call] = graph
        except (RuntimeError, _Differs) as error:  # RuntimeError: any error of CUDA
            self._graphs.clear()
            warnings.warn(
                f"CUDA graphs: {error}. Training continues without them; set training.cuda_graphs=false to choose that "
                "without this check",
                UserWarning,
                stacklevel=4,
            )


class _Differs(Exception):
    """A graph that does not compute what the blocks compute."""


class _Part(nn.Module):
    """Blocks one after another, as in one call; not a child of the network, whose parameters and buffers it shares."""

    def __init__(self, call: _Call) -> None:
        super().__init__()
        self.call = call
        self.blocks = nn.ModuleList(call.blocks)
        self.target = call.sites  # until the first pass

    def forward(self, features: Tensor) -> Tensor:
        """[N, in] -> [M, out]; converts weights itself, as those that a step has converted are new in every step."""
        call, sites = self.call, self.call.sites
        device = features.device.type
        with contextlib.ExitStack() as stack:
            dtype = call.dtype
            stack.enter_context(torch.autocast(device, dtype, enabled=dtype is not None, cache_enabled=False))
            if dtype is not None:
                stack.enter_context(weights_cast(self, dtype))
            for block in call.blocks:
                features, sites = block(features, sites, num_groups=call.num_groups)
        self.target = sites
        return features

    @contextlib.contextmanager
    def as_called(self) -> Iterator[None]:
        """Within the block parameters and normalizations are as in the call; buffers are restored at its end."""
        parameters, buffers = list(self.parameters()), list(self.buffers())
        norms = [module for module in self.modules() if isinstance(module, SiteBatchNorm)]
        flags = [parameter.requires_grad for parameter in parameters], [norm.has_unchanged_statistics for norm in norms]
        values = [buffer.clone() for buffer in buffers]
        self.requires_grad_(self.call.is_trained)
        for norm in norms:
            norm.has_unchanged_statistics = self.call.has_unchanged_statistics
        try:
            with torch.enable_grad():
                yield
        finally:
            for parameter, flag in zip(parameters, flags[0], strict=True):
                parameter.requires_grad_(flag)
            for norm, flag in zip(norms, flags[1], strict=True):
                norm.has_unchanged_statistics = flag
            with torch.no_grad():
                torch._foreach_copy_(buffers, values)


class _InFlight:
    """Held by autograd from a forward pass on; ``is_over`` once its backward pass has begun."""

    is_over = False


class _Graph:
    """The forward and backward pass of a part, recorded: they read and write the same memory each time."""

    def __init__(self, part: _Part, example: Tensor, recorder: Recorder) -> None:
        self.part = part
        self.features = example.requires_grad_(part.call.needs_gradient)
        self.parameters = [parameter for parameter in part.parameters() if parameter.requires_grad]
        self.differentiated = [*([self.features] if part.call.needs_gradient else []), *self.parameters]
        recorder.warm_up(lambda: _gradients(part(self.features), self.differentiated))
        self.result, self._repeat_forward = recorder.record(lambda: part(self.features))
        self.upstream = torch.ones_like(self.result)
        self.gradients, self._repeat_backward = recorder.record(
            lambda: _gradients(self.result, self.differentiated, self.upstream)
        )
        self._in_flight: Callable[[], _InFlight | None] = lambda: None

    def __call__(self, features: Tensor) -> Tensor:
        result: Tensor = _Repeat.apply(self, features, *self.parameters)
        return result

    @property
    def is_in_flight(self) -> bool:
        """Whether the values that the next backward pass reads are still needed."""
        found = self._in_flight()
        return found is not None and not found.is_over

    def forward(self, features: Tensor) -> _InFlight:
        self.features.copy_(features)
        self._repeat_forward()
        in_flight = _InFlight()
        self._in_flight = weakref.ref(in_flight)
        return in_flight

    def backward(self, upstream: Tensor, in_flight: _InFlight) -> Sequence[Tensor]:
        if in_flight.is_over or self._in_flight() is not in_flight:
            raise RuntimeError("CUDA graphs: a second backward pass needs values that the graph has overwritten")
        self.upstream.copy_(upstream)
        self._repeat_backward()
        in_flight.is_over = True
        return self.gradients


class _Repeat(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, graph: _Graph, features: Tensor, *parameters: Tensor) -> Tensor:
        ctx.graph, ctx.in_flight = graph, graph.forward(features)
        return graph.result.detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        # Their memory is overwritten in the next step, after the optimizer has read and dropped them.
        gradients = [gradient.detach() for gradient in ctx.graph.backward(upstream, ctx.in_flight)]
        return (None, *([] if ctx.graph.part.call.needs_gradient else [None]), *gradients)


def _gradients(result: Tensor, differentiated: Sequence[Tensor], upstream: Tensor | None = None) -> tuple[Tensor, ...]:
    upstream = torch.ones_like(result) if upstream is None else upstream
    return torch.autograd.grad(result, list(differentiated), upstream)


def _difference(graph: _Graph) -> str | None:
    """How a graph differs from its part on other features than those it was recorded with; None if it does not."""
    part = graph.part
    generator = torch.Generator().manual_seed(0)  # training draws the same with and without this check
    upstream = torch.randn(graph.result.shape, generator=generator).to(graph.result)
    features = graph.features.detach().roll(1, 0).requires_grad_(part.call.needs_gradient)
    named = {"features": features, **dict(part.named_parameters())}
    named = {name: value for name, value in named.items() if value.requires_grad}
    buffers = dict(part.named_buffers())
    before = [buffer.clone() for buffer in buffers.values()]

    def evaluate(run: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        result = run(features)
        gradients = _gradients(result, list(named.values()), upstream)
        found = {"the result": result, **buffers}
        found |= {f"the gradient of {name}": value for name, value in zip(named, gradients, strict=True)}
        found = {name: value.detach().float().clone() for name, value in found.items()}
        torch._foreach_copy_(list(buffers.values()), before)
        return found

    wanted, found = evaluate(part), evaluate(graph)
    tolerance = 2e-2 if graph.result.dtype in (torch.float16, torch.bfloat16) else 5e-3  # TF32 has three digits
    for name, value in wanted.items():
        difference = float((found[name] - value).abs().max() / value.abs().max().clamp(min=1e-20))
        if not difference <= tolerance:  # false for NaN
            return f"{name} differs by {difference:.2g} of its largest value"
    return None
