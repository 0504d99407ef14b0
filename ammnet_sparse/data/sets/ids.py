"""Ids of frames in lists and file names, and the folders and files of the published layouts, in every spelling."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from ammnet_sparse.files.content import read_text
from ammnet_sparse.files.errors import DataError, abbreviated
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


HALVES = {"train": ("train", "trainset"), "test": ("test", "testset")}
"""Folders of the frames of a list, by the list."""
HALF_FOLDERS = tuple(folder for folders in HALVES.values() for folder in folders)
IMAGE_FOLDERS = ("RGB", "R", *(f"{half}/{name}" for half in HALF_FOLDERS for name in ("RGB", "R")))
IMAGE_NAMES = ("NYU{}_colors", "NYU{}_rgb", "NYU{}", "{}", "NYU{}_0000")
IMAGE_TYPES = (".png", ".jpg", ".jpeg")
_IMAGE_ID = re.compile(r"(?:NYU)?(\d{4})(?:_colors|_rgb|_0000)?", re.ASCII)
LABEL_MAP_FOLDERS = ("Seg2D", "seg_result_label13")
LABEL_FOLDERS, TSDF_FOLDERS = ("Label", "L"), ("TSDF", "T")
MAPPING_FOLDERS = ("Mapping", "mapping")
_VOXEL_FILE = re.compile(r"NYU(\d{4})_0000_voxels", re.ASCII)


def image_paths(base: Path, frame_id: str) -> Iterator[Path]:
    """Where the color image of a frame may be; the published name first, which messages show if none exists."""
    for folder in IMAGE_FOLDERS:
        is_half = "/" in folder
        for name in sorted(IMAGE_NAMES, key=lambda name: name.endswith("_rgb") != is_half):
            for kind in IMAGE_TYPES:
                yield base / folder / f"{name.format(frame_id)}{kind}"


def find_half(base: Path, split: str, *, cad: Path | None) -> Path | None:
    """The folder whose files are the frames of a list that a set lacks; None if there is no such folder."""
    names = HALVES.get(split, ())
    folders = [base / half / name for half in names for name in ("RGB", "R")]
    if cad is not None:
        folders = [cad / half / "TSDF_lr" for half in names] + folders
    return next((folder for folder in folders if folder.is_dir() and any(_ids_in(folder))), None)


def ids_of_folder(folder: Path) -> list[str]:
    """The frames in a folder of images, sorted."""
    return sorted(set(_ids_in(folder)))


def existing_folder(base: Path, names: Sequence[str]) -> Path:
    """The first of these folders that exists; else the first."""
    return next((base / name for name in names if (base / name).is_dir()), base / names[0])


def first_existing(candidates: Iterator[Path]) -> Path:
    """The first file that exists; else the first whose folder does; else the first."""
    listed = list(candidates)
    for path in listed:
        if path.is_file():
            return path
    return next((path for path in listed if path.parent.is_dir()), listed[0])


def _ids_in(folder: Path) -> Iterator[str]:
    for path in folder.iterdir():
        match = _IMAGE_ID.fullmatch(path.stem) if path.suffix.lower() in IMAGE_TYPES else None
        match = match or (_VOXEL_FILE.fullmatch(path.stem) if path.suffix == ".npz" else None)
        if match:
            yield match[1]
