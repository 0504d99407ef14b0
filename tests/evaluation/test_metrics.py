"""Scores against counts by hand and by a naive loop, what must not matter, undefined scores, and the baselines."""

import json
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.grid import CLASS_NAMES, IGNORE_LABEL, NUM_CLASSES, UNMAPPED
from ammnet_sparse.evaluation.baselines import class_prior, constant_baseline, constant_baselines, prior_labels
from ammnet_sparse.evaluation.metrics import CompletionMetrics, Scores, VoxelCounts, evaluate
from tests.generated import given, settings, st

FLOOR, WALL, CHAIR = (CLASS_NAMES.index(name) for name in ("floor", "wall", "chair"))


def make_batch(
    label: list[int], *, weight: list[int] | None = None, hit: list[int] | None = None, frames: int = 1
) -> Batch:
    """Frames of a column of voxels [1, 1, V]; all weighted and none hit unless said otherwise."""
    voxels = len(label) // frames
    mapping = torch.where(torch.tensor(hit or [0] * len(label)) > 0, 7, UNMAPPED)
    return Batch(
        tsdf=torch.zeros(frames, 1, 1, 1, voxels),
        mapping=mapping.view(frames, voxels),
        label_weight=torch.tensor(weight or [1] * len(label)).bool().view(frames, voxels),
        label=torch.tensor(label, dtype=torch.uint8).view(frames, voxels),
    )


def random_batch(rng: np.random.Generator, *, frames: int = 2, shape: tuple[int, int, int] = (4, 3, 5)) -> Batch:
    voxels = math.prod(shape)
    label = rng.choice([*range(NUM_CLASSES), IGNORE_LABEL], size=(frames, voxels))
    return Batch(
        tsdf=torch.zeros(frames, 1, *shape),
        mapping=torch.from_numpy(np.where(rng.random((frames, voxels)) < 0.2, 5, UNMAPPED)),
        label_weight=torch.from_numpy(rng.random((frames, voxels)) < 0.7),
        label=torch.from_numpy(label.astype(np.uint8)),
    )


def score(predicted: list[int], batch: Batch) -> Scores:
    metrics = CompletionMetrics()
    metrics.update(torch.tensor(predicted, dtype=torch.uint8).view(batch.batch_size, -1), batch)
    return metrics.compute()


def naive_scores(predicted: torch.Tensor, batch: Batch) -> tuple[list[float], list[float]]:
    """(SC precision, recall, IoU), (IoU of classes 1..11) by counting voxel by voxel."""
    assert batch.label is not None
    sc = {"tp": 0, "fp": 0, "fn": 0}
    ssc = [{"tp": 0, "fp": 0, "fn": 0} for _ in CLASS_NAMES]
    for b in range(batch.batch_size):
        for v in range(batch.num_voxels):
            truth, guess = int(batch.label[b, v]), int(predicted[b, v])
            if not batch.label_weight[b, v] or truth == IGNORE_LABEL:
                continue
            if truth == guess:
                ssc[truth]["tp"] += 1
            else:
                ssc[truth]["fn"] += 1
                ssc[guess]["fp"] += 1
            if batch.mapping[b, v] != UNMAPPED or (truth == 0 and guess == 0):
                continue
            sc["tp" if truth > 0 and guess > 0 else "fn" if truth > 0 else "fp"] += 1

    def ratio(part: int, whole: int) -> float:
        return part / whole if whole else math.nan

    sc_scores = [ratio(sc["tp"], sc["tp"] + sc["fp"]), ratio(sc["tp"], sc["tp"] + sc["fn"])]
    return [*sc_scores, ratio(sc["tp"], sum(sc.values()))], [ratio(c["tp"], sum(c.values())) for c in ssc[1:]]


def counts_of(predicted: torch.Tensor, batch: Batch) -> VoxelCounts:
    assert batch.label is not None
    labels = batch.label.masked_fill(~batch.scored_mask, IGNORE_LABEL).flatten()
    return VoxelCounts.of(predicted.flatten(), labels, batch.hit_mask.flatten(), frames=batch.batch_size)


