"""One process writes a run folder at a time."""

import fcntl
import os
import socket
from pathlib import Path
from typing import IO

from ammnet_sparse.training.checkpoints import CheckpointError

LOCK = "run.lock"


class FolderLock:
    """Locks a run folder until ``release`` or the end of the process.

    POSIX record locks belong to the process: a dead process holds none, and worker processes inherit none.
    If the file system has no locks, nothing is locked.

    Raises:
        CheckpointError: another process holds the folder.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / LOCK
        self._file: IO[str] | None = path.open("a+", encoding="utf-8")
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:  # another process holds it
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            self.release()
            raise CheckpointError(
                f"{folder}: {holder} is writing this run; wait until it has ended, or choose another folder"
            ) from error
        except OSError:
            self.release()
            return
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._file.flush()

    def release(self) -> None:
        """Releases the folder."""
        if self._file is not None:
            self._file.close()
            self._file = None


def create_run_folder(parent: Path, name: str) -> Path:
    """Makes a new folder ``name`` in ``parent``, or ``name_2``, ``name_3``, ... if it exists."""
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        folder = parent / (name if number == 1 else f"{name}_{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder
