"""metrics.jsonl and TensorBoard of a run folder."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ammnet_sparse.evaluation.metrics import Scores, scores_from_counts
from ammnet_sparse.models.ammnet import AMMNet
from ammnet_sparse.training.records import Records, picture_of
from tests.training.support import tiny_batch, tiny_config


def some_scores() -> Scores:
    confusion = torch.diag(torch.arange(12))
    confusion[0, 2] = 2
    return scores_from_counts(confusion, torch.tensor([[5, 1], [1, 3]]), frames=4)


def lines_of(folder: Path) -> list[dict]:
    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    text = (folder / "metrics.jsonl").read_text()
    assert text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_a_line_a_step_and_an_epoch(tmp_path: Path) -> None:
    with Records(tmp_path) as records:
        records.step(1, {"loss": 2.5, "generator_gradient_norm": math.inf})
        # On disk at once, for those who watch.
        assert lines_of(tmp_path) == [{"kind": "step", "step": 1, "loss": 2.5, "generator_gradient_norm": None}]
        records.step(2, {"loss": math.nan})
        records.epoch(1, 2, {"loss": 2.0, "seconds": 3.0}, some_scores())
        records.epoch(2, 2, {"loss": 1.0, "validation_scene": math.nan}, None, training=some_scores())
    _, second, validated, other = lines_of(tmp_path)
    assert second == {"kind": "step", "step": 2, "loss": None}
    assert validated["validation"]["ssc"]["miou"] == pytest.approx(100 * some_scores().ssc_miou)
    assert validated["validation"]["sc"]["iou"] == pytest.approx(60.0)
    assert (validated["kind"], validated["epoch"], validated["seconds"]) == ("epoch", 1, 3.0)
    assert "validation" not in other and other["validation_scene"] is None
    assert "training" not in validated and other["training"] == some_scores().to_json()

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    scalars = {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}
    assert scalars["validation/sc_iou"] == [(2, pytest.approx(60.0))]
    assert scalars["validation/ssc_miou"] == [(2, pytest.approx(100 * some_scores().ssc_miou))]
    assert scalars["training/ssc_miou"] == [(2, pytest.approx(100 * some_scores().ssc_miou))]
    assert scalars["step/loss"][0] == (1, 2.5)
    assert scalars["epoch/loss"] == [(2, 2.0), (2, 1.0)]


def test_resumed_records_drop_what_will_be_written_again(tmp_path: Path) -> None:
    with Records(tmp_path) as records:
        for step in (1, 2):
            records.step(step, {"loss": float(step)})
        records.epoch(1, 2, {}, None)
        for step in (3, 4):
            records.step(step, {"loss": float(step)})
        # The epoch's line is written before its state is saved: a run may end in between.
        records.epoch(2, 4, {}, None)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "st')
    with Records(tmp_path, resumed_at=(1, 4)) as records:
        records.epoch(2, 4, {"again": 1}, None)
    kinds = [(line["kind"], line["step"], "again" in line) for line in lines_of(tmp_path)]
    assert kinds == [
        ("step", 1, False),
        ("step", 2, False),
        ("epoch", 2, False),
        ("step", 3, False),
        ("step", 4, False),
        ("epoch", 4, True),
    ]
    with Records(tmp_path, resumed_at=(0, 1)):
        pass
    assert [line["step"] for line in lines_of(tmp_path)] == [1]
    with Records(tmp_path):
        pass
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_picture_is_drawn_and_kept(tmp_path: Path) -> None:
    network = AMMNet(tiny_config().model).eval()
    batch = tiny_batch((1,), has_image=True)
    picture = picture_of(network, batch)
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    assert len(np.unique(picture)) > 8
    with Records(tmp_path) as records:
        records.picture(7, network, dataclasses.replace(batch, image=None))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (image,) = events.Images("validation/scene")
    assert image.step == 7 and image.width > 0
