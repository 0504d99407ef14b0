"""The newest item replaces the one that waits."""

import threading
import time
from collections.abc import Iterator

import pytest

from ammnet_sparse.live.newest import Newest, one_ahead


def test_what_comes_too_fast_is_left_out() -> None:
    all_sent = threading.Event()

    def source() -> Iterator[int]:
        yield from range(5)
        all_sent.set()

    with Newest(source(), stop=lambda: None) as newest:
        assert all_sent.wait(5)
        assert list(newest) == [4] and newest.replaced == 4


def test_items_are_taken_as_they_come() -> None:
    taken = threading.Semaphore(0)

    def source() -> Iterator[int]:
        for number in range(4):
            yield number
            assert taken.acquire(timeout=5)

    found = []
    with Newest(source(), stop=lambda: None) as newest:
        for number in newest:
            found.append(number)
            taken.release()
    assert found == [0, 1, 2, 3] and newest.replaced == 0


def test_errors_of_the_source_are_raised_after_its_items() -> None:
    def source() -> Iterator[int]:
        yield 1
        time.sleep(0.1)
        raise ValueError("unplugged")

    with Newest(source(), stop=lambda: None) as newest:
        assert next(newest) == 1
        with pytest.raises(ValueError, match="unplugged"):
            next(newest)


def test_leaving_early_stops_the_source() -> None:
    stopped = threading.Event()

    def source() -> Iterator[int]:
        while not stopped.is_set():
            yield 1
            time.sleep(0.01)

    with Newest(source(), stop=stopped.set) as newest:
        assert next(newest) == 1
    assert stopped.is_set() and not newest._thread.is_alive()


def test_the_next_item_is_prepared_while_the_last_is_used() -> None:
    begun = [threading.Event() for _ in range(4)]

    def prepare(number: int) -> int:
        begun[number].set()
        if number == 1:
            raise ValueError("1")
        return 10 * number

    found = []
    for number, made in one_ahead(iter(range(4)), prepare):
        assert number == 3 or begun[number + 1].wait(5)
        assert number > 1 or not begun[number + 2].is_set()  # only one ahead
        found.append(type(made.exception()) if made.exception() else made.result())
    assert found == [0, ValueError, 20, 30]


def test_what_the_source_raises_arrives_through_the_one_ahead() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise OSError("unplugged")

    found = one_ahead(source(), str)
    assert next(found)[1].result() == "1"
    with pytest.raises(OSError, match="unplugged"):
        next(found)
