"""A writer of the published layout for tests: random arrays that are valid, in every spelling and type."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from PIL import Image

from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.frame import Frame
from ammnet_sparse.data.grid import IMAGE_SHAPE, NUM_PIXELS

GRID = (4, 3, 4)


def random_frame(
    seed: int,
    *,
    frame_id: str = "",
    grid_shape: tuple[int, int, int] = GRID,
    has_image: bool = False,
    has_label_map: bool = False,
) -> Frame:
    """A frame with every kind of value: all classes and 255, hit and other voxels, TSDF that float16 holds."""
    rng = np.random.default_rng(seed)
    label = rng.choice(np.array([*range(12), 255], dtype=np.uint8), size=grid_shape)
    is_hit = rng.random(grid_shape) < 0.4
    pixels = rng.choice(NUM_PIXELS, size=grid_shape, replace=False)
    return Frame(
        frame_id=frame_id or f"{seed:04d}",
        tsdf=rng.uniform(-1, 1, grid_shape).astype(np.float16).astype(np.float32),
        mapping=np.where(is_hit, pixels, -1).astype(np.int32),
        label_weight=rng.random(grid_shape) < 0.5,
        label=label,
        image=rng.integers(0, 256, (*IMAGE_SHAPE, 3), dtype=np.uint8) if has_image else None,
        label_map=rng.integers(0, 14, IMAGE_SHAPE, dtype=np.uint8) if has_label_map else None,
    )


def write_frame(
    root: Path,
    frame: Frame,
    *,
    label_type: DTypeLike = np.uint8,
    mapping_type: DTypeLike = np.int32,
    tsdf_type: DTypeLike = np.float32,
    image_name: str = "RGB/NYU{}_colors.png",
    label_map_folder: str = "Seg2D",
) -> None:
    """Writes a frame as the published files have it: flat arrays, 307200 where no pixel hits."""
    assert frame.label is not None
    write_npz(root / "Label" / f"{frame.frame_id}.npz", arr_0=frame.label.reshape(-1).astype(label_type))
    write_npz(root / "Mapping" / f"{frame.frame_id}.npz", arr_0=mapping_on_disk(frame).astype(mapping_type))
    write_npz(
        root / "TSDF" / f"{frame.frame_id}.npz",
        arr_0=frame.tsdf.reshape(-1).astype(tsdf_type),
        arr_1=frame.label_weight.reshape(-1).astype(np.uint8),
    )
    if frame.image is not None:
        write_image(root / image_name.format(frame.frame_id), frame.image)
    if frame.label_map is not None:
        write_image(root / label_map_folder / f"{frame.frame_id}.png", frame.label_map)


def write_cad_frame(root: Path, frame: Frame, *, half: str) -> None:
    """Writes what NYUCAD has of a frame of its own, ``frame.tsdf`` in the flipped convention."""
    name = f"NYU{frame.frame_id}_0000_voxels.npz"
    write_npz(root / "NYUCAD" / half / "TSDF_lr" / name, tsdf_lr=frame.tsdf[None])
    mapping = mapping_on_disk(frame)
    write_npz(root / "NYUCAD" / half / "mapping" / name, arr_0=np.zeros(3), arr_1=mapping)


def write_set(root: Path, ids: list[str], *, has_image: bool = False, has_label_map: bool = False) -> list[Frame]:
    """A set of frames with ``train.txt``; the frames as they must be read."""
    frames = [
        random_frame(seed, frame_id=frame_id, has_image=has_image, has_label_map=has_label_map)
        for seed, frame_id in enumerate(ids)
    ]
    for frame in frames:
        write_frame(root, frame)
    write_list(root / "train.txt", ids)
    return frames


def write_list(path: Path, ids: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{frame_id}\n" for frame_id in ids), encoding="utf-8")


def write_npz(path: Path, **arrays: NDArray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)


def write_image(path: Path, pixels: NDArray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def mapping_on_disk(frame: Frame) -> NDArray[np.int32]:
    return np.where(frame.mapping == -1, NUM_PIXELS, frame.mapping).reshape(-1)


def assert_same_frame(found: Frame, expected: Frame) -> None:
    assert (found.frame_id, found.tsdf_is_flipped) == (expected.frame_id, expected.tsdf_is_flipped)
    for name in ("tsdf", "mapping", "label_weight", "label", "image", "label_map"):
        value, wanted = getattr(found, name), getattr(expected, name)
        assert (value is None) == (wanted is None), name
        if wanted is not None:
            assert value.dtype == wanted.dtype, name
            np.testing.assert_array_equal(value, wanted, err_msg=name)


def assert_same_batch(found: Batch, expected: Batch) -> None:
    assert (found.frame_ids, found.tsdf_is_flipped) == (expected.frame_ids, expected.tsdf_is_flipped)
    for name in ("tsdf", "mapping", "label_weight", "label", "image", "label_map", "depth_hit", "label_2d"):
        value, wanted = getattr(found, name), getattr(expected, name)
        assert (value is None) == (wanted is None), name
        if wanted is not None:
            assert value.dtype == wanted.dtype and value.is_contiguous(), name
            assert torch.equal(value.cpu(), wanted), name
