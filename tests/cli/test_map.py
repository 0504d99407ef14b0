"""`ammnet map`: the map of a sequence, interrupted and continued, what is said of bad frames, and odometry's parts."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ammnet_sparse.camera.files.poses import Pose
from ammnet_sparse.camera.files.stored import StoredImages
from ammnet_sparse.camera.frames import CameraFrame
from ammnet_sparse.cli import map as command
from ammnet_sparse.completion import SceneCompleter
from ammnet_sparse.data.volumes.camera import NYU_CAMERA
from ammnet_sparse.pictures.room_files import ROOM_FILES
from ammnet_sparse.scene_map.scene_map import SceneMap
from tests.camera.sequences import Frames, write_sequence
from tests.scene_map.support import FLOOR, by_rule, walk_through

COUNT = 5


@pytest.fixture(scope="module")
def frames() -> Frames:
    """Frames of a walk through a room."""
    found = walk_through(3, COUNT)
    color = np.full((COUNT, 480, 640, 3), 120, dtype=np.uint8)
    return Frames(color, np.stack([one.depth for one in found]), np.stack([one.pose for one in found]), NYU_CAMERA)


@pytest.fixture
def sequence(frames: Frames, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """These frames on disk; the network is a rule."""

    def predict(self: SceneCompleter, frame: CameraFrame) -> Any:
        return by_rule(frame)

    monkeypatch.setattr(SceneCompleter, "_predict", predict)
    return write_sequence(tmp_path / "kitchen", "7-Scenes", frames)


@pytest.fixture
def run(weights: Path, sequence: Path, tmp_path: Path) -> Any:
    """Runs the command on the sequence."""

    def run(*more: str) -> int:
        given = ["--checkpoint", str(weights), "--device", "cpu", "--source", str(sequence)]
        return command.main([*given, "--out", str(tmp_path / "room"), *more])

    return run


def room_in(folder: Path) -> dict[str, NDArray[Any]]:
    with np.load(folder / "room.npz", allow_pickle=False) as archive:
        return dict(archive)


def test_a_sequence_becomes_a_map(run: Any, sequence: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A frame that cannot be read is named, the others are in the map, whose floor is one level."""
    (sequence / "frame-000002.depth.png").write_bytes(b"no picture")
    assert run() == 1
    printed = capsys.readouterr()
    assert sum("frame-000002" in line for line in printed.err.splitlines()) == 1
    assert "floor (" in printed.out and "4 frames in the map" in printed.out
    assert sorted(path.name for path in (tmp_path / "room").iterdir()) == sorted([*ROOM_FILES, "state.npz"])
    room = room_in(tmp_path / "room")
    assert room["names"].tolist() == [f"kitchen/frame-{number:06d}" for number in (0, 1, 3, 4)]
    assert (room["labels"] == FLOOR).any(axis=(0, 2)).nonzero()[0].tolist() == [0]


def test_an_interrupted_map_is_written_and_continued(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was completed is there, and the rest makes the map of one run."""
    assert run() == 0
    expected = room_in(tmp_path / "room")
    add = SceneMap.add_frame

    def interrupted(scene_map: SceneMap, read: Any) -> Any:
        if scene_map.num_frames == 2:
            raise KeyboardInterrupt
        return add(scene_map, read)

    with monkeypatch.context() as patch:
        patch.setattr(SceneMap, "add_frame", interrupted)
        assert run() == 130
    assert len(room_in(tmp_path / "room")["names"]) == 2
    assert run("--continue") == 0
    found = room_in(tmp_path / "room")
    np.testing.assert_array_equal(found["names"], expected["names"])
    np.testing.assert_allclose(found["poses"], expected["poses"], atol=0.02)


def test_a_sequence_of_the_same_name_is_refused(
    run: Any, sequence: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its frames are not taken for those in the map; nor is a damaged map continued, or called a stranger's file."""
    assert run("--every", "4") == 0
    pose = sequence / "frame-000004.pose.txt"
    np.savetxt(pose, np.loadtxt(pose) + 0.01 * np.eye(4, k=3))  # 1 cm along x
    state = tmp_path / "room" / "state.npz"
    kept = state.read_bytes()
    assert run("--continue") == 2
    assert "kitchen/frame-000004" in capsys.readouterr().err and state.read_bytes() == kept
    state.write_bytes(kept[: len(kept) // 2])
    assert run("--continue") == 2
    assert "state.npz" in capsys.readouterr().err and state.read_bytes() == kept[: len(kept) // 2]


def test_odometry_makes_a_map_of_each_part(
    run: Any,
    frames: Frames,
    sequence: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """But of parts of three frames or more; nothing is written if a folder has files of another origin."""

    class Tracking:
        """Loses track at the fourth frame and at the last, the seventh."""

        def __init__(self, settings: object) -> None:
            self.count = 0

        def add(self, stored: StoredImages) -> tuple[Pose, bool]:
            assert stored.pose is None
            self.count += 1
            return frames.poses[min(self.count, COUNT) - 1], self.count in (1, 4, 7)

    for path in sequence.glob("*.pose.txt"):
        path.unlink()
    for kind in ("color", "depth"):
        for number in (5, 6):
            shutil.copy(sequence / f"frame-000004.{kind}.png", sequence / f"frame-{number:06d}.{kind}.png")
    assert run() == 2
    monkeypatch.setattr(command, "Odometry", Tracking)
    (tmp_path / "room-2").mkdir()
    (tmp_path / "room-2" / "map.pgm").touch()
    assert run("--odometry", "--every", "1") == 2
    assert "room-2: expected" in capsys.readouterr().err and not (tmp_path / "room").exists()
    (tmp_path / "room-2" / "map.pgm").unlink()
    assert run("--odometry", "--every", "1") == 1
    assert "skipped: frame kitchen/frame-000006: expected a part" in capsys.readouterr().err
    for folder in ("room", "room-2"):
        assert len(room_in(tmp_path / folder)["names"]) == 3
    assert not (tmp_path / "room-3").exists()


def test_wrong_usage(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--continue") == 2
    assert "state.npz" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        run("--continue", "--odometry")
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "map.pgm").touch()
    assert run() == 2
    assert "map.pgm" in capsys.readouterr().err
    (tmp_path / "room" / "map.pgm").rename(tmp_path / "room" / "state.npz")
    assert run() == 2
    assert "state.npz" in capsys.readouterr().err
    assert run("--source", str(tmp_path / "room"), "--out", str(tmp_path / "other")) == 2
    assert "7-Scenes" in capsys.readouterr().err
