"""Work spread over processes and threads: its order, and what becomes of it when something goes wrong."""

import contextlib
import math
import os
import threading

import pytest

from ammnet_sparse.data.parallel import WorkerLostError, map_in_processes, map_in_threads


@pytest.mark.parametrize("workers", [1, 2])
def test_processes_keep_the_order(workers: int) -> None:
    assert list(map_in_processes(math.factorial, [5, 0, 3], workers=workers)) == [120, 1, 6]
    assert list(map_in_processes(math.factorial, [], workers=workers)) == []


def test_a_worker_that_is_ended_is_reported() -> None:
    with pytest.raises(WorkerLostError, match="`workers`"):
        list(map_in_processes(os._exit, [3, 3], workers=2))


def test_threads_keep_the_order_and_drop_unneeded_work() -> None:
    assert list(map_in_threads(math.factorial, [5, 0, 3], workers=2)) == [120, 1, 6]
    begun, may_go_on = [], threading.Event()

    def work(item: int) -> int:
        begun.append(item)
        if item > 0:
            may_go_on.wait()
        return item

    results = map_in_threads(work, range(100), workers=2)
    with contextlib.closing(results), pytest.raises(KeyboardInterrupt):
        assert next(results) == 0
        threading.Timer(0.2, may_go_on.set).start()
        raise KeyboardInterrupt
    assert len(begun) < 100
