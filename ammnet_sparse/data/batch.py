"""A batch of frames as tensors: what the network reads and what the losses compare with."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ammnet_sparse.data.frame import Frame
from ammnet_sparse.data.grid import (
    IGNORE_LABEL,
    IMAGE_SHAPE,
    NUM_LABEL_MAP_CLASSES,
    TSDF_TOLERANCE,
    UNMAPPED,
)
from ammnet_sparse.data.set_info import NYU, SetInfo
from ammnet_sparse.data.sets.source import open_frames
from ammnet_sparse.devices import checked_device

NO_HIT = "no pixel hits a voxel"
NO_SCORED_VOXEL = "no voxel is scored (label weight set, label not 255)"
"""Why a frame cannot be trained on."""
IMAGE_MEAN = (123.675, 116.28, 103.53)
"""ImageNet's mean of (red, green, blue), on the scale 0..255; image backbones expect its normalization."""
IMAGE_DEVIATION = (58.395, 57.12, 57.375)
"""ImageNet's standard deviation, likewise."""


@functools.lru_cache(maxsize=16)
def color_planes(values: tuple[float, float, float], device: torch.device) -> Tensor:
    """[3, 1, 1] float32 of (red, green, blue). Cached, because creating it makes the host wait for the device."""
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]


def normalize_planes(planes: Tensor) -> Tensor:
    """[..., 3, rows, columns] float32 RGB on the scale 0..255, on any device, normalized in place."""
    return planes.sub_(color_planes(IMAGE_MEAN, planes.device)).div_(color_planes(IMAGE_DEVIATION, planes.device))


