"""Poses and trajectories, and which files of folders make a frame."""

import contextlib
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ammnet_sparse.camera.files import stored
from ammnet_sparse.camera.files.frame_files import FrameFiles, find_frames
from ammnet_sparse.camera.files.poses import Pose, associate, read_trajectory, time_stamp
from ammnet_sparse.camera.files.stored import read_pose as pose_of_frame
from ammnet_sparse.data.synthetic.raycast import camera_pose
from ammnet_sparse.files.errors import DataError


def quaternion(rotation: NDArray[np.float64]) -> list[float]:
    """x, y, z, w of a rotation, by its axis and angle."""
    w = np.sqrt(max(0.0, 1 + np.trace(rotation))) / 2
    return [
        *(np.array([rotation[2, 1], rotation[0, 2], rotation[1, 0]]) - rotation.T[[2, 0, 1], [1, 2, 0]]) / (4 * w),
        w,
    ]


def read_pose(path: Path) -> Pose:
    return read_trajectory(path).pose_of(None)


def test_poses(tmp_path: Path) -> None:
    path = tmp_path / "pose.txt"
    pose = camera_pose(1.2, yaw=0.3, pitch=-0.2, roll=0.1)
    np.savetxt(path, pose, fmt="%.4f")
    found = read_pose(path)
    np.testing.assert_allclose(found, pose, atol=1e-4)
    np.testing.assert_allclose(found[:3, :3] @ found[:3, :3].T, np.eye(3), atol=1e-12)
    np.savetxt(path, pose[:3])
    np.testing.assert_allclose(read_pose(path), pose, atol=1e-12)
    mirrored = pose.copy()
    mirrored[:3, 0] *= -1
    for wrong, message in (
        (mirrored, "expected a rotation"),
        (np.full((4, 4), np.inf), "lost camera"),
        (np.where(np.arange(16).reshape(4, 4) == 3, np.nan, np.eye(4)), "expected finite numbers, found .*nan"),
        (np.zeros((4, 4)), "lost camera"),
        (pose.T, "transpose the matrix"),
        (np.eye(3), "found 9 numbers"),
    ):
        np.savetxt(path, wrong)
        with pytest.raises(DataError, match=message):
            read_pose(path)


@pytest.mark.parametrize("stamp", ["", "1305031102.17 "])
def test_quaternions(tmp_path: Path, stamp: str) -> None:
    path = tmp_path / "pose.txt"
    pose = camera_pose(1.2, yaw=0.3, pitch=-0.2, roll=0.1)
    pose[:3, 3] += (0.5, -0.25, 0)
    numbers = " ".join(f"{value:.9f}" for value in (*pose[:3, 3], *quaternion(pose[:3, :3])))
    path.write_text(f"\ufeff# tx ty tz qx qy qz qw\n{stamp}{numbers}\n", encoding="utf-8")
    np.testing.assert_allclose(read_pose(path), pose, atol=1e-7)
    path.write_text(f"{stamp}0 0 0 0 0 0 0\n", encoding="utf-8")
    with pytest.raises(DataError, match="lost camera"):
        read_pose(path)


def test_trajectories(tmp_path: Path) -> None:
    poses = [camera_pose(1.0 + 0.1 * i, yaw=0.1 * i, pitch=-0.2, roll=0.0) for i in range(3)]
    rows = [[i + 10.0, *pose[:3, 3], *quaternion(pose[:3, :3])] for i, pose in enumerate(poses)]
    np.savetxt(tmp_path / "tum.txt", rows[::-1])
    tum = read_trajectory(tmp_path / "tum.txt")
    assert tum.times == [10.0, 11.0, 12.0]
    np.testing.assert_allclose(tum.pose_of(11.01), poses[1], atol=1e-7)
    with pytest.raises(DataError, match=r"within 0.02 s of 11.5000, found the nearest at 1[12].0000"):
        tum.pose_of(11.5)
    np.testing.assert_allclose(tum.pose_of(None, index=2, count=3), poses[2], atol=1e-7)
    with pytest.raises(DataError, match="expected one pose, or one for each of 7 frames, found 3 with time stamps"):
        tum.pose_of(None, index=2, count=7)
    np.savetxt(tmp_path / "kitti.txt", [pose[:3].reshape(-1) for pose in poses])
    np.save(tmp_path / "poses.npy", np.stack(poses))
    with (tmp_path / "redwood.log").open("w", encoding="utf-8") as file:
        for i, pose in enumerate(poses):
            file.write(f"{i} {i} {i + 1}\n" + "\n".join(" ".join(map(str, row)) for row in pose) + "\n")
    for name in ("kitti.txt", "poses.npy", "redwood.log"):
        found = read_trajectory(tmp_path / name)
        np.testing.assert_allclose(found.pose_of(None, index=1, count=3), poses[1], atol=1e-12)
    np.savetxt(tmp_path / "two.txt", rows[:2])  # 16 numbers, but no matrix
    np.testing.assert_allclose(read_trajectory(tmp_path / "two.txt").pose_of(10.0), poses[0], atol=1e-7)


