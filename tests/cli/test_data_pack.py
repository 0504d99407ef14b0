"""`ammnet data pack` as people use it, and the commands that then read its file instead of the folder."""

from pathlib import Path

import pytest

from ammnet_sparse.cli import data_check, data_pack
from ammnet_sparse.data.grid import GRID_SHAPE
from ammnet_sparse.data.sets.folder import FrameFolder
from ammnet_sparse.data.sets.packed import PackedFrames
from tests.data.frames import assert_same_frame, random_frame, write_frame, write_list

IDS = ["0001", "0002", "0003"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("set")
    for seed, frame_id in enumerate(IDS):
        frame = random_frame(seed, frame_id=frame_id, grid_shape=GRID_SHAPE, has_label_map=True, has_image=seed == 0)
        write_frame(root, frame)
    write_list(root / "train.txt", IDS[:2])
    write_list(root / "test.txt", IDS[2:])
    return root


@pytest.fixture(scope="module")
def packed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "set.safetensors"
    assert data_pack.main(["--data", str(root), "--out", str(out), "--workers", "2"]) == 0
    return out


def test_options(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "packed"
    assert data_pack.main(["--data", str(root), "--out", str(out), "--splits", "test", "--no-label-maps"]) == 0
    frames = PackedFrames(out)
    assert frames.header.lists == {"test": ["0003"]} and not frames.reads_label_map
    (root / "one.txt").write_text("1\n")
    again = ["--data", str(root), "--out", str(out), "--splits", "one", "--images", "--overwrite", "--tsdf", "float16"]
    assert data_pack.main(again) == 0
    assert_same_frame(PackedFrames(out).read("0001"), FrameFolder(root).read("0001"))
    before = out.read_bytes()
    assert data_pack.main(["--data", str(out), "--out", str(out), "--splits", "one", "--overwrite"]) == 2
    assert f"--out {out}" in capsys.readouterr().err
    assert out.read_bytes() == before
    (root / "one.txt").unlink()


def test_broken_frames_end_with_1(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Frames 0002 and 0003 have no image.
    assert data_pack.main(["--data", str(root), "--out", str(tmp_path / "packed"), "--images"]) == 1
    error = capsys.readouterr().err
    assert "0002: " in error and "0003: " in error and "2 of 3 frames" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("more", "named"), [(["--splits", "val"], "val.txt"), (["--workers", "-1"], "--workers: ")])
def test_wrong_usage_ends_with_2(
    root: Path, tmp_path: Path, more: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = data_pack.main(["--data", str(root), "--out", str(tmp_path / "packed"), *more])
    except SystemExit as error:
        code = error.code  # type: ignore[assignment]
    assert code == 2 and named in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_check_data_reads_packed_sets(root: Path, packed: Path, tmp_path: Path, capsys) -> None:
    assert data_check.main([str(packed)]) == 0
    counts = capsys.readouterr().out
    assert "3 frames checked, no problems" in counts
    assert data_check.main([str(root)]) == 1  # images are missing; the counts are of the frame that has one
    assert counts.splitlines()[0] != capsys.readouterr().out.splitlines()[0]
    damaged = tmp_path / "damaged"
    content = bytearray(packed.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    assert data_check.main([str(damaged)]) == 1
    assert "0003: " in capsys.readouterr().out
    damaged.write_bytes(content[:-1])
    assert data_check.main([str(damaged)]) == 2
    assert "damaged" in capsys.readouterr().err
