"""Items that are computed while the consumer works on the one before."""

import threading
from collections.abc import Iterator

import pytest

from ammnet_sparse.live.ahead import one_ahead


def test_the_next_item_is_computed_meanwhile_and_no_more_than_one() -> None:
    computed: list[int] = []
    reached = threading.Event()

    def items() -> Iterator[int]:
        for index in range(5):
            computed.append(index)
            if index == 1:
                reached.set()
            yield index

    ahead = one_ahead(items())
    assert next(ahead) == 0
    assert reached.wait(timeout=10) and computed == [0, 1]  # and the third only once the second has been taken
    assert list(ahead) == [1, 2, 3, 4]
    assert list(one_ahead([])) == []


def test_items_that_are_false_are_items() -> None:
    assert list(one_ahead([0, None, ""])) == [0, None, ""]


def test_errors_come_in_their_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise RuntimeError("broken")

    ahead = one_ahead(items())
    assert next(ahead) == 1
    with pytest.raises(RuntimeError, match="broken"):
        next(ahead)


def test_closing_ends_the_thread() -> None:
    released = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        released.wait(timeout=10)

    before = threading.active_count()
    ahead = one_ahead(items())
    assert next(ahead) == 1
    released.set()
    ahead.close()
    assert threading.active_count() == before