@pytest.mark.parametrize("stamps", [[np.nan] * 3, [np.nan, np.inf, -np.inf], [np.nan, 5.0, np.nan]])
def test_a_time_stamp_that_is_not_finite_fits_no_frame(tmp_path: Path, stamps: list[float]) -> None:
    np.savetxt(tmp_path / "tum.txt", [[stamp, 0, 0, 1, 0, 0, 0, 1] for stamp in stamps])
    trajectory = read_trajectory(tmp_path / "tum.txt")
    with pytest.raises(DataError, match=r"tum\.txt"):
        trajectory.pose_of(10.0)
    for time in filter(np.isfinite, stamps):
        trajectory.pose_of(time)


@pytest.mark.parametrize("shape", [(0,), (0, 7), (0, 4, 4), (3, 0), (5, 0, 4, 4), ()])
def test_arrays_without_a_pose_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "poses.npy", np.zeros(shape))
    with pytest.raises(DataError, match=r"poses\.npy"):
        read_trajectory(tmp_path / "poses.npy")


def test_a_trajectory_is_parsed_once_for_all_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[Path] = []
    monkeypatch.setattr(stored, "read_trajectory", lambda path: (parsed.append(path), read_trajectory(path))[1])
    path = tmp_path / "tum.txt"
    for content, num_poses in (("10 0 0 1 0 0 0 1\n11 0 0 1 0 0 0 1\n", 2), ("nothing", 0)):
        path.write_text(content)
        for index in range(3):
            files = FrameFiles(f"{10 + index}", None, tmp_path, time=10.0 + index)
            with contextlib.nullcontext() if index < num_poses else pytest.raises(DataError, match=r"tum\.txt"):
                stored.read_pose(files, path)
    assert parsed == [path, path]


def test_association() -> None:
    assert associate([1.0, 2.0, 3.0], [0.99, 2.015, 2.5, 2.03]) == [(0, 0), (1, 1)]
    assert associate([1.0, 1.01], [1.009]) == [(1, 0)]
    assert associate([], [1.0]) == []
    assert [time_stamp(name) for name in ("1305031102.17", "1305031102170", "0007", "frame")] == [
        1305031102.17,
        1305031102.17,
        None,
        None,
    ]


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def test_frames_of_folders(tmp_path: Path) -> None:
    one = touch(
        tmp_path / "one",
        *("frame-000001.color.jpg", "frame-000001.depth.png", "frame-000001.pose.txt"),
        *("frame-000002.color.jpg", "frame-000002.depth.png", "frame-000002.pose.txt"),
        *("frame-000003.color.jpg", "camera-intrinsics.txt"),
    )
    frames, unmatched = find_frames(one, one, pose=one)
    assert [frame.name for frame in frames] == ["frame-000001", "frame-000002"]
    assert frames[0].pose == one / "frame-000001.pose.txt" and frames[1].color == one / "frame-000002.color.jpg"
    assert len(unmatched) == 1 and "frame-000003.color.jpg: has no partner: no depth image of that name" in unmatched[0]

    rgb, depth = touch(tmp_path / "rgb", "7.png", "8.png"), touch(tmp_path / "depth", "7.png", "8.png")
    labels = touch(tmp_path / "labels", "8.png")
    frames, unmatched = find_frames(rgb, depth, label_map=labels, pose=one / "frame-000001.pose.txt")
    assert [(frame.name, frame.label_map) for frame in frames] == [("8", labels / "8.png")]
    assert frames[0].pose == one / "frame-000001.pose.txt" and len(unmatched) == 1
    assert "7.png: has no partner: no label map of that name" in unmatched[0]

    single, _ = find_frames(one / "frame-000001.color.jpg", one / "frame-000001.depth.png")
    assert single[0].name == "frame-000001"
    named_by_kind = touch(tmp_path / "kitchen", "color.jpg", "depth.png")
    assert find_frames(named_by_kind / "color.jpg", named_by_kind / "depth.png")[0][0].name == "kitchen"


