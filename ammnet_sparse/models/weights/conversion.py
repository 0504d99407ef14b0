"""Weights of the published dense AMMNet under this project's names, and the other way round.

Every weight of a checkpoint is renamed, listed as unused with the reason, or an error. The expected names and
shapes come from the network with ``sites: dense``, built on torch's meta device.
"""

import dataclasses
import re
from collections.abc import Mapping

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from ammnet_sparse.config import ModelConfig
from ammnet_sparse.data.grid import GRID_SHAPE
from ammnet_sparse.models.ammnet import AMMNet
from ammnet_sparse.models.discriminator import Discriminator
from ammnet_sparse.models.image_encoders.segformer import timm_to_published
from ammnet_sparse.models.weights.backbones import WRAPPING_MODULES, unwrapped
from ammnet_sparse.models.weights.checks import WeightsError, check_state, kind_problem
from ammnet_sparse.models.weights.loading import join_states, state_without_values

_PREFIXES = re.compile(rf"^(?:(?:{WRAPPING_MODULES})\.)*")

_OPTIONAL_PARTS = {"image_encoder.backbone": "encoder.", "image_encoder.head": "head.", "discriminator": "disc."}
"""Parts that a checkpoint may lack as a whole, with the prefixes of their published names."""

_MODULES = {
    "image_encoder.head.projection1": "head.linear_c1.proj",
    "image_encoder.head.projection2": "head.linear_c2.proj",
    "image_encoder.head.projection3": "head.linear_c3.proj",
    "image_encoder.head.projection4": "head.linear_c4.proj",
    "image_encoder.head.fuse": "head.linear_fuse.0",
    "image_encoder.head.fuse_norm": "head.linear_fuse.1",
    "image_encoder.head.classifier": "head.linear_pred",
    "tsdf_encoder.stem.conv1": "TSDFNet.oper1.0",
    "tsdf_encoder.stem.norm1": "TSDFNet.oper1.1",
    "tsdf_encoder.stem.conv2": "TSDFNet.oper1.3",
    "tsdf_encoder.stem.norm2": "TSDFNet.oper1.4",
    "tsdf_encoder.stem.conv3": "TSDFNet.oper1.6",
    "tsdf_encoder.stem.norm3": "TSDFNet.oper1.7",
    "tsdf_encoder.up_half.conv": "TSDFNet.enc_tsdf.0.0",
    "tsdf_encoder.up_half.norm": "TSDFNet.enc_tsdf.0.1",
    "tsdf_encoder.up_full.conv": "TSDFNet.enc_tsdf.1.0",
    "tsdf_encoder.up_full.norm": "TSDFNet.enc_tsdf.1.1",
    "decoder.modulation1.scale": "complete.pre_layer_R11",
    "decoder.modulation1.bias": "complete.pre_layer_R12",
    "decoder.modulation2.scale": "complete.pre_layer_R21",
    "decoder.modulation2.bias": "complete.pre_layer_R22",
    "decoder.modulation3.scale": "complete.pre_layer_R31",
    "decoder.modulation3.bias": "complete.pre_layer_R32",
    "decoder.up_half.conv": "complete.classify_semantic.0.0",
    "decoder.up_half.norm": "complete.classify_semantic.0.1",
    "decoder.up_full.conv": "complete.classify_semantic.1.0",
    "decoder.up_full.norm": "complete.classify_semantic.1.1",
    "decoder.classifier": "complete.classify_semantic.2.1",
    "decoder.tsdf_down_up.conv": "complete.DownScale.2",
    "decoder.tsdf_down_up.norm": "complete.DownScale.3",
    "decoder.tsdf_up.conv": "complete.UpScale.0",
    "decoder.tsdf_up.norm": "complete.UpScale.1",
    "discriminator.embed": "disc.conv1",
    "discriminator.hidden": "disc.linear",
    "discriminator.score": "disc.logit",
}
"""Our name: the published name, for modules outside of blocks."""

_BLOCKS = {
    **{f"tsdf_encoder.stage_half.{index}": f"TSDFNet.completion_layer1.{index}" for index in range(4)},
    **{f"tsdf_encoder.stage_quarter.{index}": f"TSDFNet.completion_layer2.{index}" for index in range(4)},
    **{f"decoder.stage_half.{index}": f"complete.semantic_layer1.{index}" for index in range(4)},
    **{f"decoder.stage_quarter.{index}": f"complete.semantic_layer2.{index}" for index in range(4)},
    **{f"decoder.tsdf_down.{index}": f"complete.DownScale.{index}" for index in range(2)},
    **{f"discriminator.blocks.{index}": f"disc.layer{index + 1}" for index in range(4)},
}
"""Our DDR block: the published one."""

