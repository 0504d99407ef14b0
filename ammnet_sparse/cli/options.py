"""Options that commands share: one name, one meaning, one default."""

import argparse
import contextlib
import difflib
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args

from ammnet_sparse.cli.errors import UsageError
from ammnet_sparse.data.grid import DatasetName

if TYPE_CHECKING:
    import torch

DEVICE_HELP = "cpu, cuda or cuda:N (default: cuda if there, else cpu)"


class CommandParser(argparse.ArgumentParser):
    """The parser of ``ammnet NAME``, described by the docstring of the command's file.

    Options cannot be abbreviated; an unknown option is answered with the closest known one.
    """

    def __init__(self, name: str, documentation: str | None, *, epilog: str = "") -> None:
        """``documentation``: its first paragraph is the description, the rest stands below the options."""
        description, _, rest = (documentation or "").partition("\n\n")
        super().__init__(
            prog=f"ammnet {name}",
            description=description,
            epilog="\n".join(text for text in (rest, epilog) if text),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def parse(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        """The options. Ends the process with exit code 2 and a message if they are wrong."""
        options, unknown = self.parse_known_args(arguments)
        if unknown:
            self.error(self._explain(unknown))
        return options

    def parse_with_keys(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        """As ``parse``, for a command with positional arguments ``key.sub=value`` anywhere among the options."""
        options, unknown = self.parse_known_intermixed_args(arguments)
        if unknown:
            keys = [text.lstrip("-") for text in unknown if "=" in text and "." in text.partition("=")[0]]
            hint = f"; configuration keys have no dashes: {' '.join(keys)}" if keys else ""
            self.error(self._explain(unknown) + hint)
        return options

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.format_usage()}{self.prog}: {message}\n")

    def _explain(self, unknown: Sequence[str]) -> str:
        options = [text.partition("=")[0] for text in unknown if text.startswith("-")]
        nearest: dict[str, None] = {}
        for option in options:
            nearest |= dict.fromkeys(difflib.get_close_matches(option, self._option_string_actions, n=1))
        hint = f"; did you mean {' or '.join(nearest)}?" if nearest else ""
        return f"unrecognized arguments: {' '.join(unknown)}{hint}"


def add_checkpoint_option(
    parser: argparse.ArgumentParser, *, default: str | None = None, is_repeated: bool = False
) -> None:
    """``--checkpoint FILE``, a path or the name of shipped weights; required without a default.

    Args:
        is_repeated: it may be given several times, and is a list, for the mean of the networks.
    """
    said = f" (default: {default})" if default else ""
    parser.add_argument(
        "--checkpoint",
        required=default is None,
        metavar="FILE",
        action="append" if is_repeated else "store",
        help="weights: a file, or the name of shipped ones"
        + (", several times for the mean of their probabilities" if is_repeated else "")
        + said,
    )


def add_data_option(parser: argparse._ActionsContainer, *, required: bool = False, note: str = "") -> None:
    """``--data DIR``, a folder or packed file in the published layout."""
    parser.add_argument(
        "--data", type=Path, required=required, metavar="DIR", help=f"folder or packed file of the set{note}"
    )


def add_dataset_option(parser: argparse.ArgumentParser, *, note: str = "") -> None:
    """``--dataset nyu|nyucad``."""
    parser.add_argument(
        "--dataset", choices=get_args(DatasetName), default="nyu", help=f"layout of the set{note} (default: nyu)"
    )


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """``--device D``: None if not given, which ``choose_device`` turns into the default."""
    parser.add_argument("--device", metavar="D", help=DEVICE_HELP)


def add_precision_option(parser: argparse.ArgumentParser, *, default: str) -> None:
    """``--precision auto|float32|bfloat16``."""
    parser.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default=default,
        help="precision of the network; auto: bfloat16 on CPUs with instructions for it (0.6 of the time), "
        f"float32 elsewhere (default: {default})",
    )


def add_out_option(
    parser: argparse.ArgumentParser,
    meaning: str,
    *,
    metavar: str,
    required: bool = False,
    aliases: Sequence[str] = (),
) -> None:
    """``--out PATH``: the one file or folder that the command writes.

    Args:
        metavar: DIR or FILE.
        aliases: earlier spellings.
    """
    parser.add_argument("--out", *aliases, dest="out", type=Path, required=required, metavar=metavar, help=meaning)


def add_limit_option(parser: argparse.ArgumentParser, what: str) -> None:
    """``--limit N``: only the first N of ``what``."""
    parser.add_argument("--limit", type=parse_positive, metavar="N", help=f"only the first N {what}")


def add_workers_option(parser: argparse.ArgumentParser, meaning: str) -> None:
    """``--workers N``, 0 by default; what it means depends on the command."""
    parser.add_argument("--workers", type=parse_count, default=0, metavar="N", help=meaning)


def add_sites_option(parser: argparse.ArgumentParser) -> None:
    """``--sites sparse|dense``, None: as trained."""
    parser.add_argument(
        "--sites",
        choices=("sparse", "dense"),
        help="voxels computed (default: as trained, others give worse predictions)",
    )


def add_splits_option(parser: argparse.ArgumentParser, meaning: str) -> None:
    """``--splits NAME ...``, and ``--split NAME`` which may be repeated; ``splits`` is a list, empty by default."""
    parser.add_argument("--splits", action="extend", nargs="+", default=[], metavar="NAME", help=meaning)
    parser.add_argument(
        "--split", action="append", dest="splits", default=[], metavar="NAME", help="one list; may be repeated"
    )


def add_flips_option(parser: argparse.ArgumentParser) -> None:
    """``--flips [4|8]``: ``flips`` is None, 4 or 8."""
    parser.add_argument(
        "--flips",
        type=int,
        choices=(4, 8),
        nargs="?",
        const=8,
        help="mean of the probabilities over the flips of X and Y: 4, or with their exchange 8 (default: none; "
        "without a number 8). Takes that many times as long",
    )


def add_palette_option(parser: argparse.ArgumentParser) -> None:
    """``--palette set|distinct``."""
    parser.add_argument(
        "--palette",
        choices=("set", "distinct"),
        default="set",
        help="colors of the classes: the set's own (for NYU those of the papers), or distinct ones, also for the color "
        "blind (default: set)",
    )


def _parse_whole(text: str, least: int) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) < least:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, found {text!r}")
    return int(text)


