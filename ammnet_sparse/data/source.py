"""Where frames come from: a folder in the published layout, or one packed file. Everything else reads either."""

from pathlib import Path
from typing import Literal, Protocol

from ammnet_sparse.data.compact import CompactFrame
from ammnet_sparse.data.files import DataError
from ammnet_sparse.data.frame import Frame
from ammnet_sparse.data.grid import GRID_SHAPE
from ammnet_sparse.data.layout import FrameFolder
from ammnet_sparse.data.packed import PackedFrames


class FrameSource(Protocol):
    """A set of frames with its lists of ids; ``layout.FrameFolder`` or ``packed.PackedFrames``."""

    @property
    def root(self) -> Path:
        """The folder or file, for messages."""
        ...

    @property
    def dataset(self) -> Literal["nyu", "nyucad"]:
        """The published layout that the frames are from."""
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
        """Whether frames are read with colour images."""
        ...

    @property
    def reads_label_map(self) -> bool:
        """Whether frames are read with 2D label maps."""
        ...

    def has_split(self, split: str) -> bool:
        """Whether the set has a list of that name, such as ``train``."""
        ...

    def frame_ids(self, split: str) -> list[str]:
        """The ids of a list in its order, each once; DataError where there is no such list, or a broken one."""
        ...

    def listed_ids(self, split: str) -> list[str]:
        """The same, repetitions included."""
        ...

    def list_path(self, split: str) -> Path:
        """The file of a list, for messages; DataError where there is no such list."""
        ...

    def has_frame(self, frame_id: str) -> bool:
        """Whether the set holds a frame of that id, in any spelling."""
        ...

    def missing_files(self, frame_id: str) -> list[Path]:
        """What a frame needs and is not there; nothing is read."""
        ...

    def read(self, frame_id: str) -> Frame:
        """A frame; DataError where it cannot be read."""
        ...

    def read_compact(self, frame_id: str) -> CompactFrame:
        """The same in few bytes."""
        ...

    def read_with_problems(self, frame_id: str) -> tuple[Frame | None, list[DataError]]:
        """A frame after a full check of its content; None with everything that is wrong with it."""
        ...


def open_frames(
    root: str | Path,
    *,
    dataset: Literal["nyu", "nyucad"] = "nyu",
    read_image: bool | None = None,
    read_label_map: bool | None = None,
    grid_shape: tuple[int, int, int] = GRID_SHAPE,
) -> FrameSource:
    """The set in ``root``: a packed file (``packed.PackedFrames``), or a folder (``layout.FrameFolder``).

    Args:
        dataset: layout of a folder; of a packed file, what it was made from.
        read_image: read colour images; None: where the set has them.
        read_label_map: read 2D label maps; None: likewise.
        grid_shape: voxels along (X, height, Y).

    Raises:
        DataError: no set there, or one that lacks what is asked for.
    """
    kind: type[PackedFrames] | type[FrameFolder] = PackedFrames if Path(root).is_file() else FrameFolder
    return kind(root, dataset=dataset, read_image=read_image, read_label_map=read_label_map, grid_shape=grid_shape)
