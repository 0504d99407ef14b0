"""Sequences of posed frames: every layout, what is wrong with some, and which frames are taken."""

import dataclasses
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ammnet_sparse.camera.files.intrinsics import Intrinsics
from ammnet_sparse.camera.files.sequences.layouts import open_sequence
from ammnet_sparse.camera.images import camera_images
from ammnet_sparse.camera.settings import CameraSettings
from ammnet_sparse.files.errors import DataError
from tests.camera.sequences import CAMERA, WRITERS, poses_of, small_frames, write_sequence


@pytest.mark.parametrize("layout", WRITERS)
def test_layouts(tmp_path: Path, layout: str) -> None:
    """Poses, depth in meters and intrinsics are those that were written, whatever the layout is called."""
    if layout == "Record3D":
        pytest.importorskip("lzfse")
    frames = small_frames()
    sequence = open_sequence(write_sequence(tmp_path / "kitchen", layout, frames))
    assert not [link for link in Path("/proc/self/fd").glob("*") if str(tmp_path) in str(link.resolve())]
    assert sequence.layout == layout and sequence.has_poses and sequence.problems == ()
    given = frames.poses @ np.diag([1.0, -1, -1, 1]) if layout == "Record3D" else frames.poses
    np.testing.assert_allclose(poses_of(sequence.frames), given, atol=1e-6)
    assert {frame.pose_convention for frame in sequence.frames} == {"opengl" if layout == "Record3D" else None}
    settings = CameraSettings(
        intrinsics=sequence.intrinsics,
        color_intrinsics=sequence.color_intrinsics,
        depth_scale=sequence.depth_scale,
    )
    for index, frame in enumerate(sequence.frames):
        stored = frame.read()
        assert stored.name == frame.name and stored.color is not None and stored.pose is frame.pose
        images = camera_images(stored, settings)
        # Enlarged tenfold to the network's size.
        np.testing.assert_allclose(images.depth[5::10, 5::10], frames.depth[index], atol=0.03, rtol=0.03)
        assert images.camera.fx == pytest.approx(10 * CAMERA.fx) and images.camera.cx == pytest.approx(319.5)
        assert images.image is not None and images.image.std() > 20


def test_intrinsics_overrule(tmp_path: Path) -> None:
    path = write_sequence(tmp_path / "kitchen", "ScanNet", small_frames())
    given = Intrinsics(dataclasses.replace(CAMERA, fx=50.0))
    sequence = open_sequence(path, intrinsics=given)
    assert sequence.intrinsics is given and sequence.color_intrinsics is None
    (tmp_path / "bare").mkdir()
    path = write_sequence(tmp_path / "bare" / "kitchen", "7-Scenes", small_frames())
    (path / "camera-intrinsics.txt").unlink()
    with pytest.raises(DataError, match="`intrinsics`.*585,585,320,240"):
        open_sequence(path)


def test_depth_alone_beside_other_files(tmp_path: Path) -> None:
    path = write_sequence(tmp_path / "kitchen", "7-Scenes", small_frames())
    np.savez(path / "truth.npz", labels=np.zeros(3))
    assert open_sequence(path).problems == ()
    for image in path.glob("*.color.*"):
        image.unlink()
    sequence = open_sequence(path)
    assert sequence.layout == "7-Scenes" and not sequence.has_color and sequence.problems == ()
    assert len(sequence.frames) == 5 and sequence.frames[0].read().color is None


def test_bad_frames_are_named_and_left_out(tmp_path: Path) -> None:
    path = write_sequence(tmp_path / "kitchen", "ScanNet", small_frames(9))
    np.savetxt(path / "pose" / "1.txt", np.full((4, 4), -np.inf))
    np.savetxt(path / "pose" / "2.txt", np.zeros((4, 4)))
    (path / "pose" / "3.txt").unlink()
    pose = np.loadtxt(path / "pose" / "5.txt")
    pose[0, 3] += 4
    np.savetxt(path / "pose" / "5.txt", pose)
    Image.new("I;16", (32, 24)).save(path / "depth" / "6.png")
    (path / "color" / "7.jpg").write_bytes(b"no picture")
    sequence = open_sequence(path)
    assert [frame.name for frame in sequence.frames] == ["0", "4", "6", "7", "8"]
    for name in ("1.txt", "2.txt", "3.jpg", "frame 5"):
        assert sum(name in problem for problem in sequence.problems) == 1
    assert len(sequence.problems) == 4
    sequence.frames[0].read()
    with pytest.raises(DataError, match="64x48.*32x24"):
        sequence.frames[2].read()
    with pytest.raises(DataError, match=r"7\.jpg"):
        sequence.frames[3].read()


