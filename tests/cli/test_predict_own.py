"""`ammnet predict` on frames of a user's camera: the shipped example, folders, what is said, and how it refuses."""

import re
import shutil
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

from ammnet_sparse.camera.files.poses import read_trajectory
from ammnet_sparse.cli import predict as command
from ammnet_sparse.config import ModelConfig
from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.grid import CLASS_NAMES, GRID_SHAPE
from ammnet_sparse.data.sets.conventions import unobserved_of
from ammnet_sparse.models.weights.files import UNOBSERVED
from tests.camera.own_views import angle
from tests.data.frames import random_frame, write_frame

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLE = REPOSITORY / "examples" / "frame"
INTRINSICS = str(EXAMPLE / "intrinsics.txt")
WALL, FLOOR = CLASS_NAMES.index("wall"), CLASS_NAMES.index("floor")


def predict(arguments: list[str]) -> int:
    """The command on the CPU wherever the tests run; the last ``--device`` counts."""
    return command.main(["--device", "cpu", *arguments])


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

    monkeypatch.setattr("ammnet_sparse.models.ensemble.load_model", load_model)
    return model


def arguments(tmp_path: Path, *more: str, folder: Path = EXAMPLE, has_label_map: bool = True) -> list[str]:
    given = ["--checkpoint", str(tmp_path / "weights.safetensors"), "--out", str(tmp_path / "out")]
    given += ["--color", str(folder / "color.jpg"), "--depth", str(folder / "depth.png"), "--intrinsics", INTRINSICS]
    return [*given, *(["--label-map", str(folder / "label_map.png")] if has_label_map else []), *more]