@dataclasses.dataclass(frozen=True)
class Batch:
    """Frames of one batch. Voxel axes are (X, height, Y), flat index ``(x * H + h) * Y + y``.

    Attributes:
        tsdf: [B, 1, X, H, Y] float32. Not flipped: about +1 free, -1 occluded, 0 unobserved, falling to 0
            at the surface. Flipped (``tsdf_is_flipped``): sign * max(0.001, 1 - |t|).
        mapping: [B, V] integer, V = X * H * Y: pixel ``row * width + column`` of the image that shows the voxel, -1 for
            none.
        label_weight: [B, V] bool, True for voxels of loss and evaluation.
        label: [B, V] uint8 or other integer type, a class of ``info`` or 255 for ignore; None without ground truth.
        image: [B, 3, 480, 640] float32, normalized RGB; None for models without an image network.
        label_map: [B, 480, 640] uint8, the 2D prediction, 0..13; None for models that do not read it.
        frame_ids: names of the frames, for messages and pictures.
        tsdf_is_flipped: which convention ``tsdf`` follows.
        depth_hit: [B, V] bool, voxels that the depth hits; None: those with a pixel in ``mapping``. After 2D
            augmentation the pixel of a hit may be cropped.
        label_2d: [B, rows, columns] uint8 or other integer type, dense 2D truth of the image, class 1 and above or 255
            for unlabeled; None without.

        image_stages: features of a frozen image backbone, in place of ``image``: four stages
            [B, channels, rows, columns], 1/4 to 1/32 of the image, of any float type; None: computed from ``image``.
        info: the set that the frames are of.

    Raises ValueError for shapes that contradict each other, for other types and, if built on the CPU, for a
    TSDF that is not finite or beyond -1..1, and for pixels and classes out of range.
    """

    tsdf: Tensor
    mapping: Tensor
    label_weight: Tensor
    label: Tensor | None = None
    image: Tensor | None = None
    label_map: Tensor | None = None
    frame_ids: tuple[str, ...] = ()
    tsdf_is_flipped: bool = False
    depth_hit: Tensor | None = None
    label_2d: Tensor | None = None
    image_stages: tuple[Tensor, ...] | None = None
    info: SetInfo = NYU

    def __post_init__(self) -> None:
        if self.tsdf.ndim != 5 or self.tsdf.shape[1] != 1:
            raise ValueError(f"Batch.tsdf: expected [B, 1, X, H, Y], found {list(self.tsdf.shape)}")
        expected = (self.batch_size, self.num_voxels)
        for name in ("mapping", "label_weight", "label", "depth_hit"):
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != expected:
                raise ValueError(
                    f"Batch.{name}: expected {list(expected)} to match tsdf {list(self.tsdf.shape)}, "
                    f"found {list(value.shape)}"
                )
        for name, ndim in (("image", 4), ("label_map", 3), ("label_2d", 3)):
            value = getattr(self, name)
            if value is not None and (value.ndim != ndim or value.shape[0] != self.batch_size):
                raise ValueError(
                    f"Batch.{name}: expected {ndim} axes with {self.batch_size} frames first, found {list(value.shape)}"
                )
        for stage in self.image_stages or ():
            if stage.ndim != 4 or stage.shape[0] != self.batch_size:
                raise ValueError(
                    f"Batch.image_stages: expected [{self.batch_size}, channels, rows, columns], found "
                    f"{list(stage.shape)}"
                )
        for name, (is_fitting, wanted) in _TYPES.items():
            value = getattr(self, name)
            if value is not None and not is_fitting(value.dtype):
                raise ValueError(f"Batch.{name}: expected {wanted}, found {value.dtype}; convert it first")
        if self.tsdf.device.type == "cpu":
            # Checked once, before the batch is moved: on a GPU, reading values would wait for the device in every step.
            self._check_values()

    def _check_values(self) -> None:
        """Raises ValueError for a TSDF out of range, a pixel outside of the images, or a class that does not exist."""
        if self.tsdf.numel() and not bool((self.tsdf.abs() <= 1 + TSDF_TOLERANCE).all()):  # so that NaN is found
            names = ", ".join(self.frame_ids) or "(unnamed)"
            outside = self.tsdf[~(self.tsdf.abs() <= 1 + TSDF_TOLERANCE)]
            raise ValueError(
                f"Batch.tsdf, frames {names}: expected finite values in -1 .. 1, found {outside.numel()} others "
                f"({', '.join(str(value) for value in outside[:4].tolist())})"
            )
        self._check_range("mapping: pixels", self.mapping, low=UNMAPPED, high=None)
        for name in ("image", "label_map"):
            value = getattr(self, name)
            if value is not None:
                num_pixels = value.shape[-2] * value.shape[-1]
                self._check_range(f"mapping: pixels of {name}", self.mapping, low=UNMAPPED, high=num_pixels - 1)
        for name in ("label", "label_2d"):
            value = getattr(self, name)
            if value is not None:
                classes = value.masked_fill(value == IGNORE_LABEL, 0)
                self._check_range(f"{name}: classes but {IGNORE_LABEL}", classes, low=0, high=self.info.num_classes - 1)
        if self.label_map is not None:
            self._check_range("label_map: classes", self.label_map, low=0, high=NUM_LABEL_MAP_CLASSES - 1)

    def _check_range(self, what: str, values: Tensor, *, low: int, high: int | None) -> None:
        if values.numel() == 0:
            return
        smallest, largest = (int(bound) for bound in values.aminmax())
        if smallest < low or (high is not None and largest > high):
            names = ", ".join(self.frame_ids) or "(unnamed)"
            expected = f"at least {low}" if high is None else f"in {low} .. {high}"
            raise ValueError(f"Batch.{what}, frames {names}: expected values {expected}, found {smallest} .. {largest}")

    @property
    def batch_size(self) -> int:
        return self.tsdf.shape[0]

    @property
    def grid_shape(self) -> tuple[int, int, int]:
        """Voxels along (X, height, Y)."""
        x, height, y = self.tsdf.shape[2:]
        return x, height, y

    @property
    def num_voxels(self) -> int:
        x, height, y = self.grid_shape
        return x * height * y

    @property
    def scored_mask(self) -> Tensor:
        """[B, V] bool: label weight set and label not ignored; only the label weight if there are no labels."""
        if self.label is None:
            return self.label_weight
        return self.label_weight & (self.label != IGNORE_LABEL)

    @property
    def hit_mask(self) -> Tensor:
        """[B, V] bool: voxels that the depth hits, with or without a pixel in ``mapping``."""
        return self.mapping != UNMAPPED if self.depth_hit is None else self.depth_hit

    @property
    def image_shape(self) -> tuple[int, int]:
        """Rows and columns of the image that ``mapping`` refers to."""
        return IMAGE_SHAPE if self.image is None else (self.image.shape[2], self.image.shape[3])

    def select(self, chosen: Tensor) -> "Batch":
        """The frames for which ``chosen``, [B] bool, is True; the batch itself if all are chosen."""
        if bool(chosen.all()):
            return self
        indices = chosen.nonzero().flatten()
        selected = self._map_tensors(lambda tensor: tensor.index_select(0, indices.to(tensor.device)))
        frame_ids = tuple(self.frame_ids[index] for index in indices.tolist()) if self.frame_ids else ()
        return dataclasses.replace(selected, frame_ids=frame_ids)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Batch":
        """The same batch with every tensor on ``device``. Raises ValueError for a device that is not available."""
        if str(device) == str(self.tsdf.device):
            return self
        device = checked_device(device)
        return self._map_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory (the data loader calls this)."""
        return self._map_tensors(lambda tensor: tensor.pin_memory())

    def share_memory(self) -> "Batch":
        """The same batch in shared memory, so that sending it to another process allocates nothing.

        Raises:
            RuntimeError: too little shared memory (/dev/shm).
        """
        return self._map_tensors(lambda tensor: tensor.share_memory_())

    def _map_tensors(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        changed: dict[str, Any] = {
            field.name: function(value)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        if self.image_stages is not None:
            changed["image_stages"] = tuple(function(stage) for stage in self.image_stages)
        return dataclasses.replace(self, **changed)

    @classmethod
    def collate(cls, batches: Sequence["Batch"]) -> "Batch":
        """Joins batches along the first axis. Raises ValueError where they hold different fields or sizes."""
        if not batches:
            raise ValueError("Batch.collate: expected at least one batch, found none")
        joined: dict[str, Tensor | None] = {}
        for name in ("tsdf", "mapping", "label_weight", "label", "image", "label_map", "label_2d"):
            values = [getattr(batch, name) for batch in batches]
            present = [value for value in values if value is not None]
            if present and len(present) != len(values):
                lacking = [batch.frame_ids for batch in batches if getattr(batch, name) is None]
                raise ValueError(f"Batch.collate: {name} is given for some frames but not for {lacking}")
            for batch, value in zip(batches, present, strict=False):
                if value.shape[1:] != present[0].shape[1:]:
                    raise ValueError(
                        f"Batch.collate: {name} has shapes {list(present[0].shape[1:])} for {batches[0].frame_ids} and "
                        f"{list(value.shape[1:])} for {batch.frame_ids}; expected frames of one size"
                    )
            joined[name] = torch.cat(present) if present else None
        joined["depth_hit"] = None
        if any(batch.depth_hit is not None for batch in batches):
            joined["depth_hit"] = torch.cat([batch.hit_mask for batch in batches])
        conventions = {batch.tsdf_is_flipped for batch in batches}
        if len(conventions) > 1:
            raise ValueError("Batch.collate: flipped and unflipped TSDF cannot be mixed in a batch")
        infos = [batch.info for batch in batches]
        if any(info != infos[0] for info in infos):
            raise ValueError("Batch.collate: frames of sets with other classes or grids cannot be mixed in a batch")
        return cls(
            **joined,  # type: ignore[arg-type]
            frame_ids=tuple(frame_id for batch in batches for frame_id in batch.frame_ids),
            tsdf_is_flipped=conventions.pop(),
            image_stages=_joined_stages(batches),
            info=infos[0],
        )

    @classmethod
    def from_frame(cls, frame: Frame) -> "Batch":
        """A frame as a batch of one: contiguous tensors that share no memory with the frame, image normalized."""
        return cls(
            tsdf=_tensor(frame.tsdf.astype(np.float32, copy=False))[None, None],
            mapping=_tensor(frame.mapping).reshape(1, -1),
            label_weight=_tensor(frame.label_weight).reshape(1, -1),
            label=None if frame.label is None else _tensor(frame.label).reshape(1, -1),
            image=None if frame.image is None else normalize_image(frame.image)[None],
            label_map=None if frame.label_map is None else _tensor(frame.label_map)[None],
            frame_ids=(frame.frame_id,),
            tsdf_is_flipped=frame.tsdf_is_flipped,
            depth_hit=None if frame.depth_hit is None else _tensor(frame.depth_hit).reshape(1, -1),
            label_2d=None if frame.label_2d is None else _tensor(frame.label_2d)[None],
            info=frame.info,
        )

    @classmethod
    def from_frames(cls, source: str | Path, ids: Sequence[str]) -> "Batch":
        """Reads frames of a set on disk (``data/sets/source.py``), without augmentation, in the order of ``ids``.

        Images and label maps are read if the set has them; then every frame needs one.
        Errors name the file, what was expected and what was found.
        """
        frames = open_frames(source)
        return cls.collate([cls.from_frame(frames.read(frame_id)) for frame_id in ids])


def _is_integer(dtype: torch.dtype) -> bool:
    return not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)


_TYPES: dict[str, tuple[Callable[[torch.dtype], bool], str]] = {
    "tsdf": (lambda dtype: dtype in (torch.float32, torch.float64), "float32 (convert a half-precision TSDF first)"),
    "mapping": (lambda dtype: dtype in (torch.int32, torch.int64), "int32 or int64, which hold every pixel"),
    "label_weight": (lambda dtype: dtype == torch.bool, "bool (label_weight > 0)"),
    "label": (_is_integer, "integers"),
    "image": (lambda dtype: dtype.is_floating_point, "normalized floats (data.batch.normalize_image)"),
    "label_map": (_is_integer, "integers"),
    "depth_hit": (lambda dtype: dtype == torch.bool, "bool"),
    "label_2d": (_is_integer, "integers"),
}
"""Types of the fields, and their names for messages."""


def _joined_stages(batches: Sequence[Batch]) -> tuple[Tensor, ...] | None:
    stages = [batch.image_stages for batch in batches if batch.image_stages is not None]
    if not stages:
        return None
    if len(stages) != len(batches):
        raise ValueError("Batch.collate: image_stages are given for some frames but not for others")
    return tuple(torch.cat(parts) for parts in zip(*stages, strict=True))


def usable_mask(batch: Batch) -> Tensor:
    """[B] bool: frames of which a pixel hits some voxel and some voxel is scored."""
    return batch.hit_mask.any(dim=1) & batch.scored_mask.any(dim=1)


def why_unusable(batch: Batch) -> dict[str, str]:
    """The frames of a batch that cannot be trained on, by name, each with the reason."""
    is_hit = batch.hit_mask.any(dim=1).tolist()
    is_usable = usable_mask(batch).tolist()
    frames = zip(batch.frame_ids, is_usable, is_hit, strict=True)
    return {name: NO_SCORED_VOXEL if hit else NO_HIT for name, usable, hit in frames if not usable}


def unflipped_tsdf(batch: Batch) -> Tensor:
    """[B, 1, X, H, Y] t, about +1 free and -1 occluded, for either convention of the file.

    From the flipped f: t = s (1 - |f|), which does not distinguish distant free space from unobserved space.
    """
    if not batch.tsdf_is_flipped:
        return batch.tsdf
    sign = torch.where(batch.tsdf < 0, -1.0, 1.0).to(batch.tsdf.dtype)
    return sign * (1 - batch.tsdf.abs())


def normalize_image(image: NDArray[Any]) -> torch.Tensor:
    """[3, rows, columns] float32 of an RGB image [rows, columns, 3] on the scale 0..255.

    A pixel equal to ImageNet's mean in float32 becomes exactly 0, which augmentation uses for padding.
    """
    return normalize_planes(_tensor(image).permute(2, 0, 1).to(torch.float32).contiguous())


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    # A copy in C order: flipped views have negative strides, which from_numpy refuses.
    return torch.from_numpy(np.array(array, order="C", copy=True))
