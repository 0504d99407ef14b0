"""A list of frames as a PyTorch data set, and the order in which an epoch visits them.

Nothing depends on hidden state: augmentation follows from (seed, epoch, frame), the order from (seed, epoch). So a run
is the same with any number of workers, and one that was interrupted continues in the middle of an epoch.
"""

import contextlib
import dataclasses
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset

from ammnet_sparse.data.augmentation import augment, augmentation_generator
from ammnet_sparse.data.batch import Batch, why_unusable
from ammnet_sparse.data.set_info import SetInfo
from ammnet_sparse.data.sets.frame_source import FrameSource
from ammnet_sparse.data.sets.ids import check_unique, hash_of
from ammnet_sparse.data.sets.image_folder import Truth2D
from ammnet_sparse.files.errors import FileError


class EpochDataset(Dataset[Batch]):
    """A list of frames as batches of one, whose augmentation may depend on the epoch; ``build_loader`` joins them.

    Attributes:
        ids: names of the frames.
        info: the set that they are of.
        makes_batches: ``__getitems__`` returns whole batches on the training device, made in this process.
        epoch: the current one; set it before iterating the loader of that epoch, as ``build_loader`` does.

    Raises:
        ValueError: no ids, or a repeated one.
    """

    def __init__(self, ids: Sequence[str], info: SetInfo, *, makes_batches: bool = False) -> None:
        check_unique(ids)
        self.ids = list(ids)
        self.info = info
        self.makes_batches = makes_batches
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch that augmentation depends on."""
        self.epoch = epoch

    def why_unusable(self, batch: Batch) -> dict[str, str]:
        """The frames of a batch that cannot be trained on, by name, each with the reason."""
        return why_unusable(batch)

    def __len__(self) -> int:
        return len(self.ids)


class FrameDataset(EpochDataset):
    """Frames of a set as batches of one; ``Batch.collate`` joins them.

    Args:
        ids: frames, each once.
        augment_3d: flips and exchange of the horizontal axes (``augmentation.draw_symmetry``).
        augment_2d: changes of the color image (``augmentation.augment_2d``); frames without one are unchanged.
        largest_shift: of the voxels along X and Y (``augmentation.draw_shift``); 0: none.
        truth_2d: dense 2D truth of the frames, or None.
        seed: of the augmentation.

    Raises:
        ValueError: no ids, or a repeated one.
        DataError: a frame that cannot be read, when it is accessed.
    """

    def __init__(
        self,
        source: FrameSource,
        ids: Sequence[str],
        *,
        augment_3d: bool = False,
        augment_2d: bool = False,
        largest_shift: int = 0,
        truth_2d: Truth2D | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(ids, source.info)
        self.source = source
        self.augment_3d = augment_3d
        self.augment_2d = augment_2d
        self.largest_shift = largest_shift
        self.truth_2d = truth_2d
        self.seed = seed

    def __getitem__(self, index: int) -> Batch:
        """Frame ``index`` of ``ids`` as a batch of one, augmented by (seed, epoch, frame id)."""
        frame = self.source.read(self.ids[index])
        if self.truth_2d is not None:
            frame = dataclasses.replace(frame, label_2d=self.truth_2d.read(frame.frame_id))
        if self.augment_3d or self.largest_shift or self.augment_2d:
            frame = augment(
                frame,
                generator=augmentation_generator(seed=self.seed, epoch=self.epoch, frame_id=self.ids[index]),
                use_3d=self.augment_3d,
                use_2d=self.augment_2d,
                largest_shift=self.largest_shift,
            )
        return Batch.from_frame(frame)


def epoch_batches(
    num_frames: int,
    *,
    batch_size: int,
    shuffle_seed: int | None,
    epoch: int,
    drop_last: bool,
    start_batch: int = 0,
    rank: int = 0,
    num_processes: int = 1,
) -> list[list[int]]:
    """Indices of the batches of one epoch that are left, in an order that depends only on (seed, epoch).

    With several processes every batch is split: process ``rank`` gets every ``num_processes``-th frame of the
    order, so a step of all processes sees ``batch_size * num_processes`` consecutive frames. Without ``drop_last`` some
    may get fewer frames or one batch less.

    Args:
        num_frames: indices 0..num_frames - 1.
        batch_size: frames of a batch of one process.
        shuffle_seed: None keeps the order of the frames.
        drop_last: leave out an incomplete last batch.
        start_batch: batches of the epoch that are skipped, counted in one process.

    Raises:
        ValueError: a batch size or start that gives no batch.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, found {batch_size}")
    if not 0 <= rank < num_processes:
        raise ValueError(f"rank: expected 0..{num_processes - 1}, found {rank}")
    step = batch_size * num_processes
    num_batches = num_frames // step if drop_last else -(-num_frames // step)
    if num_batches == 0:
        raise ValueError(
            f"batch_size: expected at most the {num_frames} frames of the list, found {step} frames per step; "
            "lower it, or add frames"
        )
    if not 0 <= start_batch <= num_batches:
        raise ValueError(f"start_batch: expected 0..{num_batches} in an epoch of as many batches, found {start_batch}")
    order = epoch_order(num_frames, shuffle_seed=shuffle_seed, epoch=epoch)
    shared = [
        order[batch * step : (batch + 1) * step][rank::num_processes] for batch in range(start_batch, num_batches)
    ]
    return [batch for batch in shared if batch]