def refused(given: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert predict(given) == 2
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err and "completed" not in printed.out
    return printed.err


def test_shipped_example(model: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every output, and a camera that is found where it stands."""
    assert sum(path.stat().st_size for path in EXAMPLE.iterdir()) < 300_000
    assert predict(arguments(tmp_path, "--ply", "--page")) == 0
    out = tmp_path / "out"
    names = ["frame.npz", "frame.png", "frame_cubes.ply", "frame_points.ply", "page.html"]
    assert sorted(path.name for path in out.iterdir()) == names
    printed = capsys.readouterr().out
    for part in ("up (sure):", "floor (sure):", "m above the floor", "room: its walls run", "1 frame completed"):
        assert part in printed
    truth = read_trajectory(EXAMPLE / "pose.txt").pose_of(None)
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


def test_pose_and_height_are_used(model: StandIn, tmp_path: Path) -> None:
    assert predict(arguments(tmp_path, "--pose", str(EXAMPLE / "pose.txt"))) == 0
    with np.load(tmp_path / "out" / "frame.npz") as archive:
        np.testing.assert_allclose(archive["pose"], np.loadtxt(EXAMPLE / "pose.txt"), atol=1e-5)
        np.testing.assert_allclose(archive["world_from_given"], np.eye(4), atol=1e-5)
    assert predict(arguments(tmp_path, "--camera-height", "1.1", "--everywhere", "--dataset", "nyucad")) == 0
    with np.load(tmp_path / "out" / "frame.npz") as archive:
        assert archive["pose"][2, 3] == 1.1
    assert model.voxels == ["not_free", "all"]
    assert [batch.tsdf_is_flipped for batch in model.batches] == [False, True]


def test_missing_label_map_is_explained(model: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(arguments(tmp_path, has_label_map=False), capsys)
    for part in ("--label-map", "5 floor", "--checkpoint nyu_rgb_w64", "nyu_depth_w64"):
        assert part in message
    assert not (tmp_path / "out").exists()


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
    model: StandIn, recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--checkpoint", str(tmp_path / "weights.safetensors"), "--out", str(tmp_path / "out"), "--page"]
    given += ["--color", str(recordings), "--depth", str(recordings), "--label-map", str(recordings)]
    assert predict([*given, "--intrinsics", INTRINSICS]) == 1
    printed = capsys.readouterr()
    assert "1 frame completed (.npz, .png, page.html), 2 skipped" in printed.out
    assert "b.depth.png" in printed.err and "c.color.jpg" in printed.err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.npz", "a.png", "page.html"]


def test_another_grid_is_refused(model: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model.config = ModelConfig(grid_shape=(12, 12, 12))
    assert "model.grid_shape" in refused(arguments(tmp_path), capsys)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--data", "x", "--ids", "1", "--color", "c.jpg"), "--data and --color"),
        (("--color", "c.jpg"), "--depth, --intrinsics"),
        ((), "--data, --ids"),
        (("--data", "x", "--ids", "1", "--camera-height", "1"), "--data and --camera-height"),
        (("--color", "c", "--depth", "d", "--intrinsics", "1,1,1,1", "--pose-up=-y"), "--pose-up"),
    ],
)
def test_options_that_do_not_go_together(
    given: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        predict(["--checkpoint", "x", "--out", "y", *given])
    assert stopped.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def camera_arguments(tmp_path: Path, *more: str) -> list[str]:
    return ["--checkpoint", str(tmp_path / "weights.safetensors"), "--out", str(tmp_path / "out"), *more]


def test_frame_all_but_outside_the_grid(model: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is completed, and the exit code and the words say how little that is."""
    depth = np.full((480, 640), 7500, dtype=np.uint16)
    depth[:8] = 3000
    Image.fromarray(depth).save(tmp_path / "far.png")
    given = arguments(tmp_path, "--depth", str(tmp_path / "far.png"), "--camera-height", "1.4")
    assert predict(given) == 1
    printed = capsys.readouterr()
    assert "frame frame: " in printed.err and "less than 10%" in printed.out


def test_depth_alone(model: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Networks that read no image need none; those that do say so."""
    given = camera_arguments(tmp_path, "--depth", str(EXAMPLE / "depth.png"), "--intrinsics", INTRINSICS)
    model.config = ModelConfig(inputs="tsdf")
    assert predict([*given, "--page"]) == 0
    assert model.batches[0].image is None and model.batches[0].frame_ids == ("frame",)
    plain = arguments(tmp_path, has_label_map=False)
    assert predict(plain) == 0
    np.testing.assert_array_equal(model.batches[0].mapping.numpy(), model.batches[1].mapping.numpy())
    capsys.readouterr()
    model.config = ModelConfig(image_encoder="resnet50")
    assert "color image" in refused(given, capsys)
    assert predict(plain) == 0
    assert model.batches[-1].label_map is None and model.batches[-1].image is not None
    model.config = ModelConfig()
    label_map = ["--label-map", str(EXAMPLE / "label_map.png")]
    assert predict([*given, *label_map]) == 0
    assert "note: " not in capsys.readouterr().err
    model.config = ModelConfig(inputs="tsdf")
    assert predict([*given, *label_map]) == 0
    assert "note: label map" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("trained", "given", "expected"),
    [(None, [], 0.001), ("surface", [], 1.0), ("free", [], 0.001), ("surface", ["--unobserved", "free"], 0.001)],
)
def test_unobserved_space_is_as_the_weights_were_trained(
    model: StandIn,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    trained: str | None,
    given: list[str],
    expected: float,
) -> None:
    model.metadata = {} if trained is None else {UNOBSERVED: trained}  # type: ignore[assignment]
    assert predict(arguments(tmp_path, "--dataset", "nyucad", *given)) == 0
    (batch,) = model.batches
    assert batch.tsdf_is_flipped
    name = "surface" if expected == 1.0 else "free"
    assert f"Unobserved space in the flipped TSDF: {name}" in capsys.readouterr().err
    assert unobserved_of(batch.tsdf.numpy()) == name
    assert predict(arguments(tmp_path)) == 0
    assert not model.batches[1].tsdf_is_flipped


def test_input_files_are_never_overwritten(model: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "own"
    own.mkdir()
    Image.open(EXAMPLE / "color.jpg").save(own / "shot.png")
    shutil.copy(EXAMPLE / "depth.png", own / "shot_depth.png")
    given = ["--checkpoint", str(tmp_path / "weights.safetensors"), "--intrinsics", INTRINSICS]
    files = ["--color", str(own / "shot.png"), "--depth", str(own / "shot_depth.png")]
    files += ["--label-map", str(EXAMPLE / "label_map.png")]
    before = (own / "shot.png").read_bytes()
    for out in (own, own / ".." / "own"):
        said = refused([*given, *files, "--out", str(out)], capsys)
        assert "shot.png" in said
    assert (own / "shot.png").read_bytes() == before and len(list(own.iterdir())) == 2
    # Results of an earlier call are no input.
    for _ in range(2):
        assert predict([*given, *files, "--out", str(own / "out")]) == 0


def test_a_set_is_never_overwritten(model: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "set"
    write_frame(root, random_frame(1, frame_id="0003", grid_shape=GRID_SHAPE, has_label_map=True))
    given = ["--checkpoint", str(tmp_path / "weights.safetensors"), "--data", str(root)]
    for frame_id in ("0003", "3", "NYU0003", "NYU0003_0000"):
        for folder in ("TSDF", "Label", "Mapping", "Seg2D"):
            said = refused([*given, "--ids", frame_id, "--out", str(root / folder)], capsys)
            assert f"--out {root / folder}" in said


def test_files_of_another_origin_are_never_overwritten(
    model: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Dense 2D truth and volumes of other programs have the names of completions; a completion is written anew."""
    root = tmp_path / "set"
    write_frame(root, random_frame(1, frame_id="0003", grid_shape=GRID_SHAPE, has_label_map=True))
    given = ["--checkpoint", str(tmp_path / "weights.safetensors"), "--data", str(root), "--ids", "0003"]
    truth = root / "Label2D" / "0003.png"
    truth.parent.mkdir()
    truth.write_bytes(b"2D truth")
    volumes = tmp_path / "volumes"
    volumes.mkdir()
    np.savez(volumes / "0003.npz", truth=np.zeros(3))
    np.save(tmp_path / "array.npy", np.zeros(3))
    no_archive = tmp_path / "no_archive" / "0003.npz"
    no_archive.parent.mkdir()
    (tmp_path / "array.npy").rename(no_archive)
    for path in (truth, volumes / "0003.npz", no_archive):
        before = path.read_bytes()
        said = refused([*given, "--out", str(path.parent)], capsys)
        assert path.name in said
        assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
    page = tmp_path / "site" / "page.html"
    page.parent.mkdir()
    page.write_text("<title>My page</title>")
    said = refused([*given, "--out", str(page.parent), "--page"], capsys)
    assert "page.html" in said and list(page.parent.iterdir()) == [page]
    out = tmp_path / "out"
    assert predict([*given, "--out", str(out), "--page"]) == 0
    assert predict([*given, "--out", str(out), "--page"]) == 0
    written = (out / "0003.npz").read_bytes()
    (out / "0003.png").write_bytes(b"half a pict")
    assert predict([*given, "--out", str(out), "--ply"]) == 0
    assert (out / "0003.npz").read_bytes() == written
    assert (out / "0003.png").read_bytes().startswith(b"\x89PNG")