def test_files_that_make_no_frames(tmp_path: Path) -> None:
    rgb, depth = touch(tmp_path / "rgb", "a.png"), touch(tmp_path / "depth", "b.png")
    twice = touch(tmp_path / "twice", "a.png", "a.jpg")
    for color, other, message in (
        (rgb, depth, "expected frames whose files share a name, found color images a and depth images b"),
        (rgb, depth / "b.png", "expected two files or two folders"),
        (tmp_path / "no", depth, "color .*no: expected a file or a folder, found nothing"),
        (twice, depth, r"expected one color file per frame, found a\.jpg and a\.png"),
    ):
        with pytest.raises(DataError, match=message):
            find_frames(color, other)


def test_published_names(tmp_path: Path) -> None:
    """Colors and depth of NYU as they are published, in folders of their own or in one."""
    rgb, depth = touch(tmp_path / "RGB", "NYU0003_colors.png"), touch(tmp_path / "depth", "NYU0003_0000.png")
    labels = touch(tmp_path / "Seg2D", "0003.png")
    frames, unmatched = find_frames(rgb, depth, label_map=labels)
    assert [(f.name, f.depth.name, f.label_map) for f in frames] == [
        ("NYU0003", "NYU0003_0000.png", labels / "0003.png")
    ]
    assert not unmatched
    both = touch(tmp_path / "both", "NYU0003_colors.png", "NYU0003_0000.png", "NYU0004_colors.png", "NYU0004_0000.png")
    frames, _ = find_frames(both, both)
    assert [(f.name, f.color.name, f.depth.name) for f in frames] == [
        ("NYU0003", "NYU0003_colors.png", "NYU0003_0000.png"),
        ("NYU0004", "NYU0004_colors.png", "NYU0004_0000.png"),
    ]


def test_names_by_number(tmp_path: Path) -> None:
    rgb, depth = touch(tmp_path / "a", "image_7.png", "image_8.png"), touch(tmp_path / "b", "d0007.png", "d0008.png")
    frames, unmatched = find_frames(rgb, depth)
    assert [(f.color.name, f.depth.name) for f in frames] == [
        ("image_7.png", "d0007.png"),
        ("image_8.png", "d0008.png"),
    ]
    assert not unmatched


def test_one_file_is_not_both_images(tmp_path: Path) -> None:
    folder = touch(tmp_path / "frames", "a.png", "7.color.png", "7.depth.png")
    frames, unmatched = find_frames(folder, folder)
    assert [frame.name for frame in frames] == ["7"] and "a.png" in "".join(unmatched)
    alone = touch(tmp_path / "alone", "a.png")
    with pytest.raises(DataError, match="color"):
        find_frames(alone, alone)
    assert [frame.depth.name for frame in find_frames(None, alone)[0]] == ["a.png"]


def test_folder_that_is_one_frame(tmp_path: Path) -> None:
    folder = touch(tmp_path / "kitchen", "color.jpg", "depth.png", "label_map.png", "pose.txt", "intrinsics.txt")
    frames, unmatched = find_frames(folder, folder, label_map=folder, pose=folder)
    assert [(f.name, f.color.name, f.depth.name) for f in frames] == [("kitchen", "color.jpg", "depth.png")]
    assert frames[0].label_map == folder / "label_map.png" and frames[0].pose == folder / "pose.txt" and not unmatched


def test_depth_alone(tmp_path: Path) -> None:
    depth = touch(tmp_path / "kitchen", "depth.png", "7.depth.png", "7.color.png")
    frames, unmatched = find_frames(None, depth)
    assert [(f.name, f.color, f.depth.name) for f in frames] == [
        ("kitchen", None, "depth.png"),
        ("7", None, "7.depth.png"),
    ]
    assert not unmatched
    single, _ = find_frames(None, depth / "depth.png")
    assert (single[0].name, single[0].color) == ("kitchen", None)


def test_one_label_map_for_all(tmp_path: Path) -> None:
    rgb, depth = touch(tmp_path / "rgb", "1.png", "2.png"), touch(tmp_path / "depth", "1.png", "2.png")
    label_map = touch(tmp_path / "labels", "zeros.png") / "zeros.png"
    frames, _ = find_frames(rgb, depth, label_map=label_map)
    assert [f.label_map for f in frames] == [label_map, label_map]


