"""Scores and loss of a network on validation frames, both of the same predictions."""

import dataclasses
import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ammnet_sparse.config import Config
from ammnet_sparse.data.batch import Batch, usable_mask
from ammnet_sparse.data.dataset import EpochDataset, build_loader
from ammnet_sparse.data.set_info import NYU, SetInfo
from ammnet_sparse.evaluation.metrics import Scores, evaluate
from ammnet_sparse.models.ammnet import AMMNet
from ammnet_sparse.processes import num_processes, rank, sum_over_processes
from ammnet_sparse.progress import ProgressBar
from ammnet_sparse.training.interruption import RunInterrupted, StopRequest
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


class Validator:
    """Scores networks on the validation frames of a run.

    Attributes:
        frames: the frames.
        subset: which frames of their list these are, if not all (``Scores.subset``).
        first_seen: the first of them that has hits and scored voxels, for pictures; None before the first scores.
    """

    def __init__(
        self, frames: EpochDataset, config: Config, *, device: torch.device, show_progress: bool, subset: str = ""
    ) -> None:
        self.frames = frames
        self.config = config
        self.device = device
        self.show_progress = show_progress
        self.subset = subset
        self.first_seen: Batch | None = None

    def loader(self, *, is_shared: bool = True) -> "DataLoader[Batch]":
        """The frames in order; ``is_shared``: those of this process alone."""
        return build_loader(
            self.frames,
            batch_size=self.config.training.batch_size,
            shuffle_seed=None,
            epoch=0,
            workers=self.config.data.workers,
            drop_last=False,
            rank=rank() if is_shared else 0,
            num_processes=num_processes() if is_shared else 1,
        )

    def score(
        self, network: AMMNet, description: str, *, class_weights: Tensor | None, stop: StopRequest
    ) -> Validation:
        """Scores of a network; ``description`` says of what.

        Raises:
            RunInterrupted: the run was asked to stop.
        """
        bar = ProgressBar(self.loader(), title=description, unit="batch", is_shown=self.show_progress)

        def batches() -> Iterator[Batch]:
            for batch in bar:
                if stop.is_set:
                    raise RunInterrupted(f"stopped in the {description}")
                if self.first_seen is None and bool((mask := usable_mask(batch)).any()):
                    self.first_seen = batch.select(mask)
                yield batch

        validation = validate(
            network,
            batches(),
            label_smoothing=self.config.loss.label_smoothing,
            device=self.device,
            class_weights=class_weights,
            info=self.frames.info,
        )
        return dataclasses.replace(validation, scores=dataclasses.replace(validation.scores, subset=self.subset))
