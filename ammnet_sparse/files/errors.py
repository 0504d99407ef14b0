"""The errors of reading files: one family, whose messages name the file, what was expected, found, and what to do."""

from collections.abc import Sequence
from pathlib import Path

_LONGEST_REASON = 200
_LONGEST_NAME = 200


class FileError(ValueError):
    """A file that cannot be used. ``str`` is the whole message: file, expected, found, advice."""

    @classmethod
    def about(cls, path: str | Path, *, expected: str, found: str, advice: str = "") -> "FileError":
        """The error in the usual words: ``PATH: expected EXPECTED, found FOUND; ADVICE``."""
        return cls(f"{path}: expected {expected}, found {found}" + (f"; {advice}" if advice else ""))


class DataError(FileError):
    """A file or list of a set that cannot be used; the message names it, what was expected, found, and what to do."""


def reason(error: BaseException) -> str:
    """An exception of a library in one short line: its type and the first line of what it says."""
    text = str(error).strip()
    first = text.splitlines()[0] if text else ""
    if len(first) > _LONGEST_REASON:
        first = f"{first[:_LONGEST_REASON]}..."
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def printable(text: str) -> str:
    """A name with what no font shows, control characters and bytes that are not UTF-8, as Python escapes it."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def abbreviated(names: Sequence[str], limit: int = 8) -> str:
    """Names for a message: the first few, long ones cut short, and how many more there are; "nothing" for none."""
    if not names:
        return "nothing"
    shown = [name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}..." for name in names[:limit]]
    return ", ".join(shown) + (f" and {len(names) - limit} more" if len(names) > limit else "")
