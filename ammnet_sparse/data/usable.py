"""Finds frames that nothing can be learned from; training leaves them out."""

from torch import Tensor

from ammnet_sparse.data.batch import Batch

NO_HIT = "no pixel hits a voxel"
NO_SCORED_VOXEL = "no voxel is scored (label weight set, label not 255)"


def usable_mask(batch: Batch) -> Tensor:
    """[B] bool: frames of which a pixel hits some voxel and some voxel is scored."""
    return batch.hit_mask.any(dim=1) & batch.scored_mask.any(dim=1)


def why_unusable(batch: Batch, index: int) -> str:
    """Why a frame cannot be trained on, in words."""
    return NO_SCORED_VOXEL if bool(batch.hit_mask[index].any()) else NO_HIT
