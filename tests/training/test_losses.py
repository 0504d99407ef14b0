"""The losses against their dense definitions."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.grid import IGNORE_LABEL, NUM_CLASSES, UNMAPPED
from ammnet_sparse.models.ammnet import Prediction
from ammnet_sparse.sparse.sites import SiteSet, full_sites, sites_from_mask
from ammnet_sparse.training.losses import (
    discriminator_loss,
    fake_loss,
    image_cross_entropy,
    num_labeled_pixels,
    real_loss,
    scene_cross_entropy,
    scene_lovasz,
    scored_weight,
)

GRID = (4, 3, 4)
IMAGE = (16, 24)


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(5)
    shape = (3, GRID[0] * GRID[1] * GRID[2])
    label = torch.randint(0, NUM_CLASSES, shape, generator=generator, dtype=torch.uint8)
    label[torch.rand(shape, generator=generator) < 0.2] = IGNORE_LABEL
    mapping = torch.randint(0, IMAGE[0] * IMAGE[1], shape, generator=generator)
    mapping[torch.rand(shape, generator=generator) < 0.6] = UNMAPPED
    label_weight = torch.rand(shape, generator=generator) < 0.5
    return Batch(torch.zeros(3, 1, *GRID), mapping, label_weight, label, frame_ids=("a", "b", "c"))


def sites_of(batch: Batch, *, is_dense: bool) -> SiteSet:
    if is_dense:
        return full_sites(batch.batch_size, GRID, torch.device("cpu"))
    return sites_from_mask(batch.scored_mask.view(-1, *GRID))


def prediction_of(batch: Batch, *, is_dense: bool, dtype: torch.dtype = torch.float64) -> tuple[Prediction, Tensor]:
    """A prediction and the dense logits [B, classes, V] it was taken from."""
    generator = torch.Generator().manual_seed(1)
    dense = torch.randn(3, NUM_CLASSES, batch.num_voxels, generator=generator, dtype=torch.float64).to(dtype)
    sites = sites_of(batch, is_dense=is_dense)
    logits = dense.permute(0, 2, 1).reshape(-1, NUM_CLASSES)[sites.linear]
    maps = torch.randn(3, NUM_CLASSES, IMAGE[0] // 4, IMAGE[1] // 4, generator=generator, dtype=torch.float64)
    return Prediction(logits, sites, class_logits_2d=maps, image_size=IMAGE), dense


@pytest.mark.parametrize("is_dense", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_scene_loss_is_cross_entropy_of_dense_logits_over_scored_voxels(
    batch: Batch, is_dense: bool, smoothing: float
) -> None:
    prediction, dense = prediction_of(batch, is_dense=is_dense)
    assert batch.label is not None
    target = batch.label.long().where(batch.label_weight, IGNORE_LABEL)
    expected = F.cross_entropy(dense, target, ignore_index=IGNORE_LABEL, label_smoothing=smoothing)
    found = scene_cross_entropy(prediction, batch, label_smoothing=smoothing) / scored_weight(batch)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_weighted_scene_loss_is_torchs_weighted_mean(batch: Batch, smoothing: float) -> None:
    prediction, dense = prediction_of(batch, is_dense=False)
    assert batch.label is not None
    weights = torch.linspace(0.5, 2.0, NUM_CLASSES)
    target = batch.label.long().where(batch.label_weight, IGNORE_LABEL)
    expected = F.cross_entropy(
        dense, target, weight=weights.double(), ignore_index=IGNORE_LABEL, label_smoothing=smoothing
    )
    total = scene_cross_entropy(prediction, batch, label_smoothing=smoothing, class_weights=weights)
    torch.testing.assert_close(total / scored_weight(batch, weights), expected, rtol=1e-6, atol=0)
    # Doubled weights say the same.
    doubled = scene_cross_entropy(prediction, batch, label_smoothing=smoothing, class_weights=2 * weights)
    torch.testing.assert_close(doubled / scored_weight(batch, 2 * weights), expected, rtol=1e-6, atol=0)
    assert torch.equal(scored_weight(batch), batch.scored_mask.sum())


def jaccard_loss(wrong: set[int], truth: set[int]) -> float:
    """1 - IoU of a class when the voxels of ``wrong`` are on the wrong side and all others on the right one."""
    return 1 - len(truth - wrong) / len(truth | wrong)


def lovasz_extension(errors: list[float], truth: set[int]) -> float:
    """Of the Jaccard loss, by its definition: the voxels of the largest errors become wrong one after the other."""
    total, before, wrong = 0.0, 0.0, set[int]()
    for voxel in sorted(range(len(errors)), key=lambda voxel: -errors[voxel]):
        wrong.add(voxel)
        now = jaccard_loss(wrong, truth)
        total += errors[voxel] * (now - before)
        before = now
    return total


@pytest.mark.parametrize("is_dense", [False, True])
def test_lovasz_is_the_extension_of_the_losses_of_both_scores(batch: Batch, is_dense: bool) -> None:
    prediction, dense = prediction_of(batch, is_dense=is_dense)
    assert batch.label is not None
    batch.label[batch.label == 4] = 5  # a class that the truth lacks does not count
    scored = batch.scored_mask.flatten()
    probabilities = dense.permute(0, 2, 1).reshape(-1, NUM_CLASSES)[scored].softmax(dim=1)
    labels = batch.label.flatten()[scored].tolist()

    def extension(of_class: Tensor, truth: list[bool]) -> float:
        errors = [abs(is_true - p) for is_true, p in zip(truth, of_class.tolist(), strict=True)]
        return lovasz_extension(errors, {voxel for voxel, is_true in enumerate(truth) if is_true})

    of_classes = [
        extension(probabilities[:, label], [found == label for found in labels])
        for label in range(1, NUM_CLASSES)
        if label in labels
    ]
    assert len(of_classes) == NUM_CLASSES - 2
    occluded = ~batch.hit_mask.flatten()[scored]
    occupied = [found != 0 for found, is_occluded in zip(labels, occluded.tolist(), strict=True) if is_occluded]
    expected = sum(of_classes) / len(of_classes) + extension(1 - probabilities[occluded, 0], occupied)
    assert scene_lovasz(prediction, batch).item() == pytest.approx(expected, rel=1e-10)


def test_lovasz_of_empty_space_is_zero_and_has_gradients(batch: Batch) -> None:
    prediction, _ = prediction_of(batch, is_dense=False)
    assert batch.label is not None
    batch.label[batch.label != IGNORE_LABEL] = 0
    logits = prediction.voxel_logits.requires_grad_()
    loss = scene_lovasz(prediction, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert logits.grad is not None and not logits.grad.any()


def test_dense_truth_takes_the_place_of_mapped_pixels(batch: Batch) -> None:
    prediction, _ = prediction_of(batch, is_dense=False)
    truth = torch.randint(1, 12, (3, *IMAGE), generator=torch.Generator().manual_seed(2)).to(torch.uint8)
    truth[:, : IMAGE[0] // 2] = IGNORE_LABEL
    dense = dataclasses.replace(batch, label_2d=truth)
    assert prediction.class_logits_2d is not None
    full_size = F.interpolate(prediction.class_logits_2d, size=IMAGE, mode="bilinear", align_corners=True)
    expected = F.cross_entropy(full_size, truth.long(), ignore_index=IGNORE_LABEL, label_smoothing=0.2)
    found = image_cross_entropy(prediction, dense, label_smoothing=0.2) / num_labeled_pixels(dense)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    assert num_labeled_pixels(dense) == (truth != IGNORE_LABEL).sum()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_image_loss_is_cross_entropy_of_upsampled_logits_at_mapped_pixels(batch: Batch, smoothing: float) -> None:
    prediction, _ = prediction_of(batch, is_dense=False)
    assert prediction.class_logits_2d is not None and batch.label is not None
    full_size = F.interpolate(prediction.class_logits_2d, size=IMAGE, mode="bilinear", align_corners=True)
    losses = []
    for frame, voxel in (batch.mapping != UNMAPPED).nonzero().tolist():
        label = batch.label[frame, voxel].long()
        if label != IGNORE_LABEL:  # the label weight does not matter here
            row, column = divmod(int(batch.mapping[frame, voxel]), IMAGE[1])
            losses.append(F.cross_entropy(full_size[frame, :, row, column], label, label_smoothing=smoothing))
    found = image_cross_entropy(prediction, batch, label_smoothing=smoothing)
    torch.testing.assert_close(found, torch.stack(losses).sum(), rtol=1e-10, atol=0)
    assert num_labeled_pixels(batch) == len(losses)


def test_half_precision_logits_are_summed_in_float32(batch: Batch) -> None:
    prediction, _ = prediction_of(batch, is_dense=False, dtype=torch.float16)
    loss = scene_cross_entropy(prediction, batch, label_smoothing=0.2)
    assert loss.dtype == torch.float32
    exact = Prediction(prediction.voxel_logits.double(), prediction.sites)
    torch.testing.assert_close(loss.double(), scene_cross_entropy(exact, batch, label_smoothing=0.2), rtol=1e-5, atol=0)
    assert real_loss(torch.zeros(2, 1, dtype=torch.float16)).dtype == torch.float32


def test_real_and_fake_losses_are_means_of_minus_log_probabilities() -> None:
    scores = torch.tensor([[-2.0], [0.5], [3.0]], dtype=torch.float64)
    probability = torch.sigmoid(scores)
    torch.testing.assert_close(real_loss(scores), -probability.log().mean())
    torch.testing.assert_close(fake_loss(scores), -(1 - probability).log().mean())


def test_the_discriminators_loss_is_the_sum_over_its_inputs() -> None:
    scores = torch.linspace(-3, 4, 8, dtype=torch.float64).sin()[:, None] * 3
    for num_groups in (2, 4, 8):
        real, *fakes = scores.chunk(num_groups)
        expected = real_loss(real) + sum(fake_loss(group) for group in fakes)
        torch.testing.assert_close(discriminator_loss(scores, num_groups=num_groups), expected)
    assert discriminator_loss(scores.half(), num_groups=2).dtype == torch.float32


def test_the_discriminators_loss_smooths_the_truth_alone_and_leaves_scenes_out() -> None:
    scores = torch.linspace(-3, 4, 6, dtype=torch.float64).sin()[:, None] * 3
    probability = torch.sigmoid(scores)
    smoothed = -(0.9 * probability[:2].log() + 0.1 * (1 - probability[:2]).log()).sum()
    fake = -(1 - probability[2:]).log()
    torch.testing.assert_close(discriminator_loss(scores, num_groups=3, real_target=0.9), (smoothed + fake.sum()) / 2)
    is_judged = torch.tensor([True, True, True, True, False, True])
    torch.testing.assert_close(
        discriminator_loss(scores, num_groups=3, real_target=0.9, is_judged=is_judged),
        (smoothed + fake[[0, 1, 3]].sum()) / 2,
    )


def test_flipped_scenes_have_the_other_target() -> None:
    scores = torch.linspace(-3, 4, 6, dtype=torch.float64).sin()[:, None] * 3
    is_flipped = torch.tensor([False, True, True, False, False, False])
    target = torch.tensor([0.9, 0, 0.9, 0, 0, 0], dtype=torch.float64)[:, None]
    expected = F.binary_cross_entropy_with_logits(scores, target, reduction="sum") / 2
    loss = discriminator_loss(scores, num_groups=3, real_target=0.9, is_flipped=is_flipped)
    torch.testing.assert_close(loss, expected)


def test_missing_labels_are_named(batch: Batch) -> None:
    prediction, _ = prediction_of(batch, is_dense=False)
    without = dataclasses.replace(batch, label=None)
    with pytest.raises(ValueError, match="a, b, c"):
        scene_cross_entropy(prediction, without, label_smoothing=0.2)
    with pytest.raises(ValueError, match="a, b, c"):
        image_cross_entropy(prediction, without, label_smoothing=0.2)
    with pytest.raises(ValueError, match="a, b, c"):
        num_labeled_pixels(without)
