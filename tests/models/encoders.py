"""A small image encoder for the tests of what reads images."""

from typing import Any

from ammnet_sparse.config import ModelConfig
from ammnet_sparse.models.image_encoders import SegFormerB2


class SmallSegFormer(SegFormerB2):
    depths = (1, 1, 2, 1)
    stage_widths = (8, 16, 40, 64)


def small_encoder(*, is_frozen: bool = True, width: int = 8, **changes: Any) -> SmallSegFormer:
    return SmallSegFormer(ModelConfig(width=width, freeze_image_encoder=is_frozen, **changes))
