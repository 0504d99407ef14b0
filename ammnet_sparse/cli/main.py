"""``ammnet COMMAND``: finds the command's file, imports it and nothing else, and runs it.

A new command is a file in this folder with a function ``main(arguments) -> exit code``, and a line in ``COMMANDS``.
"""

import contextlib
import difflib
import importlib
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

import ammnet_sparse
from ammnet_sparse.cli.errors import FAILED, INTERRUPTED, WRONG_USAGE

COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("train", "train the network, on a set or on generated rooms"),
    "train-encoder": ("train_encoder", "fine-tune an image encoder on 2D segmentation, before train"),
    "evaluate": ("evaluate", "score weights on a split: the paper's table"),
    "predict": ("predict", "complete frames of a set or of your own depth camera"),
    "live": ("live", "complete frames as they arrive, and show the newest in the browser"),
    "map": ("map", "complete the frames of a moving camera and fuse them into a map of the room"),
    "report": ("report", "write a page about a training run: curves, scores, scenes"),
    "convert": ("convert", "convert a published dense checkpoint"),
    "export": ("export", "make weights small enough to hand out"),
    "data check": ("data_check", "read every frame of a set and name what is broken"),
    "data pack": ("data_pack", "pack a set into one file that is read directly"),
    "data prepare": ("data_prepare", "make a set from SSCNet's raw files, Occ-ScanNet or MonoScene"),
    "data mesh": ("data_mesh", "make a set from posed frames and a labeled mesh of their room"),
    "data rooms": ("data_rooms", "generate synthetic rooms in the layout of the published sets"),
    "experiments": ("experiments", "train the rows of a table of the paper, and print it"),
    "environment": ("environment", "list what this machine has for the project and what is missing"),
}
"""By the words typed: the file in this folder, and the description in the list of commands."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``ammnet``; returns its exit code: 0 done, 1 failed, 2 wrong usage or data, 130 interrupted."""
    _open_standard_streams()
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview(COMMANDS))
        return 0 if words else WRONG_USAGE
    if words[0] in ("-V", "--version"):
        print(f"ammnet {ammnet_sparse.__version__}")
        return 0
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in COMMANDS:
            return run(name, words[length:])
    return _explain(words)


def run(name: str, arguments: Sequence[str] | None = None) -> int:
    """Imports and runs one command.

    Args:
        name: a key of ``COMMANDS``.
        arguments: those after the command's name; None: those of this process.
    """
    _open_standard_streams()
    with _end_at_once_on_interrupt(name):
        try:
            command = importlib.import_module(f"ammnet_sparse.cli.{COMMANDS[name][0]}")
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] == "ammnet_sparse":
                raise
            print(
                f"ammnet {name}: the package {error.name!r} is not installed; install ammnet-sparse with all that it "
                "needs (`ammnet environment` lists what is missing)",
                file=sys.stderr,
            )
            return FAILED
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names may hold bytes that are not text
    try:
        with _terminated_as_interrupted():
            code: int = command.main(arguments)
    except KeyboardInterrupt:  # raised outside of the command's own error handling
        print(f"ammnet {name}: interrupted", file=sys.stderr)
        return INTERRUPTED
    return code


def _terminated_as_interrupted() -> contextlib.AbstractContextManager[None]:
    """SIGTERM acts as Ctrl-C within the block: what is half written is removed, and summaries are printed.

    Commands that save on signals handle them themselves.
    """
    process = os.getpid()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:  # a worker, which inherits the handler
            os._exit(128 + number)
        signal.signal(number, signal.SIG_IGN)  # a second one must not interrupt the end
        raise KeyboardInterrupt

    return _handled(signal.SIGTERM, interrupt)


@contextlib.contextmanager
def _handled(number: int, handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """``handler`` handles a signal within the block, unless it is ignored or this is not the main thread."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(number) is signal.SIG_IGN:
        yield
        return
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def _open_standard_streams() -> None:
    """Opens the null device in place of standard streams that services leave closed.

    Otherwise printing fails, and the next file that is opened takes the stream's descriptor.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  for the life of the process


def _explain(words: Sequence[str]) -> int:
    """Explains why words do not name a command; a group alone lists its commands."""
    group = {name: entry for name, entry in COMMANDS.items() if name.startswith(f"{words[0]} ")}
    if group and (len(words) == 1 or words[1] in ("-h", "--help")):
        print(_overview(group))
        return 0 if len(words) > 1 else WRONG_USAGE
    typed = " ".join(words[:2]) if group else words[0]
    known = {name: name for name in COMMANDS}
    if not group:  # someone who knows `ammnet data rooms` may type `ammnet rooms`
        known |= {name.rpartition(" ")[2]: name for name in COMMANDS}
    nearest = difflib.get_close_matches(typed, known, n=1)
    hint = f"did you mean `ammnet {known[nearest[0]]}`?" if nearest else "`ammnet --help` lists the commands"
    print(f"ammnet: expected a command, found {typed!r}; {hint}", file=sys.stderr)
    return WRONG_USAGE


def _overview(commands: dict[str, tuple[str, str]]) -> str:
    width = max(map(len, commands)) + 2
    lines = [f"  {name:{width}}{meaning}" for name, (_, meaning) in commands.items()]
    return "\n".join(
        [
            "usage: ammnet COMMAND [options]      ammnet COMMAND --help      ammnet --version",
            "",
            "Semantic scene completion from one RGB-D view, on sparse 3D convolutions.",
            "",
            *lines,
            "",
            "Exit code: 0 done, 1 failed, 2 wrong usage or data, 130 interrupted.",
        ]
    )


def _end_at_once_on_interrupt(name: str) -> contextlib.AbstractContextManager[None]:
    """Ctrl-C within the block ends the process with a message.

    Importing PyTorch takes seconds, there is nothing to clean up yet, and a KeyboardInterrupt in the middle of an
    extension's import may become any other error.
    """

    def end(number: int, frame: FrameType | None) -> None:
        os.write(2, f"ammnet {name}: interrupted\n".encode())
        os._exit(INTERRUPTED)

    return _handled(signal.SIGINT, end)