def parse_positive(text: str) -> int:
    """A whole number of at least 1, as an argparse type."""
    return _parse_whole(text, 1)


def parse_count(text: str) -> int:
    """A whole number of at least 0, as an argparse type."""
    return _parse_whole(text, 0)


def parse_positive_number(text: str) -> float:
    """A finite number above 0, as an argparse type."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, found {text!r}")
    return number


def either(parser: CommandParser, name: str, values: Iterable[Any]) -> Any:
    """The value of an option, or of the older positional argument for the same thing.

    Ends the process with exit code 2 if none or both are given.
    """
    given = [value for value in values if value is not None]
    if not given:
        parser.error(f"the following arguments are required: {name}")
    if len(given) > 1:
        parser.error(f"{name}: expected once, found {' and '.join(map(str, given))}")
    return given[0]


def choose_device(name: str | None) -> "torch.device":
    """The device of ``--device``; by default CUDA if available.

    Raises:
        UsageError: not a device, or a device that this machine does not have.
    """
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return parse_device(name)


def parse_device(text: str) -> "torch.device":
    """A device by name; a numbered CUDA device becomes the current one.

    Raises:
        UsageError: not a device, or a device that this machine does not have.
    """
    import torch

    from ammnet_sparse.processes import make_current

    device: torch.device | None = None
    with contextlib.suppress(RuntimeError):
        device = torch.device(text)
    if device is None or device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device: expected cpu, cuda or cuda:0, found {text!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"--device: expected one of {torch.cuda.device_count()} CUDA devices, found {text!r}; use --device cpu"
        )
    make_current(device)
    return device
