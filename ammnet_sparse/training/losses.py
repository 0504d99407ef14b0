"""Losses of the scene and of the image (eq. 9), from sites, without a dense volume."""

import functools
import operator
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.grid import EMPTY_LABEL, IGNORE_LABEL, UNMAPPED
from ammnet_sparse.models.ammnet import Prediction
from ammnet_sparse.models.discriminator import Discriminator
from ammnet_sparse.ops import project_features
from ammnet_sparse.sparse.kernel_maps import repeated_sites
from ammnet_sparse.sparse.normalization import unchanged_statistics
from ammnet_sparse.sparse.sites import SiteSet

_STEP = 0.01
"""Norm of the step of the gradient penalty: a thousand times what float32 rounds, and many kinks of D's ReLUs long.

With a tenth of it the penalty is nearer to the exact one, but its gradient depends on which kinks the step meets.
"""


class Term(NamedTuple):
    """A loss of a network: its weight in the network's sum, and its value, a scalar, which is reported without it."""

    weight: float
    value: Tensor


def weighted_sum(terms: Mapping[str, Term]) -> Tensor:
    """The loss that a network minimizes, from its terms by name."""
    values = (term.value if term.weight == 1 else term.weight * term.value for term in terms.values())
    return functools.reduce(operator.add, values)


def labels_of(batch: Batch) -> Tensor:
    """[B, V] labels of a batch. Raises ValueError for a batch without labels; names its frames."""
    if batch.label is None:
        raise ValueError(f"frames {', '.join(batch.frame_ids)}: training needs labels, found none")
    return batch.label


def labels_at(batch: Batch, sites: SiteSet) -> Tensor:
    """[N] int64 labels of sites of the full resolution, 255 where the voxel is not scored.

    Raises:
        ValueError: a batch without labels.
    """
    masked = labels_of(batch).long().masked_fill(~batch.scored_mask, IGNORE_LABEL).flatten()
    return masked if sites.is_full else masked.index_select(0, sites.linear)


def scene_cross_entropy(
    prediction: Prediction, batch: Batch, *, label_smoothing: float, class_weights: Tensor | None = None
) -> Tensor:
    """Sum of the smoothed cross-entropies over the scored voxels; divide by ``scored_weight`` of a step's batches.

    Args:
        class_weights: [num_classes], as ``weight`` of ``torch.nn.functional.cross_entropy``; None: all 1.
    """
    logits = at_least_float32(prediction.voxel_logits)
    return F.cross_entropy(
        logits,
        labels_at(batch, prediction.sites),
        weight=None if class_weights is None else class_weights.to(logits.dtype),
        ignore_index=IGNORE_LABEL,
        label_smoothing=label_smoothing,
        reduction="sum",
    )


def distillation(prediction: Prediction, taught: Prediction, batch: Batch) -> Tensor:
    """Mean over the scored voxels of the Kullback-Leibler divergence of ``prediction`` from ``taught``, a scalar."""

    def at_scored(of: Prediction) -> Tensor:
        logits = at_least_float32(of.voxel_logits)
        return (logits[batch.scored_mask.flatten()] if of.sites.is_full else logits).log_softmax(dim=1)

    return F.kl_div(at_scored(prediction), at_scored(taught), reduction="batchmean", log_target=True)


