"""``ammnet live`` on folders, without the page."""

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ammnet_sparse.cli import live, predict
from ammnet_sparse.data.synthetic.raycast import camera_pose
from ammnet_sparse.live import folder
from ammnet_sparse.pictures.room_files import ROOM_FILES
from tests.completion import INTRINSICS, room_depth, small_weights

Tool = Callable[..., int]


@pytest.fixture
def run(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tool:
    monkeypatch.setattr(folder, "SETTLE_SECONDS", 0.2)
    numbers = ",".join(map(str, INTRINSICS))
    given = ["--source", str(tmp_path), "--intrinsics", numbers, "--no-viewer", "--device", "cpu", "--idle", "0.5"]
    return lambda *more: live.main([*given, "--checkpoint", str(weights), *more])


def test_frames_of_a_folder_are_completed(run: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    iio.imwrite(tmp_path / "7.png", np.round(1000 * room_depth()).astype(np.uint16))
    (tmp_path / "8.png").write_bytes(b"broken")
    assert run("--depth-only", "--out", str(tmp_path / "out")) == 0
    printed = capsys.readouterr()
    assert re.search(r"^7: \d+% of the depth in the grid; ms: ", printed.out, re.MULTILINE)
    assert "1 frame completed, 1 skipped" in printed.out and "frame 8: " in printed.err
    assert (tmp_path / "out" / "7.npz").is_file()


def test_frames_with_poses_become_a_map(run: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """But those without one are skipped, and those of a camera at rest are completed only."""
    (tmp_path / "in").mkdir()
    depth = np.round(1000 * room_depth()).astype(np.uint16)

    def write() -> None:
        for name, x in (("1", 0.0), ("2", None), ("3", 0.3), ("4", 0.32), ("5", 0.6)):
            iio.imwrite(tmp_path / "in" / f"{name}.depth.png", depth)
            if x is not None:
                pose = camera_pose(1.4, yaw=0.0, pitch=-np.radians(20.0), roll=0.0)  # that of ``room_depth``
                pose[0, 3] = x
                np.savetxt(tmp_path / "in" / f"{name}.pose.txt", pose)
                wait_for(tmp_path / "out" / f"{name}.npz")

    writer = threading.Thread(target=write)
    writer.start()
    given = ["--source", str(tmp_path / "in"), "--map", "--depth-only", "--out", str(tmp_path / "out")]
    code = run(*given, "--map-resolution", "0.05", "--frames", "4", "--idle", "60")
    writer.join()
    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert "2.depth.png: has no partner: no pose" in printed.err and "3 frames in the map" in printed.out
    files = {*ROOM_FILES, "state.npz", *(f"{name}.npz" for name in "1345")}
    assert {path.name for path in (tmp_path / "out").iterdir()} == files
    assert "resolution: 0.05" in (tmp_path / "out" / "map.yaml").read_text()
    with np.load(tmp_path / "out" / "room.npz", allow_pickle=False) as file:
        assert file["names"].tolist() == ["1", "3", "5"]
        steps = np.linalg.norm(np.diff(file["poses"][:, :3, 3], axis=0), axis=1)
        assert steps == pytest.approx([0.3, 0.3], abs=1e-6)
    (tmp_path / "out" / "room.npz").unlink()
    assert run(*given) == 2
    assert "--out" in capsys.readouterr().err


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)


def test_the_watched_folder_is_not_written_to(run: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place in (tmp_path, tmp_path / "depth"):
        assert run("--depth-only", "--out", str(place)) == 2
        assert "--source" in capsys.readouterr().err


def test_an_odd_name_does_not_end_the_stream(run: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    iio.imwrite(tmp_path / "a.png", np.round(1000 * room_depth()).astype(np.uint16))
    (tmp_path / "a.png").rename(tmp_path / "a\\b.png")
    assert run("--depth-only", "--out", str(tmp_path / "out")) == 0, capsys.readouterr().err
    assert (tmp_path / "out" / "a\\b.npz").is_file()


@pytest.mark.parametrize("length", [244, 245, 251])
def test_a_name_too_long_for_a_file_skips_that_frame_alone(
    run: Tool, tmp_path: Path, length: int, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    for name in ("7", "8" * length):  # the last one is the newest
        iio.imwrite(tmp_path / "in" / f"{name}.png", np.round(1000 * room_depth()).astype(np.uint16))
        time.sleep(0.02)
    fits = length + len("_points.ply") <= 255
    given = ["--depth-only", "--ply", "--source", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    assert run(*given) == (0 if fits else 1)
    assert ("skipped: frame 8888" in capsys.readouterr().err) != fits
    weights = ["--checkpoint", str(small_weights(tmp_path)), "--device", "cpu"]
    given = ["--depth", str(tmp_path / "in"), "--intrinsics", ",".join(map(str, INTRINSICS)), "--ply", *weights]
    assert predict.main([*given, "--out", str(tmp_path / "all")]) == (0 if fits else 1)
    assert ("skipped: frame 8888" in capsys.readouterr().err) != fits
    assert len(list((tmp_path / "all").iterdir())) == (8 if fits else 4)


def test_a_folder_without_a_frame_says_why(run: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    iio.imwrite(tmp_path / "7.depth.png", np.round(1000 * room_depth()).astype(np.uint16))
    assert run() == 1
    printed = capsys.readouterr()
    assert "note: color image" in printed.err and "expected color images" in printed.err


def test_what_the_weights_need_is_asked_for_at_the_start(
    run: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--depth-only", "--checkpoint", "nyu_seg2d_w64") == 2
    printed = capsys.readouterr()
    assert "label map" in printed.err and "nyu_depth_w64" in printed.err
    assert "Ready" not in printed.out


def upright_images() -> tuple[NDArray[np.uint8], NDArray[np.uint16], NDArray[np.uint8]]:
    """Color, depth in millimeters, and a label map of four classes."""
    rows, columns = np.mgrid[:480, :640]
    color = np.stack([rows * 255 // 479, columns * 255 // 639, rows * 0 + 128], axis=2).astype(np.uint8)
    label_map = (1 + 3 * (rows > 240) + 5 * (columns > 320)).astype(np.uint8)
    return color, np.round(1000 * room_depth()).astype(np.uint16), label_map


def write_lying(root: Path) -> list[str]:
    """Everything stored on its side, as EXIF of the color image says."""
    color, depth, label_map = (np.ascontiguousarray(np.rot90(image)) for image in upright_images())
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(color).save(root / "color" / "7.jpg", exif=exif)
    iio.imwrite(root / "depth" / "7.png", depth)
    iio.imwrite(root / "label_map" / "7.png", label_map)
    return []


def write_wide_color(root: Path) -> list[str]:
    """Color and label map of other proportions, by a camera of their own."""
    color, depth, label_map = upright_images()
    iio.imwrite(root / "color" / "7.jpg", color[60:-60])
    iio.imwrite(root / "depth" / "7.png", depth)
    iio.imwrite(root / "label_map" / "7.png", label_map[60:-60])
    fx, fy, cx, cy = INTRINSICS
    return ["--color-intrinsics", f"{fx},{fy},{cx},{cy - 60}"]


def write_other_classes(root: Path) -> list[str]:
    """A label map of NYU's 40 classes, and poses in a world with Y down."""
    color, depth, label_map = upright_images()
    iio.imwrite(root / "color" / "7.jpg", color)
    iio.imwrite(root / "depth" / "7.png", depth)
    iio.imwrite(root / "label_map" / "7.png", label_map + 20)
    (root / "pose").mkdir()
    np.savetxt(root / "pose" / "7.txt", np.eye(4))
    return ["--label-map-classes", "nyu40", "--pose-up=-y"]


@pytest.mark.parametrize("write", [write_lying, write_wide_color, write_other_classes])
def test_frames_of_every_form_are_those_of_predict(
    write: Callable[[Path], list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, root = small_weights(tmp_path, inputs="both"), tmp_path / "frames"
    for name in ("color", "depth", "label_map"):
        (root / name).mkdir(parents=True)
    given = [*write(root), "--intrinsics", ",".join(map(str, INTRINSICS)), "--checkpoint", str(weights)]
    given += ["--device", "cpu"]
    streamed = ["--source", str(root), "--label-maps", "--no-viewer", "--frames", "1", "--idle", "5"]
    assert live.main([*given, *streamed, "--out", str(tmp_path / "live")]) == 0, capsys.readouterr().err
    files = ["--color", str(root / "color"), "--depth", str(root / "depth"), "--label-map", str(root / "label_map")]
    if (root / "pose").is_dir():
        files += ["--pose", str(root / "pose")]
    assert predict.main([*given, *files, "--out", str(tmp_path / "predict")]) == 0, capsys.readouterr().err
    with np.load(tmp_path / "live" / "7.npz") as found, np.load(tmp_path / "predict" / "7.npz") as expected:
        assert found.files == expected.files
        for name in found.files:
            np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
        assert len(np.unique(found["labels"])) > 2


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["--depth-scale", "0"], "--depth-scale"),
        (["--camera-height", "-1"], "--camera-height"),
        (["--ply"], "--ply"),
        (["--port", "99999"], "--port"),
        (["--idle", "nan"], "--idle"),
        (["--source", "realsense", "--label-maps"], "--label-maps"),
        (["--source", "realsense"], "--intrinsics"),
        (["--depth-only", "--color-intrinsics", "1,1,1,1"], "--color-intrinsics"),
        (["--label-map-classes", "nyu40"], "--label-map-classes"),
        (["--map-heights", "0", "1"], "--map-heights"),
        (["--map", "--map-resolution", "0.05"], "--map-resolution"),
        (["--map-resolution", "0.0001"], "--map-resolution"),
        (["--map-resolution", "10"], "--map-resolution"),
        (["--map", "--map-heights", "1", "0"], "--map-heights"),
        (["--map", "--source", "realsense"], "--map"),
    ],
)
def test_wrong_usage(run: Tool, given: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        run(*given)
    assert error.value.code == 2 and f"{named}: " in capsys.readouterr().err
