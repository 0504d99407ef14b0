"""Perturbed ground truth, the fakes of the adversarial game (equations 5 and 6), and labels as one-hot features.

Everything is computed for the whole batch at once, on the device of the labels and without waiting for it.

Random numbers are counter-based: Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
A number depends only on the seed and its counter, not on the device, the order of evaluation or earlier draws. 32-bit
words are held in int64 tensors, in 0 .. 2^32 - 1.

The counters are part of the definition of each operator, so that all kernels give the same bits:

    key                (seed mod 2^32, seed div 2^32), the seed in two's complement
    voxel v, sample b  word v mod 4 of philox(v div 4, b, 0, stream)
    class c, sample b  philox(c, b, 0, stream)
    sample b           philox(0, b, 0, stream)
    input i, sample b  philox(i, b, 0, stream), of the discriminator's inputs
"""

from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ammnet_sparse.ops._library import (
    FLOAT_TYPES,
    check_integers,
    check_range,
    check_same_device,
    check_seed,
    checked,
    define_operator,
)

_EMPTY = 0
_IGNORE = 255
_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


class Stream(IntEnum):
    """Last word of the counter: makes operators with the same seed independent."""

    ERASE_VOXELS = 1
    SHUFFLE_CATEGORIES = 2
    DRAW_ERASE_PROBABILITY = 3
    DRAW_SHUFFLE = 4
    FLIP_TARGETS = 5


def erase_voxels(labels: Tensor, probability: Tensor, seed: int) -> Tensor:
    """Makes each non-empty voxel empty with the probability of its sample (equation 5).

    Args:
        labels: [B, ...] integer, 0 empty, 255 ignored. Empty and ignored voxels stay.
        probability: [B] float32 in 0 .. 1.
        seed: any signed 64-bit integer; the same seed erases the same voxels on every device.

    Returns:
        New labels, shape and type of ``labels``. Not differentiable.

    Raises:
        ValueError: shapes, devices, or a seed that do not fit.
        TypeError: labels without integer type, or probabilities that are not float32.
    """
    _check_labels("erase_voxels", labels)
    _check_per_sample("erase_voxels: probability", probability, labels, ndim=1, dtype=torch.float32)
    check_seed(seed)
    return _erase_voxels(labels, probability, seed)


def shuffle_categories(labels: Tensor, class_map: Tensor, probability: Tensor, seed: int) -> Tensor:
    """Gives each voxel of class c the class ``class_map[b, c]`` with probability ``probability[b, c]`` (equation 6).

    Args:
        labels: [B, ...] integer, 0 empty, 255 ignored, else a class below K. Empty and ignored voxels stay.
        class_map: [B, K] integer, the class that each class becomes, 0 .. K - 1.
        probability: [B, K] float32 in 0 .. 1; 0 for classes that stay.
        seed: any signed 64-bit integer; the same seed changes the same voxels on every device. ``draw_shuffle`` may
            be given the same one.

    Returns:
        New labels, shape and type of ``labels``. Not differentiable.

    Raises:
        IndexError: a label or a class in ``class_map`` out of range (on the CPU; elsewhere such a voxel stays).
        ValueError: shapes, devices, or a seed that do not fit.
        TypeError: labels or classes without integer type, or probabilities that are not float32.
    """
    _check_labels("shuffle_categories", labels)
    check_integers("shuffle_categories: class_map", class_map)
    _check_per_sample("shuffle_categories: class_map", class_map, labels, ndim=2, dtype=class_map.dtype)
    _check_per_sample("shuffle_categories: probability", probability, labels, ndim=2, dtype=torch.float32)
    if class_map.shape != probability.shape or class_map.shape[1] == 0:
        raise ValueError(
            "shuffle_categories: expected class_map and probability [B, classes], "
            f"found {list(class_map.shape)} and {list(probability.shape)}"
        )
    check_seed(seed)
    return checked(_shuffle_categories(labels, class_map, probability, seed))