_IN_BLOCK = {
    **{f"conv{index}": f"conv{index}" for index in range(1, 6)},
    **{f"norm{index}": f"bn{index}" for index in range(1, 6)},
    **{f"down{index}.conv": f"downsample{index}.1" for index in range(2, 5)},
    **{f"down{index}.norm": f"downsample{index}.2" for index in range(2, 5)},
    "shortcut.conv": "downsample.1",
    "shortcut.norm": "downsample.2",
}

UNUSED_IN_BLOCK = "a DDR block with stride 1 adds its input and pools nothing"


@dataclasses.dataclass(frozen=True)
class Conversion:
    """A dense checkpoint under this project's names.

    Attributes:
        weights: by our names, floating ones in float32; complete but for ``missing_parts``.
        model_config: the configuration whose network takes them; ``sites: dense``, under which the sparse network
            equals the dense one. Keys that do not affect weights (dropout, frozen encoder) have their defaults.
        unused: published name of every weight that this network does not use, with the reason.
        missing_parts: those of image_encoder.backbone, image_encoder.head and discriminator that the
            checkpoint lacks as a whole.
    """

    weights: dict[str, Tensor]
    model_config: ModelConfig
    unused: dict[str, str]
    missing_parts: tuple[str, ...]


def convert_dense_state_dict(
    state: Mapping[str, object], *, grid_shape: tuple[int, int, int] = GRID_SHAPE
) -> Conversion:
    """Renames the weights of a published dense AMMNet (with SegFormer-B2) and checks every one of them.

    Args:
        state: published names to tensors, each with or without prefixes such as ``module.``; or a dict that holds this
            under ``model``, ``state_dict`` or the like (``unwrapped``). Widths are read from the shapes.
        grid_shape: voxels along (X, height, Y) that the discriminator was trained on; weights only show the product.

    Raises:
        WeightsError: unknown or missing names, wrong shapes or types, values that are not finite, or entries
            that are not tensors.
    """
    given = _unwrap(state)
    missing_parts = tuple(
        part for part, prefix in _OPTIONAL_PARTS.items() if not any(name.startswith(prefix) for name in given)
    )
    config = _derive_config(given, grid_shape, has_discriminator="discriminator" not in missing_parts)
    expected = {
        name: value
        for name, value in _expected_weights(config).items()
        if not any(name.startswith(f"{part}.") for part in missing_parts)
    }
    source_of = {name: published_name(name) for name in expected}
    unused = _unused_weights(expected)
    _check(given, {source: expected[name] for name, source in source_of.items()}, unused)
    weights = {name: _as_stored(given[source]) for name, source in source_of.items()}
    reasons = {name: UNUSED_IN_BLOCK for name in given if name in unused}
    return Conversion(weights, config, reasons, missing_parts)


