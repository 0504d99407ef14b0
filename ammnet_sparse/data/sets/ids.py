"""Ids of frames: in lists, in the names of files, and drawn by a hash."""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ammnet_sparse.data.sets.files import DataError
from ammnet_sparse.files.content import read_text
from ammnet_sparse.files.errors import abbreviated
from ammnet_sparse.files.yaml_text import short

_FRAME_ID = re.compile(r"(?:NYU)?(\d{1,4})(?:_0000)?", re.IGNORECASE | re.ASCII)
_LONGEST_ID = 200
"""Characters: file names may have 255, including prefix and extension."""
_OWN_NAME = re.compile(r"\w[\w.-]*", re.ASCII)


def hash_of(text: str) -> int:
    """A 256-bit number that depends only on ``text``, so that draws do not depend on the version of any library."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")


def read_id_list(path: Path) -> list[str]:
    """The ids of a text file, one per line, blank lines skipped, repetitions included.

    Raises:
        DataError: unreadable or empty, or a line that is not an id.
    """
    lines = read_text(path, what="a text file of frame ids", advice="replace it").splitlines()
    ids = [
        parse_frame_id(line.strip(), source=f"{path}, line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not ids:
        raise DataError(f"{path}: expected frame ids, one per line, found an empty list; fill it")
    return ids


def parse_frame_id(text: str, *, source: str) -> str:
    """The id as file names have it: ``3``, ``NYU0003`` and ``NYU0003_0000`` become ``0003``; own names stay.

    Raises:
        DataError: cannot be part of a file name; ``source`` says where it comes from.
    """
    if match := _FRAME_ID.fullmatch(text):
        return match[1].zfill(4)
    if len(text) > _LONGEST_ID or not _OWN_NAME.fullmatch(text):
        raise DataError(f"{source}: expected a frame id such as 0003 or NYU0003, found {short(text)}; correct it")
    return text


def check_list_name(split: str) -> None:
    """Raises DataError if ``split`` cannot be the name of a list."""
    if not _OWN_NAME.fullmatch(split):
        raise DataError(f"split: expected the name of a list such as 'train', found {split!r}")


def repeated_ids(ids: Sequence[str]) -> list[str]:
    """The ids that occur more than once, sorted."""
    return sorted(frame_id for frame_id, times in Counter(ids).items() if times > 1)


def check_unique(ids: Sequence[str]) -> None:
    """Raises ValueError if ``ids`` is empty or repeats a frame."""
    if not ids:
        raise ValueError("ids: expected at least one frame, found none")
    if repeated := repeated_ids(ids):
        raise ValueError(f"ids: expected every frame once, found {abbreviated(repeated)} more than once")
