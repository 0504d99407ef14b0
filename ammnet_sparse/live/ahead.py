"""Computes the next item while the consumer works on the last one."""

from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


def one_ahead(items: Iterable[Item]) -> Generator[Item]:
    """The same items, each computed in a thread of its own as soon as the one before has been taken.

    Raises what computing an item raises, in its place. Closing the iterator early waits for the item being computed:
    end its source first.
    """
    iterator = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as pool:
        upcoming = pool.submit(_next, iterator)
        while taken := upcoming.result():
            upcoming = pool.submit(_next, iterator)
            yield taken[0]


def _next(iterator: Iterator[Item]) -> tuple[Item] | None:
    """The next item; None at the end, since a future cannot raise StopIteration."""
    for item in iterator:
        return (item,)
    return None
