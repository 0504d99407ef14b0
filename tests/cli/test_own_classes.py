"""A set of five classes on a grid of its own: checked, packed, trained on, scored and shown under its own names."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from plyfile import PlyData

from ammnet_sparse.cli import data_check, data_pack, evaluate, predict, report, train
from ammnet_sparse.config import ModelConfig
from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.frame import Frame
from ammnet_sparse.data.set_info import NYU, SetInfo
from ammnet_sparse.data.sets.folder import FrameFolder
from ammnet_sparse.data.sets.source import open_frames
from ammnet_sparse.data.synthetic.generate import generate_frame
from ammnet_sparse.files.errors import DataError
from ammnet_sparse.models.weights.checks import WeightsError
from ammnet_sparse.models.weights.files import read_weights, set_info_in
from ammnet_sparse.pictures.palettes import painted
from tests.data.frames import random_frame, write_frame, write_list
from tests.pictures.test_page import read_data

CLASSES = {
    "nothing": (0, 0, 0),
    "ceiling": (10, 20, 30),
    "ground": (40, 160, 4),
    "upright wall": (158, 216, 229),
    "things": (255, 127, 12),
}
NAMES = list(CLASSES)
GRID, VOXEL_SIZE = (24, 12, 24), 0.16
MERGED = np.array([0, 1, 2, 3, 3, *[4] * 7, *[0] * 243, 255], dtype=np.uint8)
IDS = ["0001", "0002", "0003"]


def write_info(root: Path, **changes: object) -> None:
    info = {"classes": {name: list(color) for name, color in CLASSES.items()}, "grid_shape": list(GRID)}
    text = yaml.safe_dump({**info, "voxel_size": VOXEL_SIZE, **changes}, sort_keys=False)
    (root / "classes.yaml").write_text(text)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated rooms, the part of them around the middle of the grid, their classes merged into five."""
    root = tmp_path_factory.mktemp("set")
    for index, frame_id in enumerate(IDS):
        room = generate_frame(3, index, noise="none")

        def middle(values: np.ndarray) -> np.ndarray:
            return values.reshape(60, 36, 60)[18:42, :12, 18:42]

        frame = Frame(
            frame_id=frame_id,
            tsdf=middle(room.tsdf).astype(np.float32),
            mapping=middle(room.mapping).astype(np.int32),
            label_weight=middle(room.label_weight).astype(np.bool_),
            label=MERGED[middle(room.label)],
        )
        write_frame(root, frame)
    write_list(root / "train.txt", IDS)
    write_list(root / "val.txt", IDS[:1])
    write_info(root)
    return root


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "five"
    keys = ["model.width=8", "model.stem_widths=[3,8]", "model.discriminator_width=8", "model.inputs=tsdf"]
    keys += ["training.epochs=1", "training.batch_size=2", "model.grid_shape=[24,12,24]", "model.num_classes=5"]
    assert train.main(["--device", "cpu", "--output", str(folder), f"data.root={root}", *keys]) == 0
    return folder


