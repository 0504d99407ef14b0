"""`ammnet predict` on frames of a user's camera: the shipped example, folders, what is said, and how it refuses."""

import re
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from PIL import Image
from plyfile import PlyData
from torch import nn

import ammnet_sparse
from ammnet_sparse.cli import predict as command
from ammnet_sparse.config import ModelConfig
from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.camera.images import read_pose
from ammnet_sparse.data.grid import CLASS_NAMES, GRID_SHAPE
from tests.data.camera.own_views import angle

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLE = REPOSITORY / "examples" / "frame"
INTRINSICS = str(EXAMPLE / "intrinsics.txt")
WALL, FLOOR = CLASS_NAMES.index("wall"), CLASS_NAMES.index("floor")
Tool = Callable[[list[str]], int]


@pytest.fixture(scope="module")
def predict() -> Tool:
    return lambda arguments: command.main(["--device", "cpu", *arguments])


class StandIn(nn.Module):
    """Says floor of the lowest layer and wall of all else that is hit; keeps the batches."""

    def __init__(self) -> None:
        super().__init__()
        self.config = ModelConfig()
        self.batches: list[Batch] = []
        self.voxels: list[str] = []

    def forward(self, batch: Batch, *, voxels: str) -> SimpleNamespace:
        self.batches.append(batch)
        self.voxels.append(voxels)
        labels = batch.hit_mask.view(1, *GRID_SHAPE).to(torch.uint8) * WALL
        labels[:, :, 0] = FLOOR
        return SimpleNamespace(labels=labels)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    model = StandIn()
    (tmp_path / "weights.safetensors").touch()

    def load_model(path: Path, **options: Any) -> nn.Module:
        return model

    monkeypatch.setattr(ammnet_sparse, "load_model", load_model, raising=False)
    return model


def arguments(tmp_path: Path, *more: str, folder: Path = EXAMPLE, has_label_map: bool = True) -> list[str]:
    given = ["--checkpoint", str(tmp_path / "weights.safetensors"), "--out", str(tmp_path / "out")]
    given += ["--color", str(folder / "color.jpg"), "--depth", str(folder / "depth.png"), "--intrinsics", INTRINSICS]
    return [*given, *(["--label-map", str(folder / "label_map.png")] if has_label_map else []), *more]


