"""A lossless frame in a third of its memory, as in packed sets and caches.

Classes are packed two per byte, masks eight per byte, the mapping is a list of hit voxels, and the TSDF is
float16 if that represents every value exactly.
"""

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ammnet_sparse.data.frame import Frame
from ammnet_sparse.data.grid import (
    IGNORE_LABEL,
    IMAGE_SHAPE,
    NUM_LABEL_MAP_CLASSES,
    NUM_PIXELS,
    TSDF_TOLERANCE,
    UNMAPPED,
)
from ammnet_sparse.data.set_info import NYU, SetInfo

IGNORE_NIBBLE = 15
"""``IGNORE_LABEL`` in four bits."""


@dataclasses.dataclass(frozen=True, eq=False)
class CompactFrame:
    """A compact ``Frame``. V voxels in C order of (X, height, Y); the same attributes are None as in ``Frame``.

    Attributes:
        frame_id: name of the frame.
        tsdf: [X, H, Y] float16 or float32.
        hits: [N, 2] int32, (flat voxel, pixel) of the voxels that a pixel hits, voxels ascending.
        label_weight: [ceil(V / 8)] uint8, eight voxels per byte, the first in the highest bit.
        label: [ceil(V / 2)] uint8, two voxels per byte, the first in the high nibble; 15 for ignore.
        label_map: [480, 320] uint8, two neighboring pixels of a row per byte, likewise.
        image: [480, 640, 3] uint8.
        tsdf_is_flipped: which convention ``tsdf`` follows.
        info: the set that the frame is of.
    """

    frame_id: str
    tsdf: NDArray[Any]
    hits: NDArray[np.int32]
    label_weight: NDArray[np.uint8]
    label: NDArray[np.uint8] | None = None
    label_map: NDArray[np.uint8] | None = None
    image: NDArray[Any] | None = None
    tsdf_is_flipped: bool = False
    info: SetInfo = NYU

    @classmethod
    def pack(cls, frame: Frame, *, tsdf_type: DTypeLike | None = None) -> "CompactFrame":
        """Packs a frame.

        Args:
            tsdf_type: float16 or float32; None: float16 if it represents every value of the frame, otherwise float32.

        Raises:
            ValueError: classes that four bits cannot hold, or a frame after 2D augmentation, whose hits are not all in
                its mapping.
        """
        if frame.depth_hit is not None:
            raise ValueError(f"frame {frame.frame_id}: expected a frame as read, found one with a hit mask of its own")
        tsdf = frame.tsdf.astype(np.float16 if tsdf_type is None else tsdf_type)
        if tsdf_type is None and not (tsdf.astype(np.float32) == frame.tsdf).all():
            tsdf = frame.tsdf
        voxels = np.flatnonzero(frame.mapping != UNMAPPED)
        return cls(
            frame_id=frame.frame_id,
            tsdf=tsdf,
            hits=np.stack([voxels, frame.mapping.reshape(-1)[voxels]], axis=1).astype(np.int32),
            label_weight=np.packbits(frame.label_weight),
            label=None if frame.label is None else pack_nibbles(frame.label),
            label_map=None if frame.label_map is None else pack_nibbles(frame.label_map).reshape(IMAGE_SHAPE[0], -1),
            image=frame.image,
            tsdf_is_flipped=frame.tsdf_is_flipped,
            info=frame.info,
        )

    def unpack(self) -> Frame:
        """The frame; all arrays but ``image`` are copies."""
        shape, num_voxels = self.tsdf.shape, self.tsdf.size
        mapping = np.full(num_voxels, UNMAPPED, dtype=np.int32)
        mapping[self.hits[:, 0]] = self.hits[:, 1]
        label_weight = np.unpackbits(self.label_weight, count=num_voxels).view(np.bool_)
        label = None if self.label is None else unpack_nibbles(self.label)[:num_voxels].reshape(shape)
        return Frame(
            frame_id=self.frame_id,
            tsdf=self.tsdf.astype(np.float32),
            mapping=mapping.reshape(shape),
            label_weight=label_weight.reshape(shape),
            label=label,
            image=self.image,
            label_map=None if self.label_map is None else unpack_nibbles(self.label_map).reshape(IMAGE_SHAPE),
            tsdf_is_flipped=self.tsdf_is_flipped,
            info=self.info,
        )


