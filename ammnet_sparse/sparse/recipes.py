"""Elementwise results recomputed in the backward pass instead of kept, without computing any convolution twice.

Where autograd would keep the result of normalization, ReLU, addition or dropout, it keeps a *recipe* instead: the
function and its inputs, which are kept for the backward pass anyway or have a recipe in turn. So for a convolution,
its normalization and its ReLU only the convolution's result is kept, about half of the memory.
"""

import contextlib
import contextvars
import weakref
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor


class _Kept:
    """The current value of a tensor, which a recipe needs later; autograd does not track it."""

    def __init__(self, tensor: Tensor) -> None:
        # A tensor with a graph would keep it alive.
        self._tensor = tensor if tensor.grad_fn is None else tensor.detach()
        self._version = _version(tensor)

    def tensor(self) -> Tensor:
        if _version(self._tensor) != self._version:
            raise RuntimeError(
                f"recipe: expected an input {list(self._tensor.shape)} as it was in the forward pass, found it changed "
                "in place since; change it after the backward pass, or train with training.recompute=off"
            )
        return self._tensor


class _Recipe:
    """How to recompute a tensor; while the result is in use, it is not computed again."""

    def __init__(self, function: Callable[..., Tensor], inputs: "tuple[_Kept | _View, ...]") -> None:
        self._function = function
        self._inputs = inputs
        self._made: weakref.ref[Tensor] | None = None

    def make(self) -> Tensor:
        made = self._made() if self._made is not None else None
        if made is None:
            made = self._function(*(part.tensor() for part in self._inputs))
            self._made = weakref.ref(made)
        return made


class _View:
    """Kept by autograd instead of a tensor: a recipe, and which part of its result the tensor was."""

    def __init__(self, recipe: _Recipe, tensor: Tensor) -> None:
        self._recipe = recipe
        self._geometry = (tuple(tensor.shape), tensor.stride(), tensor.storage_offset())

    def tensor(self) -> Tensor:
        with torch.no_grad():
            return self._recipe.make().as_strided(*self._geometry)


class _Recorder:
    """The recipes of live tensors, found by their memory."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Tensor], int | None, _Recipe]] = {}

    def note(self, result: Tensor, function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> None:
        # Views can only be recreated for results that fill their memory in C order; and all empty tensors
        # have the same address.
        if not _fills_memory(result) or result.numel() == 0:
            return
        address = result.untyped_storage().data_ptr()

        def forget(dead: "weakref.ref[Tensor]") -> None:
            # Once the tensor is freed, other tensors may get its memory.
            if address in self._known and self._known[address][0] is dead:
                del self._known[address]

        recipe = _Recipe(function, tuple(self._keep(part) for part in inputs))
        self._known[address] = (weakref.ref(result, forget), _version(result), recipe)

    def pack(self, tensor: Tensor) -> Tensor | _View:
        recipe = self._find(tensor)
        return tensor if recipe is None else _View(recipe, tensor)

    def forget_all(self) -> None:
        """Releases the inputs of recipes, except of those that autograd keeps."""
        self._known.clear()

    def _keep(self, part: Tensor) -> _Kept | _View:
        recipe = self._find(part)
        # Its shape may differ from that of the recipe's result.
        return _View(recipe, part) if recipe is not None and _fills_memory(part) else _Kept(part)

    def _find(self, tensor: Tensor) -> _Recipe | None:
        found = self._known.get(tensor.untyped_storage().data_ptr())
        if found is None:
            return None
        made = found[0]()
        if made is None or made.dtype != tensor.dtype or found[1] != _version(tensor):
            return None
        return found[2]


def _fills_memory(tensor: Tensor) -> bool:
    """In C order, from the first byte of its memory to the last."""
    return tensor.is_contiguous() and tensor.nbytes == tensor.untyped_storage().nbytes()


def _version(tensor: Tensor) -> int | None:
    """How often it was changed in place; inference tensors do not record that."""
    return None if tensor.is_inference() else tensor._version


def _unpack(kept: Tensor | _View) -> Tensor:
    return kept.tensor() if isinstance(kept, _View) else kept


_recorder: contextvars.ContextVar[_Recorder | None] = contextvars.ContextVar("recorder", default=None)


@contextlib.contextmanager
def recipes_kept(is_enabled: bool) -> Iterator[None]:
    """Within the block autograd keeps recipes where available; if disabled, or without gradients, tensors."""
    if not (is_enabled and torch.is_grad_enabled()):
        yield
        return
    recorder = _Recorder()
    token = _recorder.set(recorder)
    try:
        with torch.autograd.graph.saved_tensors_hooks(recorder.pack, _unpack):
            yield
    finally:
        _recorder.reset(token)
        recorder.forget_all()  # otherwise the inputs of a result would live as long as the result


@contextlib.contextmanager
def no_recipes() -> Iterator[None]:
    """Within the block nothing is recorded: for parts that are recomputed as a whole and must keep nothing."""
    token = _recorder.set(None)
    try:
        yield
    finally:
        _recorder.reset(token)


def has_recipes() -> bool:
    """Whether recipes are recorded."""
    return _recorder.get() is not None


def recorded(result: Tensor, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """``result`` itself; if recipes are recorded, autograd may keep ``function(*inputs)`` instead of it.

    Args:
        result: what ``function`` returns for the inputs, up to rounding; not changed in place later.
        function: cheap, depends only on its inputs; called without gradients and outside of autocast, it returns the
            type of ``result``.
        inputs: tensors that are needed in the backward pass anyway, or have recipes themselves.
    """
    recorder = _recorder.get()
    if recorder is not None:
        recorder.note(result, function, inputs)
    return result


def relu(features: Tensor) -> Tensor:
    """ReLU of any shape."""
    if not has_recipes():
        return torch.relu(features)
    # torch.relu keeps its result before a recipe can be recorded; this keeps its input, which usually has a recipe.
    return recorded(F.threshold(features, 0.0, 0.0), torch.relu, features)


def add(first: Tensor, *others: Tensor) -> Tensor:
    """The sum of tensors of one shape and type, added from left to right."""
    total = first
    for other in others:
        total = recorded(total + other, torch.add, total, other)
    return total


def take_rows(features: Tensor, rows: Tensor) -> Tensor:
    """[N, C], [M] int64 -> [M, C]."""
    return recorded(features.index_select(0, rows), _take_rows, features, rows)


def _take_rows(features: Tensor, rows: Tensor) -> Tensor:
    return features.index_select(0, rows)


def multiply(first: Tensor, second: Tensor) -> Tensor:
    """The product of two tensors of one shape and type."""
    return recorded(first * second, torch.mul, first, second)
