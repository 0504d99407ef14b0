"""A set of frames, in a folder or in one packed file, and its split into frames for training and validation."""

import abc
from pathlib import Path

from ammnet_sparse.data.frame import Frame
from ammnet_sparse.data.set_info import SetInfo
from ammnet_sparse.data.sets.compact import CompactFrame
from ammnet_sparse.data.sets.ids import check_list_name, hash_of, repeated_ids
from ammnet_sparse.files.errors import DataError, abbreviated


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


class WrappedFrames(FrameSource):
    """The frames of another set, of which a subclass changes something."""

    def __init__(self, source: FrameSource) -> None:
        self.root, self.info = source.root, source.info
        self.has_labels, self.reads_label_map = source.has_labels, source.reads_label_map
        self.reads_image = source.reads_image
        self._source = source

    def list_names(self) -> list[str]:
        return self._source.list_names()

    def find_list(self, split: str) -> Path | None:
        return self._source.find_list(split)

    def listed_ids(self, split: str) -> list[str]:
        return self._source.listed_ids(split)

    def files(self, frame_id: str) -> list[Path]:
        return self._source.files(frame_id)

    def read_with_problems(self, frame_id: str) -> tuple[Frame | None, list[DataError]]:
        return self._source.read_with_problems(frame_id)


def validation_ids(source: FrameSource, *, split: str, count: int, seed: int) -> list[str]:
    """The frames of the training list ``split`` that are kept for validation.

    Those of ``val.txt`` if the set has it; otherwise ``count`` frames drawn by ``seed``: the frames with the smallest
    SHA-256 of ``"seed:frame_id"``, sorted by id. So the draw does not depend on any library or the order of the list.

    Raises:
        DataError: ``val.txt`` names a frame that is not in ``split``, or no frame would be left for training.
    """
    ids = source.frame_ids(split)
    if source.has_split("val"):
        validation = source.frame_ids("val")
        stray = sorted(set(validation) - set(ids))
        if stray:
            raise DataError(
                f"{source.list_path('val')}: expected frames of {source.list_path(split).name}, found "
                f"{abbreviated(stray)} that are not in it; correct one of the lists"
            )
        if len(validation) == len(ids):
            raise DataError(
                f"{source.list_path('val')}: expected fewer frames than {source.list_path(split).name}, found all "
                f"{len(ids)}; leave some for training"
            )
        return validation
    if not 0 < count < len(ids):
        raise DataError(
            f"validation frames: expected 1..{len(ids) - 1} of the {len(ids)} frames of {source.list_path(split)}, "
            f"found {count}; change their number, or add a val.txt"
        )
    return sorted(sorted(ids, key=lambda frame_id: hash_of(f"{seed}:{frame_id}"))[:count])


def held_out_lists(source: FrameSource) -> list[str]:
    """Names of the lists that no training uses: ``val``, and those that begin with ``val_``."""
    return [name for name in source.list_names() if name == "val" or name.startswith("val_")]


def training_ids(source: FrameSource, *, split: str, count: int, seed: int) -> list[str]:
    """The frames of ``split`` without ``validation_ids`` and ``held_out_lists``, in the order of the list.

    Raises:
        DataError: as ``validation_ids``, or no frame is left.
    """
    held_out = set(validation_ids(source, split=split, count=count, seed=seed))
    names = held_out_lists(source)
    held_out |= {frame_id for name in names for frame_id in source.frame_ids(name)}
    ids = [frame_id for frame_id in source.frame_ids(split) if frame_id not in held_out]
    if not ids:
        raise DataError(
            f"{source.list_path(split)}: expected frames that are not held out (in {', '.join(names)}), "
            "found none; leave some for training"
        )
    return ids
