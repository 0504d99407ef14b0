"""What a source of live frames yields, and what it must have."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.camera.files.intrinsics import Intrinsics


@dataclasses.dataclass(frozen=True, eq=False)
class LiveFrame:
    """The images of one moment.

    Attributes:
        name: for people and files.
        color: [rows, columns, 3] uint8 RGB, or None.
        depth: [rows, columns] as the sensor stores it, registered to the color image as that is stored.
        label_map: [rows, columns] classes as stored, or None.
        pose: [4, 4] camera to world, or None.
        exif_turn: degrees clockwise by which EXIF turns the color image.
    """

    name: str
    color: NDArray[np.uint8] | None
    depth: NDArray[Any]
    label_map: NDArray[Any] | None = None
    pose: NDArray[np.float64] | None = None
    exif_turn: int = 0


class Source(Protocol):
    """Where frames come from.

    Attributes:
        intrinsics: of the camera.
        depth_scale: units of the depth images a meter, if the source knows.
        skipped: number of frames that could not be read, so far.
        passed_over: number of frames left out because a newer one was there, so far.
    """

    intrinsics: Intrinsics
    depth_scale: float | None
    skipped: int
    passed_over: int

    def frames(self) -> Iterator[LiveFrame]:
        """Frames as they arrive, until ``stop`` is called or the source ends."""
        ...

    def stop(self) -> None:
        """Ends ``frames`` soon; may be called from another thread."""
        ...