def test_the_size_of_most_frames_counts(tmp_path: Path) -> None:
    """Also if the first frame is of another."""
    path = write_sequence(tmp_path / "kitchen", "7-Scenes", small_frames(9))
    Image.new("I;16", (32, 24)).save(path / "frame-000000.depth.png")
    sequence = open_sequence(path)
    with pytest.raises(DataError, match="frame-000000: .*64x48.*32x24"):
        sequence.frames[0].read()
    for frame in sequence.frames[1:]:
        frame.read()


def test_a_jump_that_stays_is_reported(tmp_path: Path) -> None:
    """Two long parts are both used; a few frames elsewhere are not."""
    frames = small_frames(30)
    frames.poses[12:, 0, 3] += 5
    frames.poses[20:22, 1, 3] += 9
    sequence = open_sequence(write_sequence(tmp_path / "kitchen", "Replica", frames))
    assert len(sequence.frames) == 28
    assert len(sequence.notes) == 1 and "000012" in sequence.notes[0]
    assert len(sequence.problems) == 1 and "000020" in sequence.problems[0]
    np.testing.assert_allclose(poses_of(sequence.frames), np.delete(frames.poses, (20, 21), axis=0), atol=1e-6)


def test_taken_frames(tmp_path: Path) -> None:
    sequence = open_sequence(write_sequence(tmp_path / "kitchen", "TUM", small_frames(9)))
    assert sequence.taken() == list(sequence.frames)
    assert sequence.taken(every=3) == list(sequence.frames[::3])
    assert sequence.taken(min_motion=0.09) == list(sequence.frames[::2])
    assert sequence.taken(min_motion=100.0) == [sequence.frames[0], sequence.frames[8]]  # 15 degrees


def test_sequences_without_poses(tmp_path: Path) -> None:
    path = write_sequence(tmp_path / "kitchen", "folders", small_frames())
    assert not open_sequence(path, reads_poses=False).has_poses
    (path / "trajectory.log").unlink()
    sequence = open_sequence(path)
    assert not sequence.has_poses and len(sequence.frames) == 5 and sequence.problems == ()


def test_other_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(DataError, match=r"holiday\.jpg.*7-Scenes.*TUM.*ScanNet.*Replica|TUM.*7-Scenes.*Record3D"):
        open_sequence(tmp_path)
    with pytest.raises(DataError, match="nothing"):
        open_sequence(tmp_path / "missing")


def test_damaged_recordings(tmp_path: Path) -> None:
    lzfse = pytest.importorskip("lzfse")
    path = write_sequence(tmp_path / "kitchen", "Record3D", small_frames())
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="recording"):
        open_sequence(path)
    compressed = lzfse.compress(small_frames().depth[0].astype("<f4").tobytes())
    place = content.find(compressed)
    path.write_bytes(content[:place] + bytes(len(compressed)) + content[place + len(compressed) :])
    sequence = open_sequence(path)
    with pytest.raises(DataError, match=r"rgbd/0\.depth"):
        sequence.frames[0].read()
    sequence.frames[1].read()


@pytest.mark.parametrize("seed", range(3))
def test_a_recording_whose_depth_is_too_large_is_not_decompressed(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Depth of noise, of steps and of one value is stored in blocks of different kinds, several of them."""
    lzfse = pytest.importorskip("lzfse")
    rng = np.random.default_rng(seed)
    depth = (rng.random((240, 320)), rng.integers(0, 9, (240, 320)), np.ones((240, 320)))[seed].astype("<f4")
    frames = small_frames(2)
    frames.depth = np.stack([depth, depth])
    path = write_sequence(tmp_path / "kitchen", "Record3D", frames)
    stored = open_sequence(path).frames[0].read()
    np.testing.assert_array_equal(stored.depth, depth)
    large = tmp_path / "large.r3d"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(large, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, lzfse.compress(depth.tobytes() * 8) if name == "rgbd/0.depth" else content)
    monkeypatch.setattr(lzfse, "decompress", None)
    with pytest.raises(DataError, match=r"rgbd/0\.depth.*307200 bytes.*2457600"):
        open_sequence(large).frames[0].read()
