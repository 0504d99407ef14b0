"""Augmentation: voxels move as numpy moves them, and the mapping follows what is done to the image."""

import collections
import dataclasses

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ammnet_sparse.data.augmentation import (
    Colors,
    Geometry,
    augment,
    augment_2d,
    draw_colors,
    draw_geometry,
    draw_shift,
    move_voxels,
    pad_image,
    shift_voxels,
)
from ammnet_sparse.data.batch import IMAGE_MEAN, Batch, normalize_image
from ammnet_sparse.data.frame import Frame
from ammnet_sparse.data.grid import IGNORE_LABEL, IMAGE_SHAPE, NUM_PIXELS, UNMAPPED
from ammnet_sparse.data.sets.compact import CompactFrame
from ammnet_sparse.data.symmetry import Shift, Symmetry
from tests.data.frames import assert_same_frame, random_frame

FLIP_X, FLIP_Y = Symmetry(flips_x=True), Symmetry(flips_y=True)
EXCHANGE = Symmetry(exchanges_xy=True)
VOXEL_ARRAYS = ("tsdf", "mapping", "label_weight", "label")
ROWS, COLUMNS = IMAGE_SHAPE
EVERY_PIXEL = np.arange(NUM_PIXELS, dtype=np.int32)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("symmetry", "as_numpy"),
    [
        (FLIP_X, lambda voxels: np.flip(voxels, 0)),
        (FLIP_Y, lambda voxels: np.flip(voxels, 2)),
        (EXCHANGE, lambda voxels: np.swapaxes(voxels, 0, 2)),
    ],
)
def test_voxels_move_together(symmetry, as_numpy) -> None:  # type: ignore[no-untyped-def]
    frame = random_frame(1, has_image=True, has_label_map=True)
    changed = move_voxels(frame, symmetry)
    for name in VOXEL_ARRAYS:
        np.testing.assert_array_equal(getattr(changed, name), as_numpy(getattr(frame, name)))
        assert getattr(changed, name).dtype == getattr(frame, name).dtype
    assert changed.image is frame.image and changed.label_map is frame.label_map
    assert_same_frame(move_voxels(changed, symmetry), frame)
    batch, expected = Batch.from_frame(changed), as_numpy(frame.mapping)
    assert batch.tsdf.is_contiguous() and batch.mapping.is_contiguous()
    np.testing.assert_array_equal(batch.mapping.numpy(), expected.reshape(1, -1))


@pytest.mark.parametrize("shift", [Shift(2, -1), Shift(-1, 3), Shift(0, 1), Shift()])
@pytest.mark.parametrize("tsdf_is_flipped", [False, True])
def test_shifted_voxels_go_where_they_should(shift: Shift, tsdf_is_flipped: bool) -> None:
    frame = dataclasses.replace(random_frame(1, grid_shape=(6, 3, 5)), tsdf_is_flipped=tsdf_is_flipped)
    moved = shift_voxels(frame, shift)
    assert frame.label is not None and moved.label is not None
    for x, height, y in np.ndindex(6, 3, 5):
        source = (x - shift.x, height, y - shift.y)
        found = [volume[x, height, y] for volume in (moved.tsdf, moved.mapping, moved.label_weight, moved.label)]
        if source[0] in range(6) and source[2] in range(5):
            assert found == [volume[source] for volume in (frame.tsdf, frame.mapping, frame.label_weight, frame.label)]
        else:  # unobserved, not hit, not scored
            assert found == [np.float32(0.001 if tsdf_is_flipped else 0), UNMAPPED, False, IGNORE_LABEL]
    assert all(getattr(moved, name).dtype == getattr(frame, name).dtype for name in VOXEL_ARRAYS)