def draw_erase_probability(
    batch_size: int, probability_range: tuple[float, float], seed: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Draws the erasing probability of each sample, uniform in ``probability_range``: [B] float32.

    Raises ValueError for a range that is not 0 <= low <= high <= 1, or a seed beyond 64 bits.
    """
    check_seed(seed)
    words = words_of_items(batch_size, 1, seed=seed, stream=Stream.DRAW_ERASE_PROBABILITY, device=device)
    return _uniform_in(words[:, 0, 0], probability_range)


def draw_shuffle(
    labels: Tensor, *, num_classes: int, probability_range: tuple[float, float], seed: int
) -> tuple[Tensor, Tensor]:
    """Draws which classes of each sample ``shuffle_categories`` changes, into which, and how often (equation 6).

    Of the K classes present in a sample, k of 1 .. K (uniform) are chosen at random, each with a probability of its
    own and one other class that is not empty. A sample without an object has none chosen.

    Args:
        labels: [B, ...] integer. A class is present if any voxel has it, so set voxels that the discriminator does not
            see to 255. 0, 255 and labels of ``num_classes`` and above do not count as classes.
        num_classes: empty included, 3 .. 255.
        probability_range: (low, high) of the probability of a chosen class.
        seed: any signed 64-bit integer; the same seed draws the same on every device.

    Returns:
        class_map [B, num_classes] int64, the class itself if it is not chosen, and probability [B, num_classes]
        float32, 0 if it is not chosen.

    Raises:
        ValueError: ``num_classes``, ``probability_range``, shape or seed that do not fit.
        TypeError: labels without integer type.
    """
    _check_labels("draw_shuffle", labels)
    check_seed(seed)
    if not 3 <= num_classes <= _IGNORE:
        raise ValueError(
            f"num_classes: expected 3 .. {_IGNORE} (empty, a class, and one that it can become), found {num_classes}"
        )
    words = words_of_items(labels.shape[0], num_classes, seed=seed, stream=Stream.DRAW_SHUFFLE, device=labels.device)
    order_words, probability_words, target_words, count_words = words.unbind(-1)
    classes = torch.arange(num_classes, device=labels.device)

    is_present = (labels.long().flatten(1)[:, None, :] == classes[:, None]).any(-1) & (classes != _EMPTY)
    num_chosen = 1 + integers_below(count_words[:, 0], is_present.sum(1))
    # Random order of the classes present, then the others; the class number breaks ties.
    order = (order_words * num_classes + classes).where(is_present, torch.iinfo(torch.int64).max)
    rank = (order[:, None, :] < order[:, :, None]).sum(-1)
    is_chosen = is_present & (rank < num_chosen[:, None])

    other = 1 + integers_below(target_words, num_classes - 2)
    other = other + (other >= classes)  # the classes but empty and the class itself
    class_map = other.where(is_chosen, classes)
    probability = _uniform_in(probability_words, probability_range)
    return class_map, probability.where(is_chosen, 0.0)


def one_hot_sites(labels: Tensor, linear: Tensor, num_classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """One-hot features of sites directly from a label map, for the discriminator.

    Args:
        labels: [B, V] integer, a class in 0 .. num_classes - 1, or 255 for ignored.
        linear: [N] integer, ``b * V + v`` of each site, or -1 for a site without a label.
        num_classes: columns of the result, at most 255; an empty voxel has a one in column 0.
        dtype: type of the result, floating.

    Returns:
        [N, num_classes]; zeros where a label is 255 or ``linear`` is -1. Not differentiable.

    Raises:
        IndexError: an element of ``linear`` or the label of a site out of range (on the CPU; elsewhere: zeros).
        ValueError: shapes, devices, or ``num_classes`` that do not fit.
        TypeError: labels or indices without integer type, or a ``dtype`` that is not floating.
    """
    check_integers("one_hot_sites: labels", labels)
    check_integers("one_hot_sites: linear", linear)
    if labels.ndim != 2 or linear.ndim != 1:
        raise ValueError(
            f"one_hot_sites: expected labels [B, V] and linear [N], found {list(labels.shape)} and {list(linear.shape)}"
        )
    if not 1 <= num_classes <= _IGNORE:
        raise ValueError(f"num_classes: expected 1 .. {_IGNORE}, found {num_classes}")
    if dtype not in FLOAT_TYPES:
        raise TypeError(f"dtype: expected float16, bfloat16, float32 or float64, found {dtype}")
    check_same_device(labels, linear=linear)
    return checked(_one_hot_sites(labels, linear, num_classes, dtype))


def _check_labels(operator: str, labels: Tensor) -> None:
    check_integers(f"{operator}: labels", labels)
    if labels.ndim < 2:
        raise ValueError(f"{operator}: expected labels [B, ...], at least two axes, found {list(labels.shape)}")


def _check_per_sample(name: str, values: Tensor, labels: Tensor, *, ndim: int, dtype: torch.dtype) -> None:
    if values.dtype != dtype:
        raise TypeError(f"{name}: expected {dtype}, found {values.dtype}")
    if values.ndim != ndim or values.shape[0] != labels.shape[0]:
        raise ValueError(
            f"{name}: expected {ndim} axes with {labels.shape[0]} samples first, found {list(values.shape)}"
        )
    if values.device != labels.device:
        raise ValueError(f"{name}: expected on {labels.device} like the labels, found on {values.device}")


def _check_classes(name: str, label: Tensor, num_classes: int) -> None:
    if label.device.type == "cpu":
        classes = label.where(label != _IGNORE, _EMPTY)
        check_range(f"{name} but {_IGNORE}", classes, low=0, high=num_classes - 1)


def _uniform_in(words: Tensor, probability_range: tuple[float, float]) -> Tensor:
    low, high = probability_range
    if not 0.0 <= low <= high <= 1.0:
        raise ValueError(f"probability_range: expected 0 <= low <= high <= 1, found {tuple(probability_range)}")
    # In float64, so that a device that contracts product and sum into one step rounds to the same float32.
    return (uniform(words).double() * (high - low) + low).float()


def _erase_voxels_reference(labels: Tensor, probability: Tensor, seed: int) -> Tensor:
    flat = labels.flatten(1)
    words = words_of_voxels(*flat.shape, seed=seed, stream=Stream.ERASE_VOXELS, device=labels.device)
    label = flat.long()
    is_erased = (label != _EMPTY) & (label != _IGNORE) & (uniform(words) < probability[:, None])
    return label.masked_fill(is_erased, _EMPTY).to(labels.dtype).view(labels.shape)


def _erase_voxels_fake(labels: Tensor, probability: Tensor, seed: int) -> Tensor:
    return torch.empty_like(labels, memory_format=torch.contiguous_format)


def _shuffle_categories_reference(labels: Tensor, class_map: Tensor, probability: Tensor, seed: int) -> Tensor:
    num_classes = class_map.shape[1]
    flat = labels.flatten(1)
    label = flat.long()
    check_range("shuffle_categories: class_map", class_map, low=0, high=num_classes - 1)
    _check_classes("shuffle_categories: labels", label, num_classes)
    has_class = (label > _EMPTY) & (label < num_classes) & (label != _IGNORE)
    source = label.where(has_class, _EMPTY)
    target = class_map.long().gather(1, source)
    words = words_of_voxels(*flat.shape, seed=seed, stream=Stream.SHUFFLE_CATEGORIES, device=labels.device)
    is_changed = has_class & (uniform(words) < probability.gather(1, source))
    is_changed &= (target >= 0) & (target < num_classes)
    return target.where(is_changed, label).to(labels.dtype).view(labels.shape)


def _shuffle_categories_fake(labels: Tensor, class_map: Tensor, probability: Tensor, seed: int) -> Tensor:
    return torch.empty_like(labels, memory_format=torch.contiguous_format)


def _one_hot_sites_reference(labels: Tensor, linear: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    check_range("one_hot_sites: linear", linear, low=-1, high=labels.numel() - 1)
    is_site = (linear >= 0) & (linear < labels.numel())
    index = linear.long().where(is_site, 0)
    # Without labels nothing may be read, not even for sites without one.
    label = labels.reshape(-1)[index].long() if labels.numel() else torch.full_like(index, _IGNORE)
    label = label.where(is_site, _IGNORE)
    _check_classes("one_hot_sites: labels", label, num_classes)
    return (label[:, None] == torch.arange(num_classes, device=labels.device)).to(dtype)


def _one_hot_sites_fake(labels: Tensor, linear: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    return labels.new_empty((linear.shape[0], num_classes), dtype=dtype)


_erase_voxels = define_operator(
    "erase_voxels",
    "(Tensor labels, Tensor probability, SymInt seed) -> Tensor",
    reference=_erase_voxels_reference,
    fake=_erase_voxels_fake,
)
_shuffle_categories = define_operator(
    "shuffle_categories",
    "(Tensor labels, Tensor class_map, Tensor probability, SymInt seed) -> Tensor",
    reference=_shuffle_categories_reference,
    fake=_shuffle_categories_fake,
)
_one_hot_sites = define_operator(
    "one_hot_sites",
    "(Tensor labels, Tensor linear, SymInt num_classes, ScalarType dtype) -> Tensor",
    reference=_one_hot_sites_reference,
    fake=_one_hot_sites_fake,
)


def philox(counter: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.uint64]:
    """Philox 4x32-10 on the host: four random words [..., 4], each below 2^32, for every counter [..., 4]."""
    word0, word1, word2, word3 = np.moveaxis(counter, -1, 0)
    word, bits = np.uint64(_WORD), np.uint64(32)
    for number in range(_ROUNDS):
        key0, key1 = (
            np.uint64(first + number * increment & _WORD) for first, increment in zip(key, _KEY_INCREMENTS, strict=True)
        )
        product0, product1 = word0 * np.uint64(_MULTIPLIERS[0]), word2 * np.uint64(_MULTIPLIERS[1])
        word0, word1, word2, word3 = (
            (product1 >> bits) ^ word1 ^ key0,
            product1 & word,
            (product0 >> bits) ^ word3 ^ key1,
            product0 & word,
        )
    return np.stack([word0, word1, word2, word3], -1)


def key_of_seed(seed: int) -> tuple[int, int]:
    """The key of a signed 64-bit seed: low word, high word."""
    return seed & _WORD, (seed >> 32) & _WORD


def words_of_voxels(
    batch_size: int, num_voxels: int, *, seed: int, stream: Stream, device: torch.device | str
) -> Tensor:
    """[B, V] int64: one word for every voxel of every sample."""
    num_groups = -(-num_voxels // 4)
    words = words_of_items(batch_size, num_groups, seed=seed, stream=stream, device=device)
    return words.flatten(1)[:, :num_voxels]


def words_of_items(batch_size: int, num_items: int, *, seed: int, stream: Stream, device: torch.device | str) -> Tensor:
    """[B, num_items, 4] int64: four words for every item (class, input, group of four voxels) of every sample.

    Made on the host, where a step needs few of them, in place of 130 launches, and copied without a wait.
    """
    counter = np.zeros((batch_size, num_items, 4), dtype=np.uint64)
    counter[..., 0] = np.arange(num_items)
    counter[..., 1] = np.arange(batch_size)[:, None]
    counter[..., 3] = int(stream)
    words = torch.from_numpy(philox(counter, key_of_seed(seed)).astype(np.int64))
    if torch.device(device).type == "cuda":
        words = words.pin_memory()
    return words.to(device, non_blocking=True)


def uniform(words: Tensor) -> Tensor:
    """Float32 in [0, 1) from the upper 24 bits of each word: every value is exact."""
    return (words >> 8).to(torch.float32) * 2.0**-24


def integers_below(words: Tensor, bound: Tensor | int) -> Tensor:
    """Int64 in 0 .. bound - 1 from each word, by multiplying and shifting; 0 where ``bound`` is 0. Bound < 2^31."""
    return (words * bound) >> 32
