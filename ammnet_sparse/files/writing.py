"""Atomic writing of files: complete or not at all, and on the disk before they replace an existing file.

A file is written under a temporary name in its folder, synchronized with the disk, and then renamed in one
step. If writing fails (full disk, Ctrl-C, a crash of the writer) the existing file is unchanged and the
temporary file is removed. Permissions follow the umask.

Temporary names begin with the file's, of which a long one is cut, and end in eight characters and ``.unfinished``.
Their writers hold a lock on them, so those that a killed process left are told apart (``remove_unfinished``).
"""

import contextlib
import fcntl
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

_SUFFIX = ".unfinished"
_MARK = re.compile(r"(.+\.)[0-9a-z_]{8}\.unfinished", re.DOTALL)
_LONGEST_START = 100
"""Bytes of a file's name that its temporary name begins with; file systems allow names of 143 to 255."""


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a temporary file beside ``path``, which replaces ``path`` at the end of the block.

    If the block raises, ``path`` is unchanged and the temporary file is removed. Of a symbolic link the file that it
    leads to is replaced; devices and pipes (``/dev/stdout``) are written to directly.

    Raises:
        OSError: the folder cannot be written, or the disk is full; it names ``path``.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        with naming_errors(path):
            yield path
        return
    if path.is_symlink():
        path = Path(os.path.realpath(path))
    with _created_beside(path) as temporary, naming_errors(path):
        mode = temporary.stat().st_mode
        yield temporary
        # Some writers make files that only their owner reads.
        temporary.chmod(mode)
        _synchronize(temporary)
        os.replace(temporary, path)
    _synchronize_folder(path.parent)


@contextlib.contextmanager
def replacing_open(path: str | Path) -> Iterator[BinaryIO]:
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
    """Replaces a file by ``text`` in UTF-8, with bytes of names that are no text escaped; errors as ``replacing``."""
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))


def keep_as(path: str | Path, kept: str | Path) -> None:
    """Makes ``kept`` a second name of the file ``path``, replacing it; neither name is ever missing.

    On file systems without hard links ``path`` is renamed and is missing until it is written again.
    """
    path, kept = Path(path), Path(kept)
    try:
        with _created_beside(kept) as temporary:
            temporary.unlink()
            os.link(path, temporary)
            os.replace(temporary, kept)
    except OSError:
        os.replace(path, kept)


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


def remove_unfinished(folder: Path, *, name: str | None = None) -> None:
    """Removes the temporary files of a folder whose writers were killed.

    Args:
        name: of the one file whose temporaries are meant; None: all files.
    """
    for path in folder.iterdir():
        found = _MARK.fullmatch(path.name)
        if found is None or (name is not None and found[1] != _start_of(name)) or path.is_symlink():
            continue
        if path.is_file():
            with contextlib.suppress(OSError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


def _start_of(name: str) -> str:
    """What the temporary names of a file begin with."""
    return os.fsencode(name)[:_LONGEST_START].decode("utf-8", "ignore") + "."


@contextlib.contextmanager
def _created_beside(path: Path) -> Iterator[Path]:
    """An empty file with a unique name and the permissions of a new file, locked within the block."""
    try:
        descriptor, name = tempfile.mkstemp(prefix=_start_of(path.name), suffix=_SUFFIX, dir=path.parent)
        os.close(descriptor)
        temporary = Path(name)
        # mkstemp makes it readable only by its owner; created again under the same name it follows the umask.
        temporary.unlink()
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except OSError as error:
        error.filename = str(path)
        raise
    try:
        with contextlib.suppress(OSError):  # some file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield temporary
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


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
