"""The check of a set, and its command."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from ammnet_sparse.cli.data_check import main
from ammnet_sparse.data.sets.check import check_set
from ammnet_sparse.data.sets.folder import FrameFolder
from ammnet_sparse.files.errors import DataError
from tests.data.frames import GRID, random_frame, write_frame, write_list, write_npz, write_set


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_clean_set(tmp_path: Path, workers: int) -> None:
    frames = write_set(tmp_path, ["0001", "0002", "0003"], has_label_map=True)
    write_list(tmp_path / "val.txt", ["0002"])
    report = check_set(FrameFolder(tmp_path, grid_shape=GRID), workers=workers, progress=False)
    assert report.is_clean and report.num_frames == 3
    report.raise_if_broken()
    assert sorted(report.statistics) == ["train", "val"]
    counts = report.statistics["train"]
    scored = [frame.label_weight & (frame.label != 255) for frame in frames]
    assert counts.scored.tolist() == [mask.sum() for mask in scored]
    assert counts.hit.tolist() == [(frame.mapping >= 0).sum() for frame in frames]
    labels = np.stack([frame.label for frame in frames if frame.label is not None])
    assert list(counts.classes.values()) == [(labels[np.stack(scored)] == label).sum() for label in range(12)]
    assert counts.occupied == ((labels > 0) & (labels < 12)).sum()
    assert report.statistics["val"].scored.tolist() == [scored[1].sum()]
    assert report.describe().endswith("3 frames checked, no problems")


def _broken_set(root: Path) -> FrameFolder:
    write_set(root, ["0001", "0002", "0003", "0004"], has_image=True)
    (root / "Mapping" / "0001.npz").unlink()
    (root / "RGB" / "NYU0001_colors.png").unlink()
    write_npz(root / "Label" / "0003.npz", arr_0=np.full(GRID, 77))
    (root / "TSDF" / "0003.npz").write_bytes(b"nothing")
    write_list(root / "train.txt", ["0001", "0002", "0003", "0004", "0002"])
    write_list(root / "val.txt", ["0002", "0005"])
    write_frame(root, random_frame(6, has_image=True))
    write_list(root / "test.txt", ["0006", "0004"])
    return FrameFolder(root, grid_shape=GRID)


def test_every_problem_is_reported_by_frame(tmp_path: Path) -> None:
    report = check_set(_broken_set(tmp_path), ["train", "test"], progress=False)
    expected = [
        ("0002", "train.txt: is listed 2 times; keep one"),
        ("0005", "val.txt: is not in train.txt; correct one of the lists"),
        ("0004", "test.txt: is in train.txt too; take it out of one"),
        ("0001", "Mapping/0001.npz: expected a file, found none; "),
        ("0001", "RGB/NYU0001_colors.png: expected a file, found none; "),
        ("0003", "TSDF/0003.npz: expected a readable npz file, found "),
        ("0003", "Label/0003.npz: label: expected classes 0..11 or 255, found 48 other values (77); "),
    ]
    assert len(report.problems) == len(expected)
    for problem, (frame_id, message) in zip(report.problems, expected, strict=True):
        assert problem.frame_id == frame_id
        assert problem.message.startswith(f"{tmp_path}/{message}")
    assert report.num_frames == 5
    assert (report.statistics["train"].num_listed, report.statistics["train"].num_read) == (4, 2)
    assert report.describe().count("\n  ") >= 7
    with pytest.raises(DataError, match="7 problems") as caught:
        report.raise_if_broken(limit=3)
    assert "and 4 more, of 0001, 0003" in str(caught.value)


def test_quick_check_names_missing_files_and_opens_none(tmp_path: Path) -> None:
    report = check_set(_broken_set(tmp_path), ["train"], quick=True, progress=False)
    messages = [str(problem) for problem in report.problems]
    advice = "add it, or remove the frame from the list"
    assert [message for message in messages if "expected a file" in message] == [
        f"0001: {tmp_path}/{name}: expected a file, found none; {advice}"
        for name in ("Mapping/0001.npz", "RGB/NYU0001_colors.png")
    ]
    assert not any("0003" in message for message in messages)
    assert report.statistics == {}


def test_broken_list_is_a_problem_and_a_missing_one_an_error(tmp_path: Path) -> None:
    write_set(tmp_path, ["0001"])
    (tmp_path / "val.txt").write_text("0001 0002\n")
    folder = FrameFolder(tmp_path, grid_shape=GRID)
    (problem,) = check_set(folder, ["train"], progress=False).problems
    assert problem.frame_id == "" and "val.txt, line 1" in str(problem)
    with pytest.raises(DataError, match=r"test\.txt"):
        check_set(folder, ["test"], progress=False)
    (tmp_path / "train.txt").unlink()
    (tmp_path / "val.txt").unlink()
    with pytest.raises(DataError, match=r"train\.txt"):
        check_set(folder, progress=False)


def test_frames_without_hits_do_not_stop_a_training(tmp_path: Path) -> None:
    frames = write_set(tmp_path, ["0001", "0002"])
    empty = dataclasses.replace(frames[1], mapping=np.full(GRID, -1, dtype=np.int32))
    write_frame(tmp_path, dataclasses.replace(empty, label_weight=np.zeros(GRID, dtype=np.bool_)))
    report = check_set(FrameFolder(tmp_path, grid_shape=GRID), progress=False)
    assert not report.is_clean and [problem.frame_id for problem in report.problems] == ["0002", "0002"]
    assert "a pixel hits" in report.describe()
    assert "scored voxel" in report.describe()
    report.raise_if_broken()


def test_another_convention_produces_a_warning(tmp_path: Path) -> None:
    frame = random_frame(1, grid_shape=(60, 36, 60))
    write_frame(tmp_path, dataclasses.replace(frame, tsdf=np.full((60, 36, 60), 0.9, dtype=np.float32)))
    write_list(tmp_path / "train.txt", ["0001"])
    report = check_set(FrameFolder(tmp_path), progress=False)
    assert not report.is_clean and "flipped TSDF" in report.describe()
    with pytest.warns(UserWarning, match="flipped TSDF"):
        report.raise_if_broken()


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_frame(tmp_path, random_frame(1, grid_shape=(60, 36, 60)))
    write_list(tmp_path / "train.txt", ["0001"])
    (tmp_path / "Label" / "0001.npz").unlink()
    for arguments in ([], ["--quick"], ["--split", "train", "--workers", "1"]):
        assert main([str(tmp_path), *arguments]) == 1
        printed = capsys.readouterr().out
        assert "1 problem, 1 of 1 frames affected" in printed and "0001: " in printed
    assert main([str(tmp_path), "--split", "test"]) == 2
    assert "test.txt" in capsys.readouterr().err
    assert main([str(tmp_path), "--dataset", "nyucad"]) == 2