@pytest.mark.cuda
def test_counting_does_not_wait_for_the_device() -> None:
    rng = np.random.default_rng(5)
    batch = random_batch(rng).to("cuda")
    predicted = torch.from_numpy(rng.integers(0, NUM_CLASSES, size=(2, batch.num_voxels))).cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        counts = counts_of(predicted, batch) + counts_of(predicted, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = counts_of(predicted.cpu(), batch.to("cpu"))
    assert torch.equal(counts.confusion.cpu(), 2 * expected.confusion)


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1))
def test_equals_naive_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    batch = random_batch(rng)
    predicted = torch.from_numpy(rng.integers(0, NUM_CLASSES, (2, 60), dtype=np.uint8))
    metrics = CompletionMetrics()
    metrics.update(predicted, batch)
    scores = metrics.compute()
    sc, ssc = naive_scores(predicted, batch)
    np.testing.assert_allclose([scores.sc_precision, scores.sc_recall, scores.sc_iou], sc)
    np.testing.assert_allclose(list(scores.ssc_iou.values()), ssc)
    np.testing.assert_allclose(scores.ssc_miou, np.nanmean(ssc))


def test_pools_counts_over_batches_and_volumes() -> None:
    rng = np.random.default_rng(1)
    batches = [random_batch(rng, frames=frames) for frames in (2, 1, 3)]
    predicted = [torch.from_numpy(rng.integers(0, NUM_CLASSES, batch.mapping.shape)) for batch in batches]
    one_by_one, at_once = CompletionMetrics(), CompletionMetrics()
    for labels, batch in zip(predicted, batches, strict=True):
        one_by_one.update(labels.view(batch.batch_size, *batch.grid_shape), batch)
    at_once.update(torch.cat(predicted), Batch.collate(batches))
    assert one_by_one.compute().frames == 6
    assert one_by_one.compute() == at_once.compute()
    one_by_one.reset()
    assert one_by_one.compute().frames == 0


