"""Which activations of a network the backward pass recomputes (``training.recompute``)."""

from collections.abc import Iterable

from torch import nn

from ammnet_sparse.sparse.blocks import DDRBlock, Recomputable, RecomputeLevel


def set_recompute(network: nn.Module, level: RecomputeLevel, *, standing_alone: Iterable[nn.Module]) -> None:
    """Sets ``is_recomputed`` of every part of a network.

    Args:
        level: ``blocks``: whole DDR blocks; ``full``: whole stages, stems, upsampling and the head of an image encoder.
        standing_alone: DDR blocks outside of stages, which ``full`` recomputes too.
    """
    for module in network.modules():
        if isinstance(module, Recomputable):
            is_block = isinstance(module, DDRBlock)
            module.is_recomputed = (level == "full" and not is_block) or (level == "blocks" and is_block)
    if level == "full":
        for block in standing_alone:
            assert isinstance(block, DDRBlock)
            block.is_recomputed = True
