"""Counter-based random numbers: Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).

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

import torch
from torch import Tensor

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


def philox(counter: Tensor, key: tuple[int, int]) -> Tensor:
    """Philox 4x32-10: four random words for every counter.

    Args:
        counter: [..., 4] int64, words in 0 .. 2^32 - 1.
        key: two words in 0 .. 2^32 - 1.

    Returns:
        [..., 4] int64, words in 0 .. 2^32 - 1, on the device of ``counter`` and without waiting for it.

    Raises:
        ValueError: another type or shape of ``counter``.
    """
    if counter.dtype != torch.int64 or counter.ndim == 0 or counter.shape[-1] != 4:
        raise ValueError(f"counter: expected [..., 4] int64, found {list(counter.shape)} {counter.dtype}")
    word0, word1, word2, word3 = counter.unbind(-1)
    key0, key1 = key
    for _ in range(_ROUNDS):
        # A product may exceed 2^63 and wrap to a negative number; its 64 bits are still correct.
        product0, product1 = word0 * _MULTIPLIERS[0], word2 * _MULTIPLIERS[1]
        word0, word1, word2, word3 = (
            _high(product1) ^ word1 ^ key0,
            product1 & _WORD,
            _high(product0) ^ word3 ^ key1,
            product0 & _WORD,
        )
        key0, key1 = (key0 + _KEY_INCREMENTS[0]) & _WORD, (key1 + _KEY_INCREMENTS[1]) & _WORD
    return torch.stack([word0, word1, word2, word3], -1)


def _high(product: Tensor) -> Tensor:
    # The shift extends the sign; the mask removes these bits.
    return (product >> 32) & _WORD


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
    """[B, num_items, 4] int64: four words for every item (class, input, group of four voxels) of every sample."""
    counter = torch.zeros((batch_size, num_items, 4), dtype=torch.int64, device=device)
    counter[..., 0] = torch.arange(num_items, device=device)
    counter[..., 1] = torch.arange(batch_size, device=device)[:, None]
    counter[..., 3].fill_(int(stream))
    return philox(counter, key_of_seed(seed))


def uniform(words: Tensor) -> Tensor:
    """Float32 in [0, 1) from the upper 24 bits of each word: every value is exact."""
    return (words >> 8).to(torch.float32) * 2.0**-24


def integers_below(words: Tensor, bound: Tensor | int) -> Tensor:
    """Int64 in 0 .. bound - 1 from each word, by multiplying and shifting; 0 where ``bound`` is 0. Bound < 2^31."""
    return (words * bound) >> 32