def scene_lovasz(prediction: Prediction, batch: Batch) -> Tensor:
    """Lovász-softmax loss of a batch (Berman et al. 2018), a scalar in 0..2 that stands for 1 - mIoU plus 1 - SC IoU.

    The first part is the mean over the occupied classes that the truth of the batch has, over its scored voxels. The
    second is that of "occupied" over those of them that no pixel hits, as in ``CompletionMetrics``. Each is the Lovász
    extension of the Jaccard loss over all frames of the batch together (eqs. 8 and 9, algorithm 1).
    """
    labels = labels_at(batch, prediction.sites)
    scored = (labels != IGNORE_LABEL).nonzero().squeeze(1)
    labels = labels[scored]
    probabilities = at_least_float32(prediction.voxel_logits[scored]).softmax(dim=1)
    classes = torch.arange(probabilities.shape[1], device=labels.device)
    of_classes = _lovasz(probabilities[:, EMPTY_LABEL + 1 :].T, labels == classes[EMPTY_LABEL + 1 :, None])
    hit = batch.hit_mask.flatten()[prediction.sites.linear[scored]]
    occluded = (~hit).nonzero().squeeze(1)
    occupied = 1 - probabilities[occluded, EMPTY_LABEL]
    return of_classes + _lovasz(occupied[None], labels[occluded][None] != EMPTY_LABEL)


def _lovasz(probabilities: Tensor, truth: Tensor) -> Tensor:
    """Mean of the Lovász extension over the classes that are in the truth; 0 if none is.

    Args:
        probabilities, truth: [K, N], of the class and whether it is there.
    """
    errors, order = (truth.to(probabilities.dtype) - probabilities).abs().sort(dim=1, descending=True)
    truth = truth.gather(1, order)
    total = truth.sum(dim=1, keepdim=True)
    # Jaccard losses when the voxels of the largest errors, more and more of them, are wrong.
    intersection = total - truth.cumsum(dim=1)
    union = total + (~truth).cumsum(dim=1)
    jaccard = 1 - intersection.to(errors.dtype) / union.clamp(min=1)
    weights = torch.cat([jaccard[:, :1], jaccard[:, 1:] - jaccard[:, :-1]], dim=1)
    present = (total > 0).to(errors.dtype).squeeze(1)
    return ((errors * weights).sum(dim=1) * present).sum() / present.sum().clamp(min=1)


def image_cross_entropy(prediction: Prediction, batch: Batch, *, label_smoothing: float) -> Tensor:
    """Sum of the smoothed cross-entropies over pixels; divide by ``num_labeled_pixels`` of a step's batches.

    With dense 2D truth (``Batch.label_2d``) over all its labeled pixels, each against its class; without over mapped
    pixels, each against the label of its voxel (255 ignored).

    Raises:
        ValueError: a prediction without 2D logits, or a batch without labels.
    """
    labels = labels_of(batch)
    if prediction.class_logits_2d is None or prediction.image_size is None:
        raise ValueError("image_cross_entropy: expected a prediction with 2D logits, found none")
    if batch.label_2d is not None:
        dense_logits = prediction.logits_2d
        assert dense_logits is not None
        return F.cross_entropy(
            at_least_float32(dense_logits),
            batch.label_2d.long(),
            ignore_index=IGNORE_LABEL,
            label_smoothing=label_smoothing,
            reduction="sum",
        )
    mapping = batch.mapping.flatten()
    mapped = (mapping != UNMAPPED).nonzero().squeeze(1)
    logits = project_features(
        prediction.class_logits_2d,
        mapping[mapped],
        mapped // batch.num_voxels,
        image_size=prediction.image_size,
        align_corners=True,
    )
    return F.cross_entropy(
        at_least_float32(logits),
        labels.flatten()[mapped].long(),
        ignore_index=IGNORE_LABEL,
        label_smoothing=label_smoothing,
        reduction="sum",
    )


def scored_weight(batch: Batch, class_weights: Tensor | None = None) -> Tensor:
    """What the 3D cross-entropy is divided by, a scalar tensor: the sum of the weights of the scored voxels' classes.

    Without weights the number of scored voxels. As in torch's weighted mean, the loss does not grow with the weights.
    """
    if class_weights is None:
        return batch.scored_mask.sum()
    # An ignored voxel is not scored: its placeholder class is multiplied by 0.
    weights = class_weights[labels_of(batch).long().clamp(max=len(class_weights) - 1)]
    return (weights * batch.scored_mask).sum()


