"""Baselines: predictions that read no input."""

from collections.abc import Iterable

import torch
from torch import Tensor

from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.grid import EMPTY_LABEL
from ammnet_sparse.data.set_info import NYU, SetInfo
from ammnet_sparse.evaluation.metrics import CompletionMetrics, Scores, scores_from_counts


def constant_baselines(
    batches: Iterable[Batch], *, info: SetInfo = NYU, sc_counts_hits: bool = False
) -> dict[str, Scores]:
    """Scores of predicting one class at every voxel, by the name of that class, empty left out.

    The class predicted has its share of the scored voxels as IoU, every other class present has 0; SC recall is 1.
    """
    truth = CompletionMetrics(info=info, sc_counts_hits=sc_counts_hits)
    some_class = EMPTY_LABEL + 1
    for batch in batches:
        truth.update(torch.full((batch.batch_size, batch.num_voxels), some_class, dtype=torch.uint8), batch)
    counted = truth.compute()
    scores = {}
    for label, name in enumerate(info.class_names):
        if label == EMPTY_LABEL:
            continue
        confusion = torch.zeros_like(counted.confusion)
        confusion[:, label] = counted.confusion.sum(1)
        scores[name] = scores_from_counts(confusion, counted.occupancy, frames=counted.frames, info=info)
    return scores


def constant_baseline(batches: Iterable[Batch], *, info: SetInfo = NYU, sc_counts_hits: bool = False) -> Scores:
    """Scores of the best single class to predict everywhere, by SSC mIoU; on NYU that is furniture.

    Its name is the one in ``ssc_iou`` with an IoU above 0.
    """
    scores = constant_baselines(batches, info=info, sc_counts_hits=sc_counts_hits)
    return max(scores.values(), key=lambda one: one.ssc_miou)


def class_prior(batches: Iterable[Batch]) -> Tensor:
    """The most frequent class at each voxel of the grid over the scored voxels of training frames.

    A voxel that is never scored takes the most frequent class of its height, and at a height that is never scored
    it is empty. Ties go to the smaller class.

    Args:
        batches: training frames with labels, without augmentation.

    Returns:
        [X, H, Y] uint8 on the CPU, a class. ``prior_labels`` repeats it for a batch.

    Raises:
        ValueError: no frames, frames without labels, or frames of different grids.
    """
    counts: Tensor | None = None
    grid_shape, num_classes = (0, 0, 0), 0
    for batch in batches:
        if batch.label is None:
            raise ValueError(f"batch.label: expected the ground truth of frames {list(batch.frame_ids)}, found none")
        if counts is None:
            grid_shape, num_classes = batch.grid_shape, batch.info.num_classes
            counts = torch.zeros(batch.num_voxels, num_classes, dtype=torch.int64)
        if batch.grid_shape != grid_shape:
            raise ValueError(f"batches: expected one grid, found {grid_shape} and {batch.grid_shape}")
        _, voxel = batch.scored_mask.cpu().nonzero(as_tuple=True)
        label = batch.label[batch.scored_mask].cpu().long()
        flat = torch.bincount(voxel * num_classes + label, minlength=counts.numel())
        counts += flat.view_as(counts)
    if counts is None:
        raise ValueError("batches: expected at least one frame, found none")
    votes = counts.view(*grid_shape, num_classes)
    of_height = votes.sum((0, 2)).argmax(-1)
    prior = torch.where(votes.sum(-1) > 0, votes.argmax(-1), of_height[None, :, None])
    return prior.to(torch.uint8)


def prior_labels(prior: Tensor, batch: Batch) -> Tensor:
    """``class_prior``'s [X, H, Y] as the prediction [B, V] for a batch, on its device."""
    if tuple(prior.shape) != batch.grid_shape:
        raise ValueError(f"prior: expected the grid {batch.grid_shape} of the batch, found {tuple(prior.shape)}")
    return prior.reshape(1, -1).expand(batch.batch_size, -1).to(batch.label_weight.device)
