"""The data set and its loader: augmentation and order follow from seed and epoch alone."""

from pathlib import Path

import pytest
import torch
from torch import multiprocessing

from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.dataset import FrameDataset, build_loader, epoch_batches, epoch_order
from ammnet_sparse.data.sets.folder import FrameFolder
from ammnet_sparse.data.sets.packed import PackedFrames
from ammnet_sparse.data.sets.packing import pack_set
from ammnet_sparse.files.errors import DataError
from tests.data.frames import GRID, write_set

IDS = [f"{number:04d}" for number in range(7)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> FrameFolder:
    root = tmp_path_factory.mktemp("set")
    write_set(root, IDS)
    return FrameFolder(root, grid_shape=GRID)


def _same(first: Batch, second: Batch) -> bool:
    names = ("tsdf", "mapping", "label_weight", "label", "image", "label_map")
    pairs = [(getattr(first, name), getattr(second, name)) for name in names]
    return first.frame_ids == second.frame_ids and all((a is None and b is None) or torch.equal(a, b) for a, b in pairs)


def _batches(dataset: FrameDataset, *, epoch: int = 0, workers: int = 0, start_batch: int = 0) -> list[Batch]:
    loader = build_loader(
        dataset, batch_size=2, shuffle_seed=8332, epoch=epoch, workers=workers, drop_last=True, start_batch=start_batch
    )
    batches = list(loader)
    assert len(loader) == len(batches)
    return batches


def test_augmentation_depends_on_seed_epoch_and_frame_alone(folder: FrameFolder) -> None:
    dataset = FrameDataset(folder, IDS, augment_3d=True, seed=1)
    first = [dataset[index] for index in range(7)]
    again = FrameDataset(folder, IDS[::-1], augment_3d=True, seed=1)
    torch.manual_seed(99)
    assert all(_same(again[6 - index], batch) for index, batch in enumerate(first))
    dataset.set_epoch(1)
    assert not all(_same(dataset[index], batch) for index, batch in enumerate(first))
    dataset.set_epoch(0)
    assert all(_same(dataset[index], batch) for index, batch in enumerate(first))
    other = FrameDataset(folder, IDS, augment_3d=True, seed=2)
    assert not all(_same(other[index], batch) for index, batch in enumerate(first))


@pytest.mark.parametrize("ids", [[], ["0001", "0001"]])
def test_empty_and_repeating_lists_are_refused(folder: FrameFolder, ids: list[str]) -> None:
    with pytest.raises(ValueError, match="frame"):
        FrameDataset(folder, ids)


def test_order_of_an_epoch_never_changes() -> None:
    assert epoch_order(7, shuffle_seed=8332, epoch=0) == [3, 1, 6, 4, 0, 2, 5]
    assert epoch_order(7, shuffle_seed=8332, epoch=1) == [2, 0, 6, 1, 3, 5, 4]
    assert epoch_order(7, shuffle_seed=None, epoch=1) == list(range(7))
    assert sorted(epoch_order(100, shuffle_seed=0, epoch=3)) == list(range(100))


def test_loader_is_reproducible_with_any_number_of_workers(folder: FrameFolder) -> None:
    dataset = FrameDataset(folder, IDS, augment_3d=True, seed=5)
    random_state = torch.get_rng_state()
    epochs = [_batches(dataset, epoch=epoch) for epoch in range(2)]
    assert [len(batches) for batches in epochs] == [3, 3]
    assert [batch.frame_ids for batch in epochs[0]] != [batch.frame_ids for batch in epochs[1]]
    for workers in (0, 2):
        again = _batches(dataset, epoch=1, workers=workers)
        assert all(_same(first, second) for first, second in zip(again, epochs[1], strict=True))
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("is_packed", [False, True])
def test_workers_may_come_from_a_fork_server(folder: FrameFolder, tmp_path: Path, is_packed: bool) -> None:
    """As they do by default from Python 3.14 on: everything that they need is pickled."""
    source: FrameFolder | PackedFrames = folder
    if is_packed:
        pack_set(folder, tmp_path / "set.safetensors", progress=False)
        source = PackedFrames(tmp_path / "set.safetensors")
    dataset = FrameDataset(source, IDS, augment_3d=True, seed=5)
    method = multiprocessing.get_start_method()
    multiprocessing.set_start_method("forkserver", force=True)
    try:
        found = _batches(dataset, workers=1)
    finally:
        multiprocessing.set_start_method(method, force=True)
    assert all(_same(first, second) for first, second in zip(found, _batches(dataset), strict=True))


@pytest.mark.parametrize("start_batch", [0, 1, 2, 3])
def test_loader_resumes_within_an_epoch(folder: FrameFolder, start_batch: int) -> None:
    dataset = FrameDataset(folder, IDS, augment_3d=True, seed=5)
    whole = _batches(dataset, epoch=4)
    rest = _batches(FrameDataset(folder, IDS, augment_3d=True, seed=5), epoch=4, start_batch=start_batch)
    assert len(rest) == 3 - start_batch
    assert all(_same(first, second) for first, second in zip(rest, whole[start_batch:], strict=True))


def test_processes_share_every_batch() -> None:
    def batches(rank: int, num_processes: int, batch_size: int, start_batch: int = 0) -> list[list[int]]:
        return list(
            epoch_batches(
                13,
                batch_size=batch_size,
                shuffle_seed=1,
                epoch=2,
                drop_last=True,
                start_batch=start_batch,
                rank=rank,
                num_processes=num_processes,
            )
        )

    alone = batches(0, 1, 4)
    shared = [batches(rank, 2, 2) for rank in range(2)]
    assert [sorted(first + second) for first, second in zip(*shared, strict=True)] == [sorted(step) for step in alone]
    assert batches(1, 2, 2, start_batch=1) == shared[1][1:]


@pytest.mark.parametrize(
    "changes",
    [{"batch_size": 0}, {"batch_size": 8}, {"start_batch": 4}, {"start_batch": -1}, {"rank": 2, "num_processes": 2}],
)
def test_sampler_errors(changes: dict[str, int]) -> None:
    options = {"batch_size": 2, "shuffle_seed": 0, "epoch": 0, "drop_last": True, **changes}
    with pytest.raises(ValueError, match=next(iter(changes))):
        epoch_batches(7, **options)  # type: ignore[arg-type]


def test_worker_errors_name_the_file(tmp_path: Path) -> None:
    write_set(tmp_path, ["0001", "0002"])
    dataset = FrameDataset(FrameFolder(tmp_path, grid_shape=GRID), ["0001", "0002"])
    (tmp_path / "Label" / "0002.npz").unlink()
    loader = build_loader(dataset, batch_size=2, shuffle_seed=None, epoch=0, workers=1, drop_last=True)
    with pytest.raises(DataError, match=r"Label/0002\.npz"):
        list(loader)
