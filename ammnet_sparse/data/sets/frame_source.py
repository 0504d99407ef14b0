"""What every set of frames offers, whether it is a folder or one packed file."""

import abc
from pathlib import Path

from ammnet_sparse.data.frame import Frame
from ammnet_sparse.data.set_info import SetInfo
from ammnet_sparse.data.sets.compact import CompactFrame
from ammnet_sparse.data.sets.files import DataError
from ammnet_sparse.data.sets.ids import check_list_name, repeated_ids
from ammnet_sparse.files.errors import abbreviated


class FrameSource(abc.ABC):
    """A set of frames with its lists of ids; a reader sets the attributes and implements the abstract methods.

    Attributes:
        root: the folder or file, for messages.
        info: classes, grid and voxel size.
        has_labels: whether frames have ground truth.
        reads_image: whether frames are read with color images.
        reads_label_map: whether frames are read with 2D label maps.
    """

    root: Path
    info: SetInfo
    has_labels: bool
    reads_image: bool
    reads_label_map: bool

    @abc.abstractmethod
    def list_names(self) -> list[str]:
        """Names of the set's lists, such as ``train``, sorted."""

    @abc.abstractmethod
    def find_list(self, split: str) -> Path | None:
        """The file of a list, for messages; None if there is no such list."""

    @abc.abstractmethod
    def listed_ids(self, split: str) -> list[str]:
        """The ids of a list in its order, repetitions included; DataError if the list is missing or broken."""

    @abc.abstractmethod
    def files(self, frame_id: str) -> list[Path]:
        """The files that a frame is read from, its TSDF first; nothing is read, and any may be missing."""

    @abc.abstractmethod
    def read_with_problems(self, frame_id: str) -> tuple[Frame | None, list[DataError]]:
        """A frame after a full check of its content; None with everything that is wrong with it."""

    def has_split(self, split: str) -> bool:
        """Whether the set has a list of that name."""
        check_list_name(split)
        return self.find_list(split) is not None

    def list_path(self, split: str) -> Path:
        """The file of a list, for messages; DataError, naming the existing lists, if there is no such list."""
        check_list_name(split)
        path = self.find_list(split)
        if path is None:
            raise DataError(
                f"{self.root}: expected a list of frame ids {split}.txt, found lists {self.list_names()}; "
                "add it, or name another split"
            )
        return path

    def frame_ids(self, split: str) -> list[str]:
        """The ids of a list in its order; DataError if the list is missing or broken, or repeats an id."""
        ids = self.listed_ids(split)
        if repeated := repeated_ids(ids):
            raise DataError(
                f"{self.list_path(split)}: expected every frame once, found {abbreviated(repeated)} more than once; "
                "remove the duplicates"
            )
        return ids

    def has_frame(self, frame_id: str) -> bool:
        """Whether the set holds a frame of that id, in any spelling."""
        return self.files(frame_id)[0].is_file()

    def missing_files(self, frame_id: str) -> list[Path]:
        """The missing files of a frame; nothing is read."""
        return [path for path in self.files(frame_id) if not path.is_file()]

    def read(self, frame_id: str) -> Frame:
        """A frame; DataError, the first one found, if it cannot be read."""
        frame, problems = self.read_with_problems(frame_id)
        if frame is None:
            raise problems[0]
        return frame

    def read_compact(self, frame_id: str) -> CompactFrame:
        """The same as a compact frame."""
        return CompactFrame.pack(self.read(frame_id))
