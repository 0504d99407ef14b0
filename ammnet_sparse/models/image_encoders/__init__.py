"""The encoders of the 2D input: each is a class in a file and a line in ``ENCODERS``, or a backbone of timm."""

from ammnet_sparse.config import OF_TIMM, ModelConfig
from ammnet_sparse.models.image_encoders.efficientnet import (
    EfficientNetLite0,
    EfficientNetLite1,
    EfficientNetLite2,
)
from ammnet_sparse.models.image_encoders.encoder import ImageEncoder
from ammnet_sparse.models.image_encoders.label_map import LabelMapStem
from ammnet_sparse.models.image_encoders.resnet import ResNet50
from ammnet_sparse.models.image_encoders.segformer import SegFormerB2
from ammnet_sparse.models.image_encoders.timm_models import timm_encoder

ENCODERS: dict[str, type[LabelMapStem | ImageEncoder]] = {
    "seg2d": LabelMapStem,
    "segformer_b2": SegFormerB2,
    "resnet50": ResNet50,
    "efficientnet_lite0": EfficientNetLite0,
    "efficientnet_lite1": EfficientNetLite1,
    "efficientnet_lite2": EfficientNetLite2,
}
"""By the name in ``model.image_encoder``."""


def encoder_class(config: ModelConfig) -> type[LabelMapStem | ImageEncoder]:
    """The encoder that a configuration names. Raises ConfigError for a model of timm that cannot be one."""
    name = config.image_encoder
    return timm_encoder(name.removeprefix(OF_TIMM)) if name.startswith(OF_TIMM) else ENCODERS[name]


def image_encoder_class(config: ModelConfig) -> type[ImageEncoder]:
    """The encoder of a configuration whose network reads color images; errors as ``encoder_class``."""
    encoder = encoder_class(config)
    assert issubclass(encoder, ImageEncoder)
    return encoder


__all__ = ["ENCODERS", "ImageEncoder", "LabelMapStem", "SegFormerB2", "encoder_class", "image_encoder_class"]
