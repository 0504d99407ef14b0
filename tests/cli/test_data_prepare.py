"""`ammnet data prepare`: says the intrinsics aloud, names what it skips, and its exit codes."""

from pathlib import Path

import pytest

from ammnet_sparse.cli import data_prepare
from ammnet_sparse.data.sets.folder import FrameFolder
from tests.data.raw.raw_files import write_raw_frame


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw") / "NYUtest"
    write_raw_frame(folder, "0008")
    return folder


def arguments(raw: Path, out: Path, *more: str) -> list[str]:
    return ["--raw", str(raw), "--out", str(out), "--workers", "1", *more]


def test_prepares_and_says_how(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = arguments(raw, tmp_path / "out", "--intrinsics", "nyucad", "--flipped", "--split", "train")
    assert data_prepare.main(given) == 0
    printed = capsys.readouterr().out
    assert "fx 518.8579, fy 518.8579, cx 320.0, cy 240.0" in printed and "TSDF: flipped" in printed
    assert "1 frames written" in printed and "skipped" not in printed
    folder = FrameFolder(tmp_path / "out", dataset="nyucad")
    assert folder.frame_ids("train") == ["0008"] and folder.read("0008").tsdf_is_flipped
    assert data_prepare.main(given) == 0
    assert "1 complete before" in capsys.readouterr().out


def test_skipped_files_are_named_and_counted(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    for name in ("NYU0008_0000.png", "NYU0008_0000.bin"):
        (folder / name).symlink_to(raw / name)
    (folder / "NYU0009_0000.png").touch()
    (folder / "NYU0009_0000.bin").touch()
    assert data_prepare.main(arguments(folder, tmp_path / "out", "--intrinsics", "nyu")) == 1
    printed = capsys.readouterr().out
    assert "NYU0009_0000.png" in printed and "1 frames written" in printed and "1 problems" in printed


def test_wrong_usage(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert data_prepare.main(arguments(tmp_path / "none", tmp_path / "out", "--intrinsics", "nyu")) == 2
    assert "none" in capsys.readouterr().err
    for more in ((), ("--intrinsics", "kinect"), ("--intrinsics", "nyu", "--workers", "0")):
        with pytest.raises(SystemExit) as stopped:
            data_prepare.main([*arguments(raw, tmp_path / "out"), *more])
        assert stopped.value.code == 2
    assert "--workers: " in capsys.readouterr().err