def refused(tool: Tool, given: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert tool(given) == 2
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err and "completed" not in printed.out
    return printed.err


def test_shipped_example(predict: Tool, model: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every output, and a camera that is found where it stands."""
    assert sum(path.stat().st_size for path in EXAMPLE.iterdir()) < 300_000
    assert predict(arguments(tmp_path, "--ply", "--page")) == 0
    out = tmp_path / "out"
    names = ["frame.npz", "frame.png", "frame_cubes.ply", "frame_points.ply", "page.html"]
    assert sorted(path.name for path in out.iterdir()) == names
    printed = capsys.readouterr().out
    for part in ("up (sure):", "floor (sure):", "m above the floor", "room: its walls run", "1 frame completed"):
        assert part in printed
    truth = read_pose(EXAMPLE / "pose.txt")
    with np.load(out / "frame.npz", allow_pickle=False) as archive:
        found = dict(archive)
    assert found["labels"].shape == GRID_SHAPE and found["labels"].dtype == np.uint8
    assert set(found) == {"labels", "pose", "origin", "voxel_size", "reliable"}
    assert angle(found["pose"][2, :3], truth[2, :3]) < 1
    assert found["pose"][2, 3] == pytest.approx(truth[2, 3], abs=0.03)
    assert float(found["voxel_size"]) == 0.08 and found["origin"][2] == pytest.approx(-0.05)
    assert found["reliable"].dtype == np.bool_ and 0.01 < found["reliable"].mean() < 0.5
    batch = model.batches[0]
    assert batch.label is None and batch.image is not None and batch.label_map is not None
    assert batch.frame_ids == ("frame",) and model.voxels == ["not_free"]
    # PLY files have world coordinates: the lowest layer has its middle 1 cm below the floor.
    points = PlyData.read(str(out / "frame_points.ply"))["vertex"]
    assert len(points["z"]) == (found["reliable"] & (found["labels"] > 0)).sum()
    np.testing.assert_allclose(points["z"][points["label"] == FLOOR], -0.01, atol=1e-6)
    assert iio.imread(out / "frame.png").shape[1] == 2 * 360 + 3 * 12
    assert not re.search("https?://", (out / "page.html").read_text(encoding="utf-8"))


def test_example_comes_from_its_script(tmp_path: Path) -> None:
    script = runpy.run_path(str(REPOSITORY / "tools" / "make_example.py"))
    script["write_example"](tmp_path / "again")
    for name in ("depth.png", "label_map.png"):
        made, shipped = (np.asarray(Image.open(folder / name)) for folder in (tmp_path / "again", EXAMPLE))
        assert (made == shipped).mean() > 0.999  # another processor may round a pixel otherwise
    for name in ("intrinsics.txt", "pose.txt"):
        np.testing.assert_allclose(np.loadtxt(tmp_path / "again" / name), np.loadtxt(EXAMPLE / name), atol=1e-5)


def test_pose_and_height_are_used(predict: Tool, model: StandIn, tmp_path: Path) -> None:
    assert predict(arguments(tmp_path, "--pose", str(EXAMPLE / "pose.txt"))) == 0
    with np.load(tmp_path / "out" / "frame.npz") as archive:
        np.testing.assert_allclose(archive["pose"], np.loadtxt(EXAMPLE / "pose.txt"), atol=1e-5)
        np.testing.assert_allclose(archive["world_from_given"], np.eye(4), atol=1e-5)
    assert predict(arguments(tmp_path, "--camera-height", "1.1", "--everywhere", "--dataset", "nyucad")) == 0
    with np.load(tmp_path / "out" / "frame.npz") as archive:
        assert archive["pose"][2, 3] == 1.1
    assert model.voxels == ["not_free", "all"]
    assert [batch.tsdf_is_flipped for batch in model.batches] == [False, True]


def test_missing_label_map_is_explained(
    predict: Tool, model: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(predict, arguments(tmp_path, has_label_map=False), capsys)
    for part in ("reads a 2D label map", "--label-map", "5 floor", "segformer_b2", "resnet50", "model.inputs=tsdf"):
        assert part in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", [{"image_encoder": "segformer_b2"}, {"inputs": "tsdf"}])
def test_image_models_need_none(predict: Tool, model: StandIn, tmp_path: Path, change: dict[str, Any]) -> None:
    model.config = ModelConfig(**change)
    assert predict(arguments(tmp_path, has_label_map=False)) == 0
    assert model.batches[0].label_map is None and model.batches[0].image is not None


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """A folder of two frames; the second has a broken depth image. A third one has no depth."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    for name in ("a", "b"):
        for kind, ending in (("color", "jpg"), ("depth", "png"), ("label_map", "png")):
            shutil.copy(EXAMPLE / f"{kind}.{ending}", folder / f"{name}.{kind}.{ending}")
    (folder / "b.depth.png").write_bytes((EXAMPLE / "depth.png").read_bytes()[:1000])
    shutil.copy(EXAMPLE / "color.jpg", folder / "c.color.jpg")
    return folder


def test_folder_with_broken_frames(
    predict: Tool, model: StandIn, recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--checkpoint", str(tmp_path / "weights.safetensors"), "--out", str(tmp_path / "out"), "--page"]
    given += ["--color", str(recordings), "--depth", str(recordings), "--label-map", str(recordings)]
    assert predict([*given, "--intrinsics", INTRINSICS]) == 1
    printed = capsys.readouterr()
    assert printed.out.endswith("1 frame completed (.npz, .png, page.html), 2 skipped\n")
    assert "skipped: frame b: " in printed.err and "b.depth.png" in printed.err
    assert "c.color.jpg: has no partner" in printed.err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.npz", "a.png", "page.html"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--intrinsics", "1,2"), "expected 4 or 9 numbers, found 2"),
        (("--depth-scale", "1"), "correct the depth scale"),
        (("--depth", "no.png"), "expected a file or a folder, found nothing"),
        (("--color", str(EXAMPLE)), "expected two files or two folders"),
        (("--device", "abacus"), "--device: expected cpu"),
    ],
)
def test_wrong_inputs(
    predict: Tool,
    model: StandIn,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    message: str,
) -> None:
    assert message in refused(predict, arguments(tmp_path, *more), capsys)


def test_another_grid_is_refused(
    predict: Tool, model: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model.config = ModelConfig(grid_shape=(12, 12, 12))
    message = refused(predict, arguments(tmp_path), capsys)
    assert "expected model.grid_shape [60, 36, 60]" in message and "found [12, 12, 12]" in message


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--data", "x", "--ids", "1", "--color", "c.jpg"), "found --data and --color"),
        (("--color", "c.jpg"), "required: --depth, --intrinsics, for frames of a camera"),
        ((), "required: --data, --ids, for frames of a set (own frames: --color, --depth, --intrinsics)"),
        (("--data", "x", "--ids", "1", "--camera-height", "1"), "found --data and --camera-height"),
        (("--color", "c", "--depth", "d", "--intrinsics", "1,1,1,1", "--pose-up=-y"), "there is no --pose"),
        (("--color", "c", "--depth", "d", "--intrinsics", "1,1,1,1", "--camera-height", "-1"), "metres above 0"),
    ],
)
def test_options_that_do_not_go_together(
    predict: Tool, given: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        predict(["--checkpoint", "x", "--out", "y", *given])
    assert stopped.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