@pytest.mark.parametrize(
    ("batch", "predicted", "undefined"),
    [
        (make_batch([0, 0]), [0, 0], {"sc_precision", "sc_recall", "sc_iou", "ssc_miou"}),
        (make_batch([FLOOR, WALL], hit=[1, 1]), [FLOOR, WALL], {"sc_precision", "sc_recall", "sc_iou"}),
        (make_batch([FLOOR, WALL]), [0, 0], {"sc_precision"}),
        (make_batch([0, 0]), [FLOOR, 0], {"sc_recall"}),
        (make_batch([255, 255]), [FLOOR, 0], {"sc_precision", "sc_recall", "sc_iou", "ssc_miou"}),
    ],
    ids=["all empty", "nothing occluded", "nothing predicted", "nothing there", "nothing scored"],
)
def test_undefined_scores_are_nan_without_warning(batch: Batch, predicted: list[int], undefined: set[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = score(predicted, batch)
    values = {name: getattr(scores, name) for name in ("sc_precision", "sc_recall", "sc_iou", "ssc_miou")}
    assert {name for name, value in values.items() if math.isnan(value)} == undefined


def test_json_is_in_percent_with_null_for_undefined() -> None:
    found = json.loads(json.dumps(score([FLOOR, 0, WALL, 0], make_batch([FLOOR, 0, 0, FLOOR])).to_json()))
    assert list(found) == ["frames", "sc", "ssc"]
    assert found["frames"] == 1
    assert found["sc"] == {"precision": 50.0, "recall": 50.0, "iou": pytest.approx(100 / 3)}
    assert list(found["ssc"]["iou"]) == list(CLASS_NAMES[1:])
    assert found["ssc"]["iou"]["floor"] == 50.0
    assert found["ssc"]["iou"]["wall"] == 0.0
    assert found["ssc"]["iou"]["bed"] is None
    assert found["ssc"]["miou"] == 25.0


@pytest.mark.parametrize(
    "predicted",
    [
        torch.zeros(1, 3, dtype=torch.uint8),
        torch.zeros(1, 4),
        torch.full((1, 4), 12),
        torch.full((1, 4), -1),
    ],
)
def test_bad_predictions_are_refused(predicted: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="labels_predicted"):
        CompletionMetrics().update(predicted, make_batch([0, 1, 2, 3]))


def test_frames_without_truth_are_refused() -> None:
    batch = Batch(
        tsdf=torch.zeros(1, 1, 1, 1, 2),
        mapping=torch.full((1, 2), UNMAPPED),
        label_weight=torch.ones(1, 2).bool(),
        frame_ids=("0042",),
    )
    with pytest.raises(ValueError, match="0042"):
        CompletionMetrics().update(torch.zeros(1, 2, dtype=torch.uint8), batch)


def test_constant_baselines_equal_scored_constants() -> None:
    rng = np.random.default_rng(3)
    batches = [random_batch(rng) for _ in range(3)]
    found = constant_baselines(iter(batches))
    assert list(found) == list(CLASS_NAMES[1:])
    for label, name in enumerate(CLASS_NAMES[1:], start=1):
        expected = evaluate(lambda batch, label=label: torch.full_like(batch.mapping, label), batches)
        assert found[name] == expected
        assert torch.equal(found[name].confusion, expected.confusion)
    best = constant_baseline(batches)
    assert best.ssc_miou == max(scores.ssc_miou for scores in found.values()) > 0


def test_class_prior_is_the_most_frequent_scored_class() -> None:
    # The weight leaves out a vote at voxel 1 and all of voxel 3, where the height (one here) decides: 5 empty votes.
    label = [FLOOR, WALL, 0, CHAIR] + [FLOOR, WALL, 0, CHAIR] + [0, 0, IGNORE_LABEL, CHAIR] + [0, 0, 0, CHAIR]
    weight = [1, 1, 1, 0] + [1, 0, 1, 0] + [1, 1, 1, 0] + [0, 1, 1, 0]
    batch = make_batch(label, weight=weight, frames=4)
    assert class_prior([batch]).flatten().tolist() == [FLOOR, 0, 0, 0]
    repeated = prior_labels(class_prior([batch]), batch)
    assert repeated.shape == (4, 4)
    assert torch.equal(repeated[3], class_prior([batch]).flatten())


def test_class_prior_falls_back_on_the_height() -> None:
    label = torch.zeros(2, 2, 3, dtype=torch.uint8)
    label[:, 0], label[:, 1] = FLOOR, WALL
    weight = torch.zeros(2, 2, 3, dtype=torch.bool)
    weight[0, 0, 0] = weight[0, 1, :] = True
    batch = Batch(
        tsdf=torch.zeros(1, 1, 2, 2, 3),
        mapping=torch.full((1, 12), UNMAPPED),
        label_weight=weight.view(1, -1),
        label=label.view(1, -1),
    )
    assert torch.equal(class_prior([batch]), label)


def test_class_prior_errors() -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        class_prior([])
    with pytest.raises(ValueError, match="grid"):
        class_prior([make_batch([0, 1]), make_batch([0, 1, 2])])
    with pytest.raises(ValueError, match="prior"):
        prior_labels(class_prior([make_batch([0, 1])]), make_batch([0, 1, 2]))


def test_frames_without_hits_are_empty_and_frames_without_scored_voxels_left_out() -> None:
    labels = [WALL, 0, CHAIR, 0]
    batch = make_batch(labels * 3, hit=[1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], weight=[1] * 8 + [0] * 4, frames=3)
    named = replace(batch, frame_ids=("seen", "unseen", "unscored"))
    asked: list[tuple[str, ...]] = []

    def predict(frames: Batch) -> torch.Tensor:
        asked.append(frames.frame_ids)
        return torch.tensor([labels] * frames.batch_size)

    scores = evaluate(predict, [named])
    assert asked == [("seen",)]
    assert (scores.frames, scores.without_hits, scores.left_out) == (2, ("unseen",), ("unscored",))
    # Of the frame that is not seen, wall and chair are missed.
    assert scores.ssc_iou["wall"] == scores.ssc_iou["chair"] == 0.5
    assert scores.sc_recall == pytest.approx(1 / 3)
    assert len(scores.remarks()) == 2 and scores.to_json()["left_out"] == ["unscored"]
    nothing = evaluate(predict, [named.select(torch.tensor([False, False, True]))])
    assert nothing.frames == 0 and math.isnan(nothing.ssc_miou)
    assert "left_out" not in evaluate(predict, [named.select(torch.tensor([True, False, False]))]).to_json()
