"""The encoders of the 2D input: each is a class in a file and a line in ``ENCODERS``."""

from ammnet_sparse.config import ModelConfig
from ammnet_sparse.models.image_encoders.efficientnet import (
    EfficientNetLite0,
    EfficientNetLite1,
    EfficientNetLite2,
)
from ammnet_sparse.models.image_encoders.encoder import ImageEncoder
from ammnet_sparse.models.image_encoders.label_map import LabelMapStem
from ammnet_sparse.models.image_encoders.resnet import ResNet50
from ammnet_sparse.models.image_encoders.segformer import SegFormerB2

ENCODERS: dict[str, type[LabelMapStem | ImageEncoder]] = {
    "seg2d": LabelMapStem,
    "segformer_b2": SegFormerB2,
    "resnet50": ResNet50,
    "efficientnet_lite0": EfficientNetLite0,
    "efficientnet_lite1": EfficientNetLite1,
    "efficientnet_lite2": EfficientNetLite2,
}
"""By the name in ``model.image_encoder``."""


def image_encoder_class(config: ModelConfig) -> type[ImageEncoder]:
    """The encoder of a configuration whose network reads color images."""
    encoder = ENCODERS[config.image_encoder]
    assert issubclass(encoder, ImageEncoder)
    return encoder


__all__ = ["ENCODERS", "ImageEncoder", "LabelMapStem", "SegFormerB2", "image_encoder_class"]
