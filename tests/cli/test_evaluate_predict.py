"""`ammnet evaluate` and `ammnet predict` over a small set: what they print and write, and how they refuse."""

import dataclasses
import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ammnet_sparse.cli import evaluate as evaluate_command
from ammnet_sparse.cli import predict as predict_command
from ammnet_sparse.config import DataConfig, ModelConfig
from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.frame import Frame
from ammnet_sparse.data.grid import CLASS_NAMES, IMAGE_SHAPE, UNMAPPED, UNMAPPED_ON_DISK
from ammnet_sparse.data.sets.folder import FrameFolder
from ammnet_sparse.data.sets.frame_source import validation_ids
from tests.data.frames import write_frame, write_list

GRID = (12, 12, 12)
IDS = [f"{number:04d}" for number in range(1, 9)]
Tool = Callable[..., int]


def evaluate(arguments: list[str]) -> int:
    """The command on the CPU wherever the tests run; the last ``--device`` counts."""
    return evaluate_command.main(["--device", "cpu", *arguments])


def predict(arguments: list[str]) -> int:
    """The same of ``ammnet predict``."""
    return predict_command.main(["--device", "cpu", *arguments])


def write_set(root: Path, *, with_labels: bool = True) -> Path:
    """Eight frames, the last four for testing: floor, a wall at the back, and a chair without weight in free space.

    Scored are 144 voxels of floor, 264 of wall, of which 132 are hit by a pixel, and 252 empty ones. Without labels
    there are images.
    """
    label = np.zeros(GRID, dtype=np.uint8)
    label[:, 0], label[:, 1:, 10:] = CLASS_NAMES.index("floor"), CLASS_NAMES.index("wall")
    tsdf = np.full(GRID, 1.0, dtype=np.float32)
    tsdf[label > 0] = -0.8
    tsdf[:, 5:, :3] = 0
    mapping = np.full(GRID, UNMAPPED, dtype=np.int32)
    mapping[:, 1:, 10] = np.arange(mapping[:, 1:, 10].size).reshape(12, 11)
    label_map = np.full(IMAGE_SHAPE, 5, dtype=np.uint8)
    image = None if with_labels else np.full((*IMAGE_SHAPE, 3), 90, dtype=np.uint8)
    for frame_id in IDS:
        own = label.copy()
        own[int(frame_id), 1, 4] = CLASS_NAMES.index("chair")
        write_frame(root, Frame(frame_id, tsdf, mapping, tsdf < 1, own, image, label_map))
    if not with_labels:
        shutil.rmtree(root / "Label")
    write_list(root / "train.txt", IDS[:4])
    write_list(root / "test.txt", IDS[4:])
    return root


@pytest.fixture(scope="module")
def set_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("set"))


