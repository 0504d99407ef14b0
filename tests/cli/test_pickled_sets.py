"""Occ-ScanNet from its pickles to scores: prepared, checked, and scored by both definitions, each named."""

import json
from pathlib import Path

import numpy as np
import pytest

from ammnet_sparse.cli import data_check, data_prepare, evaluate
from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.grid import IGNORE_LABEL
from ammnet_sparse.data.sets.field_of_view import FramesInView
from ammnet_sparse.data.sets.folder import FrameFolder
from ammnet_sparse.evaluation import metrics
from ammnet_sparse.files.errors import DataError
from tests.data.raw.pickled_files import room, write_monoscene, write_occscannet


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("occscannet")
    write_occscannet(folder / "raw", {"train": ["scene0000_00/00000"], "val": ["scene0001_00/00007"]})
    arguments = ["--from", "occscannet", "--raw", str(folder / "raw"), "--out", str(folder / "set"), "--workers", "1"]
    assert data_prepare.main(arguments) == 0
    return folder / "set"


def test_scores_by_both_definitions(
    prepared: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert data_check.main([str(prepared)]) == 0
    common = ["--data", str(prepared), "--split", "val", "--checkpoint", str(weights), "--device", "cpu"]
    found = []
    for scored in ("weight", "view"):
        file = tmp_path / f"{scored}.json"
        assert evaluate.main([*common, "--scored", scored, "--json", str(file)]) == 0
        assert "field of view" in capsys.readouterr().out or scored == "weight"
        found.append(json.loads(file.read_text()))
        assert found[-1]["scored"] == scored
    assert found[0]["sc"] != found[1]["sc"]


def test_the_view_scores_every_known_voxel_in_it(prepared: Path) -> None:
    folder = FrameFolder(prepared)
    frame = FramesInView(folder).read("scene0001_00_00007")
    assert frame.label is not None
    with np.load(prepared / "TSDF" / "scene0001_00_00007.npz") as file:
        expected = (file["view"] > 0) & (frame.label.reshape(-1) != IGNORE_LABEL)
    batch = Batch.from_frame(frame)
    truth = batch.label
    assert truth is not None
    scores = metrics.evaluate(lambda _: truth.masked_fill(truth == IGNORE_LABEL, 0), [batch], sc_counts_hits=True)
    assert scores.sc_iou == scores.ssc_miou == 1.0
    assert int(scores.confusion.sum()) == int(scores.occupancy.sum()) == expected.sum()
    assert folder.read("scene0001_00_00007").scored_mask.sum() < expected.sum()


def test_sets_without_a_field_of_view_say_so(root: Path) -> None:
    folder = FrameFolder(root, grid_shape=(12, 12, 12))
    with pytest.raises(DataError, match="TSDF/0001.npz"):
        FramesInView(folder).read("0001")


def test_monoscene_and_options_of_other_forms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_monoscene(tmp_path / "NYUtrain", tmp_path / "NYUtrain", "0003", room(1))
    arguments = ["--from", "monoscene", "--raw", str(tmp_path / "NYUtrain"), "--out", str(tmp_path / "set")]
    assert data_prepare.main([*arguments, "--intrinsics", "nyu", "--unknown", "empty", "--workers", "1"]) == 0
    assert "--unknown empty" in capsys.readouterr().out
    for more in ([], ["--intrinsics", "nyu", "--flipped"]):
        with pytest.raises(SystemExit) as stopped:
            data_prepare.main([*arguments, *more])
        assert stopped.value.code == 2
