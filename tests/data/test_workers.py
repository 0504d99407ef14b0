"""Whatever ends a process that loads frames is an error of the loop at once, with what to do."""

import os
import signal
import time
from typing import Any

import pytest

from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.dataset import WorkerError, build_loader
from ammnet_sparse.files.errors import DataError
from tests.data.frames import random_frame


class Frames:
    """Eight frames, of which the fifth does something."""

    ids = [f"{index:04d}" for index in range(8)]
    makes_batches = False

    def __init__(self, happening: str) -> None:
        self.happening = happening

    def set_epoch(self, epoch: int) -> None:
        pass

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Batch:
        if index == 4:
            if self.happening == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            elif self.happening == "ends":
                os._exit(3)
            elif self.happening == "shared memory":
                raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left (28)")
            elif self.happening == "data":
                raise DataError("/set/TSDF/0004.npz: expected a file, found none")
            elif self.happening == "unpicklable":
                raise Unpicklable(1, 2)
        return Batch.from_frame(random_frame(index))


class Unpicklable(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def loader(happening: str) -> Any:
    return build_loader(Frames(happening), batch_size=1, shuffle_seed=None, epoch=0, workers=2, drop_last=False)


def test_batches_arrive_in_order() -> None:
    assert [batch.frame_ids for batch in loader("nothing")] == [(f"{index:04d}",) for index in range(8)]


@pytest.mark.parametrize("happening", ["killed", "ends", "shared memory", "unpicklable"])
def test_a_worker_that_ends_is_an_error_with_what_to_do(happening: str) -> None:
    started, seen = time.monotonic(), []
    with pytest.raises(WorkerError, match="data.workers") as error:
        for batch in loader(happening):
            seen.append(batch.frame_ids)
    # What the worker had made, but not yet handed over, is gone with it.
    assert seen == [(f"{index:04d}",) for index in range(len(seen))] and len(seen) <= 4
    assert time.monotonic() - started < 60 and "--shm-size" in str(error.value)


def test_errors_of_frames_come_as_they_were_raised() -> None:
    with pytest.raises(DataError) as error:
        list(loader("data"))
    assert str(error.value) == "/set/TSDF/0004.npz: expected a file, found none"


def test_a_worker_that_ends_does_not_interrupt_what_is_done_between_batches() -> None:
    """PyTorch's own handler raises in the middle of a step, which would leave half of it."""
    batches = iter(loader("killed"))
    next(batches)
    for _ in range(20):  # the worker is dead long before the end
        time.sleep(0.05)
    with pytest.raises(WorkerError):
        list(batches)