class StandIn(nn.Module):
    """Predicts the truth, but floor for wall, and objects in free space; keeps what it was asked for."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.calls: list[tuple[tuple[str, ...], str]] = []

    def forward(self, batch: Batch, *, voxels: str) -> SimpleNamespace:
        self.calls.append((batch.frame_ids, voxels))
        truth = torch.zeros_like(batch.label_weight, dtype=torch.uint8) if batch.label is None else batch.label
        labels: Tensor = torch.where(truth == CLASS_NAMES.index("wall"), CLASS_NAMES.index("floor"), truth)
        if voxels == "all":
            labels = torch.where(batch.tsdf.flatten(1) >= 0.999, CLASS_NAMES.index("objects"), labels)
        return SimpleNamespace(labels=labels.to(torch.uint8).view(-1, *GRID))


@dataclasses.dataclass
class Checkpoint:
    path: Path
    model: StandIn
    loaded_with: list[dict[str, Any]]


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    """A file that ``load_model`` answers with the stand-in."""
    path = tmp_path / "stand_in.safetensors"
    path.touch()
    found = Checkpoint(path, StandIn(ModelConfig(grid_shape=GRID, width=8)), [])

    def load_model(checkpoint: Path, **options: Any) -> nn.Module:
        assert checkpoint == path
        found.loaded_with.append(options)
        return found.model

    monkeypatch.setattr("ammnet_sparse.models.ensemble.load_model", load_model)
    return found


def arguments(checkpoint: Checkpoint, folder: Path, *more: str) -> list[str]:
    return ["--checkpoint", str(checkpoint.path), "--data", str(folder), *more]


def test_evaluate_prints_and_writes(
    checkpoint: Checkpoint, set_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "scores.json"
    assert evaluate(arguments(checkpoint, set_folder, "--json", str(file), "--batch-size", "3")) == 0
    assert checkpoint.model.calls == [(tuple(IDS[4:7]), "scored"), ((IDS[7],), "scored")]
    assert checkpoint.loaded_with == [{"device": torch.device("cpu"), "sites": None}]
    scores = json.loads(file.read_text(encoding="utf-8"))
    assert {key: scores[key] for key in scores if key not in ("frames", "sc", "ssc")} == {
        "checkpoint": str(checkpoint.path),
        "data": str(set_folder),
        "dataset": "nyu",
        "split": "test",
        "limit": None,
        "scored": "weight",
        "flips": None,
        "precision": "float32",
    }
    assert scores["frames"] == 4
    assert scores["sc"] == {"precision": 100, "recall": 100, "iou": 100}
    # 144 floor voxels and 264 of wall, told to be floor; the chair has no weight.
    iou = scores["ssc"]["iou"]
    assert iou["floor"] == pytest.approx(100 * 144 / (144 + 264))
    assert iou["wall"] == 0
    assert iou["chair"] is None
    assert scores["ssc"]["miou"] == pytest.approx(50 * 144 / (144 + 264))
    printed = capsys.readouterr()
    assert "4 frames" in printed.out
    row = next(line for line in printed.out.splitlines() if line.startswith("stand_in"))
    assert row.split()[1:5] == ["|", "100.0", "100.0", "100.0"]
    assert row.split()[-1] == "17.6"


def test_evaluate_adds_baselines(
    checkpoint: Checkpoint, set_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "scores.json"
    options = ("--split", "val", "--validation-frames", "2", "--limit", "1", "--baselines", "--sites", "dense")
    assert evaluate(arguments(checkpoint, set_folder, *options, "--json", str(file))) == 0
    assert checkpoint.loaded_with[0]["sites"] == "dense"
    printed = capsys.readouterr().out
    rows = {line.split("|")[0].strip(): line.split() for line in printed.splitlines() if "|" in line}
    part = "first 1 of 2 frames"
    assert f"val: {part}, percent" in printed
    assert rows[f"class prior ({part})"][-1] == "100.0"  # but for the chair, all frames are alike
    assert rows[f"best constant class ({part})"][-1] == f"{50 * 264 / (144 + 264 + 252):.1f}"
    written = json.loads(file.read_text(encoding="utf-8"))
    assert (written["split"], written["limit"], written["subset"]) == ("val", 1, part)
    baselines = written["baselines"]
    assert list(baselines) == ["best constant class", "class prior"]
    assert baselines["class prior"]["ssc"]["miou"] == 100 != written["ssc"]["miou"]
    assert baselines["best constant class"]["ssc"]["miou"] == pytest.approx(50 * 264 / (144 + 264 + 252))
    assert baselines["best constant class"]["frames"] == 1


def test_splits(checkpoint: Checkpoint, set_folder: Path) -> None:
    """Without val.txt the frames drawn by the defaults of the configuration are kept for validation."""
    drawn = validation_ids(
        FrameFolder(set_folder, grid_shape=GRID), split="train", count=2, seed=DataConfig().validation_seed
    )
    for split in ("val", "train", "test"):
        options = ("--split", split, "--validation-frames", "2")
        assert evaluate(arguments(checkpoint, set_folder, *options)) == 0
    asked = [ids[0] for ids, _ in checkpoint.model.calls]
    assert asked[:2] == drawn
    assert asked[2:4] == [frame_id for frame_id in IDS[:4] if frame_id not in drawn]
    assert asked[4:] == IDS[4:]


def test_predict_writes_volume_and_picture(checkpoint: Checkpoint, set_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    assert predict(arguments(checkpoint, set_folder, "--ids", "0003", "NYU0007", "--out", str(out))) == 0
    assert sorted(path.name for path in out.iterdir()) == ["0003.npz", "0003.png", "0007.npz", "0007.png"]
    assert checkpoint.model.calls == [(("0003",), "not_free"), (("0007",), "not_free")]
    with np.load(out / "0003.npz", allow_pickle=False) as archive:
        assert archive.files == ["labels"]
        labels = archive["labels"]
    assert labels.dtype == np.uint8
    assert labels.shape == GRID
    assert (labels[:, 1:, 10:] == CLASS_NAMES.index("floor")).all()
    picture = iio.imread(out / "0003.png")
    # Input, prediction, truth and errors beside each other.
    assert picture.shape[1] == 4 * 360 + 5 * 12
    assert picture.dtype == np.uint8


def test_predict_everywhere_without_truth(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", with_labels=False)
    out = tmp_path / "out"
    assert predict(arguments(checkpoint, folder, "--ids", "0001", "--out", str(out), "--everywhere")) == 0
    assert checkpoint.model.calls == [(("0001",), "all")]
    with np.load(out / "0001.npz", allow_pickle=False) as archive:
        assert (archive["labels"] == CLASS_NAMES.index("objects")).any()
    assert iio.imread(out / "0001.png").shape[1] == 2 * 360 + 3 * 12


def refused(tool: Tool, given: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert tool(given) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Traceback" not in printed.err
    return printed.err


def test_missing_checkpoint(set_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--checkpoint", str(tmp_path / "none.safetensors"), "--data", str(set_folder)]
    assert "none.safetensors" in refused(evaluate, given, capsys)
    assert "none.safetensors" in refused(predict, [*given, "--ids", "0001", "--out", str(tmp_path)], capsys)


def test_unknown_and_repeated_ids_are_named_before_anything_is_written(
    checkpoint: Checkpoint, set_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    given = arguments(checkpoint, set_folder, "--ids", "0001", "0042", "0043", "--out", str(out))
    assert "0042, 0043" in refused(predict, given, capsys)
    given = arguments(checkpoint, set_folder, "--ids", "0001", "NYU0001", "--out", str(out))
    assert "--ids: " in refused(predict, given, capsys)
    assert not out.exists()


@pytest.mark.parametrize(("broken", "code", "count"), [(("0005", "0006"), 1, 1), (("0005", "0004", "0006"), 2, 0)])
def test_a_broken_frame_does_not_take_the_others(
    checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    broken: tuple[str, ...],
    code: int,
    count: int,
) -> None:
    monkeypatch.setattr(predict_command.CompletedScene, "write_picture", lambda *arguments: None)
    folder, out = write_set(tmp_path / "set"), tmp_path / "out"
    (folder / "TSDF" / "0005.npz").write_bytes(b"PK")
    for frame_id in broken[1:]:
        _without_hits(folder, frame_id)
    given = arguments(checkpoint, folder, "--ids", "0004", "0005", "0006", "--out", str(out), "--page")
    assert predict(given) == code
    printed = capsys.readouterr()
    assert f"{count} frame" in printed.out and f"{len(broken)} skipped" in printed.out
    for frame_id in broken:
        assert f"frame {frame_id}: " in printed.err
    assert (out / "page.html").exists() is (count > 0)


def test_an_interruption_leaves_the_page_of_what_is_done(
    checkpoint: Checkpoint, set_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(scene: Any, folder: Path) -> None:
        if checkpoint.model.calls[-1][0] == ("0005",):
            raise KeyboardInterrupt

    monkeypatch.setattr(predict_command.CompletedScene, "write_picture", interrupt)
    out = tmp_path / "out"
    given = arguments(checkpoint, set_folder, "--ids", "0004", "0005", "0006", "--out", str(out), "--page")
    assert predict(given) == 130
    assert '"0004"' in (page := (out / "page.html").read_text("utf-8")) and '"0005"' not in page


def test_the_place_of_the_scores_is_checked_first_and_the_table_comes_in_any_case(
    checkpoint: Checkpoint,
    set_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fill_the_disk(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    assert "--json" in refused(evaluate, arguments(checkpoint, set_folder, "--json", str(tmp_path)), capsys)
    assert checkpoint.model.calls == []
    monkeypatch.setattr(evaluate_command, "write_text", fill_the_disk)
    assert evaluate(arguments(checkpoint, set_folder, "--json", str(tmp_path / "scores.json"))) == 2
    printed = capsys.readouterr()
    assert "stand_in" in printed.out and "scores.json" in printed.err


def test_set_without_truth_cannot_be_scored(
    checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_set(tmp_path / "set", with_labels=False)
    assert "Label" in refused(evaluate, arguments(checkpoint, folder), capsys)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--split", "val"), "val.txt"),
        (("--split", "dev"), "dev.txt"),
        (("--data", "no/such/set"), "no/such/set"),
    ],
)
def test_wrong_usage(
    checkpoint: Checkpoint, set_folder: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], message: str
) -> None:
    assert message in refused(evaluate, arguments(checkpoint, set_folder, *more), capsys)


def _without_hits(folder: Path, frame_id: str) -> None:
    np.savez(folder / "Mapping" / f"{frame_id}.npz", np.full(int(np.prod(GRID)), UNMAPPED_ON_DISK, dtype=np.int32))
