"""`ammnet data pack` as people use it, and the commands that then read its file instead of the folder."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ammnet_sparse.cli import data_check, data_pack
from ammnet_sparse.data.grid import GRID_SHAPE
from ammnet_sparse.data.sets.folder import FrameFolder
from ammnet_sparse.data.sets.packed import PackedFrames
from tests.data.frames import assert_same_frame, random_frame, write_frame, write_list

IDS = ["0001", "0002", "0003"]
Tool = Callable[[list[str]], int]


@pytest.fixture(scope="module")
def pack() -> Tool:
    return data_pack.main


@pytest.fixture(scope="module")
def check() -> Tool:
    return data_check.main


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
def packed(root: Path, pack: Tool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "set.safetensors"
    assert pack(["--data", str(root), "--out", str(out), "--workers", "2"]) == 0
    return out


def test_packs_and_says_what(pack: Tool, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "packed"
    assert pack(["--data", str(root), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"{out}: 3 frames (train 2, test 1), {out.stat().st_size / 1e6:.1f} MB" in said
    assert "tsdf          float16        259,200" in said and "\n  image" not in said
    assert said.endswith("color images of the set left out; --images packs them\n")
    assert "TSDF exactly as in the files; every frame was read back and compared" in said
    frames, folder = PackedFrames(out), FrameFolder(root, read_image=False)
    for frame_id in IDS:
        assert_same_frame(frames.read(frame_id), folder.read(frame_id))


def test_options(pack: Tool, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "packed"
    assert pack(["--data", str(root), "--out", str(out), "--splits", "test", "--no-label-maps"]) == 0
    frames = PackedFrames(out)
    assert frames.header.lists == {"test": ["0003"]} and not frames.reads_label_map
    (root / "one.txt").write_text("1\n")
    again = ["--data", str(root), "--out", str(out), "--splits", "one", "--images", "--overwrite", "--tsdf", "float16"]
    assert pack(again) == 0
    assert_same_frame(PackedFrames(out).read("0001"), FrameFolder(root).read("0001"))
    before = out.read_bytes()
    assert pack(["--data", str(out), "--out", str(out), "--splits", "one", "--overwrite"]) == 2
    assert "expected another file than the set to pack, found the set itself" in capsys.readouterr().err
    assert out.read_bytes() == before
    (root / "one.txt").unlink()


def test_broken_frames_end_with_1(pack: Tool, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Frames 0002 and 0003 have no image.
    assert pack(["--data", str(root), "--out", str(tmp_path / "packed"), "--images"]) == 1
    error = capsys.readouterr().err
    assert "2 problems, 2 of 3 frames affected" in error
    assert "0002: " in error and "0003: " in error and "expected a file, found none" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--splits", "val"], "expected a list of frame ids val.txt"),
        (["--dataset", "nyucad"], "expected NYUCAD/train/TSDF_lr"),
        (["--data", "absent"], "absent: expected the folder of a set, found nothing"),
        (["--out", "absent/packed"], "--out: expected a folder absent, found none; make it first"),
        (["--workers", "-1"], "--workers: expected a whole number of at least 0, found '-1'"),
    ],
)
def test_wrong_usage_ends_with_2(
    pack: Tool, root: Path, tmp_path: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = pack(["--data", str(root), "--out", str(tmp_path / "packed"), *more])
    except SystemExit as error:
        code = error.code  # type: ignore[assignment]
    assert code == 2 and message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_existing_file_stays(pack: Tool, root: Path, packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = packed.read_bytes()
    assert pack(["--data", str(root), "--out", str(packed)]) == 2
    assert "expected no file yet, found one" in capsys.readouterr().err
    assert packed.read_bytes() == before


def test_check_data_reads_packed_sets(check: Tool, root: Path, packed: Path, tmp_path: Path, capsys) -> None:
    assert check([str(packed)]) == 0
    counts = capsys.readouterr().out
    assert "3 frames checked, no problems" in counts
    assert check([str(root)]) == 1  # images are missing; the counts are of the frame that has one
    assert counts.splitlines()[0] != capsys.readouterr().out.splitlines()[0]
    damaged = tmp_path / "damaged"
    content = bytearray(packed.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    assert check([str(damaged)]) == 1
    assert "0003: " in capsys.readouterr().out
    damaged.write_bytes(content[:-1])
    assert check([str(damaged)]) == 2
    assert "expected a packed set, found a damaged or truncated file" in capsys.readouterr().err
