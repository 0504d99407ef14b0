"""Names of the published layouts: which folders and files hold what, in every spelling that is read."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

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
    """The frames that a folder of images has, sorted."""
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