def test_a_set_is_trained_on_scored_and_shown_with_its_own_classes(
    root: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best, packed, out = run / "best.safetensors", tmp_path / "packed.safetensors", tmp_path / "out"
    assert data_pack.main(["--data", str(root), "--out", str(packed)]) == 0
    assert open_frames(packed).info == SetInfo(classes=CLASSES, grid_shape=GRID, voxel_size=VOXEL_SIZE)
    capsys.readouterr()
    options = ["--checkpoint", str(best), "--device", "cpu"]
    results = []
    for data in (root, packed):
        scores = tmp_path / "scores.json"
        flags = ["--split", "val", "--json", str(scores), "--baselines", "--lost"]
        assert evaluate.main(["--data", str(data), *flags, *options]) == 0
        results.append(json.loads(scores.read_text()))
        printed = capsys.readouterr().out
        assert all(name in printed for name in ("ceil.", *NAMES[2:])) and "sofa" not in printed
        assert "within 16 cm" in printed
    assert results[0]["ssc"] == results[1]["ssc"] and list(results[0]["ssc"]["iou"]) == NAMES[1:]
    command = ["--data", str(packed), "--ids", "0001", "--out", str(out), "--page", *options]
    assert predict.main([*command, "--palette", "distinct"]) == 0
    distinct = painted(SetInfo(classes=CLASSES), "distinct").classes
    assert [tuple(entry["color"]) for entry in read_data(out / "page.html")["classes"]] == list(distinct.values())
    assert predict.main([*command, "--ply"]) == 0
    shown = read_data(out / "page.html")
    assert [entry["name"] for entry in shown["classes"]] == NAMES and shown["voxelSize"] == VOXEL_SIZE
    points = PlyData.read(str(out / "0001_points.ply"))
    assert "4 things" in " ".join(points.comments)
    vertices = points["vertex"]
    colors = {tuple(int(vertex[channel]) for channel in ("red", "green", "blue")) for vertex in vertices}
    assert colors <= set(list(CLASSES.values())[1:])
    assert (out / "0001.png").is_file()
    assert report.main([str(run), "--scenes", "1", "--device", "cpu"]) == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "upright wall" in page and "sofa" not in page


def test_the_check_counts_by_its_names(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data_check.main([str(root)])
    printed = capsys.readouterr().out
    assert all(name in printed for name in NAMES) and "sofa" not in printed


def test_a_network_of_other_classes_is_refused(root: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = [f"data.root={root}", "model.grid_shape=[24,12,24]", "model.inputs=tsdf", "training.batch_size=2"]
    assert train.main(["--device", "cpu", "--output", str(run.parent / "other"), *keys]) == 2
    assert "model.num_classes" in capsys.readouterr().err


def test_weights_know_the_set_that_they_were_trained_on(root: Path, run: Path) -> None:
    _, config, metadata = read_weights(run / "best.safetensors")
    assert set_info_in(metadata, config) == FrameFolder(root).info
    with pytest.raises(WeightsError, match="set_info"):
        set_info_in(metadata, ModelConfig())
    assert set_info_in({}, ModelConfig()) == NYU


def test_labels_are_checked_against_the_set(root: Path, tmp_path: Path) -> None:
    write_frame(tmp_path, random_frame(1, grid_shape=GRID))
    write_info(tmp_path)
    folder = FrameFolder(tmp_path)
    with pytest.raises(DataError, match="Label/0001.npz"):
        folder.read("0001")
    frame = FrameFolder(root).read("0001")
    batch = Batch.from_frame(frame)
    assert frame.info == batch.info == FrameFolder(root).info and batch.info != NYU
    with pytest.raises(ValueError, match="classes"):
        Batch.collate([batch, Batch.from_frame(random_frame(1, grid_shape=GRID))])


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": ["nothing", "wall"]},
        {"classes": {"nothing": [0, 0, 0], "wall": [1, 2, 3]}},
        {"classes": {f"class {number}": [0, 0, 0] for number in range(16)}},
        {"classes": {**CLASSES, "wall": [256, 0, 0]}},
        {"classes": {**CLASSES, "$x": [0, 0, 0]}},
        {"grid_shape": [24, 12]},
        {"voxel_size": 0},
        {"voxel_size": float("inf")},
        {"dataset": "nyucad"},
        {"colors": 3},
    ],
)
def test_descriptions_that_no_set_can_have(root: Path, tmp_path: Path, changes: dict[str, object]) -> None:
    for name in ("TSDF", "Mapping"):
        (tmp_path / name).symlink_to(root / name)
    write_info(tmp_path, **{key: _plain(value) for key, value in changes.items()})
    with pytest.raises(DataError, match="classes.yaml"):
        FrameFolder(tmp_path)


def test_another_grid_than_the_one_asked_for_is_named(root: Path) -> None:
    with pytest.raises(DataError, match="classes.yaml"):
        FrameFolder(root, grid_shape=(60, 36, 60))


def _plain(value: object) -> object:
    return {name: list(color) for name, color in value.items()} if isinstance(value, dict) else value
