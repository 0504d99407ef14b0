"""What every set of frames offers, whether it is a folder or one packed file."""

from pathlib import Path
from typing import Literal, Protocol

from ammnet_sparse.data.frame import Frame
from ammnet_sparse.data.sets.compact import CompactFrame
from ammnet_sparse.data.sets.files import DataError


class FrameSource(Protocol):
    """A set of frames with its lists of ids; ``folder.FrameFolder`` or ``packed.PackedFrames``."""

    @property
    def root(self) -> Path:
        """The folder or file, for messages."""
        ...

    @property
    def dataset(self) -> Literal["nyu", "nyucad"]:
        """The published layout of the frames."""
        ...

    @property
    def grid_shape(self) -> tuple[int, int, int]:
        """Voxels along (X, height, Y)."""
        ...

    @property
    def has_labels(self) -> bool:
        """Whether frames have ground truth."""
        ...

    @property
    def reads_image(self) -> bool:
        """Whether frames are read with color images."""
        ...

    @property
    def reads_label_map(self) -> bool:
        """Whether frames are read with 2D label maps."""
        ...

    def has_split(self, split: str) -> bool:
        """Whether the set has a list of that name, such as ``train``."""
        ...

    def frame_ids(self, split: str) -> list[str]:
        """The ids of a list in its order, each once; DataError if the list is missing or broken."""
        ...

    def listed_ids(self, split: str) -> list[str]:
        """The same, repetitions included."""
        ...

    def list_path(self, split: str) -> Path:
        """The file of a list, for messages; DataError if there is no such list."""
        ...

    def has_frame(self, frame_id: str) -> bool:
        """Whether the set holds a frame of that id, in any spelling."""
        ...

    def files(self, frame_id: str) -> list[Path]:
        """The files that a frame is read from; nothing is read."""
        ...

    def missing_files(self, frame_id: str) -> list[Path]:
        """The missing parts of a frame; nothing is read."""
        ...

    def read(self, frame_id: str) -> Frame:
        """A frame; DataError if it cannot be read."""
        ...

    def read_compact(self, frame_id: str) -> CompactFrame:
        """The same as a compact frame."""
        ...

    def read_with_problems(self, frame_id: str) -> tuple[Frame | None, list[DataError]]:
        """A frame after a full check of its content; None with everything that is wrong with it."""
        ...