def test_a_frame_that_would_lose_everything_is_not_shifted() -> None:
    frame = random_frame(1, grid_shape=(6, 3, 6))
    mapping = np.full_like(frame.mapping, UNMAPPED)
    mapping[5, 1, 2] = 7
    frame = dataclasses.replace(frame, mapping=mapping, label_weight=np.ones_like(frame.label_weight))
    assert shift_voxels(frame, Shift(1, 0)) is frame
    assert shift_voxels(frame, Shift(-1, 0)).mapping[4, 1, 2] == 7
    unscored = np.zeros_like(frame.label_weight)
    unscored[0, 0, 3] = True
    label = np.ones_like(frame.label_weight, dtype=np.uint8)
    frame = dataclasses.replace(frame, label_weight=unscored, label=label)
    assert shift_voxels(frame, Shift(-1, 0)) is frame
    assert shift_voxels(frame, Shift(0, -1)).label_weight[0, 0, 2]


def test_every_shift_is_drawn() -> None:
    shifts = [draw_shift(_generator(seed), largest=2) for seed in range(500)]
    counts = collections.Counter(shifts)
    assert counts.keys() == {Shift(x, y) for x in range(-2, 3) for y in range(-2, 3)}
    assert min(counts.values()) > 5 and max(counts.values()) < 40
    frame = random_frame(2)
    moved = augment(frame, generator=_generator(3), use_3d=False, use_2d=False, largest_shift=2)
    assert_same_frame(moved, shift_voxels(frame, draw_shift(_generator(3), largest=2)))


def test_exchange_needs_a_square_grid() -> None:
    with pytest.raises(ValueError, match="frame 0001"):
        move_voxels(random_frame(1, grid_shape=(4, 3, 6)), EXCHANGE)


def test_3d_draws_each_of_the_eight_poses_equally() -> None:
    frame = random_frame(1)
    poses: dict[bytes, int] = {}
    generator = _generator(0)
    for _ in range(800):
        key = augment(frame, generator=generator, use_3d=True, use_2d=False).tsdf.tobytes()
        poses[key] = poses.get(key, 0) + 1
    assert len(poses) == 8
    assert min(poses.values()) > 60 and max(poses.values()) < 145  # 4 deviations of a binomial around 100


def _ramps() -> torch.Tensor:
    """An image that says where each of its pixels is: row, column, 0."""
    row, column = torch.meshgrid(torch.arange(ROWS), torch.arange(COLUMNS), indexing="ij")
    return torch.stack([row, column, torch.zeros_like(row)]).float()


def _inner(mapping: NDArray[np.int32], margin: int) -> NDArray[np.bool_]:
    row, column = mapping // COLUMNS, mapping % COLUMNS
    return (row >= margin) & (row < ROWS - margin) & (column >= margin) & (column < COLUMNS - margin)


