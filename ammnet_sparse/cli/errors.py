"""Where errors become messages and exit codes, the same for every command."""

import contextlib
import errno
import functools
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from ammnet_sparse.data.parallel import WorkerLostError
from ammnet_sparse.files.writing import naming_errors
from ammnet_sparse.training.interruption import RunInterrupted

FAILED, WRONG_USAGE, INTERRUPTED = 1, 2, 130
"""Exit codes; 0 is done."""

Main = Callable[[Sequence[str] | None], int]

_ADVICE = {
    errno.ENOSPC: "free some space or choose another place",
    errno.EDQUOT: "free some space or choose another place",
    errno.EROFS: "choose another place",
    errno.EACCES: "check the permissions or choose another place",
    errno.EPERM: "check the permissions or choose another place",
    errno.EMFILE: "raise the limit (ulimit -n)",
}
_ARGUMENT = re.compile(r"`([a-z_0-9]+)(?:=([^`]*))?`")
_OTHER_NAMES = {
    "weights": "checkpoint",
    "initial_weights": "init-from",
    "may_change": "change",
    "folder": "source",
    "recording": "source",
}
"""Arguments whose options have other names."""
_ALLOCATION_MESSAGES = ("can't allocate memory", "not enough memory", "out of memory")


class UsageError(ValueError):
    """Options that contradict each other or do not fit this machine; the message names the option."""


class CommandFailed(Exception):
    """A command that failed although its input was right; the exit code is 1."""


def command(name: str) -> Callable[[Main], Main]:
    """Turns a function into ``ammnet NAME``: its errors become one message and an exit code.

    ``ValueError`` and ``OSError``, the bases of all errors of configuration, data and weights, mean wrong usage or data
    (2); ``CommandFailed``, a lost worker process and exhausted memory a failure (1); Ctrl-C and SIGTERM 130.
    Anything else is a bug and keeps its traceback. Notes of an exception (``add_note``) follow its
    message, a line each.
    """

    def decorate(main: Main) -> Main:
        @functools.wraps(main)
        def run(arguments: Sequence[str] | None = None) -> int:
            try:
                with _plain_warnings(name):
                    code = main(arguments)
                sys.stdout.flush()
                return code
            except BrokenPipeError:
                # The reader of the output, such as `head`, has closed it.
                _give_up_unwritable_output()
                return FAILED
            except BaseException as error:
                is_output_lost = _give_up_unwritable_output()
                if isinstance(error, OSError) and is_output_lost and error.filename is None:
                    error.filename = "standard output"
                described = describe(error)
                if described is None:
                    raise
                message, code = described
                # File names may hold bytes that are not text.
                print(f"ammnet {name}: {message}".encode("utf-8", "backslashreplace").decode(), file=sys.stderr)
                return code

        return run

    return decorate


