"""Worker processes of a data loader: if one of them ends, an error is raised at once, never a hang."""

import contextlib
import pickle
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset

from ammnet_sparse.data.batch import Batch

_SHARED_MEMORY = (
    "the shared memory (/dev/shm) is too small for the batches of the loading processes; enlarge it (docker run "
    "--shm-size=2g), load in the training process (data.workers=0), or lower data.workers or training.batch_size"
)
_SHARED_MEMORY_SIGNS = ("shared memory", "shm", "Bus error")


class WorkerError(RuntimeError):
    """A worker process has ended, or cannot send its batch; the message says what to do."""


class BatchMaker(Dataset[Any]):
    """Makes batches of a dataset's frames in a worker, and passes on errors unchanged.

    Shared memory for the batch is allocated here. If the queue allocated it, running out of it would raise in a
    thread of the worker, unseen by the training process.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]

    def __getitems__(self, indices: list[int]) -> "Batch | _Failure":
        """These frames as a batch; data loaders prefer this to ``__getitem__``."""
        try:
            return Batch.collate([self.dataset[index] for index in indices]).share_memory()
        except Exception as error:
            return _Failure.of(error)


class _Failure:
    """An error on its way to the training process."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    @classmethod
    def of(cls, error: Exception) -> "_Failure":
        error = error.with_traceback(None)
        error.__cause__ = error.__context__ = None
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # an exception that cannot be pickled
            error = RuntimeError(f"{type(error).__name__}: {error}")
        return cls(error)


class WatchedLoader(DataLoader[Batch]):
    """A data loader over a ``BatchMaker`` whose iteration raises the original errors of its workers.

    Raises:
        WorkerError: a worker has ended (killed, out of memory), or there is too little shared memory.
    """

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        iterator = super().__iter__()
        _leave_ended_workers_to_the_loader()
        while True:
            try:
                item: Any = next(iterator)
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError) as error:  # also raised for a connection to a dead worker
                workers: list[Any] = getattr(iterator, "_workers", [])
                if not _has_one_ended(workers) and isinstance(error, OSError):
                    raise
                raise WorkerError(_explain(error, workers)) from error
            if isinstance(item, _Failure):
                if isinstance(item.error, RuntimeError) and _is_about_shared_memory(str(item.error)):
                    raise WorkerError(f"{_first_line(item.error)}; {_SHARED_MEMORY}") from item.error
                raise item.error
            yield item


def _leave_ended_workers_to_the_loader() -> None:
    """Removes PyTorch's SIGCHLD handler, which raises at an arbitrary point of the program when a worker ends.

    In the middle of a step that would leave weights and optimizers out of sync. The loader also notices when it is
    asked for the next batch.
    """
    if threading.current_thread() is threading.main_thread():
        with contextlib.suppress(ValueError, OSError):
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _has_one_ended(workers: list[Any], *, seconds: float = 5.0) -> bool:
    """Whether one of the workers has ended; waits a moment for one that is about to."""
    deadline = time.monotonic() + seconds
    while all(worker.is_alive() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    return any(not worker.is_alive() for worker in workers)


def _explain(error: Exception, workers: list[Any]) -> str:
    signals = {-worker.exitcode for worker in workers if worker.exitcode is not None and worker.exitcode < 0}
    if signal.SIGBUS in signals or _is_about_shared_memory(str(error)):
        return f"{_first_line(error)}; {_SHARED_MEMORY}"
    if signal.SIGKILL in signals:
        return (
            "a process that loads frames was killed, probably because memory ran out; lower data.workers, or "
            "load in the training process with data.workers=0"
        )
    ended = [f"exit code {worker.exitcode}" for worker in workers if worker.exitcode]
    return (
        f"a process that loads frames has ended ({', '.join(ended) or _first_line(error)}); to see why, load in the "
        "training process with data.workers=0"
    )


def _is_about_shared_memory(message: str) -> bool:
    return any(sign in message for sign in _SHARED_MEMORY_SIGNS)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
