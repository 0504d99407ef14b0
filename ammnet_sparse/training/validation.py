"""Scores and loss of a network on validation frames, both of the same predictions."""

import dataclasses
import math
from collections.abc import Iterable

import torch
from torch import Tensor

from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.set_info import NYU, SetInfo
from ammnet_sparse.evaluation.metrics import Scores, evaluate
from ammnet_sparse.models.ammnet import AMMNet
from ammnet_sparse.processes import sum_over_processes
from ammnet_sparse.training.losses import scene_cross_entropy, scored_weight


@dataclasses.dataclass(frozen=True)
class Validation:
    """Scores of a set of frames, and the 3D cross-entropy: the (weighted) mean over all their scored voxels."""

    scores: Scores
    scene: float


def validate(
    network: AMMNet,
    batches: Iterable[Batch],
    *,
    label_smoothing: float,
    device: torch.device,
    class_weights: Tensor | None = None,
    info: SetInfo = NYU,
) -> Validation:
    """Evaluates a network on ``device`` over batches with labels; it stays in evaluation mode.

    With several processes each has its own batches, and all get the scores over all of them.

    Args:
        label_smoothing, class_weights: as in training, so that both losses are comparable.
        info: the set of the frames.
    """
    network.eval()
    # On the device until the end, where the host waits once.
    sums: list[Tensor] = []
    counts: list[Tensor] = []

    def predict(batch: Batch) -> Tensor:
        prediction = network(batch, voxels="scored")
        loss = scene_cross_entropy(prediction, batch, label_smoothing=label_smoothing, class_weights=class_weights)
        sums.append(loss.double())
        counts.append(scored_weight(batch, class_weights).double())
        return prediction.labels

    scores = evaluate(predict, batches, device=device, over_processes=True, info=info)
    nothing = torch.zeros((), dtype=torch.float64, device=device)
    totals = torch.stack([torch.stack([nothing, *values]).sum() for values in (sums, counts)])
    loss, count = sum_over_processes(totals).tolist()
    # No frame could be predicted: the mean is undefined.
    return Validation(scores, scene=loss / count if count else math.nan)
