"""Atomic writing of files: complete or not at all, and on the disk before they replace an existing file.

A file is written under a temporary name in its folder, synchronized with the disk, and then renamed in one
step. If writing fails (full disk, Ctrl-C, a crash of the writer) the existing file is unchanged and the
temporary file is removed. Permissions follow the umask.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

_SUFFIX = ".unfinished"


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a temporary file beside ``path``, which replaces ``path`` at the end of the block.

    If the block raises, ``path`` is unchanged and the temporary file is removed.

    Raises:
        OSError: the folder cannot be written, or the disk is full; it names ``path``.
    """
    path = Path(path)
    temporary = _create_beside(path)
    try:
        with naming_errors(path):
            mode = temporary.stat().st_mode
            yield temporary
            # Some writers make files that only their owner reads.
            temporary.chmod(mode)
            _synchronize(temporary)
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _synchronize_folder(path.parent)


@contextlib.contextmanager
def replacing_open(path: str | Path) -> Iterator[IO[bytes]]:
    """As ``replacing``, with the temporary file open for binary writing.

    The first error of writing is raised, even if a library has replaced it with another.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        watched = _Watched(file)
        try:
            yield watched  # type: ignore[misc]  # has what writers use of a file
        except Exception as error:
            if watched.error is not None and error is not watched.error:
                raise watched.error from error
            raise


def write_text(path: str | Path, text: str) -> None:
    """Replaces a file by ``text`` in UTF-8; errors as ``replacing``."""
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode())


def keep_as(path: str | Path, kept: str | Path) -> None:
    """Makes ``kept`` a second name of the file ``path``, replacing it; neither name is ever missing.

    On file systems without hard links ``path`` is renamed and is missing until it is written again.
    """
    path, kept = Path(path), Path(kept)
    temporary = kept.with_name(f"{kept.name}.{os.getpid()}{_SUFFIX}")
    try:
        temporary.unlink(missing_ok=True)
        os.link(path, temporary)
    except OSError:
        os.replace(path, kept)
        return
    os.replace(temporary, kept)


@contextlib.contextmanager
def naming_errors(path: str | Path) -> Iterator[None]:
    """Adds ``path`` to errors of the system within the block that name no file, such as that of a full disk."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def _create_beside(path: Path) -> Path:
    """An empty file with a unique name and the permissions of a new file."""
    try:
        descriptor, name = tempfile.mkstemp(prefix=f"{path.name}.", suffix=_SUFFIX, dir=path.parent)
        os.close(descriptor)
        temporary = Path(name)
        # mkstemp makes it readable only by its owner; created again under the same name it follows the umask.
        temporary.unlink()
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except OSError as error:
        error.filename = str(path)
        raise
    return temporary


def _synchronize(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _synchronize_folder(folder: Path) -> None:
    # Some network file systems cannot synchronize folders; the file itself is on the disk already.
    with contextlib.suppress(OSError):
        _synchronize(folder)


class _Watched:
    """A file that records the first error of the system, which libraries replace with their own."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, content: Any) -> int:
        try:
            return self._file.write(content)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        try:
            self._file.flush()
        except OSError as error:
            self.error = self.error or error
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
