"""Philox 4x32-10 against the known-answer vectors of Random123, and the numbers made of its words."""

import numpy as np
import pytest
import torch

from ammnet_sparse.ops.perturbation import Stream, integers_below, philox, words_of_voxels

# philox4x32 with 10 rounds, from Random123's tests/kat_vectors: counter, key, expected.
KNOWN_ANSWERS = [
    "00000000 00000000 00000000 00000000 00000000 00000000 6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    "ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff 408f276d 41c83b0e a20bc7c6 6d5451fd",
    "243f6a88 85a308d3 13198a2e 03707344 a4093822 299f31d0 d16cfe09 94fdcceb 5001e420 24126ea1",
]


def naive_philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, ...]:
    """The same with Python's integers, which do not overflow."""
    word0, word1, word2, word3 = counter
    for number in range(10):
        key0, key1 = (key[0] + number * 0x9E3779B9) % 2**32, (key[1] + number * 0xBB67AE85) % 2**32
        high0, low0 = divmod(0xD2511F53 * word0, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * word2, 2**32)
        word0, word1, word2, word3 = high1 ^ word1 ^ key0, low1, high0 ^ word3 ^ key1, low0
    return word0, word1, word2, word3


@pytest.mark.parametrize("line", KNOWN_ANSWERS)
def test_known_answers(line: str) -> None:
    words = [int(word, 16) for word in line.split()]
    found = philox(np.array(words[:4], dtype=np.uint64), (words[4], words[5]))
    assert found.tolist() == words[6:]
    assert list(naive_philox(tuple(words[:4]), (words[4], words[5]))) == words[6:]


@pytest.mark.parametrize("num_voxels", [0, 1, 4, 6, 9])
def test_words_of_voxels_follow_the_definition(num_voxels: int) -> None:
    words = words_of_voxels(3, num_voxels, seed=99, stream=Stream.SHUFFLE_CATEGORIES, device="cpu")
    assert words.shape == (3, num_voxels)
    for sample in range(3):
        for voxel in range(num_voxels):
            block = naive_philox((voxel // 4, sample, 0, 2), (99, 0))
            assert int(words[sample, voxel]) == block[voxel % 4]


def test_integers_below_reach_every_value_and_no_other() -> None:
    words = torch.arange(0, 2**32, 2**22 - 1)
    assert integers_below(words, 11).unique().tolist() == list(range(11))
    assert integers_below(words, 0).unique().tolist() == [0]
    assert integers_below(torch.tensor([2**32 - 1]), 255).tolist() == [254]
