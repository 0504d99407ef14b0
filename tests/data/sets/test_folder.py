"""The reader of the published layout: spellings, types, lists, the validation draw, and every error by name."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.grid import NUM_PIXELS
from ammnet_sparse.data.sets.folder import FrameFolder
from ammnet_sparse.data.sets.frame_source import training_ids, validation_ids
from ammnet_sparse.data.volumes.tsdf import flip_tsdf
from ammnet_sparse.evaluation.selection import split_ids
from ammnet_sparse.files.errors import DataError
from tests.data.frames import (
    GRID,
    assert_same_frame,
    random_frame,
    write_cad_frame,
    write_frame,
    write_image,
    write_list,
    write_npz,
    write_set,
)

VOXELS = int(np.prod(GRID))


@pytest.mark.parametrize(
    ("label_type", "mapping_type", "tsdf_type"),
    [(np.uint8, np.uint32, np.float16), (np.int16, np.int64, np.float64), (np.float64, np.float32, np.float64)],
)
def test_any_number_type(tmp_path: Path, label_type: type, mapping_type: type, tsdf_type: type) -> None:
    frame = random_frame(3)
    write_frame(tmp_path, frame, label_type=label_type, mapping_type=mapping_type, tsdf_type=tsdf_type)
    assert_same_frame(FrameFolder(tmp_path, grid_shape=GRID).read("0003"), frame)


@pytest.mark.parametrize("name", ["RGB/NYU{}_colors.png", "train/RGB/NYU{}_rgb.png", "test/RGB/NYU{}_rgb.png"])
@pytest.mark.parametrize("label_map_folder", ["Seg2D", "seg_result_label13"])
def test_spellings_of_folders(tmp_path: Path, name: str, label_map_folder: str) -> None:
    frame = random_frame(12, has_image=True, has_label_map=True)
    write_frame(tmp_path / "NYU", frame, image_name=name, label_map_folder=label_map_folder)
    for root in (tmp_path, tmp_path / "NYU"):
        folder = FrameFolder(root, grid_shape=GRID)
        assert folder.reads_image and folder.reads_label_map
        assert_same_frame(folder.read("NYU0012_0000"), frame)
        assert folder.paths("12")["image"] == tmp_path / "NYU" / name.format("0012")


def test_palette_label_map_keeps_its_classes(tmp_path: Path) -> None:
    frame = random_frame(0, has_label_map=True)
    write_frame(tmp_path, frame)
    assert frame.label_map is not None
    palette = Image.fromarray(frame.label_map, mode=None).convert("L")
    palette.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    assert palette.mode == "P"
    palette.save(tmp_path / "Seg2D" / "0000.png")
    assert_same_frame(FrameFolder(tmp_path, grid_shape=GRID).read("0000"), frame)


def test_images_are_read_on_request_only(tmp_path: Path) -> None:
    write_set(tmp_path, ["0000"], has_image=True)
    assert FrameFolder(tmp_path, grid_shape=GRID, read_image=False).read("0000").image is None
    with pytest.raises(DataError, match="read_label_map"):
        FrameFolder(tmp_path, grid_shape=GRID, read_label_map=True)


def test_frames_without_label(tmp_path: Path) -> None:
    write_set(tmp_path, ["0000"])
    (tmp_path / "Label" / "0000.npz").unlink()
    (tmp_path / "Label").rmdir()
    frame = FrameFolder(tmp_path, grid_shape=GRID).read("0000")
    assert frame.label is None
    batch = Batch.from_frame(frame)
    assert batch.label is None and batch.scored_mask.equal(batch.label_weight)


@pytest.mark.parametrize("half", ["train", "test"])
@pytest.mark.parametrize("base", [".", "NYU"])
@pytest.mark.parametrize("root", [".", "NYUCAD"])
def test_nyucad(tmp_path: Path, half: str, base: str, root: str) -> None:
    frame = random_frame(7, has_image=True)
    write_frame(tmp_path / base, frame)
    other = random_frame(8, frame_id="0007")
    flipped = flip_tsdf(other.tsdf)
    write_cad_frame(tmp_path, type(other)("0007", flipped, other.mapping, other.label_weight), half=half)
    write_list(tmp_path / base / "train.txt", ["NYU0007_0000"])

    folder = FrameFolder(tmp_path / root, dataset="nyucad", grid_shape=GRID)
    (found,) = (folder.read(frame_id) for frame_id in folder.frame_ids("train"))

    assert frame.label is not None
    unflipped = np.sign(flipped) * (1 - np.abs(flipped))
    label_weight = ((frame.label > 0) & (frame.label < 255)) | (unflipped < -0.5)
    expected = type(frame)("0007", flipped, other.mapping, label_weight, frame.label, frame.image, None, True)
    assert_same_frame(found, expected)
    assert label_weight.any() and not label_weight.all()


def test_nyucad_names_the_folder_it_needs(tmp_path: Path) -> None:
    write_set(tmp_path, ["0000"])
    with pytest.raises(DataError, match="NYUCAD/train/TSDF_lr"):
        FrameFolder(tmp_path, dataset="nyucad", grid_shape=GRID)


def test_folders_without_a_set_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{tmp_path}: "):
        FrameFolder(tmp_path)
    with pytest.raises(DataError, match=f"{tmp_path}/absent: "):
        FrameFolder(tmp_path / "absent")
    with pytest.raises(DataError, match="dataset"):
        FrameFolder(tmp_path, dataset="kitti")  # type: ignore[arg-type]


def _with(value: float, dtype: type) -> np.ndarray:
    values = np.zeros(VOXELS, dtype=dtype)
    values[5] = value
    return values


def _truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


FILES = ("Label/0000.npz", "TSDF/0000.npz", "Mapping/0000.npz", "RGB/NYU0000_colors.png", "Seg2D/0000.png")
DAMAGE: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "cut": _truncate,
    "start of an archive": lambda path: path.write_bytes(b"PK\3\4 broken"),
    "web page": lambda path: path.write_text("<!DOCTYPE html><title>Log in</title>"),
}
ONES = np.ones(VOXELS, dtype=np.uint8)
BAD_ARRAYS: list[tuple[str, dict[str, np.ndarray]]] = [
    ("Mapping", {"arr_0": np.full(VOXELS, np.inf, np.float16), "arr_1": ONES}),  # a type that does not hold 307200
    ("Label", {"arr_0": np.zeros(VOXELS + 1), "arr_1": ONES}),
    ("TSDF", {"arr_0": np.zeros((3, 4, 4)), "arr_1": ONES}),
    ("Label", {"arr_0": _with(12, np.uint8), "arr_1": ONES}),
    ("Label", {"arr_0": _with(-1, np.int8), "arr_1": ONES}),
    ("Label", {"arr_0": _with(1.5, np.float32), "arr_1": ONES}),
    ("Mapping", {"arr_0": _with(NUM_PIXELS + 1, np.int64), "arr_1": ONES}),
    ("Mapping", {"arr_0": _with(-1, np.int32), "arr_1": ONES}),
    ("Mapping", {"arr_0": _with(0.25, np.float64), "arr_1": ONES}),
    ("TSDF", {"arr_0": _with(np.nan, np.float32), "arr_1": ONES}),
    ("TSDF", {"arr_0": _with(-1.01, np.float64), "arr_1": ONES}),
    ("TSDF", {"arr_0": _with(1, np.uint8), "arr_1": ONES}),
    ("Label", {"arr_1": np.zeros(VOXELS)}),
    ("TSDF", {"arr_0": np.zeros(VOXELS), "arr_1": _with(2, np.uint8)}),
]
BAD_IMAGES = [
    ("RGB/NYU0000_colors.png", np.zeros((240, 320, 3), np.uint8)),
    ("RGB/NYU0000_colors.png", np.zeros((480, 640), np.uint16)),
    ("Seg2D/0000.png", np.zeros((480, 640, 3), np.uint8)),
    ("Seg2D/0000.png", np.full((480, 640), 14, np.uint8)),
]


def _assert_refused(root: Path, name: str, change: Callable[[Path], object]) -> None:
    """A frame that can be read is refused after ``change``, with the file's name and what to do."""
    write_set(root, ["0000"], has_image=True, has_label_map=True)
    folder = FrameFolder(root, grid_shape=GRID)
    folder.read("0000")
    change(root / name)
    with pytest.raises(DataError, match=re.escape(str(root / name))) as caught:
        folder.read("0000")
    assert str(caught.value).endswith("from the list")


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_damaged_files_are_named(tmp_path: Path, name: str, kind: str) -> None:
    _assert_refused(tmp_path, name, DAMAGE[kind])


