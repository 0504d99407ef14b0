"""What ``preparation.py`` asks of a form of files: which frames there are, and the volumes of each."""

import abc
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.data.grid import UNMAPPED
from ammnet_sparse.data.set_info import NYU, SetInfo
from ammnet_sparse.data.volumes.camera import CameraView
from ammnet_sparse.data.volumes.labels import label_weight_of
from ammnet_sparse.data.volumes.tsdf import Unobserved, mapping_from_depth, tsdf_from_depth
from ammnet_sparse.files.errors import DataError


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedFrame:
    """The volumes of a frame, each [129600], axes (X, height, Y) in C order.

    Attributes:
        label: uint8, 0..11 or 255.
        tsdf: float32, not flipped.
        label_weight: uint8, 0 or 1.
        mapping: int32, pixel or -1.
        note: a warning of the reader, or nothing.
        image: [480, 640, 3] uint8 RGB, or None.
        view: uint8, 1 in the camera's field of view; or None.
    """

    label: NDArray[np.uint8]
    tsdf: NDArray[np.float32]
    label_weight: NDArray[np.uint8]
    mapping: NDArray[np.int32]
    note: str = ""
    image: NDArray[np.uint8] | None = None
    view: NDArray[np.uint8] | None = None

    @classmethod
    def of(
        cls,
        depth: NDArray[np.float32],
        label: NDArray[np.uint8],
        *,
        view: CameraView,
        depth_path: Path,
        label_path: Path,
    ) -> "PreparedFrame":
        """The volumes of a depth image, by the definitions of ``data/volumes``.

        Args:
            depth: [480, 640] meters, 0 where missing.
            label: [129600].
            depth_path, label_path: where they come from, for messages.

        Raises:
            DataError: no pixel falls into the grid.
        """
        mapping, tsdf = mapping_from_depth(depth, view=view), tsdf_from_depth(depth, view=view)
        if (mapping == UNMAPPED).all():
            raise DataError(
                f"{depth_path}: expected depth within the grid of {label_path.name}, found no pixel there; "
                "they may belong to different frames"
            )
        return cls(label, tsdf, label_weight_of(label, tsdf), mapping)


@dataclasses.dataclass(frozen=True)
class FoundFrames:
    """The frames that a set can be made from.

    Attributes:
        lists: ids of every list of the set by its name, such as ``train``.
        problems: messages about files that are not of this form or lack their partner.
        notes: messages about files that are ignored.
    """

    lists: dict[str, list[str]]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class SetPlan(abc.ABC):
    """From which files a set is made, and how. Is sent to other processes.

    Attributes:
        out: folder of the set, made if missing.
        info: classes of the set, on NYU's grid; it is written to ``classes.yaml`` unless it is NYU's.
        is_flipped: flipped TSDF in NYUCAD's layout.
        unobserved: what a flipped TSDF holds where nothing was observed (``flip_tsdf``).
        has_images: frames come with color images.
        sequence: what all ids begin with, and the folder or file that these frames come from.
    """

    out: Path
    info: SetInfo = NYU
    is_flipped: bool = False
    unobserved: Unobserved = "free"
    has_images: bool = False
    sequence: tuple[str, Path] | None = None

    @abc.abstractmethod
    def find(self) -> FoundFrames:
        """The frames. Raises DataError if there are none."""

    @abc.abstractmethod
    def sources(self, frame_id: str) -> list[Path]:
        """The files that a frame is made from: it is made again if they are newer than its own."""

    @abc.abstractmethod
    def read(self, frame_id: str) -> PreparedFrame:
        """The volumes of a frame.

        Raises:
            DataError: files that cannot be used; names them.
            ValueError, OverflowError: numbers that no camera has; ``prepare_frame`` names the files.
        """

    @property
    @abc.abstractmethod
    def record(self) -> dict[str, Any]:
        """The choices that the frames depend on, so that a folder never mixes two."""

    def paths(self, frame_id: str) -> dict[str, Path]:
        """The files of a frame by what they hold; the label comes last."""
        file = f"{frame_id}.npz"
        images = {"RGB": self.out / "RGB" / f"NYU{frame_id}_colors.jpg"} if self.has_images else {}
        return images | {name: self.out / name / file for name in ("TSDF", "Mapping", "Label")}