def test_what_lacks_is_blamed(tmp_path: Path) -> None:
    rgb, depth = touch(tmp_path / "rgb", "a.png"), touch(tmp_path / "depth", "a.png")
    other, empty = touch(tmp_path / "labels", "b.png"), touch(tmp_path / "empty")
    with pytest.raises(DataError, match="labels"):
        find_frames(rgb, depth, label_map=other)
    with pytest.raises(DataError, match="empty"):
        find_frames(rgb, depth, label_map=empty)
    with pytest.raises(DataError, match="empty"):
        find_frames(rgb, empty)


def moved(place: float) -> np.ndarray:
    pose = np.eye(4)
    pose[0, 3] = place
    return pose


def places_of(frames: list[FrameFiles]) -> dict[str, float]:
    """x of the pose of every frame, by its name."""
    return {frame.name: float(pose_of_frame(frame, frame.pose)[0][0, 3]) for frame in frames if frame.pose}


@pytest.mark.parametrize("names", [("0", "1", "2", "9", "10", "11"), ("f9_a", "f10_a", "f100_a")])
@pytest.mark.parametrize("is_log", [False, True])
def test_frames_are_in_natural_order(tmp_path: Path, names: tuple[str, ...], is_log: bool) -> None:
    """A trajectory without time stamps belongs to the frames as people count them."""
    depth = touch(tmp_path / "depth", *(f"{name}.png" for name in names))
    poses = [moved(int(re.sub(r"\D", "", name))) for name in names]
    path = tmp_path / "poses.txt"
    if is_log:  # its numbers count, not its order
        blocks = [f"{int(pose[0, 3])} 0 0\n" + "\n".join(" ".join(map(str, row)) for row in pose) for pose in poses]
        path.write_text("\n".join(reversed(blocks)), encoding="utf-8")
    else:
        path.write_text("\n".join(" ".join(map(str, pose[:3].ravel())) for pose in poses), encoding="utf-8")
    frames, _ = find_frames(None, depth, pose=path)
    assert [frame.name for frame in frames] == list(names)
    assert places_of(frames) == {name: pose[0, 3] for name, pose in zip(names, poses, strict=True)}


def test_numbers_of_a_log_name_frames(tmp_path: Path) -> None:
    """A gap in the frames moves none; frames that count from 1 have the poses from 0 on."""
    path = tmp_path / "poses.log"
    path.write_text(
        "\n".join(f"{n} {n} {n + 1}\n" + "\n".join(" ".join(map(str, row)) for row in moved(n)) for n in range(4)),
        encoding="utf-8",
    )
    holey = touch(tmp_path / "holey", "0.png", "3.png")
    assert places_of(find_frames(None, holey, pose=path)[0]) == {"0": 0.0, "3": 3.0}
    from_one = touch(tmp_path / "one", *(f"{n:03d}.png" for n in range(1, 5)))
    assert list(places_of(find_frames(None, from_one, pose=path)[0]).values()) == [0.0, 1.0, 2.0, 3.0]
    other = touch(tmp_path / "other", "1.png", "7.png")
    with pytest.raises(DataError, match="frame 7"):
        places_of(find_frames(None, other, pose=path)[0])


@pytest.mark.parametrize("form", ["with ending", "without", "no names", "list", "key"])
def test_json_trajectories(tmp_path: Path, form: str) -> None:
    depth = touch(tmp_path / "depth", "2.png", "10.png")
    two, ten = moved(2).tolist(), moved(10).tolist()
    document = {
        "with ending": {
            "frames": [{"file_path": f"./rgb/{n}.png", "transform_matrix": p} for n, p in ((10, ten), (2, two))]
        },
        "without": {"frames": [{"file_path": f"rgb/{n}", "transform_matrix": p} for n, p in ((10, ten), (2, two))]},
        "no names": {"frames": [{"transform_matrix": pose} for pose in (two, ten)]},
        "list": [two[:3], ten[:3]],
        "key": {"camera_to_world": [moved(n).ravel().tolist() for n in (2, 10)]},
    }[form]
    (tmp_path / "transforms.json").write_text(json.dumps(document), encoding="utf-8")
    assert places_of(find_frames(None, depth, pose=tmp_path)[0]) == {"2": 2.0, "10": 10.0}