@pytest.mark.parametrize(("folder", "arrays"), BAD_ARRAYS)
def test_arrays_that_no_frame_has_are_named(tmp_path: Path, folder: str, arrays: dict[str, np.ndarray]) -> None:
    _assert_refused(tmp_path, f"{folder}/0000.npz", lambda path: write_npz(path, **arrays))


@pytest.mark.parametrize(("name", "pixels"), BAD_IMAGES)
def test_images_that_no_frame_has_are_named(tmp_path: Path, name: str, pixels: np.ndarray) -> None:
    _assert_refused(tmp_path, name, lambda path: write_image(path, pixels))


def test_lists(tmp_path: Path) -> None:
    write_set(tmp_path, ["0003"])
    (tmp_path / "train.txt").write_bytes(b"\xef\xbb\xbf0003\r\n\r\n  NYU0004 \nNYU0005_0000\n17\nkitchen-2\n\n")
    folder = FrameFolder(tmp_path, grid_shape=GRID)
    assert folder.frame_ids("train") == ["0003", "0004", "0005", "0017", "kitchen-2"]
    assert folder.has_split("train") and not folder.has_split("test")


@pytest.mark.parametrize("content", ["0003\n0004\nNYU0003\n", "\n\n", "0003\nRGB/NYU0003.png\n", "../0003\n"])
def test_broken_lists_are_named(tmp_path: Path, content: str) -> None:
    write_set(tmp_path, ["0003"])
    (tmp_path / "train.txt").write_text(content)
    with pytest.raises(DataError, match=re.escape(str(tmp_path / "train.txt"))):
        FrameFolder(tmp_path, grid_shape=GRID).frame_ids("train")


