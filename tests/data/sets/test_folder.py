"""The reader of the published layout: spellings, types, lists, the validation draw, and every error by name."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.grid import GRID_SHAPE, NUM_PIXELS
from ammnet_sparse.data.sets.files import DataError
from ammnet_sparse.data.sets.folder import FrameFolder
from ammnet_sparse.data.sets.splits import training_ids, validation_ids
from ammnet_sparse.data.volumes.tsdf import flip_tsdf
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


@pytest.mark.parametrize("label_type", [np.uint8, np.int16, np.uint16, np.int64, np.float32, np.float64])
@pytest.mark.parametrize("mapping_type", [np.int32, np.uint32, np.int64, np.float32, np.float64])
def test_any_number_type(tmp_path: Path, label_type: type, mapping_type: type) -> None:
    frame = random_frame(3)
    write_frame(tmp_path, frame, label_type=label_type, mapping_type=mapping_type)
    assert_same_frame(FrameFolder(tmp_path, grid_shape=GRID).read("0003"), frame)


@pytest.mark.parametrize("tsdf_type", [np.float16, np.float32, np.float64])
def test_any_float_type(tmp_path: Path, tsdf_type: type) -> None:
    frame = random_frame(3)
    write_frame(tmp_path, frame, tsdf_type=tsdf_type)
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


def test_frames_may_mix_jpg_and_png(tmp_path: Path) -> None:
    frames = [random_frame(seed, has_image=True) for seed in range(2)]
    write_frame(tmp_path, frames[0])
    write_frame(tmp_path, frames[1], image_name="RGB/NYU{}_colors.jpg")
    folder = FrameFolder(tmp_path, grid_shape=GRID)
    assert_same_frame(folder.read("0000"), frames[0])
    image = folder.read("0001").image
    assert image is not None and image.shape == (480, 640, 3) and image.dtype == np.uint8


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
    with pytest.raises(DataError, match=r"read_label_map: expected one of the folders .*Seg2D.*found none"):
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
    with pytest.raises(DataError, match=r"expected NYUCAD/train/TSDF_lr .* found Label, Mapping, TSDF, train\.txt"):
        FrameFolder(tmp_path, dataset="nyucad", grid_shape=GRID)


def test_roots_that_are_no_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected the folders TSDF and Mapping there or in NYU, found nothing"):
        FrameFolder(tmp_path)
    with pytest.raises(DataError, match="expected the folder of a set, found nothing; check the path"):
        FrameFolder(tmp_path / "absent")
    with pytest.raises(DataError, match="dataset: expected 'nyu' or 'nyucad', found 'kitti'"):
        FrameFolder(tmp_path, dataset="kitti")  # type: ignore[arg-type]


def _array(name: str, values: np.ndarray) -> Callable[[Path], None]:
    return lambda root: write_npz(root / name, arr_0=values, arr_1=np.zeros(VOXELS, dtype=np.uint8))


def _with(value: float, dtype: type) -> np.ndarray:
    values = np.zeros(VOXELS, dtype=dtype)
    values[5] = value
    return values


BROKEN = [
    (lambda root: (root / "Label/0000.npz").unlink(), r"Label/0000\.npz: expected a file, found none"),
    (lambda root: (root / "TSDF/0000.npz").unlink(), r"TSDF/0000\.npz: expected a file, found none"),
    (lambda root: (root / "Mapping/0000.npz").unlink(), r"Mapping/0000\.npz: expected a file, found none"),
    (lambda root: (root / "RGB/NYU0000_colors.png").unlink(), r"RGB/NYU0000_colors\.png: expected a file, found none"),
    (lambda root: (root / "Seg2D/0000.png").unlink(), r"Seg2D/0000\.png: expected a file, found none"),
    (lambda root: (root / "Label/0000.npz").write_bytes(b""), r"Label/0000\.npz: expected a readable npz file"),
    (lambda root: (root / "TSDF/0000.npz").write_bytes(b"PK\3\4 broken"), r"TSDF/0000\.npz: expected a readable npz"),
    (lambda root: _truncate(root / "Mapping/0000.npz"), r"Mapping/0000\.npz: expected a readable npz file"),
    (lambda root: _truncate(root / "RGB/NYU0000_colors.png"), r"NYU0000_colors\.png: expected a readable png or jpg"),
    (lambda root: (root / "Seg2D/0000.png").write_text("no image"), r"Seg2D/0000\.png: expected a readable png"),
    (
        lambda root: write_npz(root / "Label/0000.npz", arr_1=np.zeros(VOXELS)),
        r"an array named 'arr_0', found \['arr_1'\]",
    ),
    (
        _array("Mapping/0000.npz", np.full(VOXELS, np.inf, np.float16)),
        r"mapping: expected a type that holds 307200 exactly, such as int32, found float16",
    ),
    (
        lambda root: (root / "TSDF/0000.npz").write_text("<!DOCTYPE html><title>Log in</title>"),
        r"expected a readable npz file, found an HTML page .* download the file itself, or remove",
    ),
    (_array("Label/0000.npz", np.zeros(VOXELS + 1)), r"Label/0000\.npz: arr_0: expected 48 voxels .* shape \[49\]"),
    (_array("TSDF/0000.npz", np.zeros((3, 4, 4))), r"TSDF/0000\.npz: arr_0: expected 48 voxels .* \[3, 4, 4\]"),
    (
        _array("Label/0000.npz", _with(12, np.uint8)),
        r"label: expected classes 0\.\.11 or 255, found 1 other values \(12\)",
    ),
    (_array("Label/0000.npz", _with(-1, np.int8)), r"label: expected classes 0\.\.11 or 255, found 1 .*\(-1\)"),
    (_array("Label/0000.npz", _with(1.5, np.float32)), r"label: expected whole numbers, found 1 other values \(1\.5\)"),
    (_array("Label/0000.npz", _with(np.nan, np.float32)), r"Label/0000\.npz: label: expected whole numbers, .*\(nan\)"),
    (
        _array("Mapping/0000.npz", _with(NUM_PIXELS + 1, np.int64)),
        r"mapping: expected pixels 0\.\.307199, .*\(307201\)",
    ),
    (_array("Mapping/0000.npz", _with(-1, np.int32)), r"Mapping/0000\.npz: mapping: expected pixels .*\(-1\)"),
    (_array("Mapping/0000.npz", _with(0.25, np.float64)), r"mapping: expected whole numbers, .*\(0\.25\)"),
    (
        _array("TSDF/0000.npz", _with(np.nan, np.float32)),
        r"TSDF/0000\.npz: TSDF: expected finite floats in -1\.\.1, .*nan",
    ),
    (_array("TSDF/0000.npz", _with(np.inf, np.float32)), r"TSDF: expected finite floats in -1\.\.1, .*inf"),
    (_array("TSDF/0000.npz", _with(-1.01, np.float64)), r"TSDF: expected finite floats in -1\.\.1, .*-1\.0"),
    (_array("TSDF/0000.npz", _with(1, np.uint8)), r"TSDF: expected floats in -1\.\.1, found uint8"),
    (
        lambda root: write_npz(root / "TSDF/0000.npz", arr_0=np.zeros(VOXELS), arr_1=_with(2, np.uint8)),
        r"TSDF/0000\.npz: label weight: expected 0 or 1, found 1 other values \(2\)",
    ),
    (
        lambda root: write_image(root / "RGB/NYU0000_colors.png", np.zeros((240, 320, 3), np.uint8)),
        r"NYU0000_colors\.png: expected 480 rows and 640 columns, found shape \[240, 320, 3\]",
    ),
    (
        lambda root: write_image(root / "RGB/NYU0000_colors.png", np.zeros((480, 640), np.uint16)),
        r"NYU0000_colors\.png: expected an 8-bit color image, found Pillow mode 'I;16'",
    ),
    (
        lambda root: write_image(root / "Seg2D/0000.png", np.zeros((480, 640, 3), np.uint8)),
        r"Seg2D/0000\.png: expected .* one channel of class numbers, found shape \[480, 640, 3\]",
    ),
    (
        lambda root: write_image(root / "Seg2D/0000.png", np.full((480, 640), 14, np.uint8)),
        r"Seg2D/0000\.png: label map: expected classes 0\.\.13, found 307200 other values \(14\)",
    ),
]


def _truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(("break_it", "message"), BROKEN, ids=[message[:40] for _, message in BROKEN])
def test_broken_files_are_named(tmp_path: Path, break_it: Callable[[Path], object], message: str) -> None:
    write_set(tmp_path, ["0000"], has_image=True, has_label_map=True)
    folder = FrameFolder(tmp_path, grid_shape=GRID)
    folder.read("0000")
    break_it(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        folder.read("0000")
    assert "0000" in str(caught.value) and str(caught.value).endswith("from the list")


def test_real_grid_is_the_default(tmp_path: Path) -> None:
    frame = random_frame(0, grid_shape=GRID_SHAPE)
    write_frame(tmp_path, frame)
    assert_same_frame(FrameFolder(tmp_path).read("0000"), frame)
    batch = Batch.from_frames(tmp_path, ["0000", "NYU0000"])
    assert batch.frame_ids == ("0000", "0000") and batch.grid_shape == GRID_SHAPE


def test_lists(tmp_path: Path) -> None:
    write_set(tmp_path, ["0003"])
    (tmp_path / "train.txt").write_bytes(b"\xef\xbb\xbf0003\r\n\r\n  NYU0004 \nNYU0005_0000\n17\nkitchen-2\n\n")
    folder = FrameFolder(tmp_path, grid_shape=GRID)
    assert folder.frame_ids("train") == ["0003", "0004", "0005", "0017", "kitchen-2"]
    assert folder.has_split("train") and not folder.has_split("test")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("0003\n0004\nNYU0003\n", "expected every frame once, found 0003 more than once"),
        ("\n\n", "expected frame ids, one per line, found an empty list"),
        ("0003\nRGB/NYU0003.png\n", r"train\.txt, line 2: expected a frame id .* found 'RGB/NYU0003\.png'"),
        ("../0003\n", r"line 1: expected a frame id .* found '\.\./0003'"),
    ],
)
def test_broken_lists_are_named(tmp_path: Path, content: str, message: str) -> None:
    write_set(tmp_path, ["0003"])
    (tmp_path / "train.txt").write_text(content)
    with pytest.raises(DataError, match=re.escape(str(tmp_path)) + ".*" + message):
        FrameFolder(tmp_path, grid_shape=GRID).frame_ids("train")


def test_absent_lists_are_named(tmp_path: Path) -> None:
    write_set(tmp_path, ["0003"])
    folder = FrameFolder(tmp_path, grid_shape=GRID)
    with pytest.raises(DataError, match=r"expected a list of frame ids test\.txt, found lists \['train'\]"):
        folder.frame_ids("test")
    with pytest.raises(DataError, match="split: expected the name of a list"):
        folder.has_split("../train")


def _folder_of(tmp_path: Path, ids: list[str], validation: list[str] | None = None) -> FrameFolder:
    (tmp_path / "TSDF").mkdir()
    (tmp_path / "Mapping").mkdir()
    write_list(tmp_path / "train.txt", ids)
    if validation is not None:
        write_list(tmp_path / "val.txt", validation)
    return FrameFolder(tmp_path)


def test_validation_draw_is_the_same_for_ever(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("count", [0, -1, 3, 100])
def test_validation_draw_must_leave_frames(tmp_path: Path, count: int) -> None:
    folder = _folder_of(tmp_path, ["0001", "0002", "0003"])
    with pytest.raises(DataError, match=rf"expected 1\.\.2 of the 3 frames of .*train\.txt, found {count}; "):
        validation_ids(folder, split="train", count=count, seed=0)


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        (["0001", "0009"], r"val\.txt: expected frames of train\.txt, found 0009 that are not in it"),
        (["0001", "0002", "0003"], r"val\.txt: expected fewer frames than train\.txt, found all 3"),
        (["0001", "0001"], r"val\.txt: expected every frame once, found 0001 more than once"),
    ],
)
def test_broken_validation_lists(tmp_path: Path, validation: list[str], message: str) -> None:
    folder = _folder_of(tmp_path, ["0001", "0002", "0003"], validation)
    with pytest.raises(DataError, match=message):
        training_ids(folder, split="train", count=1, seed=0)


def test_real_frame_is_the_reference(nyu_folder: Path) -> None:
    frame = FrameFolder(nyu_folder).read("0003")
    with np.load(nyu_folder.parent / "raw" / "NYU0003_reference.npz", allow_pickle=False) as reference:
        assert frame.label is not None
        np.testing.assert_array_equal(frame.label.reshape(-1), reference["label"])
        np.testing.assert_array_equal(frame.label_weight.reshape(-1), reference["label_weight"] > 0)
        mapping = np.where(reference["mapping"] == NUM_PIXELS, -1, reference["mapping"])
        np.testing.assert_array_equal(frame.mapping.reshape(-1), mapping)
        np.testing.assert_allclose(frame.tsdf.reshape(-1), reference["tsdf"], atol=2.5e-4)
    assert frame.image is not None and frame.label_map is not None


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
    with pytest.raises(DataError, match=r"found shape \[640, 480, 3\], turned as its EXIF orientation says"):
        FrameFolder(tmp_path, grid_shape=GRID).read("0000")
