"""Files that earlier versions wrote: a run stopped after step 3 goes on, and weights predict, with the same numbers.

``before/`` holds what version 0.1.0 left of a run of ``support.tiny_set`` when generator and discriminator were one
module: configuration, state, first lines of metrics.jsonl, the last weights of the whole run, and the figures that
this version then found. Tolerances leave room for another build of PyTorch. The figures of the shipped weights are of
those shipped now: after shipping others, ``python -m tests.training.test_older_runs`` records them.
"""

import json
import lzma
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from ammnet_sparse.config import load_config
from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.grid import GRID_SHAPE
from ammnet_sparse.models.weights.loading import load_discriminator, load_model
from tests.data.frames import random_frame
from tests.training.support import make_run, tiny_batch, tiny_set

BEFORE = Path(__file__).parent / "before"
FIGURES: dict[str, Any] = json.loads((BEFORE / "figures.json").read_text())


def unpack(name: str, folder: Path) -> Path:
    path = folder / name
    path.write_bytes(lzma.decompress((BEFORE / f"{name}.xz").read_bytes()))
    return path


@pytest.mark.usefixtures("quick_pictures")
def test_a_run_of_an_earlier_version_goes_on_as_it_would_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.yaml", "metrics.jsonl"):
        shutil.copy(BEFORE / name, run)
    unpack("state.pt", run)
    # Scored once more at the end of a run that has become no better since; which weights they are does not matter.
    unpack("last.safetensors", run).rename(run / "best.safetensors")
    root = tiny_set(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    config = load_config(run / "config.yaml")
    assert config.data.root == Path(root.name)
    resumed = make_run(config, run, resume=True)
    assert (resumed.progress.epoch, resumed.progress.step, resumed.progress.batches_done) == (1, 3, 1)
    resumed.train()
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["step"]) for line in found] == [
        (line["kind"], line["step"]) for line in FIGURES["metrics"]
    ]
    for line, before in zip(found, FIGURES["metrics"], strict=True):
        for name in ("loss", "scene", "adversarial", "discriminator", "generator_gradient_norm", "learning_rate"):
            if name in before:
                assert line[name] == pytest.approx(before[name], rel=1e-3), (line["step"], name)
        if "validation" in before:
            assert line["validation"]["ssc"]["miou"] == pytest.approx(before["validation"]["ssc"]["miou"], abs=0.02)
            assert line["validation_scene"] == pytest.approx(before["validation_scene"], rel=1e-3)


def test_weights_of_an_earlier_version_predict_and_judge_as_they_did(tmp_path: Path) -> None:
    path, before = unpack("last.safetensors", tmp_path), FIGURES["last"]
    network, discriminator = load_model(path), load_discriminator(path)
    with torch.inference_mode():
        prediction = network(tiny_batch((0, 1)), voxels="scored")
        scores = discriminator(prediction.voxel_logits, prediction.sites)
    assert prediction.voxel_logits[0].tolist() == pytest.approx(before["first"], abs=1e-4)
    assert float(prediction.voxel_logits.double().abs().mean()) == pytest.approx(before["logits_mean_abs"], rel=1e-4)
    assert scores.flatten().tolist() == pytest.approx(before["scores"], rel=1e-3, abs=1e-4)
    assert torch.bincount(prediction.labels.flatten().long(), minlength=12).tolist() == before["labels"]


def figures_of_shipped_weights() -> dict[str, Any]:
    frame = random_frame(3, grid_shape=GRID_SHAPE, has_label_map=True)
    with torch.inference_mode():
        prediction = load_model("nyu_seg2d_w64")(Batch.from_frame(frame), voxels="scored")
    return {
        "logits_mean_abs": float(prediction.voxel_logits.double().abs().mean()),
        "first": prediction.voxel_logits[0].tolist(),
        "labels": torch.bincount(prediction.labels.flatten().long(), minlength=12).tolist(),
    }


def test_shipped_weights_predict_as_they_did() -> None:
    found, before = figures_of_shipped_weights(), FIGURES["shipped"]
    assert found["first"] == pytest.approx(before["first"], abs=1e-3)
    assert found["logits_mean_abs"] == pytest.approx(before["logits_mean_abs"], rel=1e-4)
    assert sum(abs(one - other) for one, other in zip(found["labels"], before["labels"], strict=True)) < 20


if __name__ == "__main__":  # records them anew, for other weights
    FIGURES["shipped"] = figures_of_shipped_weights()
    (BEFORE / "figures.json").write_text(json.dumps(FIGURES, indent=1) + "\n")
