"""One frame as numpy arrays, as it comes from disk or from a camera."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.data.grid import IGNORE_LABEL, IMAGE_SHAPE, UNMAPPED
from ammnet_sparse.data.set_info import NYU, SetInfo


@dataclasses.dataclass(frozen=True, eq=False)
class Frame:
    """A frame. Voxel axes are (X, height, Y).

    Attributes:
        frame_id: name of the frame, for messages and pictures.
        tsdf: [X, H, Y] float32, not flipped, or flipped where ``tsdf_is_flipped`` (see ``Batch.tsdf``).
        mapping: [X, H, Y] int32, pixel ``row * 640 + column`` that hit the voxel, -1 for none.
        label_weight: [X, H, Y] bool, True for voxels of loss and evaluation.
        label: [X, H, Y] uint8, a class of ``info`` or 255 for ignore; None without ground truth.
        image: [480, 640, 3] uint8, upright RGB; float32 on the same scale 0..255 once augmented; or None.
        label_map: [480, 640] uint8, the 2D prediction, 0..13; or None.
        tsdf_is_flipped: which convention ``tsdf`` follows.
        depth_hit: [X, H, Y] bool, voxels that the depth hits, if these are more than in ``mapping``: 2D augmentation
            may crop the pixel of a hit. None: those with a pixel.
        label_2d: [480, 640] uint8, dense 2D truth, class 1 and above or 255 for unlabeled; or None.
        label_weight_is_computed: the files hold no label weight; it was computed from label and TSDF.
        info: the set that the frame is of.

    Raises:
        ValueError: an array whose shape contradicts the others or the image.
    """

    frame_id: str
    tsdf: NDArray[np.float32]
    mapping: NDArray[np.int32]
    label_weight: NDArray[np.bool_]
    label: NDArray[np.uint8] | None = None
    image: NDArray[Any] | None = None
    label_map: NDArray[np.uint8] | None = None
    tsdf_is_flipped: bool = False
    depth_hit: NDArray[np.bool_] | None = None
    label_2d: NDArray[np.uint8] | None = None
    label_weight_is_computed: bool = False
    info: SetInfo = NYU

    def __post_init__(self) -> None:
        if self.tsdf.ndim != 3:
            raise ValueError(f"Frame.tsdf of {self.frame_id}: expected [X, height, Y], found {list(self.tsdf.shape)}")
        expected = {
            "mapping": self.tsdf.shape,
            "label_weight": self.tsdf.shape,
            "label": self.tsdf.shape,
            "image": (*IMAGE_SHAPE, 3),
            "label_map": IMAGE_SHAPE,
            "depth_hit": self.tsdf.shape,
            "label_2d": IMAGE_SHAPE,
        }
        for name, shape in expected.items():
            value = getattr(self, name)
            if value is not None and value.shape != shape:
                raise ValueError(f"Frame.{name} of {self.frame_id}: expected {list(shape)}, found {list(value.shape)}")

    def map_volumes(self, function: Callable[[str, NDArray[Any]], NDArray[Any]]) -> "Frame":
        """The frame with ``function(name, volume)`` in place of each of its arrays of voxels."""
        volumes = {name: getattr(self, name) for name in ("tsdf", "mapping", "label_weight", "label", "depth_hit")}
        changed: dict[str, Any] = {
            name: function(name, volume) for name, volume in volumes.items() if volume is not None
        }
        return dataclasses.replace(self, **changed)

    @property
    def hit_mask(self) -> NDArray[np.bool_]:
        """[X, H, Y] bool, voxels that the depth hits."""
        return self.mapping != UNMAPPED if self.depth_hit is None else self.depth_hit

    @property
    def scored_mask(self) -> NDArray[np.bool_]:
        """[X, H, Y] bool, voxels with label weight and, if there is a truth, a label that is not ignored."""
        return self.label_weight if self.label is None else self.label_weight & (self.label != IGNORE_LABEL)

    @property
    def grid_shape(self) -> tuple[int, int, int]:
        """Voxels along (X, height, Y)."""
        x, height, y = self.tsdf.shape
        return x, height, y
