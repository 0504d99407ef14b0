"""A list of frames that lives on the training device, where its batches are made.

The frames are as compact as in a packed set, about 0.5 MB each with their 2D label maps, 0.9 MB more with images.
A batch is gathered, unpacked and augmented by a dozen operators, and some dozens per image, that never make
the host wait; only two numbers per frame are copied.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ammnet_sparse.data.augmentation import (
    Colors,
    Geometry,
    augmentation_generator,
    draw_colors,
    draw_geometry,
    draw_shift,
    draw_symmetry,
    pad_image,
)
from ammnet_sparse.data.batch import NO_HIT, NO_SCORED_VOXEL, Batch, normalize_planes
from ammnet_sparse.data.dataset import EpochDataset
from ammnet_sparse.data.grid import IGNORE_LABEL, IMAGE_SHAPE, UNMAPPED
from ammnet_sparse.data.sets.compact import IGNORE_NIBBLE
from ammnet_sparse.data.sets.frame_source import FrameSource
from ammnet_sparse.data.sets.image_folder import Truth2D
from ammnet_sparse.data.symmetry import SYMMETRIES, Shift, Symmetry, shift_volumes, source_voxels
from ammnet_sparse.files.errors import DataError
from ammnet_sparse.progress import ProgressBar


class DeviceDataset(EpochDataset):
    """Frames on a device. Its batches equal those of ``dataset.FrameDataset`` bit for bit, augmentation included.

    Images after 2D augmentation are the exception: the device rounds their resampling and colors.

    Args:
        ids: frames, each once; they are read now.
        device: holds the frames and makes the batches.
        augment_3d: flips and exchange of the horizontal axes (``augmentation.draw_symmetry``).
        augment_2d: changes of the color image (``augmentation.augment_2d``).
        largest_shift: of the voxels along X and Y (``augmentation.draw_shift``); 0: none.
        truth_2d: dense 2D truth of the frames, or None.
        seed: of the augmentation.
        progress: show a progress bar on standard error while they are read.

    Attributes:
        unusable: by id why a frame cannot be trained on (``batch.why_unusable``), found while the frames were read.

    Raises:
        ValueError: no ids or a repeated one, a grid with unlike X and Y to exchange, or label maps beside images that
            2D augmentation would change.
        DataError: a frame that cannot be read.
    """

    def __init__(
        self,
        source: FrameSource,
        ids: Sequence[str],
        *,
        device: torch.device,
        augment_3d: bool = False,
        augment_2d: bool = False,
        largest_shift: int = 0,
        truth_2d: Truth2D | None = None,
        seed: int = 0,
        progress: bool = False,
    ) -> None:
        super().__init__(ids, source.info, makes_batches=True)
        if augment_2d and source.reads_image and source.reads_label_map:
            raise ValueError(
                f"{source.root}: expected images without 2D label maps for 2D augmentation, found both, and one "
                "mapping cannot follow both; read one of them, or switch 2D augmentation off"
            )
        if augment_3d:
            exchange = Symmetry(exchanges_xy=True)
            exchange.check_grid(source.info.grid_shape, source=str(source.root), advice="switch 3D augmentation off")
        self.augment_3d = augment_3d
        self.augment_2d = augment_2d and source.reads_image
        self.largest_shift = largest_shift
        self.seed = seed
        self.device = device
        self.grid_shape = source.info.grid_shape
        self._is_flipped = source.info.tsdf_is_flipped
        self._num_voxels = math.prod(self.grid_shape)
        self.unusable: dict[str, str] = {}
        self._tensors = _load(
            source, self.ids, truth_2d=truth_2d, device=device, unusable=self.unusable, progress=progress
        )
        self._source_voxels = source_voxels(self.grid_shape).to(device) if augment_3d else None

    @property
    def num_bytes(self) -> int:
        """Memory that the frames take on the device."""
        return sum(tensor.nbytes for tensor in self._tensors.values())

    def why_unusable(self, batch: Batch) -> dict[str, str]:
        """The frames of a batch that cannot be trained on, by name, each with the reason; no wait for the device."""
        return {name: self.unusable[name] for name in batch.frame_ids if name in self.unusable}

    def __getitem__(self, index: int) -> Batch:
        """Frame ``index`` of ``ids`` as a batch of one, augmented by (seed, epoch, frame id)."""
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> Batch:
        """These frames as a batch on the device; data loaders prefer this to ``__getitem__``."""
        indices = [range(len(self))[index] for index in indices]  # IndexErrors here, not on the device
        draws = [self._draw(index) for index in indices]
        numbers = torch.tensor([indices, *zip(*((draw.symmetry, *draw.shift) for draw in draws), strict=True)])
        if self.device.type == "cuda":
            numbers = numbers.pin_memory()  # otherwise the copy would make the host wait
        frame, symmetry, *shifts = numbers.to(self.device, non_blocking=True)
        rows = {name: tensor.index_select(0, frame) for name, tensor in self._tensors.items()}
        voxels = {
            "tsdf": rows["tsdf"].flatten(1),
            "mapping": _unpack_mapping(rows["hit_voxel"], rows["hit_pixel"], num_voxels=self._num_voxels),
            "label_weight": _unpack_bits(rows["label_weight"])[:, : self._num_voxels],
        }
        if "label" in rows:
            voxels["label"] = _unpack_nibbles(rows["label"])[:, : self._num_voxels]
        if self._source_voxels is not None:
            source = self._source_voxels.index_select(0, symmetry)
            voxels = {name: values.gather(1, source) for name, values in voxels.items()}
        if self.largest_shift:
            voxels = shift_volumes(
                voxels, torch.stack(shifts, dim=1), grid_shape=self.grid_shape, tsdf_is_flipped=self._is_flipped
            )
        label = voxels.get("label")
        label_map = _unpack_nibbles(rows["label_map"]) if "label_map" in rows else None
        image, label_2d = rows.get("image"), rows.get("label_2d")
        mapping, depth_hit = voxels["mapping"].contiguous(), None
        if image is not None:
            image = image.permute(0, 3, 1, 2).to(torch.float32)
        if image is not None and self.augment_2d:
            depth_hit = mapping != UNMAPPED
            changed = [draw.change(image[index]) for index, draw in enumerate(draws)]
            image = torch.stack(changed)
            mapping = torch.stack([draw.geometry.apply_to_pixels(mapping[i]) for i, draw in enumerate(draws)])
            if label_2d is not None:
                label_2d = torch.stack([draw.geometry.apply_to_classes(label_2d[i]) for i, draw in enumerate(draws)])
        return Batch(
            tsdf=voxels["tsdf"].to(torch.float32).view(-1, 1, *self.grid_shape),
            mapping=mapping,
            label_weight=voxels["label_weight"].contiguous(),
            label=None if label is None else label.contiguous(),
            image=None if image is None else normalize_planes(image.contiguous()),
            label_map=None if label_map is None else label_map.view(-1, *IMAGE_SHAPE),
            frame_ids=tuple(self.ids[index] for index in indices),
            tsdf_is_flipped=self._is_flipped,
            depth_hit=depth_hit,
            label_2d=label_2d,
            info=self.info,
        )

    def _draw(self, index: int) -> "_Draw":
        """How a frame is augmented in this epoch, with the draws of ``augmentation.augment``."""
        if not (self.augment_3d or self.largest_shift or self.augment_2d):
            return _Draw()
        generator = augmentation_generator(seed=self.seed, epoch=self.epoch, frame_id=self.ids[index])
        symmetry = SYMMETRIES.index(draw_symmetry(generator)) if self.augment_3d else 0
        shift = draw_shift(generator, largest=self.largest_shift) if self.largest_shift else Shift()
        if not self.augment_2d:
            return _Draw(symmetry, shift)
        return _Draw(symmetry, shift, draw_geometry(generator), draw_colors(generator))


@dataclasses.dataclass(frozen=True)
class _Draw:
    """The augmentation of a frame: a row of ``source_voxels``, a shift, and the changes of its image."""

    symmetry: int = 0
    shift: Shift = dataclasses.field(default_factory=Shift)
    geometry: Geometry = dataclasses.field(default_factory=Geometry)
    colors: Colors = dataclasses.field(default_factory=Colors)

    def change(self, image: Tensor) -> Tensor:
        """The padded image [3, 480, 640] float32."""
        return pad_image(self.colors.apply(self.geometry.apply(image)))


def _load(
    source: FrameSource,
    ids: list[str],
    *,
    truth_2d: Truth2D | None,
    device: torch.device,
    unusable: dict[str, str],
    progress: bool,
) -> dict[str, Tensor]:
    """The arrays of all frames on the device, by name, each [F, ...]; hits filled up with voxel V, pixel -1.

    Adds to ``unusable`` the frames that cannot be trained on, and why.
    """
    tensors: dict[str, Tensor] = {}
    hits = []
    for index, frame_id in enumerate(ProgressBar(ids, title=f"frames to {device}", unit="frame", is_shown=progress)):
        frame = source.read_compact(frame_id)
        grid_shape = source.info.grid_shape
        if frame.tsdf.shape != grid_shape:
            raise DataError(f"{source.root}: frame {frame_id}: expected {grid_shape}, found {frame.tsdf.shape}")
        hits.append(frame.hits)
        if len(frame.hits) == 0:
            unusable[frame_id] = NO_HIT
        elif not frame.unpack().scored_mask.any():
            unusable[frame_id] = NO_SCORED_VOXEL
        arrays = {name: getattr(frame, name) for name in ("tsdf", "label_weight", "label", "label_map", "image")}
        arrays["label_2d"] = None if truth_2d is None else truth_2d.read(frame_id)
        for name, array in arrays.items():
            if array is None:
                continue
            values = torch.from_numpy(array)
            if name not in tensors:
                tensors[name] = torch.empty(len(ids), *values.shape, dtype=values.dtype, device=device)
            elif values.dtype != tensors[name].dtype:  # a TSDF that float16 does not represent
                tensors[name] = tensors[name].to(torch.float32)
            tensors[name][index].copy_(values)
    padded = np.empty((2, len(ids), max(len(listed) for listed in hits)), dtype=np.int32)
    padded[0], padded[1] = math.prod(source.info.grid_shape), UNMAPPED
    for index, listed in enumerate(hits):
        padded[:, index, : len(listed)] = listed.T
    tensors["hit_voxel"], tensors["hit_pixel"] = torch.from_numpy(padded).to(device).unbind()
    return tensors


def _unpack_mapping(voxel: Tensor, pixel: Tensor, *, num_voxels: int) -> Tensor:
    """[B, V] int32 mapping from hit voxels and pixels [B, hits]; voxel V is none."""
    batch_size = len(voxel)
    row = num_voxels + 1
    mapping = torch.full((batch_size * row,), UNMAPPED, dtype=torch.int32, device=voxel.device)
    start = torch.arange(batch_size, device=voxel.device)[:, None] * row
    # Flat, because scattering along one axis can be deterministic.
    mapping.scatter_(0, (voxel + start).flatten(), pixel.flatten())
    return mapping.view(batch_size, row)[:, :num_voxels]


def _unpack_bits(packed: Tensor) -> Tensor:
    """[B, 8 N] bool of [B, N] uint8, the first value in the highest bit."""
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=packed.device)
    return (packed[:, :, None].bitwise_right_shift(shifts) & 1).to(torch.bool).flatten(1)


def _unpack_nibbles(packed: Tensor) -> Tensor:
    """[B, 2 N] uint8 classes of [B, ...] uint8 with N bytes a row, the first value in the higher half; 15 is 255."""
    rows = packed.flatten(1)
    classes = torch.stack([rows >> 4, rows & IGNORE_NIBBLE], dim=-1).flatten(1)
    return classes.masked_fill_(classes == IGNORE_NIBBLE, IGNORE_LABEL)