def test_json_of_one_pose(tmp_path: Path) -> None:
    path = tmp_path / "pose.json"
    for document, convention in (
        (moved(3).tolist(), None),
        (moved(3).ravel().tolist(), None),
        ({"c2w": moved(3)[:3].tolist()}, None),
        ({"cameraPoseARFrame": moved(3).ravel().tolist(), "intrinsics": [1, 2]}, "opengl"),
    ):
        path.write_text(json.dumps(document), encoding="utf-8")
        np.testing.assert_array_equal(read_pose(path), moved(3))
        assert read_trajectory(path).convention == convention
    for wrong in ("{", '{"fx": 3}', "[1, 2, 3]", '{"frames": [{}]}', '{"pose": "x"}', "[]"):
        path.write_text(wrong, encoding="utf-8")
        with pytest.raises(DataError, match=r"pose\.json"):
            read_pose(path)


def test_files_of_systems_are_no_frames(tmp_path: Path) -> None:
    names = ("0001.png", "._0001.png", "._0002.png", ".tmp_0003.png", "Thumbs.db", "desktop.ini", ".DS_Store")
    frames, unmatched = find_frames(touch(tmp_path / "color", *names), touch(tmp_path / "depth", *names))
    assert [frame.name for frame in frames] == ["0001"] and not unmatched


@pytest.mark.parametrize("given", ["folders", "lists", "files of lists"])
def test_tum_folders(tmp_path: Path, given: str) -> None:
    """Color and depth have time stamps of their own; the trajectory has others again."""
    rgb = touch(tmp_path / "rgb", "1305031102.175304.png", "1305031102.211214.png", "1305031109.000000.png")
    depth = touch(tmp_path / "depth", "1305031102.160407.png", "1305031102.226738.png", "1305031102.400000.png")
    for name, folder in (("rgb", rgb), ("depth", depth)):
        lines = [f"{path.stem} {name}/{path.name}" for path in sorted(folder.iterdir())]
        (tmp_path / f"{name}.txt").write_text("# timestamp filename\n" + "\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "groundtruth.txt").write_text(
        "# timestamp tx ty tz qx qy qz qw\n1305031102.1758 1 0 0 0 0 0 1\n1305031102.2111 2 0 0 0 0 0 1\n",
        encoding="utf-8",
    )
    pairs = {
        "folders": (rgb, depth),
        "lists": (tmp_path, tmp_path),
        "files of lists": (tmp_path / "rgb.txt", tmp_path / "depth.txt"),
    }
    frames, unmatched = find_frames(*pairs[given], pose=tmp_path)
    assert [(f.color.name, f.depth.name) for f in frames] == [
        ("1305031102.175304.png", "1305031102.160407.png"),
        ("1305031102.211214.png", "1305031102.226738.png"),
    ]
    assert len(unmatched) == 2 and "1305031109.000000.png: has no partner: no depth image" in unmatched[1]
    assert list(places_of(frames).values()) == [1.0, 2.0]


def test_color_and_depth_of_one_name_are_told_apart_by_their_types(tmp_path: Path) -> None:
    for name in ("7.jpg", "7.png", "8.jpeg", "8.npy"):
        (tmp_path / name).write_bytes(b"")
    frames, unmatched = find_frames(tmp_path, tmp_path)
    found = [(frame.name, frame.color and frame.color.name, frame.depth.name) for frame in frames]
    assert found == [("7", "7.jpg", "7.png"), ("8", "8.jpeg", "8.npy")] and not unmatched


def test_two_files_of_one_frame_are_an_error_or_left_out(tmp_path: Path) -> None:
    for name in ("color/1.jpg", "color/1.bmp", "color/2.jpg", "depth/1.png", "depth/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    color, depth = tmp_path / "color", tmp_path / "depth"
    with pytest.raises(DataError, match=r"expected one color file per frame, found 1\.bmp and 1\.jpg"):
        find_frames(color, depth)
    frames, messages = find_frames(color, depth, leaves_out_doubles=True)
    assert [frame.name for frame in frames] == ["2"]
    assert len(messages) == 2 and "found 1.bmp and 1.jpg" in messages[0] and "1.png: has no partner" in messages[1]


def test_one_file_given_twice_and_what_is_no_file(tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    image.touch()
    (tmp_path / "same.png").symlink_to(image)
    for color in (image, tmp_path / "same.png"):
        with pytest.raises(DataError, match="color and depth: expected two files, found .* for both"):
            find_frames(color, image)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DataError, match=r"depth .*pipe.png: expected a file or a folder, found a pipe or a device"):
        find_frames(None, tmp_path / "pipe.png")