def impossible_arrays(frame: CompactFrame) -> list[str]:
    """Names of the arrays with impossible values, such as voxels outside of the grid."""
    voxels, pixels = frame.hits.T
    is_possible = {
        "tsdf": bool((np.abs(frame.tsdf) <= 1 + TSDF_TOLERANCE).all()),  # negated, so that NaN fails
        "hits": bool(
            ((voxels >= 0) & (voxels < frame.tsdf.size)).all()
            and (np.diff(voxels) > 0).all()
            and ((pixels >= 0) & (pixels < NUM_PIXELS)).all()
        ),
        "label": frame.label is None or _has_classes_below(frame.label, frame.info.num_classes),
        "label_map": frame.label_map is None or _has_classes_below(frame.label_map, NUM_LABEL_MAP_CLASSES),
    }
    return [name for name, possible in is_possible.items() if not possible]


def compact_shapes(
    grid_shape: tuple[int, int, int], *, tsdf_type: DTypeLike
) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """Type and shape of the arrays of ``CompactFrame`` that have one size for all frames, all but ``hits``."""
    num_voxels = int(np.prod(grid_shape))
    rows, columns = IMAGE_SHAPE
    byte = np.dtype(np.uint8)
    return {
        "tsdf": (np.dtype(tsdf_type), grid_shape),
        "label_weight": (byte, (-(-num_voxels // 8),)),
        "label": (byte, (-(-num_voxels // 2),)),
        "label_map": (byte, (rows, columns // 2)),
        "image": (byte, (rows, columns, 3)),
    }


def pack_nibbles(classes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[ceil(N / 2)] uint8 of N classes of any shape, 0..14 or 255: two per byte, the first in the high nibble.

    Raises:
        ValueError: another class.
    """
    flat = classes.reshape(-1)
    outside = (flat >= IGNORE_NIBBLE) & (flat != IGNORE_LABEL)
    if outside.any():
        raise ValueError(
            f"classes: expected 0..{IGNORE_NIBBLE - 1} or {IGNORE_LABEL}, found {np.unique(flat[outside])[:4].tolist()}"
        )
    nibbles = np.zeros(flat.size + flat.size % 2, dtype=np.uint8)
    nibbles[: flat.size] = flat & IGNORE_NIBBLE  # 255 becomes 15
    packed: NDArray[np.uint8] = (nibbles[0::2] << np.uint8(4)) | nibbles[1::2]
    return packed


def unpack_nibbles(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[2 N] uint8: the classes of ``pack_nibbles``, with one more at the end if their number was odd."""
    return _PAIRS.take(packed.reshape(-1)).view(np.uint8)


def _has_classes_below(packed: NDArray[np.uint8], limit: int) -> bool:
    """Whether every class is below ``limit``, or means ignore."""
    is_class = np.arange(IGNORE_NIBBLE + 1) < limit
    is_class[IGNORE_NIBBLE] = True
    return bool((is_class[:, None] & is_class).reshape(-1)[packed].all())


def _pairs() -> NDArray[np.uint16]:
    """[256] the two classes of every byte, as one number, so that looking them up copies both at once."""
    byte = np.arange(256, dtype=np.uint8)
    classes = np.stack([byte >> 4, byte & IGNORE_NIBBLE], axis=1)
    classes[classes == IGNORE_NIBBLE] = IGNORE_LABEL
    return np.ascontiguousarray(classes).view(np.uint16).reshape(-1)


_PAIRS = _pairs()