@contextlib.contextmanager
def _plain_warnings(name: str) -> Iterator[None]:
    """Prints warnings meant for users as messages of the command, without the line of code."""
    before = warnings.formatwarning

    def plain(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if category is UserWarning:
            return f"ammnet {name}: warning: {with_options(str(message))}\n"
        return before(message, category, filename, lineno, line)

    warnings.formatwarning = plain
    try:
        yield
    finally:
        warnings.formatwarning = before


def describe(error: BaseException) -> tuple[str, int] | None:
    """The message for an error, with its notes, and the exit code; None for bugs, which need a traceback."""
    found = _describe(error)
    if found is None:
        return None
    message, code = found
    return with_options("\n".join([message, *getattr(error, "__notes__", [])])), code


def with_options(text: str) -> str:
    """A message of the package, with options in place of arguments in backquotes: ``--rotate 90`` of ``rotate=90``."""

    def option(argument: re.Match[str]) -> str:
        name = "--" + _OTHER_NAMES.get(argument[1], argument[1]).replace("_", "-")
        value = (argument[2] or "").strip("'")
        if value in ("", "True"):
            return name
        return f"{name}={value}" if value.startswith("-") else f"{name} {value}"

    return _ARGUMENT.sub(option, text)


def _describe(error: BaseException) -> tuple[str, int] | None:
    if isinstance(error, RunInterrupted | KeyboardInterrupt):
        return str(error) or "interrupted", INTERRUPTED
    if is_out_of_memory(error):
        return f"out of memory: {_first_line(error)}", FAILED
    if isinstance(error, OSError):
        return describe_os_error(error), WRONG_USAGE
    if isinstance(error, UnicodeEncodeError):
        return f"cannot print {error.object[error.start : error.end]!r} in {error.encoding}; set PYTHONUTF8=1", FAILED
    if isinstance(error, ValueError):
        return str(error), WRONG_USAGE
    if isinstance(error, CommandFailed | WorkerLostError):
        return str(error), FAILED
    return None


def describe_os_error(error: OSError) -> str:
    """The message for an error of the system: the file, what is wrong with it, and what to do if that is known."""
    if error.errno is None or error.strerror is None:
        return str(error)
    place = f"{os.fsdecode(error.filename)}: " if error.filename is not None else ""
    advice = _ADVICE.get(error.errno)
    return f"{place}{error.strerror}" + (f"; {advice}" if advice else "")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory of the device or of the machine was exhausted; PyTorch's CPU allocator has no class for it."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _ALLOCATION_MESSAGES)


@contextlib.contextmanager
def writing_to(place: Path) -> Iterator[None]:
    """Names ``place`` in errors of the system that name no file, such as that of a full disk."""
    try:
        with naming_errors(place):
            yield
    except OSError:
        raise
    except Exception as error:
        # safetensors and torch.save report a full disk with their own classes; importing them takes long.
        if type(error).__name__ == "SafetensorError" or _is_of_torch_save(error):
            raise UsageError(f"{place}: cannot be written ({_first_line(error)}); is the disk full?") from error
        raise


def check_output_file(path: Path, *, option: str = "--out") -> None:
    """Raises UsageError, before any work is done, if no file can be written at ``path``."""
    if path.is_dir():
        raise UsageError(f"{option} {path}: expected a file to write, found a folder; name a file in it")
    if not path.parent.is_dir():
        raise UsageError(f"{option}: expected a folder {path.parent}, found none; make it first")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"{option} {path}: cannot be written; check its permissions or choose another place")


def check_output_folder(path: Path, *, option: str = "--out") -> None:
    """Raises UsageError, before any work is done, if ``path`` is not, and cannot become, a folder to write to."""
    nearest = next(place for place in (path, *path.absolute().parents) if place.exists() or place.is_symlink())
    if not nearest.exists():
        raise UsageError(f"{option} {path}: expected a folder, found {nearest}, a link that leads to none; remove it")
    if not nearest.is_dir():
        raise UsageError(f"{option} {path}: expected a folder, found a file {nearest}; choose another")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UsageError(f"{option} {path}: {nearest} cannot be written to; check its permissions or choose another")


def check_keeps_inputs(outputs: Iterable[Path], inputs: Iterable[Path], *, option: str = "--out") -> None:
    """Raises UsageError, before anything is written, if an output would replace an input."""
    read = {os.path.realpath(path) for path in inputs}  # Path.resolve raises for links that lead to themselves
    for path in outputs:
        if os.path.realpath(path) in read:
            raise UsageError(
                f"{option} {path.parent}: expected a folder without the input files, found {path.name}, which would be "
                "overwritten; choose another folder"
            )


def _give_up_unwritable_output() -> bool:
    """Drops output that cannot be written, so that the interpreter does not fail again at exit.

    Returns whether there was anything to drop.
    """
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _is_of_torch_save(error: Exception) -> bool:
    """Whether ``torch.save`` could not write: it raises errors of its C++ code."""
    return isinstance(error, RuntimeError) and ("PytorchStreamWriter" in str(error) or "inline_container" in str(error))


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
