"""Layouts of other repositories: names, splits from folders, files without a label weight."""

from pathlib import Path

import numpy as np
import pytest

from ammnet_sparse.data.sets.check import check_set
from ammnet_sparse.data.sets.folder import FrameFolder
from tests.data.frames import GRID, assert_same_frame, random_frame, write_frame, write_list, write_npz, write_set


@pytest.mark.parametrize("image_name", ["R/NYU{}_colors.png", "R/NYU{}_rgb.png", "R/{}.png", "RGB/NYU{}.png"])
def test_layout_of_cvsformers_repository(tmp_path: Path, image_name: str) -> None:
    frame = random_frame(1, has_image=True, has_label_map=True)
    write_frame(tmp_path, frame, image_name=image_name, label_map_folder="seg_result_label13")
    (tmp_path / "Label").rename(tmp_path / "L")
    (tmp_path / "TSDF").rename(tmp_path / "T")
    write_list(tmp_path / "train.txt", ["0001"])
    folder = FrameFolder(tmp_path, grid_shape=GRID)
    assert folder.has_labels and folder.reads_image and folder.reads_label_map
    assert_same_frame(folder.read("0001"), frame)


@pytest.mark.parametrize("halves", [("train", "test"), ("trainset", "testset")])
def test_splits_of_ammnets_repository_come_from_its_folders(tmp_path: Path, halves: tuple[str, str]) -> None:
    root = tmp_path / "NYU"
    frames = [random_frame(number, has_image=True, has_label_map=True) for number in (1, 2, 3)]
    for frame, half in zip(frames, (halves[0], halves[0], halves[1]), strict=True):
        write_frame(root, frame, image_name=half + "/RGB/NYU{}_rgb.png")
    for place in (tmp_path, root):
        folder = FrameFolder(place, grid_shape=GRID)
        assert folder.frame_ids("train") == ["0001", "0002"] and folder.frame_ids("test") == ["0003"]
        assert not folder.has_split("val")
        assert_same_frame(folder.read("0003"), frames[2])
        assert check_set(folder, progress=False).is_clean
    write_list(root / "train.txt", ["0003"])
    assert FrameFolder(root, grid_shape=GRID).frame_ids("train") == ["0003"]


def test_a_missing_label_weight_is_computed_and_reported_once(tmp_path: Path) -> None:
    frames = write_set(tmp_path, ["0001", "0002"])
    for frame in frames:
        write_npz(tmp_path / "TSDF" / f"{frame.frame_id}.npz", arr_0=frame.tsdf)
    folder = FrameFolder(tmp_path, grid_shape=GRID)
    with pytest.warns(UserWarning, match="label weight") as caught:
        found = [folder.read(frame.frame_id) for frame in frames]
    assert len(caught) == 1
    for read, frame in zip(found, frames, strict=True):
        assert frame.label is not None and read.label_weight_is_computed
        occupied = (frame.label > 0) & (frame.label < 255)
        np.testing.assert_array_equal(read.label_weight, occupied | (frame.tsdf < -0.5))
    report = check_set(FrameFolder(tmp_path, grid_shape=GRID), progress=False)
    assert report.is_clean and report.describe().count("have no label weight") == 1
