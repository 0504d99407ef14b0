"""The batch: its checks, its masks, joining and moving."""

import dataclasses
from pathlib import Path
from typing import Any

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


def test_masks() -> None:
    frame = random_frame(4)
    batch = Batch.from_frame(frame)
    assert frame.label is not None
    np.testing.assert_array_equal(batch.scored_mask.numpy(), (frame.label_weight & (frame.label != 255)).reshape(1, -1))
    np.testing.assert_array_equal(batch.hit_mask.numpy(), (frame.mapping >= 0).reshape(1, -1))
    assert dataclasses.replace(batch, label=None).scored_mask.equal(batch.label_weight)


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
    with pytest.raises(ValueError, match="expected at least one batch, found none"):
        Batch.collate([])
    with pytest.raises(ValueError, match=r"label_map is given for some frames but not for \[\('0002',\)\]"):
        Batch.collate([_batch(1, has_label_map=True), _batch(2)])
    with pytest.raises(ValueError, match="flipped and unflipped TSDF cannot be mixed"):
        Batch.collate([_batch(1), dataclasses.replace(_batch(2), tsdf_is_flipped=True)])
    smaller = Batch.from_frame(random_frame(2, grid_shape=(2, 3, 2)))
    with pytest.raises(
        ValueError, match=r"Batch\.collate: tsdf has shapes \[1, 4, 3, 4\] .* \[1, 2, 3, 2\] .*\('0002',\)"
    ):
        Batch.collate([_batch(1), smaller])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tsdf": torch.zeros(1, 4, 3, 4)}, r"Batch\.tsdf: expected \[B, 1, X, H, Y\], found \[1, 4, 3, 4\]"),
        ({"mapping": torch.zeros(1, 47)}, r"Batch\.mapping: expected \[1, 48\] .* found \[1, 47\]"),
        ({"label": torch.zeros(2, 48)}, r"Batch\.label: expected \[1, 48\] .* found \[2, 48\]"),
        ({"label_weight": torch.zeros(48)}, r"Batch\.label_weight: expected \[1, 48\] .* found \[48\]"),
        ({"image": torch.zeros(3, 480, 640)}, r"Batch\.image: expected 4 axes with 1 frames first"),
        ({"label_map": torch.zeros(2, 480, 640)}, r"Batch\.label_map: expected 3 axes with 1 frames first"),
    ],
)
def test_shapes_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(_batch(1), **changes)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("mapping", 480 * 640, r"mapping: pixels of image, frames 0001: expected values in -1 .. 307199"),
        ("mapping", -2, r"mapping: pixels, frames 0001: expected values at least -1, found -2"),
        ("label", 12, r"label: classes but 255, frames 0001: expected values in 0 .. 11, found 0 .. 12"),
        ("label_map", 14, r"label_map: classes, frames 0001: expected values in 0 .. 13"),
    ],
)
def test_values_out_of_range_are_refused_where_the_batch_is_built(name: str, value: int, message: str) -> None:
    """On a GPU nobody looks at them again."""
    batch = _batch(1, has_image=True, has_label_map=True)
    changed = getattr(batch, name).clone()
    changed.view(-1)[7] = value
    with pytest.raises(ValueError, match=rf"Batch\.{message}"):
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
    with pytest.raises(ValueError, match=rf"Frame\.{name} of 0001: expected \[.*\], found \["):
        dataclasses.replace(random_frame(1), **{name: np.zeros(shape, dtype=np.uint8)})


def test_from_frames_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected the folders TSDF and Mapping"):
        Batch.from_frames(tmp_path, ["0001"])
