"""Packed sets: the same frames, batches and lists as their folder, from one file that is checked at every door."""

import json
import os
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from torch.utils.data import DataLoader

from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.dataset import FrameDataset, build_loader
from ammnet_sparse.data.device_dataset import DeviceDataset
from ammnet_sparse.data.grid import GRID_SHAPE
from ammnet_sparse.data.sets import packing
from ammnet_sparse.data.sets.check import check_set
from ammnet_sparse.data.sets.compact import pack_nibbles
from ammnet_sparse.data.sets.folder import FrameFolder
from ammnet_sparse.data.sets.frame_source import training_ids, validation_ids
from ammnet_sparse.data.sets.packed import CHECKED_ARRAYS, PackedFrames
from ammnet_sparse.data.sets.packing import BrokenFramesError, pack_set
from ammnet_sparse.data.sets.source import open_frames
from ammnet_sparse.files.errors import DataError
from tests.data.frames import (
    GRID,
    assert_same_batch,
    assert_same_frame,
    random_frame,
    write_cad_frame,
    write_frame,
    write_list,
    write_set,
)

IDS = [f"{number:04d}" for number in range(7)]
ODD_GRID = (3, 3, 3)  # 27 voxels: neither halves nor eighths


def pack(folder: FrameFolder, out: Path, **options: Any) -> PackedFrames:
    return pack_set(folder, out, progress=False, workers=2, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> FrameFolder:
    root = tmp_path_factory.mktemp("set")
    write_set(root, IDS, has_label_map=True)
    write_list(root / "val.txt", IDS[4:6])
    return FrameFolder(root, grid_shape=GRID)


@pytest.fixture(scope="module")
def packed(folder: FrameFolder, tmp_path_factory: pytest.TempPathFactory) -> PackedFrames:
    return pack(folder, tmp_path_factory.mktemp("packed") / "set.safetensors")


def test_nibbles_refuse_other_classes() -> None:
    with pytest.raises(ValueError, match=r"\[15, 254\]"):
        pack_nibbles(np.array([0, 254, 15], dtype=np.uint8))


def test_frames_and_lists_are_those_of_the_folder(folder: FrameFolder, packed: PackedFrames) -> None:
    assert packed.frame_ids("train") == folder.frame_ids("train") == packed.listed_ids("train")
    assert packed.has_split("val") and not packed.has_split("test")
    assert (packed.has_labels, packed.reads_label_map, packed.reads_image) == (True, True, False)
    for frame_id in IDS:
        assert_same_frame(packed.read(frame_id), folder.read(frame_id))
        frame, problems = packed.read_with_problems(f"NYU{frame_id}_0000")
        assert frame is not None and not problems
        assert_same_frame(frame, folder.read(frame_id))
    for ids in (training_ids, validation_ids):
        assert ids(packed, split="train", count=3, seed=1) == ids(folder, split="train", count=3, seed=1)
    assert packed.has_frame("NYU0003") and not packed.has_frame("0042")
    assert not packed.missing_files("0003") and packed.missing_files("0042")


def test_odd_grids_images_and_frames_without_hits(tmp_path: Path) -> None:
    frames = [random_frame(seed, grid_shape=ODD_GRID, has_image=True) for seed in (1, 2, 3)]
    frames[0].mapping[...] = -1
    frames[2].mapping[...] = -1
    for frame in frames:
        write_frame(tmp_path, frame)
    write_list(tmp_path / "test.txt", ["0001", "0002", "0003"])
    folder = FrameFolder(tmp_path, grid_shape=ODD_GRID)
    packed = pack(folder, tmp_path / "packed")
    assert packed.reads_image
    for frame in frames:
        assert_same_frame(packed.read(frame.frame_id), frame)
    without = open_frames(tmp_path / "packed", read_image=False, grid_shape=ODD_GRID)
    assert without.read("0002").image is None
    problems = check_set(packed, progress=False).problems
    assert [problem.frame_id for problem in problems] == ["0001", "0003"]
    assert all("a pixel hits" in problem.message for problem in problems)


def test_flipped_sets_stay_flipped(tmp_path: Path) -> None:
    frame = random_frame(1)
    write_frame(tmp_path, frame)
    write_cad_frame(tmp_path, frame, half="train")
    write_list(tmp_path / "train.txt", ["0001"])
    folder = FrameFolder(tmp_path, dataset="nyucad", grid_shape=GRID)
    packed = pack(folder, tmp_path / "packed")
    assert packed.read("0001").tsdf_is_flipped
    assert_same_frame(packed.read("0001"), folder.read("0001"))
    with pytest.raises(DataError, match="packed.*dataset nyucad"):
        open_frames(tmp_path / "packed", grid_shape=GRID)


def test_tsdf_is_exact_unless_rounding_is_asked_for(tmp_path: Path) -> None:
    frames = write_set(tmp_path, ["0001", "0002", "0003"])
    third = frames[1].tsdf
    third[...] = np.random.default_rng(0).uniform(-1, 1, GRID)  # values that float16 cannot hold
    write_frame(tmp_path, frames[1])
    folder = FrameFolder(tmp_path, grid_shape=GRID)
    exact = pack_set(folder, tmp_path / "exact", progress=False)
    assert exact.read_compact("0001").tsdf.dtype == np.float32 and exact.header.tsdf_error == 0
    assert "exactly" in exact.describe()
    for frame in frames:
        assert_same_frame(exact.read(frame.frame_id), frame)
    rounded = pack_set(folder, tmp_path / "rounded", tsdf="float16", progress=False)
    error = np.abs(rounded.read("0002").tsdf - third).max()
    assert rounded.read_compact("0001").tsdf.dtype == np.float16 and 0 < error == rounded.header.tsdf_error
    assert f"{error:.2g}" in rounded.describe()


def test_named_lists(folder: FrameFolder, tmp_path: Path) -> None:
    assert pack(folder, tmp_path / "val", splits=["val"]).header.frame_ids == IDS[4:6]
    assert list(pack(folder, tmp_path / "train", splits=["train"]).header.lists) == ["train", "val"]
    with pytest.raises(DataError, match=r"test\.txt"):
        pack(folder, tmp_path / "test", splits=["test"])
    packed = PackedFrames(tmp_path / "val", grid_shape=GRID)
    with pytest.raises(DataError, match=r"train\.txt"):
        packed.frame_ids("train")
    with pytest.raises(DataError, match="0001"):
        packed.read("0001")
    assert_same_frame(pack(packed, tmp_path / "again").read("0005"), folder.read("0005"))  # type: ignore[arg-type]


def test_existing_files_are_kept_unless_asked(folder: FrameFolder, tmp_path: Path) -> None:
    out = tmp_path / "packed"
    out.write_text("something else")
    with pytest.raises(DataError, match="packed"):
        pack(folder, out)
    assert out.read_text() == "something else"
    assert pack(folder, out, overwrite=True).has_frame("0001")


def test_two_that_pack_to_one_file_do_not_disturb_each_other(folder: FrameFolder, tmp_path: Path) -> None:
    out = tmp_path / "packed"
    foreign, left = tmp_path / "packed.unfinished", tmp_path / "packed.a1_b2c3d.unfinished"
    foreign.write_text("of somebody else")
    left.write_text("of a killed process")
    with ThreadPoolExecutor() as pool:
        made = [*pool.map(lambda _: pack(folder, out, overwrite=True), range(4))]
    for frame_id in ("0001", "0005"):
        for packed in (*made, PackedFrames(out, grid_shape=GRID)):
            assert_same_frame(packed.read(frame_id), folder.read(frame_id))
    assert sorted(path.name for path in tmp_path.glob("packed*")) == ["packed", "packed.unfinished"]
    assert foreign.read_text() == "of somebody else"


def test_broken_frames_are_all_named_and_nothing_is_written(tmp_path: Path) -> None:
    write_set(tmp_path / "set", IDS)
    (tmp_path / "set" / "Label" / "0002.npz").unlink()
    (tmp_path / "set" / "TSDF" / "0005.npz").write_bytes(b"no archive")
    with pytest.raises(BrokenFramesError, match="2 problems") as caught:
        pack(FrameFolder(tmp_path / "set", grid_shape=GRID), tmp_path / "packed")
    assert "Label/0002.npz" in str(caught.value)
    assert "TSDF/0005.npz" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_file_that_differs_from_the_written_frames_is_refused(
    folder: FrameFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = packing._write

    def write_badly(source: Any, path: Path, header: Any, tsdf_type: str, **options: Any) -> None:
        write(source, path, header, tsdf_type, **options)
        flip_byte(path, -8)

    monkeypatch.setattr(packing, "_write", write_badly)
    with pytest.raises(OSError, match="hits of frame 0006"):
        pack(folder, tmp_path / "packed")
    assert not list(tmp_path.iterdir())


def test_changed_bytes_are_found_by_the_check(packed: PackedFrames, tmp_path: Path) -> None:
    path = tmp_path / "packed"
    path.write_bytes(packed.root.read_bytes())
    start = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    begin, _ = json.loads(path.read_bytes()[8:start])["label_map"]["data_offsets"]
    flip_byte(path, start + begin + 2 * 480 * 320 + 5)
    report = check_set(PackedFrames(path, grid_shape=GRID), progress=False)
    assert [problem.frame_id for problem in report.problems] == ["0002"]
    assert "label_map of frame 0002" in report.problems[0].message
    assert report.statistics["train"].num_read == 6
    assert check_set(PackedFrames(path, grid_shape=GRID), quick=True, progress=False).is_clean


def flip_byte(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x40
    path.write_bytes(content)


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _with_metadata(**changes: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = {**file.metadata(), **changes}
        safetensors.numpy.save_file(safetensors.numpy.load_file(path), path, metadata=metadata)

    return change


def _with_arrays(change: Callable[[dict[str, np.ndarray]], Any]) -> Callable[[Path], None]:
    def rewrite(path: Path) -> None:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata()
        arrays = safetensors.numpy.load_file(path)
        change(arrays)
        safetensors.numpy.save_file(arrays, path, metadata=metadata)

    return rewrite


HEADER = {"dataset": "nyu", "grid_shape": [4, 3, 4], "frame_ids": ["0"], "lists": {"train": ["1"]}, "tsdf_error": 0}


@pytest.mark.parametrize(
    ("damage", "key"),
    [
        (_truncated, ""),
        (lambda path: path.write_bytes(b""), ""),
        (lambda path: path.write_text("0001\n0002\n"), ""),
        (lambda path: safetensors.numpy.save_file({"weight": np.zeros(3)}, path), ""),
        (_with_metadata(version="2"), "version"),
        (_with_metadata(set="{}"), "packed set"),
        (_with_metadata(set=json.dumps(HEADER)), "lists"),
        (_with_arrays(lambda arrays: arrays.pop("hits")), "hits"),
        (_with_arrays(lambda arrays: arrays.update(tsdf=arrays["tsdf"][1:])), "tsdf"),
        (_with_arrays(lambda arrays: arrays.update(other=arrays["tsdf"])), "other"),
        (_with_arrays(lambda arrays: arrays.update(hit_offsets=arrays["hit_offsets"][::-1].copy())), "hit_offsets"),
    ],
)
def test_damaged_files_are_named(packed: PackedFrames, tmp_path: Path, damage: Callable[[Path], Any], key: str) -> None:
    path = tmp_path / "set.safetensors"
    path.write_bytes(packed.root.read_bytes())
    damage(path)
    with pytest.raises(DataError, match=f"{path}.*{key}"):
        open_frames(path, grid_shape=GRID)


def test_missing_parts_of_a_packed_set_are_named(folder: FrameFolder, packed: PackedFrames, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="color images"):
        open_frames(packed.root, read_image=True, grid_shape=GRID)
    with pytest.raises(DataError, match=r"\(60, 36, 60\)"):
        open_frames(packed.root, grid_shape=GRID_SHAPE)
    plain = FrameFolder(folder.root, grid_shape=GRID, read_label_map=False)
    assert not pack(plain, tmp_path / "packed").reads_label_map
    with pytest.raises(DataError, match="2D label maps"):
        open_frames(tmp_path / "packed", read_label_map=True, grid_shape=GRID)
    with pytest.raises(DataError, match=f"{tmp_path}/absent"):
        open_frames(tmp_path / "absent")
    with pytest.raises(DataError, match=f"{tmp_path}/absent"):
        PackedFrames(tmp_path / "absent")


def test_a_file_that_is_cut_while_it_is_open(packed: PackedFrames, tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(packed.root.read_bytes())
    opened = PackedFrames(path, grid_shape=GRID)
    os.truncate(path, path.stat().st_size // 2)
    frame_id = opened.frame_ids("train")[-1]
    with pytest.raises(DataError, match=r"cut\.safetensors"):
        opened.read(frame_id)
    _, (problem,) = opened.read_with_problems(frame_id)
    assert "cut.safetensors" in str(problem)
    with pytest.raises(DataError, match=r"cut\.safetensors"):
        DeviceDataset(opened, [frame_id], device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("hits", lambda values: values.__setitem__((0, 0), 48)),
        ("hits", lambda values: values.__setitem__((0, 0), -1)),
        ("hits", lambda values: values.__setitem__((0, 1), 307200)),
        ("label", lambda values: values.fill(0xD0)),
        ("tsdf", lambda values: values.fill(np.nan)),
    ],
)
def test_impossible_values_with_valid_checksums_are_refused(
    packed: PackedFrames, tmp_path: Path, name: str, change: Callable[[np.ndarray], None]
) -> None:
    path = tmp_path / "made_up.safetensors"
    path.write_bytes(packed.root.read_bytes())
    first = packed.header.frame_ids[0]

    def rewrite(arrays: dict[str, np.ndarray]) -> None:
        values = arrays[name][: arrays["hit_offsets"][1]] if name == "hits" else arrays[name][:1]
        change(values)
        arrays["checksums"][0, CHECKED_ARRAYS.index(name)] = zlib.crc32(np.ascontiguousarray(values).data)

    _with_arrays(rewrite)(path)
    with pytest.raises(DataError, match=f"{name} of frame {first}"):
        DeviceDataset(PackedFrames(path, grid_shape=GRID), [first], device=torch.device("cpu"))


def loader_of(source: Any, *, epoch: int, workers: int = 0) -> "DataLoader[Batch]":
    dataset = FrameDataset(source, IDS, augment_3d=True, seed=5)
    return build_loader(dataset, batch_size=3, shuffle_seed=1, epoch=epoch, workers=workers, drop_last=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_training_batches_are_bit_identical(folder: FrameFolder, packed: PackedFrames, workers: int) -> None:
    for epoch in range(3 if workers == 0 else 1):
        expected = list(loader_of(folder, epoch=epoch))
        for found, wanted in zip(loader_of(packed, epoch=epoch, workers=workers), expected, strict=True):
            assert_same_batch(found, wanted)
