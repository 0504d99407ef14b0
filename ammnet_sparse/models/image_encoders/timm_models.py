"""Any backbone of timm with stages at 1/4 to 1/32 of the image: ``model.image_encoder=timm:convnext_tiny``."""

import difflib
import functools
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ammnet_sparse.config import OF_TIMM, ConfigError, ModelConfig
from ammnet_sparse.data.batch import IMAGE_DEVIATION, IMAGE_MEAN
from ammnet_sparse.data.grid import IMAGE_SHAPE
from ammnet_sparse.models.image_encoders.encoder import ImageEncoder
from ammnet_sparse.models.weights.checks import WeightsError

_STRIDES = (4, 8, 16, 32)
_HUB_FILE = "model.safetensors"


class TimmEncoder(ImageEncoder):
    """A backbone of timm; ``timm_encoder`` makes the class of each.

    Attributes:
        timm_name, arguments: of ``timm.create_model``.
        mean, deviation: [3] of RGB, 0..1, by which the backbone expects it normalized; ours is by ImageNet's.
    """

    timm_name: ClassVar[str]
    arguments: ClassVar[dict[str, Any]]
    mean: ClassVar[tuple[float, ...]]
    deviation: ClassVar[tuple[float, ...]]
    scale: Tensor
    shift: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.deviation))
        own_mean, own_deviation = (torch.tensor(values).view(3, 1, 1) / 255 for values in (IMAGE_MEAN, IMAGE_DEVIATION))
        self.register_buffer("scale", own_deviation / deviation, persistent=False)
        self.register_buffer("shift", (own_mean - mean) / deviation, persistent=False)
        self._own_names = {_plain(name): name for name in self.backbone.state_dict()}

    @classmethod
    def build_backbone(cls) -> nn.Module:
        import timm

        return timm.create_model(cls.timm_name, **cls.arguments)

    @classmethod
    def installed_weights(cls) -> Path:
        """timm's weights in the Hugging Face hub: downloaded the first time, then read from its cache.

        Raises:
            WeightsError: timm has none, or they are neither in the cache nor can be downloaded.
        """
        import timm
        from huggingface_hub import hf_hub_download
        from timm.models import PretrainedCfg

        pretrained = timm.get_pretrained_cfg(cls.timm_name) or PretrainedCfg()
        given = f"model.image_encoder {OF_TIMM}{cls.timm_name}"
        advice = "name a local file as model.image_encoder_weights"
        if not pretrained.hf_hub_id:
            raise WeightsError(f"{given}: expected weights of timm, found none; {advice}")
        try:
            return Path(hf_hub_download(pretrained.hf_hub_id, pretrained.hf_hub_filename or _HUB_FILE))
        except Exception as error:  # of the network, in many classes
            raise WeightsError(
                f"{given}: expected {_HUB_FILE} of huggingface.co/{pretrained.hf_hub_id}, found it neither online nor "
                f"in the cache ({type(error).__name__}); {advice}"
            ) from error

    def timm_key(self, name: str) -> str | None:
        """``stages.0.weight`` of a whole model is ``stages_0.weight`` of its stages; None for its classifier."""
        return self._own_names.get(_plain(name))

    def run_backbone(self, image: Tensor) -> list[Tensor]:
        stages = self.backbone(image * self.scale + self.shift)
        return [_channels_first(stage, width) for stage, width in zip(stages, self.stage_widths, strict=True)]


@functools.cache
def timm_encoder(name: str) -> type[TimmEncoder]:
    """The encoder with the backbone that timm knows by this name.

    Raises:
        ConfigError: no such model, or one with other stages.
    """
    import timm
    from timm.models import PretrainedCfg

    try:
        pretrained = timm.get_pretrained_cfg(name) or PretrainedCfg()
        arguments, widths = _stages(name)
    except Exception as error:  # timm's own, in many classes
        nearest = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = "" if name in nearest else f"; did you mean {' or '.join(nearest)}?" if nearest else ""
        raise ConfigError(
            f"model.image_encoder {OF_TIMM}{name}: expected a model of timm with stages at 1/4, 1/8, 1/16 and 1/32 of "
            f"an image, found: {error}{hint}"
        ) from error
    fields = {
        "title": f"{name} backbone",
        "timm_name": name,
        "stage_widths": widths,
        "arguments": arguments,
        "mean": pretrained.mean,
        "deviation": pretrained.std,
    }
    return type("TimmEncoder", (TimmEncoder,), fields)


def _stages(name: str) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Arguments with which timm makes the backbone for our images, and the channels of its four stages."""
    import timm

    plain: dict[str, Any] = {"pretrained": False, "features_only": True}
    with torch.device("meta"), torch.no_grad():
        features: Any = timm.create_model(name, **plain)
        strides = features.feature_info.reduction()
        if missing := [f"1/{stride}" for stride in _STRIDES if stride not in strides]:
            found = ", ".join(f"1/{stride}" for stride in strides)
            raise ValueError(f"no stage at {' and '.join(missing)}, but {found}")
        plain["out_indices"] = [len(strides) - 1 - strides[::-1].index(stride) for stride in _STRIDES]
        image = torch.zeros(1, 3, *IMAGE_SHAPE)
        for arguments in (plain, {**plain, "img_size": IMAGE_SHAPE}):  # some are made for one size of image
            try:
                features = timm.create_model(name, **arguments).eval()
                stages = features(image)
                break
            except (AssertionError, RuntimeError) as error:
                if arguments is not plain:
                    raise ValueError(f"one that does not read images of {IMAGE_SHAPE}: {error}") from error
        widths = tuple(features.feature_info.channels())
        for stage, width, stride in zip(stages, widths, _STRIDES, strict=True):
            shape = tuple(_channels_first(stage, width).shape[1:])
            expected = (width, *(-(-size // stride) for size in IMAGE_SHAPE))
            if shape != expected:
                raise ValueError(f"a stage of {shape} in place of {expected}")
    return arguments, widths


def _channels_first(stage: Tensor, width: int) -> Tensor:
    """[B, width, rows, columns] of a stage that has its channels there or last."""
    return stage if stage.shape[1] == width else stage.movedim(-1, 1)


def _plain(name: str) -> str:
    """A weight's name without what timm changes where it returns stages."""
    return name.removeprefix("model.").replace("_", ".")
