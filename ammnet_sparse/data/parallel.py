"""Work on many frames in parallel, by processes or threads that an interruption stops at the next frame."""

import contextlib
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class WorkerLostError(RuntimeError):
    """A worker process that ended before its work did; the message says what to do."""


def map_in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], *, workers: int
) -> Generator[Result, None, None]:
    """The results of ``function`` for all items, in order: in this process, or spread over ``workers`` processes.

    An error, or closing the iterator, drops the items that no process has started. Ctrl-C, which a terminal sends to
    every process, is handled by this one: the workers finish their current items.

    Raises:
        WorkerLostError: a worker was ended from outside.
    """
    workers = min(workers, max(len(items), 1))
    if workers == 1:
        yield from map(function, items)
        return
    # Spawned, not forked: this process may already hold threads and a CUDA context.
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        with _interrupt_blocked():  # a new process inherits blocked signals
            results = pool.map(function, items)
        yield from results
    except BrokenProcessPool as error:
        raise WorkerLostError(
            "a worker process was ended from outside, perhaps because memory ran out; start again with fewer "
            "`workers`: complete frames are kept"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def map_in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int
) -> Generator[Result, None, None]:
    """The results of ``function`` for all items, in order, from threads that run only a few items ahead of the reader.

    An error, or closing the iterator, drops the items that no thread has started.
    """
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def _interrupt_blocked() -> Iterator[None]:
    """Blocks SIGINT in this thread, and permanently in the processes that it starts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
