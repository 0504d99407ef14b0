"""erase_voxels, shuffle_categories and what they draw: the definition, golden bits, statistics, limits."""

import pytest
import torch
from torch import Tensor

from ammnet_sparse.ops import draw_erase_probability, draw_shuffle, erase_voxels, shuffle_categories
from tests.generated import given, settings, st
from tests.ops.support import DEVICE_KERNELS, DEVICES, INTEGER_TYPES, OPS, no_synchronization
from tests.ops.test_philox import naive_philox

NUM_CLASSES = 12
SEEDS = [0, 8332, -1, 2**40 + 3]


def scenes(*shape: int, dtype: torch.dtype = torch.uint8, device: str = "cpu") -> Tensor:
    """[B, ...] labels: half of the voxels empty, a few ignored, the others of every class."""
    generator = torch.Generator().manual_seed(6)
    labels = torch.randint(1, NUM_CLASSES, shape, generator=generator)
    kind = torch.rand(shape, generator=generator)
    labels[kind < 0.5] = 0
    labels[kind > 0.9] = 255 if dtype != torch.int8 else 0
    return labels.to(device, dtype)


def naive_uniform(seed: int, sample: int, voxel: int, stream: int) -> float:
    key = (seed % 2**32, seed // 2**32 % 2**32)
    return (naive_philox((voxel // 4, sample, 0, stream), key)[voxel % 4] >> 8) / 2**24


def naive_erase(labels: Tensor, probability: Tensor, seed: int) -> Tensor:
    result = labels.clone()
    for sample, voxel in (labels.flatten(1) > 0).nonzero().tolist():
        flat = result[sample].view(-1)
        if int(flat[voxel]) != 255 and naive_uniform(seed, sample, voxel, 1) < float(probability[sample]):
            flat[voxel] = 0
    return result


def naive_shuffle(labels: Tensor, class_map: Tensor, probability: Tensor, seed: int) -> Tensor:
    result = labels.clone()
    for sample, voxel in (labels.flatten(1) > 0).nonzero().tolist():
        flat = result[sample].view(-1)
        label = int(flat[voxel])
        if label != 255 and naive_uniform(seed, sample, voxel, 2) < float(probability[sample, label]):
            flat[voxel] = class_map[sample, label]
    return result


@pytest.mark.parametrize("seed", SEEDS)
def test_erase_equals_a_loop_over_voxels(seed: int) -> None:
    labels, probability = scenes(3, 4, 3, 7), torch.tensor([0.1, 0.5, 0.9])
    assert torch.equal(erase_voxels(labels, probability, seed), naive_erase(labels, probability, seed))


@pytest.mark.parametrize("seed", SEEDS)
def test_shuffle_equals_a_loop_over_voxels(seed: int) -> None:
    labels = scenes(3, 4, 3, 7)
    class_map, probability = draw_shuffle(labels, num_classes=NUM_CLASSES, probability_range=(0.3, 0.9), seed=seed)
    expected = naive_shuffle(labels, class_map, probability, seed)
    assert not torch.equal(expected, labels)
    assert torch.equal(shuffle_categories(labels, class_map, probability, seed), expected)


# What follows must never change: a seed means these bits in every kernel.
GOLDEN_LABELS = [
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0, 255, 1, 2, 3, 4, 5],
    [11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1] + [1] * 7,
]
GOLDEN_ERASED = [
    [1, 2, 3, 0, 0, 0, 0, 8, 0, 0, 11, 0, 255, 1, 2, 3, 4, 0],
    [11, 10, 9, 0, 7, 6, 5, 4, 3, 2, 1, 1, 0, 0, 1, 0, 1, 1],
]
GOLDEN_SHUFFLED = [
    [2, 2, 4, 4, 6, 6, 8, 9, 10, 10, 11, 0, 255, 1, 2, 3, 5, 6],
    [1, 11, 10, 9, 8, 7, 6, 5, 4, 2, 2, 2, 2, 2, 2, 1, 2, 2],
]
GOLDEN_PROBABILITY = [4780645.0, 8974584.0, 13949595.0]
GOLDEN_CLASS_MAP = [[0, 9, 3, 6, 7, 7, 6, 3, 8, 9, 10, 11], [0, 1, 10, 3, 10, 5, 6, 7, 8, 9, 10, 11]]
GOLDEN_CLASS_PROBABILITY = [
    [0.0, 7857577.5, 14789684.0, 11614082.0, 3347815.25, 6548435.0, 0.0, 14301223.0, 0.0, 0.0, 0.0, 0.0],
    [0.0, 0.0, 10408083.0, 0.0, 13297278.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_golden_perturbations(dtype: torch.dtype, device: str) -> None:
    labels = torch.tensor(GOLDEN_LABELS, dtype=dtype, device=device)
    erased = erase_voxels(labels, torch.tensor([0.5, 0.25], device=device), 8332)
    class_map = torch.arange(NUM_CLASSES, device=device).roll(-1).expand(2, -1).clone()
    class_map[:, -1] = 1
    probability = torch.tensor([[0.5], [0.75]], device=device).expand(2, NUM_CLASSES)
    shuffled = shuffle_categories(labels, class_map.to(dtype), probability, 8332)
    assert erased.dtype == shuffled.dtype == dtype
    assert erased.tolist() == GOLDEN_ERASED
    assert shuffled.tolist() == GOLDEN_SHUFFLED


@pytest.mark.parametrize("device", DEVICES)
def test_golden_draws(device: str) -> None:
    labels = torch.tensor(GOLDEN_LABELS, dtype=torch.uint8, device=device)
    labels[1, :6] = 0
    class_map, probability = draw_shuffle(labels, num_classes=NUM_CLASSES, probability_range=(0.1, 0.9), seed=8332)
    drawn = draw_erase_probability(3, (0.1, 0.9), 8332, device)
    assert (drawn * 2**24).tolist() == GOLDEN_PROBABILITY
    assert class_map.tolist() == GOLDEN_CLASS_MAP
    assert (probability * 2**24).tolist() == GOLDEN_CLASS_PROBABILITY


def test_layout_of_the_labels_does_not_matter() -> None:
    labels, probability = scenes(2, 4, 5, 6), torch.tensor([0.5, 0.5])
    turned = labels.transpose(1, 3).contiguous().transpose(1, 3)
    assert not turned.is_contiguous()
    result = erase_voxels(turned, probability, 1)
    assert result.is_contiguous() and torch.equal(result, erase_voxels(labels, probability, 1))


@settings(max_examples=30)
@given(
    batch_size=st.integers(1, 3),
    shape=st.lists(st.integers(0, 5), min_size=1, max_size=3),
    seed=st.integers(-(2**63), 2**63 - 1),
)
def test_empty_and_ignored_voxels_never_change(batch_size: int, shape: list[int], seed: int) -> None:
    labels = scenes(batch_size, *shape)
    class_map, probability = draw_shuffle(labels, num_classes=NUM_CLASSES, probability_range=(1.0, 1.0), seed=seed)
    shuffled = shuffle_categories(labels, class_map, probability, seed)
    erased = erase_voxels(labels, torch.ones(batch_size), seed)
    stays = (labels == 0) | (labels == 255)
    assert torch.equal(shuffled[stays], labels[stays]) and torch.equal(erased[stays], labels[stays])
    assert bool((erased[~stays] == 0).all()) and not bool(((shuffled == 0) & ~stays).any())
    # With probability 1 exactly the voxels of the chosen classes change.
    chosen = probability.bool().gather(1, labels.flatten(1).long().where(~stays.flatten(1), 0)).view(labels.shape)
    assert torch.equal(shuffled != labels, chosen & ~stays)


def test_no_scene_at_all() -> None:
    labels = torch.zeros((0, 4, 5), dtype=torch.uint8)
    class_map, probability = draw_shuffle(labels, num_classes=3, probability_range=(0.1, 0.9), seed=1)
    assert class_map.shape == probability.shape == (0, 3)
    assert shuffle_categories(labels, class_map, probability, 1).shape == (0, 4, 5)
    assert erase_voxels(labels, draw_erase_probability(0, (0.1, 0.9), 1), 1).shape == (0, 4, 5)


@pytest.mark.parametrize("nothing", [0, 255])
def test_a_scene_without_an_object_has_no_class_chosen(nothing: int) -> None:
    labels = torch.full((2, 30), nothing, dtype=torch.uint8)
    class_map, probability = draw_shuffle(labels, num_classes=NUM_CLASSES, probability_range=(0.1, 0.9), seed=1)
    assert class_map.tolist() == [list(range(NUM_CLASSES))] * 2 and probability.count_nonzero() == 0
    assert torch.equal(shuffle_categories(labels, class_map, probability, 1), labels)


def test_drawn_classes_are_present_and_change_to_others() -> None:
    present = torch.tensor([3, 5, 9, 11], dtype=torch.uint8)
    labels = present.repeat(400, 1)
    class_map, probability = draw_shuffle(labels, num_classes=NUM_CLASSES, probability_range=(0.2, 0.4), seed=11)
    is_chosen = probability > 0
    assert is_chosen.any(0).nonzero().flatten().tolist() == present.tolist()
    assert bool(((probability[is_chosen] >= 0.2) & (probability[is_chosen] <= 0.4)).all())
    classes = torch.arange(NUM_CLASSES).expand(400, -1)
    assert bool((class_map[is_chosen] != classes[is_chosen]).all())
    assert torch.equal(class_map[~is_chosen], classes[~is_chosen])
    for label in present.tolist():
        assert set(class_map[is_chosen[:, label], label].tolist()) == set(range(1, NUM_CLASSES)) - {label}
    # 1 .. 4 classes of 4, each number about 100 times of 400 (standard deviation 9); each class in 5 of 8 scenes.
    assert (is_chosen.sum(1).bincount(minlength=5) - torch.tensor([0, 100, 100, 100, 100])).abs().max() < 45
    assert is_chosen.sum(0)[present.long()].tolist() == pytest.approx([250] * 4, abs=50)


def test_one_class_present_is_always_chosen() -> None:
    labels = torch.full((5, 8), 2, dtype=torch.int32)
    class_map, probability = draw_shuffle(labels, num_classes=3, probability_range=(1.0, 1.0), seed=0)
    assert class_map[:, 2].tolist() == [1] * 5 and probability[:, 2].tolist() == [1.0] * 5
    assert shuffle_categories(labels, class_map, probability, 0).unique().tolist() == [1]


def test_opcheck() -> None:
    labels = scenes(2, 3, 5)
    class_map, probability = draw_shuffle(labels, num_classes=NUM_CLASSES, probability_range=(0.1, 0.9), seed=1)
    torch.library.opcheck(OPS.erase_voxels.default, (labels, torch.tensor([0.5, 0.5]), 4))
    torch.library.opcheck(OPS.shuffle_categories.default, (labels.long(), class_map, probability, -4))


@pytest.mark.no_emulation
@pytest.mark.parametrize("bad", [12, 254, 300, -1])
def test_labels_and_targets_out_of_range_are_an_error(bad: int) -> None:
    labels, probability = torch.ones(1, 4, dtype=torch.int64), torch.ones(1, NUM_CLASSES)
    class_map = torch.arange(NUM_CLASSES)[None].clone()
    labels[0, 2] = bad
    with pytest.raises(IndexError, match="labels"):
        shuffle_categories(labels, class_map, probability, 0)
    labels[0, 2], class_map[0, 5] = 1, bad
    with pytest.raises(IndexError, match="class_map"):
        shuffle_categories(labels, class_map, probability, 0)


@pytest.mark.parametrize("num_classes", [3, 130, 300])
@pytest.mark.parametrize("dtype", INTEGER_TYPES)
def test_more_classes_than_the_type_of_the_labels_holds(dtype: torch.dtype, num_classes: int) -> None:
    largest = min(torch.iinfo(dtype).max, num_classes - 1, 254)
    labels = torch.tensor([[0, 1, largest, 2]], dtype=dtype)
    class_map = torch.arange(num_classes)[None] - 1
    class_map[:, 0] = 0
    for integers in (torch.int16, torch.int64):
        result = shuffle_categories(labels, class_map.to(integers), torch.ones(1, num_classes), 1)
        assert result.tolist() == [[0, 0, largest - 1, 1]] and result.dtype == dtype
    with pytest.raises(ValueError, match="class_map"):
        shuffle_categories(labels, class_map[:, :0], torch.ones(1, 0), 1)


def test_the_kernel_itself_refuses_to_have_no_class(implementation: str) -> None:
    if implementation == "reference":
        pytest.skip("the reference reads nothing that is not there: PyTorch checks")
    with pytest.raises(RuntimeError, match="class_map"):
        OPS.shuffle_categories(torch.ones(1, 4, dtype=torch.uint8), torch.zeros(1, 0).long(), torch.zeros(1, 0), 0)


@pytest.mark.parametrize("device", DEVICE_KERNELS)
def test_on_cuda_nothing_waits_and_labels_out_of_range_stay(device: str) -> None:
    labels = scenes(2, 4, 5, 6, dtype=torch.int32, device=device)
    labels[0, 0, 0, :3] = torch.tensor([12, -1, 1000], device=device)
    with no_synchronization():
        class_map, chance = draw_shuffle(labels, num_classes=NUM_CLASSES, probability_range=(0.1, 0.9), seed=1)
        shuffled = shuffle_categories(labels, class_map, chance, 1)
        erase_voxels(labels, draw_erase_probability(2, (0.1, 0.9), 1, device), 1)
    assert shuffled[0, 0, 0, :3].tolist() == [12, -1, 1000]


def test_arguments_that_do_not_fit_are_an_error() -> None:
    labels, classes, chances = scenes(2, 4), torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3)
    with pytest.raises(ValueError, match="probability"):
        erase_voxels(labels, torch.zeros(3), 0)
    with pytest.raises(TypeError, match="probability"):
        erase_voxels(labels, torch.zeros(2, dtype=torch.float64), 0)
    with pytest.raises(ValueError, match="labels"):
        erase_voxels(labels[0], torch.zeros(4), 0)
    with pytest.raises(TypeError, match="labels"):
        erase_voxels(labels.bool(), torch.zeros(2), 0)
    with pytest.raises(ValueError, match="seed"):
        erase_voxels(labels, torch.zeros(2), 2**63)
    with pytest.raises(ValueError, match="probability"):
        erase_voxels(labels, torch.zeros(2, device="meta"), 0)
    with pytest.raises(ValueError, match="class_map"):
        shuffle_categories(labels, classes, chances[:, :2], 0)
    with pytest.raises(TypeError, match="class_map"):
        shuffle_categories(labels, chances, chances, 0)
    with pytest.raises(ValueError, match="num_classes"):
        draw_shuffle(labels, num_classes=2, probability_range=(0.1, 0.9), seed=0)
    for bad in ((0.9, 0.1), (-0.1, 0.5), (0.5, 1.1)):
        with pytest.raises(ValueError, match="probability_range"):
            draw_shuffle(labels, num_classes=3, probability_range=bad, seed=0)
        with pytest.raises(ValueError, match="probability_range"):
            draw_erase_probability(2, bad, 0)