def num_labeled_pixels(batch: Batch) -> Tensor:
    """What the 2D cross-entropy is divided by, a scalar tensor: pixels with a label that is not ignored.

    Pixels of the dense 2D truth if there is one, otherwise mapped pixels with the label of their voxel.
    """
    if batch.label_2d is not None:
        return (batch.label_2d != IGNORE_LABEL).sum()
    return ((batch.mapping != UNMAPPED) & (labels_of(batch) != IGNORE_LABEL)).sum()


def real_loss(scores: Tensor) -> Tensor:
    """Binary cross-entropy of discriminator scores [B, 1] with "real", mean over the batch."""
    scores = at_least_float32(scores)
    return F.binary_cross_entropy_with_logits(scores, torch.ones_like(scores))


def fake_loss(scores: Tensor) -> Tensor:
    """Binary cross-entropy of discriminator scores [B, 1] with "fake", mean over the batch."""
    scores = at_least_float32(scores)
    return F.binary_cross_entropy_with_logits(scores, torch.zeros_like(scores))


def discriminator_loss(
    scores: Tensor,
    *,
    num_groups: int,
    real_target: float = 1.0,
    is_flipped: Tensor | None = None,
    is_judged: Tensor | None = None,
) -> Tensor:
    """Sum of the binary cross-entropies of groups of scenes, each summed over its scenes and divided by their number.

    Args:
        scores: [num_groups * B, 1]; the scenes of the first group are real, those of the others are fake.
        num_groups: truth, prediction and fakes.
        real_target: what the scores of real scenes are compared with; below 1: one-sided label smoothing
            (Salimans et al. 2016, section 3.4).
        is_flipped: [num_groups * B] bool, true for scenes with the other target, fake for real ones and ``real_target``
            for fake ones; None: none.
        is_judged: [num_groups * B] bool, false for scenes left out of the sum; None: all are judged.
    """
    scores = at_least_float32(scores)
    scenes = scores.shape[0] // num_groups
    is_real = torch.arange(scores.shape[0], device=scores.device) < scenes
    if is_flipped is not None:
        is_real = is_real ^ is_flipped
    target = real_target * is_real.to(scores.dtype)[:, None]
    weight = None if is_judged is None else is_judged.to(scores.dtype)[:, None]
    return F.binary_cross_entropy_with_logits(scores, target, weight, reduction="sum") / scenes


def gradient_penalty(discriminator: Discriminator, truth: Tensor, sites: SiteSet) -> Tensor:
    """Half the squared gradient of the discriminator at the truth, mean over scenes (R1, Mescheder et al. 2018, eq. 9).

    The gradient norm is the slope along the gradient, and changes with the parameters as if that direction were fixed
    (envelope theorem). So a central difference along it, over a step of norm 0.01 a scene, gives the penalty and its
    gradient without second derivatives of the operators. Running statistics stay as they are.

    Args:
        discriminator: in training mode; its scores of a scene depend a little on the others, through batch statistics.
        truth: [N, num_classes], one-hot; rows of zeros, of voxels that are not scored, stay zero.
        sites: of the truth.
    """
    with torch.autocast(truth.device.type, enabled=False), unchanged_statistics(discriminator):
        at = truth.detach().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(discriminator(at, sites).sum(), at)
        gradient = gradient * truth.sum(dim=1, keepdim=True)
        scene = sites.linear // sites.num_cells
        squares = gradient.new_zeros(sites.batch_size).index_add_(0, scene, gradient.square().sum(dim=1))
        smallest = torch.finfo(squares.dtype).tiny
        step = _STEP * gradient / squares.clamp(min=smallest).sqrt().index_select(0, scene)[:, None]
        moved = torch.cat([truth + step, truth - step])
        above, below = discriminator(moved, repeated_sites(sites, 2), num_groups=2).chunk(2)
    return ((above - below) / (2 * _STEP)).square().mean() / 2


def at_least_float32(values: Tensor) -> Tensor:
    """For sums over a hundred thousand voxels, which exceed fp16."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
