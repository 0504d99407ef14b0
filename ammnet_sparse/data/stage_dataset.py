"""Frames with the features of a frozen image backbone, computed once and kept in float16."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ammnet_sparse.data.batch import Batch, normalize_planes
from ammnet_sparse.data.dataset import EpochDataset
from ammnet_sparse.data.device_dataset import DeviceDataset
from ammnet_sparse.data.sets.frame_source import FrameSource
from ammnet_sparse.progress import ProgressBar

_FRAMES_AT_ONCE = 8


class StageDataset(EpochDataset):
    """A data set whose batches have ``Batch.image_stages`` instead of images; otherwise the same as ``frames``.

    Args:
        frames: the frames without their images, not augmented in 2D. With a ``DeviceDataset`` the stages lie on its
            device, else in memory.
        source: the same frames with images; each is read once, now.
        extract: from normalized images [B, 3, 480, 640] on ``device`` to the backbone's four stages.
        device: where they are computed.
        progress: show a progress bar on standard error.
    """

    def __init__(
        self,
        frames: EpochDataset,
        source: FrameSource,
        *,
        extract: Callable[[Tensor], Sequence[Tensor]],
        device: torch.device,
        progress: bool = False,
    ) -> None:
        super().__init__(frames.ids, frames.info, makes_batches=frames.makes_batches)
        self.frames = frames
        kept_on = device if self.makes_batches else torch.device("cpu")
        self._stages = _compute(source, self.ids, extract=extract, device=device, kept_on=kept_on, progress=progress)

    @property
    def num_bytes(self) -> int:
        """Memory that the stages take."""
        return sum(stage.nbytes for stage in self._stages)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the 3D augmentation of an epoch."""
        self.frames.set_epoch(epoch)

    def why_unusable(self, batch: Batch) -> dict[str, str]:
        """The frames of a batch that cannot be trained on, by name, each with the reason."""
        return self.frames.why_unusable(batch)

    def __getitem__(self, index: int) -> Batch:
        """Frame ``index`` of ``ids`` as a batch of one."""
        return self._with_stages(self.frames[index], [index])

    def __getitems__(self, indices: list[int]) -> Batch | list[Batch]:
        """A batch on the device if the frames are there, otherwise a batch of each frame."""
        if isinstance(self.frames, DeviceDataset):
            return self._with_stages(self.frames.__getitems__(indices), indices)
        return [self[index] for index in indices]

    def _with_stages(self, batch: Batch, indices: Sequence[int]) -> Batch:
        rows = torch.tensor([range(len(self))[index] for index in indices])
        if self._stages[0].device.type == "cuda":
            rows = rows.pin_memory().to(self._stages[0].device, non_blocking=True)
        stages = tuple(stage.index_select(0, rows) for stage in self._stages)
        return dataclasses.replace(batch, image=None, image_stages=stages)


def _image(source: FrameSource, frame_id: str) -> Tensor:
    """[480, 640, 3] uint8."""
    image = source.read_compact(frame_id).image
    if image is None:
        raise ValueError(f"{source.root}: expected frames with images, found none of frame {frame_id}")
    return torch.from_numpy(np.array(image))


def _compute(
    source: FrameSource,
    ids: Sequence[str],
    *,
    extract: Callable[[Tensor], Sequence[Tensor]],
    device: torch.device,
    kept_on: torch.device,
    progress: bool,
) -> list[Tensor]:
    """The stages of all frames, each [F, channels, rows, columns] float16."""
    kept: list[Tensor] = []
    with ProgressBar(total=len(ids), title="image features", unit="frame", is_shown=progress) as bar:
        for start in range(0, len(ids), _FRAMES_AT_ONCE):
            names = ids[start : start + _FRAMES_AT_ONCE]
            images = torch.stack([_image(source, name) for name in names]).to(device)
            with torch.inference_mode():
                stages = extract(normalize_planes(images.permute(0, 3, 1, 2).to(torch.float32).contiguous()))
            for index, stage in enumerate(stages):
                if len(kept) <= index:
                    kept.append(torch.empty(len(ids), *stage.shape[1:], dtype=torch.float16, device=kept_on))
                kept[index][start : start + len(names)].copy_(stage)
            bar.update(len(names))
    are_finite = torch.stack([stage.isfinite().flatten(1).all(dim=1) for stage in kept]).all(dim=0)
    for name, is_finite in zip(ids, are_finite.tolist(), strict=True):
        if not is_finite:
            raise ValueError(f"frame {name}: expected image features that float16 holds, found larger ones")
    return kept
