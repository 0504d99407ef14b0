"""``ammnet live`` on folders, without the page."""

import re
import time
from collections.abc import Callable
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest

from ammnet_sparse.cli import live
from ammnet_sparse.live import folder
from tests.completion import INTRINSICS, room_depth, small_weights

Tool = Callable[..., int]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_weights(tmp_path_factory.mktemp("weights"))


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
    assert printed.out.endswith("1 frame completed, 1 skipped\n")
    assert "skipped: frame 8: " in printed.err
    assert (tmp_path / "out" / "7.npz").is_file()


def test_it_ends_after_some_frames_though_more_would_come(
    run: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    iio.imwrite(tmp_path / "1.png", np.round(1000 * room_depth()).astype(np.uint16))
    started = time.monotonic()
    assert run("--depth-only", "--frames", "1", "--idle", "600") == 0
    assert time.monotonic() - started < 300
    assert "1 frame completed" in capsys.readouterr().out


def test_a_folder_without_a_frame_says_why(run: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    iio.imwrite(tmp_path / "7.depth.png", np.round(1000 * room_depth()).astype(np.uint16))
    assert run() == 1
    printed = capsys.readouterr()
    assert "note: color image: these weights do not read it" in printed.err
    assert "expected color images" in printed.err and "no frame was completed" in printed.err


def test_what_the_weights_need_is_asked_for_at_the_start(
    run: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--depth-only", "--checkpoint", "nyu_seg2d_w64") == 2
    printed = capsys.readouterr()
    assert "label map: expected one" in printed.err and "nyu_depth_w64" in printed.err
    assert "Ready" not in printed.out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--depth-scale", "0"], "--depth-scale: expected a number above 0, found '0'"),
        (["--depth-scale", "-5"], "--depth-scale: expected a number above 0, found '-5'"),
        (["--camera-height", "-1"], "--camera-height: expected a number above 0"),
        (["--idle", "-5"], "--idle: expected a number above 0"),
        (["--idle", "nan"], "--idle: expected a number above 0"),
        (["--source", "realsense", "--label-maps"], "--label-maps: a RealSense camera delivers none"),
    ],
)
def test_wrong_usage(run: Tool, given: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        run(*given)
    assert error.value.code == 2 and message in capsys.readouterr().err