def test_absent_lists_are_named(tmp_path: Path) -> None:
    write_set(tmp_path, ["0003"])
    folder = FrameFolder(tmp_path, grid_shape=GRID)
    with pytest.raises(DataError, match=r"test\.txt"):
        folder.frame_ids("test")
    with pytest.raises(DataError, match="split"):
        folder.has_split("../train")


def _folder_of(tmp_path: Path, ids: list[str], validation: list[str] | None = None) -> FrameFolder:
    (tmp_path / "TSDF").mkdir()
    (tmp_path / "Mapping").mkdir()
    write_list(tmp_path / "train.txt", ids)
    if validation is not None:
        write_list(tmp_path / "val.txt", validation)
    return FrameFolder(tmp_path)


def test_validation_draw_never_changes(tmp_path: Path) -> None:
    ids = [f"{number:04d}" for number in range(20)]
    folder = _folder_of(tmp_path, ids)
    drawn = validation_ids(folder, split="train", count=5, seed=8332)
    assert drawn == ["0001", "0002", "0005", "0010", "0015"]
    assert training_ids(folder, split="train", count=5, seed=8332) == [name for name in ids if name not in drawn]
    assert validation_ids(folder, split="train", count=5, seed=8333) != drawn
    assert set(drawn) < set(validation_ids(folder, split="train", count=6, seed=8332))
    write_list(tmp_path / "train.txt", [f"NYU{name}_0000" for name in reversed(ids)])
    assert validation_ids(folder, split="train", count=5, seed=8332) == drawn


def test_validation_list_of_the_set(tmp_path: Path) -> None:
    folder = _folder_of(tmp_path, ["0001", "0002", "0003"], ["0003", "NYU0001"])
    assert validation_ids(folder, split="train", count=99, seed=0) == ["0003", "0001"]
    assert training_ids(folder, split="train", count=99, seed=0) == ["0002"]


def test_lists_named_val_something_are_held_out_too(tmp_path: Path) -> None:
    folder = _folder_of(tmp_path, ["0001", "0002", "0003", "0004"], ["0003"])
    write_list(tmp_path / "val_rooms.txt", ["0001", "0003"])
    write_list(tmp_path / "values.txt", ["0002"])
    assert training_ids(folder, split="train", count=99, seed=0) == ["0002", "0004"]
    assert validation_ids(folder, split="train", count=99, seed=0) == ["0003"]
    assert split_ids(folder, "val_rooms") == ["0001", "0003"]
    write_list(tmp_path / "val_rest.txt", ["0002", "0004"])
    with pytest.raises(DataError, match=r"train\.txt.*val_rest"):
        training_ids(folder, split="train", count=99, seed=0)


@pytest.mark.parametrize("count", [0, -1, 3, 100])
def test_validation_draw_must_leave_frames(tmp_path: Path, count: int) -> None:
    folder = _folder_of(tmp_path, ["0001", "0002", "0003"])
    with pytest.raises(DataError, match=r"train\.txt"):
        validation_ids(folder, split="train", count=count, seed=0)


@pytest.mark.parametrize("validation", [["0001", "0009"], ["0001", "0002", "0003"], ["0001", "0001"]])
def test_broken_validation_lists(tmp_path: Path, validation: list[str]) -> None:
    folder = _folder_of(tmp_path, ["0001", "0002", "0003"], validation)
    with pytest.raises(DataError, match=r"val\.txt"):
        training_ids(folder, split="train", count=1, seed=0)


def test_color_images_are_turned_as_exif_says(tmp_path: Path) -> None:
    (frame,) = write_set(tmp_path, ["0000"], has_image=True)
    assert frame.image is not None
    path = tmp_path / "RGB" / "NYU0000_colors.png"
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(np.ascontiguousarray(frame.image[::-1, ::-1])).save(path, exif=exif)
    found = FrameFolder(tmp_path, grid_shape=GRID).read("0000").image
    assert found is not None
    np.testing.assert_array_equal(found, frame.image)
    exif[0x0112] = 6
    Image.fromarray(frame.image).save(path, exif=exif)
    with pytest.raises(DataError, match="EXIF"):
        FrameFolder(tmp_path, grid_shape=GRID).read("0000")
