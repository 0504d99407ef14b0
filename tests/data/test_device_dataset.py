"""Frames on the device: the batches of the ordinary loader, bit for bit, without the host having to wait."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.dataset import FrameDataset, build_loader
from ammnet_sparse.data.device_dataset import DeviceDataset
from ammnet_sparse.data.grid import IMAGE_SHAPE
from ammnet_sparse.data.sets.folder import FrameFolder
from ammnet_sparse.data.sets.frame_source import FrameSource
from ammnet_sparse.data.sets.image_folder import Truth2D
from ammnet_sparse.data.sets.packed import PackedFrames
from ammnet_sparse.data.sets.packing import pack_set
from ammnet_sparse.data.volumes.tsdf import Unobserved, flip_tsdf
from ammnet_sparse.files.errors import DataError
from tests.data.frames import GRID, assert_same_batch, random_frame, write_cad_frame, write_frame, write_set

CPU = torch.device("cpu")
IDS = [f"{number:04d}" for number in range(9)]
ODD_GRID = (5, 3, 5)  # 75 voxels: neither halves nor eighths


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> PackedFrames:
    root = tmp_path_factory.mktemp("set")
    write_set(root, IDS, has_label_map=True)
    pack_set(FrameFolder(root, grid_shape=GRID), root / "packed", progress=False)
    return PackedFrames(root / "packed", grid_shape=GRID)


def assert_same_batches(
    source: FrameSource, ids: list[str], *, device: torch.device = CPU, largest_shift: int = 0
) -> DeviceDataset:
    """Compares the batches of three epochs, and of a pass in order, with those of the ordinary data set."""
    for augment_3d in (True, False):
        on_device = DeviceDataset(
            source, ids, device=device, augment_3d=augment_3d, largest_shift=largest_shift, seed=5
        )
        ordinary = FrameDataset(source, ids, augment_3d=augment_3d, largest_shift=largest_shift, seed=5)
        for epoch in range(3):
            found, expected = (
                build_loader(dataset, batch_size=2, shuffle_seed=7, epoch=epoch, workers=0, drop_last=False)
                for dataset in (on_device, ordinary)
            )
            assert len(found) == len(expected)
            for batch, wanted in zip(found, expected, strict=True):
                assert batch.tsdf.device.type == device.type
                assert_same_batch(batch, wanted)
    assert_same_batch(on_device[-1], ordinary[-1])
    with pytest.raises(IndexError):
        on_device[len(ids)]
    return on_device


def test_batches_are_those_of_the_ordinary_loader(packed: PackedFrames) -> None:
    on_device = assert_same_batches(packed, IDS)
    assert len(on_device) == 9
    first = packed.read_compact(IDS[0])
    assert first.label_map is not None
    assert on_device.num_bytes > 9 * (first.tsdf.nbytes + first.label_map.nbytes)


@pytest.mark.parametrize("largest_shift", [1, 3])
def test_shifted_batches_are_those_of_the_ordinary_loader(packed: PackedFrames, largest_shift: int) -> None:
    on_device = assert_same_batches(packed, IDS, largest_shift=largest_shift)
    plain = DeviceDataset(packed, IDS, device=CPU)
    changed = [not torch.equal(on_device[index].tsdf, plain[index].tsdf) for index in range(len(IDS))]
    assert any(changed)
    if largest_shift == 3:  # three voxels of four leave nothing to score of some frames
        assert not all(changed)


@pytest.mark.parametrize(("unobserved", "fill"), [("free", 0.001), ("surface", 1.0)])
def test_shifted_flipped_frames_are_filled_as_their_unobserved_space(
    tmp_path: Path, unobserved: Unobserved, fill: float
) -> None:
    for seed, frame_id in enumerate(IDS):
        frame = random_frame(seed, frame_id=frame_id, grid_shape=GRID)
        tsdf = np.where(np.random.default_rng(seed).random(GRID) < 0.5, 0, frame.tsdf)
        write_frame(tmp_path, frame)
        flipped = dataclasses.replace(frame, tsdf=flip_tsdf(tsdf, unobserved=unobserved))
        write_cad_frame(tmp_path, flipped, half="train")
    folder = FrameFolder(tmp_path, dataset="nyucad", grid_shape=GRID)
    on_device = assert_same_batches(folder, IDS, largest_shift=1)
    plain = DeviceDataset(folder, IDS, device=CPU)
    shifted = [on_device[index].tsdf for index in range(len(IDS))]
    moved = [tsdf for index, tsdf in enumerate(shifted) if not torch.equal(tsdf, plain[index].tsdf)]
    assert moved
    for tsdf in moved:
        edges = (tsdf[..., :, :, 0], tsdf[..., :, :, -1], tsdf[..., 0, :, :], tsdf[..., -1, :, :])
        value = torch.tensor(fill, dtype=tsdf.dtype)
        assert any(bool((edge == value).all()) for edge in edges)


def test_odd_grids_and_frames_without_hits_or_label_maps(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        frame = random_frame(seed, grid_shape=ODD_GRID)
        if seed != 2:
            frame.mapping[...] = -1
        write_frame(tmp_path, frame)
    folder = FrameFolder(tmp_path, grid_shape=ODD_GRID)
    assert_same_batches(folder, ["0001", "0002", "0003"])
    assert_same_batches(folder, ["0003", "0001"])


@pytest.mark.parametrize("inexact", ["0001", "0002"])
def test_tsdf_that_float16_does_not_hold(tmp_path: Path, inexact: str) -> None:
    frames = write_set(tmp_path, ["0001", "0002"])
    frame = frames[int(inexact) - 1]
    frame.tsdf[...] = np.random.default_rng(0).uniform(-1, 1, GRID)
    write_frame(tmp_path, frame)
    assert_same_batches(FrameFolder(tmp_path, grid_shape=GRID), ["0001", "0002"])


def test_images_with_dense_truth_are_augmented_alike(tmp_path: Path) -> None:
    ids = IDS[:4]
    write_set(tmp_path / "set", ids, has_image=True)
    (tmp_path / "truth").mkdir()
    for index, frame_id in enumerate(ids):
        truth = np.random.default_rng(index).choice(np.array([1, 2, 11, 255], dtype=np.uint8), IMAGE_SHAPE)
        Image.fromarray(truth).save(tmp_path / "truth" / f"{frame_id}.png")
    folder, truth_2d = FrameFolder(tmp_path / "set", grid_shape=GRID), Truth2D(tmp_path / "truth")
    for augments_2d in (False, True):
        on_device, ordinary = (
            DeviceDataset(folder, ids, device=CPU, augment_3d=True, augment_2d=augments_2d, truth_2d=truth_2d, seed=5),
            FrameDataset(folder, ids, augment_3d=True, augment_2d=augments_2d, truth_2d=truth_2d, seed=5),
        )
        for epoch in range(2):
            on_device.set_epoch(epoch)
            ordinary.set_epoch(epoch)
            found = on_device.__getitems__([3, 1])
            assert_same_batch(found, Batch.collate([ordinary[3], ordinary[1]]))
            assert (found.depth_hit is not None) == augments_2d
    assert on_device.num_bytes >= 4 * 4 * 480 * 640  # colors and truth, one byte each


def test_sets_that_the_device_cannot_keep_are_refused(tmp_path: Path, packed: PackedFrames) -> None:
    write_set(tmp_path, ["0001"], has_image=True, has_label_map=True)
    with pytest.raises(ValueError, match="label map"):
        DeviceDataset(FrameFolder(tmp_path, grid_shape=GRID), ["0001"], device=CPU, augment_2d=True)
    with pytest.raises(ValueError, match="frame"):
        DeviceDataset(packed, [], device=CPU)
    with pytest.raises(DataError, match="0042"):
        DeviceDataset(packed, ["0042"], device=CPU)
    write_frame(tmp_path / "long", random_frame(1, grid_shape=(4, 3, 2)))
    long = FrameFolder(tmp_path / "long", grid_shape=(4, 3, 2))
    with pytest.raises(ValueError, match="4 x 3 x 2"):
        DeviceDataset(long, ["0001"], device=CPU, augment_3d=True)
    assert DeviceDataset(long, ["0001"], device=CPU)[0].grid_shape == (4, 3, 2)


def test_batches_share_no_memory_with_the_frames(packed: PackedFrames) -> None:
    dataset = DeviceDataset(packed, IDS, device=CPU)
    for name in ("tsdf", "mapping", "label_weight", "label", "label_map"):
        getattr(dataset[0], name).fill_(1)
    assert_same_batch(dataset[0], FrameDataset(packed, IDS)[0])


@pytest.mark.cuda
def test_batches_on_a_gpu_without_waiting(packed: PackedFrames) -> None:
    device = torch.device("cuda")
    dataset = assert_same_batches(packed, IDS, device=device)
    augmented = DeviceDataset(packed, IDS, device=device, augment_3d=True)
    augmented[0]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for frames in (dataset, augmented):
            frames.__getitems__([3, 1])
    finally:
        torch.cuda.set_sync_debug_mode("default")