def publish_dense_state_dict(weights: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The inverse of ``convert_dense_state_dict``: weights of a network with dense sites under the published names.

    The result has every name of the published state dict, so that the original loads it strictly. The poolings of
    blocks with stride 1, which no forward pass reads, get values that make them
    output zero. Converted back, the weights are bit-identical.

    Args:
        weights: by our names; ``image_encoder.backbone``, ``image_encoder.head`` and ``discriminator`` may be absent as
            a whole.
        config: of their network.

    Raises:
        WeightsError: a network that the original is not (sparse sites, another image encoder, fusion or input), or
            weights that are missing, unknown or misshapen.
    """
    required = {
        "sites": "dense",
        "image_encoder": "segformer_b2",
        "inputs": "both",
        "fusion": "modulation",
        "modulation1": True,
        "modulation2": True,
        "modulation3": True,
    }
    if differing := [
        f"model.{key} {expected} (found {getattr(config, key)})"
        for key, expected in required.items()
        if getattr(config, key) != expected
    ]:
        raise WeightsError(f"expected the network of the dense original, with {', '.join(differing)}")
    expected = {
        name: value
        for name, value in _expected_weights(config).items()
        if any(given.startswith(_part_of(name)) for given in weights)
    }
    source_of = {name: published_name(name) for name in expected}
    given = {source_of.get(name, name): value for name, value in weights.items()}
    _check(given, {source_of[name]: value for name, value in expected.items()}, {})
    state = {source_of[name]: weights[name].detach().cpu().contiguous() for name in expected}
    for name, value in _unused_weights(expected).items():
        is_one = name.endswith("running_var") or (name.endswith("weight") and value.ndim == 1)
        state[name] = torch.full(value.shape, int(is_one), dtype=value.dtype)
    return state


def _part_of(name: str) -> str:
    """The part of a weight if a checkpoint may lack that part; otherwise the weight's own name."""
    return next((f"{part}." for part in _OPTIONAL_PARTS if name.startswith(f"{part}.")), "")


def published_name(name: str) -> str:
    """The published name of one of our weights, for example ``complete.pre_layer_R11.weight``.

    Raises:
        WeightsError: a name without counterpart in the published network.
    """
    backbone = "image_encoder.backbone."
    if name.startswith(backbone):
        return "encoder." + timm_to_published(name.removeprefix(backbone))
    module, _, kind = name.rpartition(".")
    if module in _MODULES:
        return f"{_MODULES[module]}.{kind}"
    for block, published_block in _BLOCKS.items():
        if module.startswith(f"{block}."):
            inner = module.removeprefix(f"{block}.")
            if inner in _IN_BLOCK:
                return f"{published_block}.{_IN_BLOCK[inner]}.{kind}"
    raise WeightsError(f"{name}: the published dense AMMNet has no such weight")


def _unwrap(state: Mapping[str, object]) -> dict[str, Tensor]:
    """Published names to tensors, without wrapping dict and prefixes."""
    given: dict[str, Tensor] = {}
    for name, value in unwrapped(state).items():
        if not isinstance(value, Tensor):
            raise WeightsError(
                f"{name}: expected a tensor, found {type(value).__name__}; pass the network's state_dict, alone or "
                "under the key 'model' or 'state_dict'"
            )
        if what := kind_problem(value):
            raise WeightsError(f"{name}: expected a plain tensor, found {what}; make it dense floats first")
        short = _PREFIXES.sub("", str(name))
        if short in given:
            raise WeightsError(f"{short}: given twice, with different prefixes")
        given[short] = value
    if not given:
        raise WeightsError("expected the weights of a dense AMMNet, found an empty dict")
    return given


def _derive_config(
    given: Mapping[str, Tensor], grid_shape: tuple[int, int, int], *, has_discriminator: bool
) -> ModelConfig:
    def channels(name: str, axis: int) -> int:
        if name not in given:
            raise WeightsError(f"{name}: missing; the widths of the network are read from it")
        if given[name].ndim != 5:
            raise WeightsError(f"{name}: expected 5 axes, found {list(given[name].shape)}")
        return given[name].shape[axis]

    classifier = "complete.classify_semantic.2.1.weight"
    values = {
        "width": channels(classifier, 1),
        "num_classes": channels(classifier, 0),
        "stem_widths": (channels("TSDFNet.oper1.0.weight", 0), channels("TSDFNet.oper1.3.weight", 0)),
        "grid_shape": grid_shape,
        "image_encoder": "segformer_b2",
        "sites": "dense",
    }
    if has_discriminator:
        values["discriminator_width"] = channels("disc.conv1.weight", 0)
    try:
        return ModelConfig.model_validate(values)
    except ValidationError as error:
        reasons = "; ".join(problem["msg"] for problem in error.errors())
        raise WeightsError(f"the shapes of the weights are not those of a valid network: {reasons}") from error


def _expected_weights(config: ModelConfig) -> dict[str, Tensor]:
    """All weights of the network that the configuration describes, without values (meta device)."""
    try:
        networks = [state_without_values(build, config) for build in (AMMNet, Discriminator)]
    except WeightsError as error:
        raise WeightsError(f"the shapes of the weights are not those of a network: {error}") from error
    return join_states(*networks)


def _unused_weights(expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The unused pooling weights of blocks with stride 1 by published names, without values (meta device)."""
    unused: dict[str, Tensor] = {}
    for block, published_block in _BLOCKS.items():
        if f"{block}.conv1.weight" not in expected or f"{block}.shortcut.conv.weight" in expected:
            continue
        planes = expected[f"{block}.conv1.weight"].shape[0]
        for index in range(2, 5):
            conv = nn.Conv3d(planes, planes, 1, bias=False, device="meta")
            pooling = nn.Sequential(nn.Identity(), conv, nn.BatchNorm3d(planes, device="meta"))
            unused |= {f"{published_block}.downsample{index}.{name}": x for name, x in pooling.state_dict().items()}
    return unused


def _check(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], unused: Mapping[str, Tensor]) -> None:
    """Raises one error that names everything unknown, missing or unusable, by published names."""
    expected = {**wanted, **{name: value for name, value in unused.items() if name in given}}
    try:
        check_state(expected, given, source="the checkpoint", what="dense AMMNet as published")
    except WeightsError as error:
        raise WeightsError(f"{error}; image encoder and discriminator may be absent as a whole") from error


def _as_stored(value: Tensor) -> Tensor:
    if value.is_floating_point():
        return value.detach().to("cpu", torch.float32).clone(memory_format=torch.contiguous_format)
    return value.detach().to("cpu", torch.int64).clone()
