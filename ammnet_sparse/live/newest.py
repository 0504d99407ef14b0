"""Passes items from a producer thread to a consumer; the newest replaces the one that waits."""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Newest(Generic[Item]):
    """Iterates over the items that a source yields in its own thread; items that arrive too fast are dropped.

    Args:
        source: yields items; runs in a thread of its own.
        stop: called when the iteration ends early, so that the source ends too.

    Attributes:
        replaced: number of dropped items.

    Iterating raises what the source raises, after the items before it.
    """

    def __init__(self, source: Iterable[Item], *, stop: Callable[[], None]) -> None:
        self.replaced = 0
        self._source = source
        self._stop = stop
        self._condition = threading.Condition()
        self._waiting: list[Item] = []
        self._error: BaseException | None = None
        self._is_over = False
        self._thread = threading.Thread(target=self._run, name="frames", daemon=True)

    def __enter__(self) -> "Newest[Item]":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()
        self._thread.join(timeout=5)

    def __iter__(self) -> "Newest[Item]":
        return self

    def __next__(self) -> Item:
        with self._condition:
            while not self._waiting and not self._is_over:
                self._condition.wait(timeout=0.2)  # so that Ctrl-C is seen
            if self._waiting:
                return self._waiting.pop()
        if self._error is not None:
            raise self._error
        raise StopIteration

    def _run(self) -> None:
        try:
            for item in self._source:
                with self._condition:
                    self.replaced += len(self._waiting)
                    self._waiting = [item]
                    self._condition.notify()
        except BaseException as error:  # raised by the consumer
            self._error = error
        with self._condition:
            self._is_over = True
            self._condition.notify()


def one_ahead(items: Iterator[Item], prepare: Callable[[Item], Result]) -> Iterator[tuple[Item, Future[Result]]]:
    """Items, each with what ``prepare`` makes of it or raises; the next is prepared while the caller uses the last.

    A caller that stops early must end ``items``, for which the thread may wait.
    """

    def take() -> tuple[Item, Future[Result]] | None:
        try:
            item = next(items)
        except StopIteration:
            return None
        made: Future[Result] = Future()
        try:
            made.set_result(prepare(item))
        except Exception as error:
            made.set_exception(error)
        return item, made

    pool = ThreadPoolExecutor(1, thread_name_prefix="next frame")
    try:
        ahead = pool.submit(take)
        while (found := ahead.result()) is not None:
            ahead = pool.submit(take)
            yield found
    finally:
        pool.shutdown(wait=False)