def epoch_order(num_frames: int, *, shuffle_seed: int | None, epoch: int) -> list[int]:
    """The indices 0..num_frames - 1 in the order of an epoch: sorted by a hash of (seed, epoch, index)."""
    indices = range(num_frames)
    if shuffle_seed is None:
        return list(indices)
    return sorted(indices, key=lambda index: hash_of(f"{shuffle_seed}:{epoch}:{index}"))


def build_loader(
    dataset: EpochDataset,
    *,
    batch_size: int,
    shuffle_seed: int | None,
    epoch: int,
    workers: int,
    drop_last: bool,
    start_batch: int = 0,
    rank: int = 0,
    num_processes: int = 1,
) -> "DataLoader[Batch]":
    """The batches of one epoch; make a new loader for each. Also sets the epoch of ``dataset``.

    Batches are in page-locked memory if there is a CUDA device, those of a ``DeviceDataset`` on its device. The
    global random state is not changed.

    Args:
        shuffle_seed: None visits the frames in order.
        workers: processes that read and augment; 0 does it in this one, as ``DeviceDataset`` always does.
        start_batch: batches that are skipped, to resume within an epoch.
        rank, num_processes: of distributed training, see ``epoch_batches``.

    Iterating raises the errors of reading frames (DataError), and WorkerError where a worker ends.
    """
    dataset.set_epoch(epoch)
    batches = epoch_batches(
        len(dataset),
        batch_size=batch_size,
        shuffle_seed=shuffle_seed,
        epoch=epoch,
        drop_last=drop_last,
        start_batch=start_batch,
        rank=rank,
        num_processes=num_processes,
    )
    options: dict[str, Any] = {
        "batch_sampler": batches,
        "generator": torch.Generator().manual_seed(0),  # otherwise making an iterator advances the global generator
    }
    if dataset.makes_batches:
        return DataLoader(dataset, collate_fn=_as_it_is, **options)
    options["pin_memory"] = torch.cuda.is_available()
    if workers == 0:
        return DataLoader(dataset, collate_fn=Batch.collate, **options)
    if multiprocessing.get_start_method() == "forkserver":  # by default from Python 3.14 on
        multiprocessing.set_forkserver_preload([__name__])  # else every worker of every epoch imports PyTorch
    return _WorkerLoader(_InWorker(dataset), num_workers=workers, collate_fn=_as_it_is, **options)


def _as_it_is(batch: Any) -> Batch:
    """Replaces ``Batch.collate`` if ``__getitems__`` already returned a batch."""
    return cast(Batch, batch)


class WorkerError(RuntimeError):
    """A process that loads frames has ended, or cannot send its batch; the message says what to do."""


class _InWorker(Dataset[Any]):
    """Makes batches in a worker.

    Their shared memory is allocated here. If the queue allocated it, running out of it would raise in a thread of the
    worker, and the training process would wait forever. Errors of frames are returned: PyTorch would put a traceback
    before their messages.
    """

    def __init__(self, dataset: EpochDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Batch:
        return self.dataset[index]

    def __getitems__(self, indices: list[int]) -> Batch | ValueError:
        try:
            return Batch.collate([self.dataset[index] for index in indices]).share_memory()
        except ValueError as error:
            return error if isinstance(error, FileError) else ValueError(str(error))


class _WorkerLoader(DataLoader[Batch]):
    """Iterating raises WorkerError where PyTorch notices that a worker has ended, and the errors of frames."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        batches = super().__iter__()
        # PyTorch's handler raises at an arbitrary point of the program. In the middle of a step weights and optimizers
        # would be out of sync; the loader also notices when it is asked for the next batch.
        with contextlib.suppress(ValueError):  # not in the main thread, which alone has handlers
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        while True:
            try:
                batch: Any = next(batches)
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError) as error:  # the latter two of a connection to an ended worker
                raise WorkerError(
                    f"a process that loads frames has failed: {str(error).strip() or type(error).__name__}\nIf memory "
                    "ran out: lower data.workers or training.batch_size, or enlarge /dev/shm (docker run "
                    "--shm-size=2g). To see why, load in the training process with data.workers=0"
                ) from error
            if isinstance(batch, ValueError):
                raise batch
            yield batch
