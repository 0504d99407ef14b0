"""Images and dense 2D truth from folders beside a set: for a packed set without images, and for 2D supervision."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.data.frame import Frame
from ammnet_sparse.data.grid import IGNORE_LABEL, IMAGE_SHAPE, NUM_CLASSES
from ammnet_sparse.data.sets.compact import CompactFrame
from ammnet_sparse.data.sets.files import DataError, missing_file, read_color_image
from ammnet_sparse.data.sets.frame_source import FrameSource
from ammnet_sparse.data.sets.splits import parse_frame_id
from ammnet_sparse.files.errors import abbreviated
from ammnet_sparse.files.images import LABEL_MAP_FORMATS, read_image

_SUFFIXES = ("_colors", "_rgb")
_TYPES = (".jpg", ".png", ".jpeg")


class FramesWithImages:
    """The frames of a set, with the color images of a folder. Otherwise the same as the set (``FrameSource``).

    Args:
        source: a set that reads no images itself.
        folder: holds NYU0003_colors.jpg (or ``_rgb``, .png, .jpeg) for every frame.

    Raises:
        DataError: no such folder.
    """

    def __init__(self, source: FrameSource, folder: Path) -> None:
        if not folder.is_dir():
            raise DataError(f"data.images {folder}: expected a folder of color images, found none; check the path")
        self._source = source
        self._folder = folder

    @property
    def root(self) -> Path:
        return self._source.root

    @property
    def dataset(self) -> Literal["nyu", "nyucad"]:
        return self._source.dataset

    @property
    def grid_shape(self) -> tuple[int, int, int]:
        return self._source.grid_shape

    @property
    def has_labels(self) -> bool:
        return self._source.has_labels

    @property
    def reads_image(self) -> bool:
        return True

    @property
    def reads_label_map(self) -> bool:
        return self._source.reads_label_map

    def has_split(self, split: str) -> bool:
        return self._source.has_split(split)

    def frame_ids(self, split: str) -> list[str]:
        return self._source.frame_ids(split)

    def listed_ids(self, split: str) -> list[str]:
        return self._source.listed_ids(split)

    def list_path(self, split: str) -> Path:
        return self._source.list_path(split)

    def has_frame(self, frame_id: str) -> bool:
        return self._source.has_frame(frame_id)

    def image_path(self, frame_id: str) -> Path:
        """Where the image of a frame is; the first of the spellings if none exists."""
        name = parse_frame_id(frame_id, source="frame_id")
        paths = [self._folder / f"NYU{name}{suffix}{kind}" for suffix in _SUFFIXES for kind in _TYPES]
        return next((path for path in paths if path.is_file()), paths[0])

    def files(self, frame_id: str) -> list[Path]:
        return [*self._source.files(frame_id), self.image_path(frame_id)]

    def missing_files(self, frame_id: str) -> list[Path]:
        path = self.image_path(frame_id)
        return [*self._source.missing_files(frame_id), *([] if path.is_file() else [path])]

    def read(self, frame_id: str) -> Frame:
        return dataclasses.replace(self._source.read(frame_id), image=read_color_image(self.image_path(frame_id)))

    def read_compact(self, frame_id: str) -> CompactFrame:
        image = read_color_image(self.image_path(frame_id))
        return dataclasses.replace(self._source.read_compact(frame_id), image=image)

    def read_with_problems(self, frame_id: str) -> tuple[Frame | None, list[DataError]]:
        frame, problems = self._source.read_with_problems(frame_id)
        try:
            image = read_color_image(self.image_path(frame_id))
        except DataError as error:
            return None, [*problems, error]
        return (None if frame is None else dataclasses.replace(frame, image=image)), problems


class Truth2D:
    """A folder of dense 2D truth: 0003.png of 480x640, classes 1..11 (0..11 are taken), 255 unlabeled.

    Raises:
        DataError: no such folder.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise DataError(f"data.label_2d {folder}: expected a folder of 2D labels, found none; check the path")
        self.folder = folder

    def check(self, frame_ids: Sequence[str]) -> None:
        """Raises DataError, naming them, where frames have no file; nothing is read."""
        missing = [frame_id for frame_id in frame_ids if not self._path(frame_id).is_file()]
        if missing:
            raise DataError(
                f"data.label_2d {self.folder}: expected {self._path(missing[0]).name} and so on for every training and "
                f"validation frame, found none for {abbreviated(missing)}; add them, or leave data.label_2d empty"
            )

    def read(self, frame_id: str) -> NDArray[np.uint8]:
        """[480, 640] uint8. Raises DataError for a missing or unreadable file, another shape or other classes."""
        path = self._path(frame_id)
        if not os.path.exists(path):
            raise missing_file(path)
        loaded = read_image(path, formats=LABEL_MAP_FORMATS, what="2D labels", size=IMAGE_SHAPE, advice="replace it")
        classes: NDArray[np.uint8] = loaded.pixels
        if classes.shape != IMAGE_SHAPE or classes.dtype != np.uint8:
            raise DataError(
                f"{path}: expected uint8 classes {list(IMAGE_SHAPE)} in one channel, found {classes.dtype} "
                f"{list(classes.shape)}; replace it"
            )
        outside = (classes >= NUM_CLASSES) & (classes != IGNORE_LABEL)
        if outside.any():
            found = abbreviated([str(value) for value in np.unique(classes[outside])])
            raise DataError(f"{path}: expected classes 0..{NUM_CLASSES - 1} or {IGNORE_LABEL}, found {found}")
        return classes

    def _path(self, frame_id: str) -> Path:
        return self.folder / f"{parse_frame_id(frame_id, source='frame_id')}.png"
