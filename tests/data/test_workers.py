"""Whatever ends a process that loads frames is an error of the loop at once, with what to do."""

import os
import signal
import time
from typing import Any

import pytest
import torch

from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.sets.files import DataError
from ammnet_sparse.data.workers import BatchMaker, WatchedLoader, WorkerError
from tests.data.frames import random_frame


class Frames:
    """Eight frames, of which the fifth does something."""

    def __init__(self, happening: str) -> None:
        self.happening = happening

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Batch:
        if index == 4:
            if self.happening == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            elif self.happening == "bus error":
                signal.signal(signal.SIGBUS, signal.SIG_DFL)
                os.kill(os.getpid(), signal.SIGBUS)
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


def loader(happening: str, *, workers: int = 2) -> WatchedLoader:
    batches = [[index] for index in range(8)]
    return WatchedLoader(
        BatchMaker(Frames(happening)),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_same,
        generator=torch.Generator().manual_seed(0),
    )


def _same(batch: Any) -> Any:
    return batch


def test_batches_arrive_in_order() -> None:
    assert [batch.frame_ids for batch in loader("nothing")] == [(f"{index:04d}",) for index in range(8)]


@pytest.mark.parametrize(
    ("happening", "message"),
    [
        ("killed", "was killed, probably because memory ran out; lower data.workers"),
        ("bus error", r"shared memory .*--shm-size.*data.workers=0"),
        ("ends", r"has ended \(exit code 3\); to see why, load in the training process with data.workers=0"),
        ("shared memory", r"unable to allocate shared memory.*--shm-size.*data.workers=0"),
    ],
)
def test_a_worker_that_ends_is_an_error_with_what_to_do(happening: str, message: str) -> None:
    started, seen = time.monotonic(), []
    with pytest.raises(WorkerError, match=message) as error:
        for batch in loader(happening):
            seen.append(batch.frame_ids)
    # What the worker had made, but not yet handed over, is gone with it.
    assert seen == [(f"{index:04d}",) for index in range(len(seen))] and len(seen) <= 4
    assert time.monotonic() - started < 60 and "Traceback" not in str(error.value)


def test_errors_of_frames_come_as_they_were_raised() -> None:
    with pytest.raises(DataError) as error:
        list(loader("data"))
    assert str(error.value) == "/set/TSDF/0004.npz: expected a file, found none"
    with pytest.raises(RuntimeError, match="^Unpicklable: 1 and 2$"):
        list(loader("unpicklable"))


def test_a_worker_that_ends_does_not_interrupt_what_is_done_between_batches() -> None:
    """PyTorch's own handler raises in the middle of a step, which would leave half of it."""
    batches = iter(loader("killed"))
    next(batches)
    for _ in range(20):  # the worker is dead long before the end
        time.sleep(0.05)
    with pytest.raises(WorkerError):
        list(batches)
