"""Pickled frames: of any direction they become the frames that they were written from; bad ones are named."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from ammnet_sparse.data.grid import IGNORE_LABEL, UNMAPPED
from ammnet_sparse.data.raw.frames import read_raw_labels
from ammnet_sparse.data.raw.pickled import MonoScenePlan, OccScanNetPlan
from ammnet_sparse.data.raw.preparation import prepare_set
from ammnet_sparse.data.sets.check import check_set
from ammnet_sparse.data.sets.folder import FrameFolder
from ammnet_sparse.data.volumes.camera import SSCNET_CAMERA, CameraView, voxels_in_view
from tests.data.raw.pickled_files import room, write_monoscene, write_occscannet, write_pickle

NAMES = {"train": ["scene0000_00/00000", "scene0000_00/00012"], "val": ["scene0011_01/00003", "scene0011_01/00004"]}


@pytest.fixture(scope="module")
def occscannet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """Four frames, one of each direction."""
    folder = tmp_path_factory.mktemp("occscannet")
    return folder, write_occscannet(folder, NAMES)


def test_frames_of_every_direction_look_forward(occscannet: tuple[Path, dict], tmp_path: Path) -> None:
    raw, written = occscannet
    report = prepare_set(OccScanNetPlan(raw, tmp_path / "set"), workers=1, progress=False)
    assert report.is_clean and report.listed == {"train": 4, "val": 2}
    folder = FrameFolder(tmp_path / "set")
    assert folder.frame_ids("val") == ["scene0011_01_00003", "scene0011_01_00004"]
    assert set(folder.frame_ids("train")) == set(written)
    for frame_id, expected in written.items():
        frame = folder.read(frame_id)
        assert frame.label is not None and frame.image is not None
        np.testing.assert_array_equal(frame.label.reshape(-1), expected.label)
        # Millimeters and turned coordinates put a few points into the next voxel.
        assert ((frame.mapping.reshape(-1) != UNMAPPED) != (expected.mapping != UNMAPPED)).sum() < 40
        assert np.abs(frame.tsdf.reshape(-1) - expected.tsdf).mean() < 2e-3
        assert np.abs(frame.image.astype(float) - expected.image).mean() < 6  # resized twice
    checked = check_set(folder, progress=False)
    assert not checked.problems, checked.describe()


def test_unknown_voxels_as_the_published_loader_takes_them(occscannet: tuple[Path, dict], tmp_path: Path) -> None:
    raw, written = occscannet
    frame_id, expected = next(iter(written.items()))
    label = OccScanNetPlan(raw, tmp_path, unknown="empty").read(frame_id).label
    assert (expected.label == IGNORE_LABEL).any()
    np.testing.assert_array_equal(label, np.where(expected.label == IGNORE_LABEL, 0, expected.label))


def test_bad_frames_are_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    names = [f"scene0000_00/0000{number}" for number in range(7)]
    nested: list = []
    for _ in range(24):  # numbers of a gigabyte
        nested = [nested or 0.0, nested or 0.0]
    write_occscannet(raw, {"train": names[:1]})
    good = pickle.loads((raw / "gathered_data" / f"{names[0]}.pkl").read_bytes())
    for name, changes in zip(
        names[1:6],
        (
            {"target_1_4": np.zeros((60, 60, 60), dtype=np.uint8)},
            {"target_1_4": np.full((60, 60, 36), 12, dtype=np.uint8)},
            {"img": "../../../etc"},
            {"cam_pose": np.ones((4, 4))},
            {"voxel_origin": nested},
        ),
        strict=True,
    ):
        write_pickle(raw / "gathered_data" / f"{name}.pkl", good | changes)
    (raw / "train_subscenes.txt").write_text("".join(f"gathered_data/{name}.pkl\n" for name in names) + "scene0\n")
    report = prepare_set(OccScanNetPlan(raw, tmp_path / "set"), workers=1, progress=False)
    assert report.listed == {"train": 1} and len(report.failures) == 7
    text = report.describe()
    for named in ("target_1_4", "label", "img", "pose", "voxel_origin", "00006.pkl", "train_subscenes.txt, line 8"):
        assert named in text


def test_monoscene_frames(tmp_path: Path) -> None:
    expected = room(2)
    write_monoscene(tmp_path / "NYUtest", tmp_path / "images", "0008", expected)
    plan = MonoScenePlan(tmp_path / "NYUtest", tmp_path / "set", "nyu", "test", images=tmp_path / "images")
    assert plan.find().lists == {"test": ["0008"]}
    frame = plan.read("0008")
    np.testing.assert_array_equal(frame.label, expected.label)
    assert frame.image is not None and ((frame.mapping != UNMAPPED) != (expected.mapping != UNMAPPED)).sum() < 40


def test_a_published_frame_in_a_pickle_comes_out_exactly(shared_data: Path, tmp_path: Path) -> None:
    raw, reference = shared_data / "raw", np.load(shared_data / "raw" / "NYU0003_reference.npz", allow_pickle=False)
    labels = read_raw_labels(raw / "NYU0003_0000.bin")
    entries = {"cam_pose": labels.pose, "voxel_origin": labels.origin}
    write_pickle(tmp_path / "NYU0003_0000.pkl", entries | {"target_1_4": reference["label"].reshape(60, 36, 60)})
    (tmp_path / "NYU0003_0000.png").symlink_to(raw / "NYU0003_0000.png")
    (tmp_path / "NYU0003_0000_color.jpg").symlink_to(shared_data / "nyu" / "RGB" / "NYU0003_colors.jpg")
    report = prepare_set(MonoScenePlan(tmp_path, tmp_path / "set", "nyu"), workers=1, progress=False)
    assert report.is_clean, report.describe()
    frame = FrameFolder(tmp_path / "set").read("0003")
    assert frame.label is not None
    np.testing.assert_array_equal(frame.label.reshape(-1), reference["label"])
    np.testing.assert_array_equal(np.where(frame.mapping < 0, 307200, frame.mapping).reshape(-1), reference["mapping"])
    np.testing.assert_array_equal(frame.label_weight.reshape(-1), reference["label_weight"])
    np.testing.assert_allclose(frame.tsdf.reshape(-1), reference["tsdf"], rtol=0, atol=1e-6)


def test_the_field_of_view_holds_what_the_camera_sees() -> None:
    frame = room(0)
    view = CameraView(SSCNET_CAMERA, frame.pose, frame.origin)
    found = voxels_in_view(view).reshape(60, 36, 60)
    for x, h, y in ((30, 10, 40), (0, 10, 0), (59, 35, 5), (20, 0, 59)):
        point = np.linalg.inv(frame.pose) @ [*(frame.origin + (np.array([x, y, h]) + 0.5) * 0.08), 1]
        u, v = 518.8579 * point[0] / point[2] + 320, 518.8579 * point[1] / point[2] + 240
        assert found[x, h, y] == (point[2] > 0 and -0.5 <= u < 639.5 and -0.5 <= v < 479.5)
    assert 0.2 < found.mean() < 0.9
