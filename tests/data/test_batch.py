"""The batch: its checks, its masks, joining and moving."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from ammnet_sparse.data.batch import Batch
from tests.data.frames import GRID, random_frame

TENSORS = ("tsdf", "mapping", "label_weight", "label", "image", "label_map")


def _batch(seed: int, **options: bool) -> Batch:
    return Batch.from_frame(random_frame(seed, **options))  # type: ignore[arg-type]


def test_a_frame_becomes_a_batch_of_one() -> None:
    frame = random_frame(4, has_image=True, has_label_map=True)
    batch = Batch.from_frame(frame)
    assert (batch.batch_size, batch.grid_shape, batch.num_voxels) == (1, GRID, 48)
    assert batch.frame_ids == ("0004",)
    assert (batch.tsdf.dtype, batch.mapping.dtype, batch.label_weight.dtype) == (
        torch.float32,
        torch.int32,
        torch.bool,
    )
    x, height, y = 3, 1, 2
    flat = (x * GRID[1] + height) * GRID[2] + y
    assert batch.tsdf[0, 0, x, height, y] == frame.tsdf[x, height, y]
    assert batch.mapping[0, flat] == frame.mapping[x, height, y]
    assert frame.label is not None and batch.label is not None
    assert batch.label[0, flat] == frame.label[x, height, y]
    assert batch.image is not None and batch.label_map is not None
    assert batch.image.shape == (1, 3, 480, 640) and batch.label_map.shape == (1, 480, 640)
    assert all(getattr(batch, name).is_contiguous() for name in TENSORS)


def test_collate_keeps_the_order() -> None:
    batches = [_batch(seed, has_label_map=True) for seed in (5, 2, 9)]
    joined = Batch.collate([batches[0], Batch.collate(batches[1:])])
    assert joined.frame_ids == ("0005", "0002", "0009") and joined.batch_size == 3
    for index, batch in enumerate(batches):
        for name in TENSORS:
            if name == "image":
                assert joined.image is None
            else:
                assert torch.equal(getattr(joined, name)[index : index + 1], getattr(batch, name)), name


def test_collate_errors() -> None:
    with pytest.raises(ValueError, match=r"Batch\.collate"):
        Batch.collate([])
    with pytest.raises(ValueError, match="label_map.*0002"):
        Batch.collate([_batch(1, has_label_map=True), _batch(2)])
    with pytest.raises(ValueError, match="TSDF"):
        Batch.collate([_batch(1), dataclasses.replace(_batch(2), tsdf_is_flipped=True)])
    smaller = Batch.from_frame(random_frame(2, grid_shape=(2, 3, 2)))
    with pytest.raises(ValueError, match=r"Batch\.collate"):
        Batch.collate([_batch(1), smaller])


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("tsdf", (1, 4, 3, 4)),
        ("mapping", (1, 47)),
        ("label", (2, 48)),
        ("label_weight", (48,)),
        ("image", (3, 480, 640)),
        ("label_map", (2, 480, 640)),
    ],
)
def test_shapes_are_checked(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"Batch\.{name}"):
        dataclasses.replace(_batch(1), **{name: torch.zeros(shape)})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mapping", 480 * 640),
        ("mapping", -2),
        ("label", 12),
        ("label_map", 14),
        ("tsdf", float("nan")),
        ("tsdf", 1.1),
    ],
)
def test_values_out_of_range_are_refused_when_the_batch_is_built(name: str, value: float) -> None:
    """On a GPU nobody looks at them again."""
    batch = _batch(1, has_image=True, has_label_map=True)
    changed = getattr(batch, name).clone()
    changed.view(-1)[7] = value
    with pytest.raises(ValueError, match=rf"Batch\.{name}.*frames 0001"):
        dataclasses.replace(batch, **{name: changed})


def test_to_moves_every_tensor() -> None:
    batch = _batch(1, has_image=True, has_label_map=True)
    moved = batch.to("meta")
    assert all(getattr(moved, name).device.type == "meta" for name in TENSORS)
    assert moved.frame_ids == batch.frame_ids
    assert _batch(1).to("meta").image is None


@pytest.mark.cuda
def test_pinned_memory() -> None:
    pinned = _batch(1, has_label_map=True).pin_memory()
    assert pinned.tsdf.is_pinned() and pinned.label_map is not None and pinned.label_map.is_pinned()
    assert pinned.to("cuda", non_blocking=True).tsdf.is_cuda


@pytest.mark.parametrize(
    ("name", "shape"), [("mapping", (3, 4, 4)), ("label", (48,)), ("image", (3, 480, 640)), ("label_map", (640, 480))]
)
def test_frames_check_their_shapes(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"Frame\.{name} of 0001"):
        dataclasses.replace(random_frame(1), **{name: np.zeros(shape, dtype=np.uint8)})


def test_from_frames_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=str(tmp_path)):
        Batch.from_frames(tmp_path, ["0001"])


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("tsdf", torch.float16),
        ("mapping", torch.int16),
        ("label_weight", torch.uint8),
        ("label", torch.bool),
        ("label_map", torch.float32),
        ("image", torch.uint8),
    ],
)
def test_types_are_checked(name: str, dtype: torch.dtype) -> None:
    batch = _batch(1, has_image=True, has_label_map=True)
    with pytest.raises(ValueError, match=rf"Batch\.{name}"):
        dataclasses.replace(batch, **{name: getattr(batch, name).to(dtype)})


def test_frames_are_selected() -> None:
    batch = Batch.collate([_batch(seed) for seed in (5, 2, 9)])
    selected = batch.select(torch.tensor([True, False, True]))
    assert selected.frame_ids == ("0005", "0009") and torch.equal(selected.tsdf, batch.tsdf[[0, 2]])
    assert batch.select(torch.ones(3, dtype=torch.bool)) is batch
    assert batch.select(torch.zeros(3, dtype=torch.bool)).batch_size == 0
