"""Images and dense 2D truth from folders beside a set: for a packed set without images, and for 2D supervision."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.data.frame import Frame
from ammnet_sparse.data.grid import IMAGE_SHAPE, NUM_CLASSES
from ammnet_sparse.data.sets.files import as_label, missing_file, read_color_image
from ammnet_sparse.data.sets.frame_source import FrameSource, WrappedFrames
from ammnet_sparse.data.sets.ids import parse_frame_id
from ammnet_sparse.files.errors import DataError, abbreviated
from ammnet_sparse.files.images import LABEL_MAP_FORMATS, read_image

_SUFFIXES = ("_colors", "_rgb")
_TYPES = (".jpg", ".png", ".jpeg")


class FramesWithImages(WrappedFrames):
    """The frames of a set, with the color images of a folder. Otherwise the same as the set.

    Args:
        source: a set that reads no images itself.
        folder: holds NYU0003_colors.jpg (or ``_rgb``, .png, .jpeg) for every frame.

    Raises:
        DataError: no such folder.
    """

    def __init__(self, source: FrameSource, folder: Path) -> None:
        if not folder.is_dir():
            raise DataError(f"data.images {folder}: expected a folder of color images, found none; check the path")
        super().__init__(source)
        self.reads_image = True
        self._folder = folder

    def image_path(self, frame_id: str) -> Path:
        """Where the image of a frame is; the first of the spellings if none exists."""
        name = parse_frame_id(frame_id, source="frame_id")
        paths = [self._folder / f"NYU{name}{suffix}{kind}" for suffix in _SUFFIXES for kind in _TYPES]
        return next((path for path in paths if path.is_file()), paths[0])

    def files(self, frame_id: str) -> list[Path]:
        return [*super().files(frame_id), self.image_path(frame_id)]

    def read_with_problems(self, frame_id: str) -> tuple[Frame | None, list[DataError]]:
        frame, problems = super().read_with_problems(frame_id)
        try:
            image = read_color_image(self.image_path(frame_id))
        except DataError as error:
            return None, [*problems, error]
        return (None if frame is None else dataclasses.replace(frame, image=image)), problems


class Truth2D:
    """A folder of dense 2D truth: 0003.png of 480x640, classes of the set (0 is taken, too), 255 unlabeled.

    Args:
        num_classes: of the set, empty included.

    Raises:
        DataError: no such folder.
    """

    def __init__(self, folder: Path, *, num_classes: int = NUM_CLASSES) -> None:
        if not folder.is_dir():
            raise DataError(f"data.label_2d {folder}: expected a folder of 2D labels, found none; check the path")
        self.folder = folder
        self.num_classes = num_classes

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
        if loaded.pixels.ndim != 2:
            raise DataError(
                f"{path}: expected classes in one channel, found shape {list(loaded.pixels.shape)}; replace it"
            )
        return as_label(loaded.pixels, path, num_classes=self.num_classes)

    def _path(self, frame_id: str) -> Path:
        return self.folder / f"{parse_frame_id(frame_id, source='frame_id')}.png"
