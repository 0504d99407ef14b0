"""A list of frames that lives on the training device, where its batches are made.

The frames lie there as compact as in a packed set, about 0.5 MB each with their 2D label maps. A batch is gathered,
unpacked and augmented by a dozen operators that never make the host wait; all that is copied are two numbers a frame.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from ammnet_sparse.data.augmentation import augmentation_generator, draw_symmetry
from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.grid import IGNORE_LABEL, IMAGE_SHAPE, UNMAPPED
from ammnet_sparse.data.sets.compact import IGNORE_NIBBLE
from ammnet_sparse.data.sets.files import DataError
from ammnet_sparse.data.sets.frame_source import FrameSource
from ammnet_sparse.data.sets.splits import check_unique
from ammnet_sparse.data.symmetry import SYMMETRIES, Symmetry, source_voxels


class DeviceDataset(Dataset[Batch]):
    """Frames on a device. Its batches equal those of ``dataset.FrameDataset`` bit for bit, augmentation included.

    Args:
        ids: frames, each once; they are read now.
        device: where they lie and batches are made.
        augment_3d: flips and exchange of the horizontal axes (``augmentation.augment_3d``).
        seed: of the augmentation.
        progress: show a progress bar on standard error while they are read.

    Raises:
        ValueError: no ids or a repeated one, a source that reads images, or a grid with unlike X and Y to exchange.
        DataError: a frame that cannot be read.
    """

    def __init__(
        self,
        source: FrameSource,
        ids: Sequence[str],
        *,
        device: torch.device,
        augment_3d: bool = False,
        seed: int = 0,
        progress: bool = False,
    ) -> None:
        check_unique(ids)
        if source.reads_image:
            raise ValueError(f"{source.root}: frames with images stay on disk; expected read_image=False")
        if augment_3d:
            exchange = Symmetry(exchanges_xy=True)
            exchange.check_grid(source.grid_shape, source=str(source.root), advice="switch 3D augmentation off")
        self.ids = list(ids)
        self.augment_3d = augment_3d
        self.seed = seed
        self.epoch = 0
        self.device = device
        self.grid_shape = source.grid_shape
        self._is_flipped = source.dataset == "nyucad"
        self._num_voxels = math.prod(source.grid_shape)
        self._tensors = _load(source, self.ids, device=device, progress=progress)
        self._source_voxels = source_voxels(self.grid_shape).to(device) if augment_3d else None

    @property
    def num_bytes(self) -> int:
        """Memory that the frames take on the device."""
        return sum(tensor.nbytes for tensor in self._tensors.values())

    def set_epoch(self, epoch: int) -> None:
        """Chooses the augmentation of an epoch; before the loader of that epoch is iterated."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Batch:
        """Frame ``index`` of ``ids`` as a batch of one, augmented as (seed, epoch, frame id) say."""
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> Batch:
        """These frames as a batch on the device; data loaders prefer this to ``__getitem__``."""
        indices = [range(len(self))[index] for index in indices]  # IndexErrors here, not on the device
        numbers = torch.tensor([indices, [self._draw_symmetry(index) for index in indices]])
        if self.device.type == "cuda":
            numbers = numbers.pin_memory()  # else the copy would make the host wait
        frame, symmetry = numbers.to(self.device, non_blocking=True)
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
        label = voxels.get("label")
        label_map = _unpack_nibbles(rows["label_map"]) if "label_map" in rows else None
        return Batch(
            tsdf=voxels["tsdf"].to(torch.float32).view(-1, 1, *self.grid_shape),
            mapping=voxels["mapping"].contiguous(),
            label_weight=voxels["label_weight"].contiguous(),
            label=None if label is None else label.contiguous(),
            label_map=None if label_map is None else label_map.view(-1, *IMAGE_SHAPE),
            frame_ids=tuple(self.ids[index] for index in indices),
            tsdf_is_flipped=self._is_flipped,
        )

    def _draw_symmetry(self, index: int) -> int:
        """Row of ``source_voxels`` that augments a frame in this epoch."""
        if not self.augment_3d:
            return 0
        generator = augmentation_generator(seed=self.seed, epoch=self.epoch, frame_id=self.ids[index])
        return SYMMETRIES.index(draw_symmetry(generator))


def _load(source: FrameSource, ids: list[str], *, device: torch.device, progress: bool) -> dict[str, Tensor]:
    """The arrays of all frames on the device, by name, each [F, ...]; hits filled up with voxel V, pixel -1."""
    tensors: dict[str, Tensor] = {}
    hits = []
    for index, frame_id in enumerate(tqdm(ids, desc=f"frames to {device}", unit="frame", disable=not progress)):
        frame = source.read_compact(frame_id)
        if frame.tsdf.shape != source.grid_shape:
            raise DataError(f"{source.root}: frame {frame_id}: expected {source.grid_shape}, found {frame.tsdf.shape}")
        hits.append(frame.hits)
        for name in ("tsdf", "label_weight", "label", "label_map"):
            array = getattr(frame, name)
            if array is None:
                continue
            values = torch.from_numpy(array)
            if name not in tensors:
                tensors[name] = torch.empty(len(ids), *values.shape, dtype=values.dtype, device=device)
            elif values.dtype != tensors[name].dtype:  # a TSDF that float16 does not hold
                tensors[name] = tensors[name].to(torch.float32)
            tensors[name][index].copy_(values)
    padded = np.empty((2, len(ids), max(len(listed) for listed in hits)), dtype=np.int32)
    padded[0], padded[1] = int(np.prod(source.grid_shape)), UNMAPPED
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
    # Flat, as scattering into one axis is deterministic on request.
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
