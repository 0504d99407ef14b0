"""A set of one's own from end to end: frames and meshes of two rooms, prepared, checked, trained on and scored."""

import json
from pathlib import Path

import pytest
import yaml

from ammnet_sparse.cli import data_check, data_mesh, evaluate, train
from tests.camera.mesh_room import BOX, CLASSES, FLOOR, TABLE, WALL, write_classes, write_frames, write_mesh


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training room of two frames whose mesh has numbers of its own, and one of validation."""
    folder = tmp_path_factory.mktemp("own")
    write_classes(folder / "classes.yaml")
    (folder / "labels.yaml").write_text(yaml.safe_dump({"floor": 2, "wall": [1, 8], "table": 14, "box": 29}))
    for name, yaw, numbers in (("kitchen", -0.4, {FLOOR: 2, WALL: 8, TABLE: 14, BOX: 29}), ("office", -0.2, None)):
        write_frames(folder / name, count=2 if numbers else 1, first_yaw=yaw)
        write_mesh(folder / f"{name}.ply", of_faces=numbers is None, numbers=numbers)
        arguments = ["--source", str(folder / name), "--mesh", str(folder / f"{name}.ply"), "--workers", "1"]
        arguments += ["--classes", str(folder / "classes.yaml"), "--out", str(folder / "set")]
        arguments += ["--labels", str(folder / "labels.yaml")] if numbers else ["--split", "val"]
        assert data_mesh.main(arguments) == 0
    return folder / "set"


def test_a_set_of_ones_own_is_checked_trained_on_and_scored(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], quick_pictures: None
) -> None:
    assert (prepared / "val.txt").read_text() == "office_frame-000000\n"
    assert len((prepared / "train.txt").read_text().split()) == 3
    code, printed = data_check.main([str(prepared)]), capsys.readouterr().out
    assert code == 0 and all(name in printed for name in CLASSES), printed
    keys = ["model.width=8", "model.stem_widths=[3,8]", "model.discriminator_width=8", "model.inputs=tsdf"]
    keys += ["training.epochs=1", "training.batch_size=2", "model.num_classes=5", f"data.root={prepared}"]
    assert train.main(["--device", "cpu", "--output", str(tmp_path / "run"), *keys]) == 0
    scores = tmp_path / "scores.json"
    arguments = ["--data", str(prepared), "--checkpoint", str(tmp_path / "run" / "best.safetensors"), "--device", "cpu"]
    for scored in ("weight", "view"):
        assert evaluate.main([*arguments, "--split", "val", "--scored", scored, "--json", str(scores)]) == 0
        assert list(json.loads(scores.read_text())["ssc"]["iou"]) == list(CLASSES)[1:]


def test_a_mesh_elsewhere_and_another_set_are_refused(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    room = prepared.parent / "office"
    lines = (room / "frame-000000.pose.txt").read_text().split()
    far = tmp_path / "far"
    write_frames(far, count=1)
    lines[3] = "50.0"
    (far / "frame-000000.pose.txt").write_text(" ".join(lines))
    common = ["--mesh", str(prepared.parent / "office.ply"), "--classes", str(prepared.parent / "classes.yaml")]
    assert data_mesh.main(["--source", str(far), "--out", str(tmp_path / "set"), "--workers", "1", *common]) == 1
    assert "frame-000000: expected labeled surface" in capsys.readouterr().out
    arguments = ["--source", str(room), "--out", str(prepared), "--unknown", "empty", *common]
    assert data_mesh.main(arguments) == 2
    assert "'unknown'" in capsys.readouterr().err
    again = tmp_path / "elsewhere" / "office"
    write_frames(again, count=1)
    assert data_mesh.main(["--source", str(again), "--out", str(prepared), *common]) == 2
    error = capsys.readouterr().err
    assert str(room) in error and str(again) in error
    (tmp_path / "RGB").mkdir()
    write_classes(tmp_path / "classes.yaml")
    assert data_mesh.main(["--source", str(room), "--out", str(tmp_path), *common[:2]]) == 2
    assert "RGB, classes.yaml of another origin" in capsys.readouterr().err