@pytest.mark.parametrize("size", [(384, 512), (431, 575), (480, 640), (523, 698), (576, 768)])
@pytest.mark.parametrize("is_mirrored", [False, True])
def test_mapping_follows_the_image(size: tuple[int, int], is_mirrored: bool) -> None:
    corner = (max(size[0] - ROWS, 0) // 3, max(size[1] - COLUMNS, 0) // 2)
    geometry = Geometry(size=size, corner=corner, is_mirrored=is_mirrored)
    moved = geometry.apply_to_mapping(EVERY_PIXEL)
    image = pad_image(geometry.apply(_ramps())).reshape(3, -1).numpy()
    seen = (moved != UNMAPPED) & _inner(EVERY_PIXEL, 2)  # at the edges resizing repeats the outermost pixel
    scale = size[0] / ROWS
    for channel, position in ((0, EVERY_PIXEL // COLUMNS), (1, EVERY_PIXEL % COLUMNS)):
        error = image[channel, moved[seen]] - position[seen]
        assert np.abs(error).max() < 0.5 / scale + 0.02  # the rounding to a pixel, in pixels of the original
        assert abs(error.mean()) < 0.13  # ties are rounded up; a wrong convention shifts by more
    shown = (size[0] * size[1]) if scale < 1 else NUM_PIXELS
    assert len(np.unique(moved[moved != UNMAPPED])) >= 0.6 * shown
    if scale <= 1:
        assert (moved != UNMAPPED).all()
    else:
        assert (moved != UNMAPPED).mean() == pytest.approx(1 / scale**2, rel=0.02)


@pytest.mark.parametrize("size", [(384, 512), (480, 640), (576, 768)])
def test_dense_truth_moves_with_the_pixels(size: tuple[int, int]) -> None:
    """Regions of one class: wherever the mapping sends the inside of one, its class lies; padding is unlabeled."""
    square = 32
    classes = np.random.default_rng(1).integers(1, 12, (ROWS // square, COLUMNS // square), dtype=np.uint8)
    truth = classes.repeat(square, axis=0).repeat(square, axis=1)
    corner = (max(size[0] - ROWS, 0) // 3, max(size[1] - COLUMNS, 0) // 2)
    for is_mirrored in (False, True):
        geometry = Geometry(size=size, corner=corner, is_mirrored=is_mirrored)
        changed = geometry.apply_to_classes(torch.from_numpy(truth)).numpy()
        assert changed.shape == IMAGE_SHAPE and changed.dtype == np.uint8
        rows, columns = geometry.crop_size
        assert (changed[rows:] == 255).all() and (changed[:, columns:] == 255).all()
        assert (changed[:rows, :columns] != 255).all()
        moved = geometry.apply_to_mapping(EVERY_PIXEL)
        inside = (EVERY_PIXEL // COLUMNS % square - 15.5) ** 2 < 144
        inside &= (EVERY_PIXEL % COLUMNS % square - 15.5) ** 2 < 144
        seen = inside & (moved != UNMAPPED)
        np.testing.assert_array_equal(changed.reshape(-1)[moved[seen]], truth.reshape(-1)[seen])


def test_cropping_a_pixel_leaves_the_hit() -> None:
    """2D augmentation takes the pixel to sample from a voxel, never its hit, through every later step."""
    seeds = [seed for seed in range(99) if draw_geometry(_generator(seed)).size[0] > 540][:3]
    frame = random_frame(0, has_image=True)
    for seed in seeds:
        changed = augment_2d(frame, generator=_generator(seed))
        was_hit = frame.mapping != UNMAPPED
        assert (changed.mapping[was_hit] == UNMAPPED).any()
        np.testing.assert_array_equal(changed.hit_mask, was_hit)
        turned = move_voxels(changed, FLIP_X)
        np.testing.assert_array_equal(turned.hit_mask, was_hit[::-1])
        batch = Batch.collate([Batch.from_frame(frame), Batch.from_frame(turned)])
        assert batch.hit_mask[0].equal(torch.from_numpy(was_hit).flatten())
        assert batch.hit_mask[1].equal(torch.from_numpy(was_hit[::-1].copy()).flatten())
        with pytest.raises(ValueError, match="hit mask"):
            CompactFrame.pack(changed)


def test_padding_normalizes_to_exactly_zero() -> None:
    frame = random_frame(0, has_image=True)
    seed = next(seed for seed in range(99) if draw_geometry(_generator(seed)).size[0] < 440)
    geometry = draw_geometry(_generator(seed))
    changed = augment_2d(frame, generator=_generator(seed))
    assert changed.image is not None and changed.image.dtype == np.float32
    assert changed.image.min() >= 0 and changed.image.max() <= 255
    batch = Batch.from_frame(changed)
    assert batch.image is not None and batch.image.shape == (1, 3, *IMAGE_SHAPE)
    rows, columns = geometry.size
    assert (batch.image[..., rows:, :] == 0).all() and (batch.image[..., columns:] == 0).all()
    assert (batch.image[..., :rows, :columns] != 0).float().mean() > 0.99
    assert changed.mapping.max() <= (rows - 1) * COLUMNS + columns - 1
    for name in ("tsdf", "label", "label_weight"):
        assert getattr(changed, name) is getattr(frame, name)


def test_normalization_is_imagenets() -> None:
    image = np.array([[[0, 128, 255]]], dtype=np.uint8)
    expected = (np.array([0, 128, 255]) - [123.675, 116.28, 103.53]) / [58.395, 57.12, 57.375]
    np.testing.assert_allclose(normalize_image(image).numpy()[:, 0, 0], expected, rtol=1e-6)
    assert (normalize_image(np.full((2, 2, 3), IMAGE_MEAN, dtype=np.float32)) == 0).all()


def test_colors_change_in_their_order() -> None:
    image = torch.rand(3, 6, 8, generator=torch.Generator().manual_seed(2)) * 255
    changes = {"brightness": 32.0, "contrast": 0.5, "saturation": 1.4, "hue": 0.05}
    for order in ((0, 1, 2, 3), (3, 1, 0, 2)):
        expected = image
        for index in order:
            name = list(changes)[index]
            expected = Colors(**{name: changes[name]}).apply(expected)
        torch.testing.assert_close(Colors(**changes, order=order).apply(image), expected, atol=1e-3, rtol=0)
    generator = torch.Generator().manual_seed(3)
    assert len({draw_colors(generator).order for _ in range(400)}) == 24


def test_brightness_is_added_and_clipped() -> None:
    image = torch.from_numpy(np.random.default_rng(0).uniform(40, 200, (3, 8, 8)).astype(np.float32))
    assert Colors().apply(image).equal(image)
    torch.testing.assert_close(Colors(brightness=-32).apply(image), image - 32)
    assert Colors(brightness=255).apply(image).eq(255).all()


def test_draws_keep_their_limits_and_probabilities() -> None:
    generator = _generator(5)
    geometries = [draw_geometry(generator) for _ in range(2000)]
    colors = [draw_colors(generator) for _ in range(2000)]
    shares = {
        "resize": np.mean([geometry.size != IMAGE_SHAPE for geometry in geometries]),
        "mirror": np.mean([geometry.is_mirrored for geometry in geometries]),
        "brightness": np.mean([color.brightness != 0 for color in colors]),
        "contrast": np.mean([color.contrast != 1 for color in colors]),
        "saturation": np.mean([color.saturation != 1 for color in colors]),
        "hue": np.mean([color.hue != 0 for color in colors]),
    }
    for name, share in shares.items():
        assert abs(share - 0.5) < 0.05, name
    for geometry in geometries:
        assert 384 <= geometry.size[0] <= 576 and 512 <= geometry.size[1] <= 768
        assert geometry.corner[0] in range(max(geometry.size[0] - ROWS, 0) + 1)
        assert geometry.corner[1] in range(max(geometry.size[1] - COLUMNS, 0) + 1)
    limits = {"brightness": (-32, 32), "contrast": (0.5, 1.5), "saturation": (0.5, 1.5), "hue": (-0.1, 0.1)}
    for name, (low, high) in limits.items():
        values = [getattr(color, name) for color in colors]
        assert low <= min(values) < low + 0.02 * (high - low) and high - 0.02 * (high - low) < max(values) <= high


def test_augment_is_what_the_generator_says() -> None:
    frame = random_frame(2, has_image=True)

    def run(seed: int, *, use_3d: bool = True, use_2d: bool = True, of: Frame = frame) -> Frame:
        return augment(of, generator=_generator(seed), use_3d=use_3d, use_2d=use_2d)

    assert_same_frame(run(3), run(3))
    assert any(not np.array_equal(run(3).tsdf, run(seed).tsdf) for seed in range(4, 9))
    assert run(3, use_3d=False, use_2d=False) is frame
    assert run(3, use_2d=False).image is frame.image
    np.testing.assert_array_equal(run(3, use_3d=False).tsdf, frame.tsdf)
    without_image = random_frame(2, has_label_map=True)
    assert run(3, use_3d=False, of=without_image) is without_image


def test_2d_errors() -> None:
    with pytest.raises(ValueError, match="frame 0001.*read_image=True"):
        augment_2d(random_frame(1), generator=_generator(0))
    both = random_frame(1, has_image=True, has_label_map=True)
    with pytest.raises(ValueError, match="frame 0001.*read_label_map"):
        augment(both, generator=_generator(0), use_3d=False, use_2d=True)
