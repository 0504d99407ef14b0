"""Published weights of image backbones under the names of timm's modules.

SegFormer's Mix Transformer has three sets of names: those of the published ``mit_b2.pth`` ("published", also in the
dense AMMNet checkpoint under ``encoder.``), Hugging Face's, and timm's. ResNet has one, torchvision's and timm's.
"""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ammnet_sparse.files.errors import abbreviated
from ammnet_sparse.files.tensors import is_safetensors, read_tensors
from ammnet_sparse.files.torch_files import read_torch_file
from ammnet_sparse.models.weights import efficientnet
from ammnet_sparse.models.weights.checks import check_plain, type_problem, value_problem
from ammnet_sparse.models.weights.errors import WeightsError

WRAPPERS = ("state_dict", "model")
"""Keys under which checkpoints store the state dict."""
_PREFIXES = re.compile(r"(?:(?:module|encoder|segformer|backbone)\.)*")
_ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar", "")
"""Extensions of weights files; the content decides which format it is."""


@dataclasses.dataclass(frozen=True)
class BackboneWeights:
    """Weights of a file, ready for a backbone.

    Attributes:
        state_dict: by timm's names, complete but for BatchNorm's ``num_batches_tracked``.
        unused_names: names in the file that are not part of a backbone (classifier heads), sorted.
    """

    state_dict: dict[str, Tensor]
    unused_names: tuple[str, ...]


def published_to_timm(name: str) -> str:
    """timm's name of a SegFormer weight, from that in ``mit_b2.pth`` (without prefix).

    For example ``block3.5.mlp.dwconv.dwconv.weight`` becomes ``stages.2.blocks.5.mlp.dwconv.weight``.
    Inverse: ``timm_to_published``.

    Raises:
        WeightsError: not a name of SegFormer's backbone.
    """
    if match := re.fullmatch(r"patch_embed([1-4])\.((?:proj|norm)\.\w+)", name):
        stage, rest = int(match[1]), match[2]
        return f"patch_embed.{rest}" if stage == 1 else f"stages.{stage - 1}.downsample.{rest}"
    if match := re.fullmatch(r"block([1-4])\.(\d+)\.(.+)", name):
        rest = match[3].replace("mlp.dwconv.dwconv.", "mlp.dwconv.")
        return f"stages.{int(match[1]) - 1}.blocks.{match[2]}.{rest}"
    if match := re.fullmatch(r"norm([1-4])\.(\w+)", name):
        return f"stages.{int(match[1]) - 1}.norm.{match[2]}"
    raise WeightsError(f"{name}: not a name of SegFormer's backbone as published, such as block1.0.attn.q.weight")


def timm_to_published(name: str) -> str:
    """The name in ``mit_b2.pth`` of a SegFormer weight, from timm's; inverse of ``published_to_timm``.

    Raises:
        WeightsError: not a name of timm's SegFormer backbone.
    """
    if match := re.fullmatch(r"patch_embed\.((?:proj|norm)\.\w+)", name):
        return f"patch_embed1.{match[1]}"
    if match := re.fullmatch(r"stages\.([1-3])\.downsample\.((?:proj|norm)\.\w+)", name):
        return f"patch_embed{int(match[1]) + 1}.{match[2]}"
    if match := re.fullmatch(r"stages\.([0-3])\.blocks\.(\d+)\.(.+)", name):
        rest = match[3].replace("mlp.dwconv.", "mlp.dwconv.dwconv.")
        return f"block{int(match[1]) + 1}.{match[2]}.{rest}"
    if match := re.fullmatch(r"stages\.([0-3])\.norm\.(\w+)", name):
        return f"norm{int(match[1]) + 1}.{match[2]}"
    raise WeightsError(f"{name}: not a name of timm's SegFormer backbone, such as stages.0.blocks.0.attn.q.weight")


def read_weights_file(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a weights file by name, on the CPU; no code in it is executed.

    Reads .safetensors, and .pth, .pt and .bin with ``weights_only=True``; a dict nested under 'state_dict' or
    'model' is unwrapped, and entries that are not tensors are left out.

    Raises:
        WeightsError: no such file, an unknown ending, a damaged file, or no tensors in it.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: expected a file with weights, found {'a folder' if path.is_dir() else 'nothing'}")
    suffix = path.suffix.lower()
    if suffix not in _ENDINGS:
        raise WeightsError(f"{path}: expected a file ending in .safetensors, .pth, .pt or .bin, found {path.suffix!r}")
    what = "tensors by name and nothing else, in an undamaged file"
    advice = "download it again, or save only its state_dict"
    contents: Any
    if suffix == ".safetensors" or is_safetensors(path):
        contents = read_tensors(path, what=what, advice=advice, raises=WeightsError)
    else:
        contents = read_torch_file(path, what=what, advice=advice, raises=WeightsError)
    for wrapper in WRAPPERS * 2:  # in either order, a bounded number of times
        if isinstance(contents, dict) and isinstance(contents.get(wrapper), dict):
            contents = contents[wrapper]
    if not isinstance(contents, dict):
        raise WeightsError(f"{path}: expected a dict of tensors by name, found {type(contents).__name__}")
    tensors = {str(name): value for name, value in contents.items() if isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(
            f"{path}: expected tensors by name, found {abbreviated(sorted(map(str, contents))) or 'nothing'}"
        )
    check_plain(tensors, source=path)
    return tensors


def read_backbone_weights(backbone: nn.Module, path: str | Path) -> BackboneWeights:
    """Reads and checks a file against a backbone without changing the backbone; every weight is accounted for.

    Args:
        backbone: timm's PyramidVisionTransformerV2 (as SegFormer), ResNet or EfficientNetFeatures.
        path: file that ``read_weights_file`` reads, names as published, Hugging Face's or timm's, under any of
            the prefixes ``module.``, ``encoder.``, ``segformer.``, ``backbone.``.

    Raises:
        WeightsError: the file cannot be read, or weights are missing, given twice, of another shape or type, not
            finite, or belong to a larger backbone. Names them.
        TypeError: another backbone.
    """
    kind, translate = _naming_of(backbone)
    tensors = _join_keys_and_values(read_weights_file(path), path)
    found: dict[str, _Entry] = {}
    unused = []
    for file_name, tensor in tensors.items():
        name = translate(_strip_prefixes(file_name))
        if name is None:
            unused.append(file_name)
        elif name in found:
            raise WeightsError(f"{path}: {name} is given twice, as {found[name].file_name} and {file_name}")
        else:
            found[name] = _Entry(file_name, tensor)
    if not found:
        raise WeightsError(
            f"{path}: expected ImageNet weights of {kind}, found none of its names among {abbreviated(sorted(tensors))}"
        )
    _check_names(found, backbone, path=path, kind=kind)
    _check_values(found, backbone, path=path)
    return BackboneWeights({name: entry.tensor for name, entry in found.items()}, tuple(sorted(unused)))


@dataclasses.dataclass(frozen=True)
class _Entry:
    file_name: str
    tensor: Tensor


def _check_names(found: dict[str, _Entry], backbone: nn.Module, *, path: str | Path, kind: str) -> None:
    expected = backbone.state_dict().keys()
    # Files from before PyTorch 0.4.1 lack these counters, and nothing reads them.
    missing = sorted(name for name in expected - found.keys() if not name.endswith("num_batches_tracked"))
    if missing:
        raise WeightsError(f"{path}: expected all weights of {kind}, missing are (timm's names) {abbreviated(missing)}")
    surplus = sorted(found[name].file_name for name in found.keys() - expected)
    if surplus:
        raise WeightsError(
            f"{path}: expected weights of {kind}, found those of a larger backbone: {abbreviated(surplus)}"
        )


def _check_values(found: dict[str, _Entry], backbone: nn.Module, *, path: str | Path) -> None:
    problems = []
    for name, expected in backbone.state_dict().items():
        if name not in found:
            continue
        file_name, tensor = found[name].file_name, found[name].tensor
        if tensor.shape != expected.shape:
            problems.append(f"{file_name} expected {list(expected.shape)}, found {list(tensor.shape)}")
        elif wrong := type_problem(tensor, is_floating=expected.is_floating_point()) or value_problem(name, tensor):
            problems.append(f"{file_name}: {wrong}")
    if problems:
        raise WeightsError(f"{path}: weights that do not fit: {abbreviated(problems)}")


def _naming_of(backbone: nn.Module) -> tuple[str, Callable[[str], str | None]]:
    """The backbone's name in messages, and the translation of a file's names, None for unknown ones."""
    from timm.models import EfficientNetFeatures
    from timm.models.pvt_v2 import PyramidVisionTransformerV2
    from timm.models.resnet import ResNet

    if isinstance(backbone, PyramidVisionTransformerV2):
        return "the SegFormer backbone", _segformer_to_timm
    if isinstance(backbone, ResNet):
        return "the ResNet backbone", _resnet_to_timm
    if isinstance(backbone, EfficientNetFeatures):
        return "the EfficientNet-Lite backbone", lambda name: efficientnet.published_to_timm(name, backbone)
    raise TypeError(
        "backbone: expected timm's PyramidVisionTransformerV2, ResNet or EfficientNetFeatures, found "
        f"{type(backbone).__name__}"
    )


def _resnet_to_timm(name: str) -> str | None:
    return name if re.fullmatch(r"(?:conv1|bn1|layer[1-4]\.\d+)\..+", name) else None


def _segformer_to_timm(name: str) -> str | None:
    try:
        return published_to_timm(_huggingface_to_published(name))
    except WeightsError:
        pass
    try:
        timm_to_published(name)
    except WeightsError:
        return None
    return name


_HUGGINGFACE_BLOCK = {
    "layer_norm_1": "norm1",
    "attention.self.query": "attn.q",
    "attention.self.key_value": "attn.kv",
    "attention.self.sr": "attn.sr",
    "attention.self.layer_norm": "attn.norm",
    "attention.output.dense": "attn.proj",
    "layer_norm_2": "norm2",
    "mlp.dense1": "mlp.fc1",
    "mlp.dwconv.dwconv": "mlp.dwconv.dwconv",
    "mlp.dense2": "mlp.fc2",
}
"""Layers of a block (key and value already joined) by their published names."""


def _huggingface_to_published(name: str) -> str:
    """Counts stages from 1 as in the published names; names other than Hugging Face's are returned unchanged."""
    if match := re.fullmatch(r"patch_embeddings\.([0-3])\.(proj|layer_norm)\.(\w+)", name):
        layer = "proj" if match[2] == "proj" else "norm"
        return f"patch_embed{int(match[1]) + 1}.{layer}.{match[3]}"
    if match := re.fullmatch(r"layer_norm\.([0-3])\.(\w+)", name):
        return f"norm{int(match[1]) + 1}.{match[2]}"
    match = re.fullmatch(r"block\.([0-3])\.(\d+)\.(.+)\.(\w+)", name)
    if match and match[3] in _HUGGINGFACE_BLOCK:
        return f"block{int(match[1]) + 1}.{match[2]}.{_HUGGINGFACE_BLOCK[match[3]]}.{match[4]}"
    return name


def _join_keys_and_values(tensors: dict[str, Tensor], path: str | Path) -> dict[str, Tensor]:
    """Joins Hugging Face's separate key and value layers to the one that MiT has: key rows first."""
    joined = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"(.*block\.\d+\.\d+\.attention\.self\.)(key|value)\.(weight|bias)", name)
        if match is None:
            joined[name] = tensor
            continue
        prefix, part, suffix = match.groups()
        partner = f"{prefix}{'value' if part == 'key' else 'key'}.{suffix}"
        if partner not in tensors:
            raise WeightsError(f"{path}: expected {partner} beside {name}, found no such name")
        if tensors[partner].shape != tensor.shape or tensor.ndim == 0:
            raise WeightsError(
                f"{path}: expected {name} and {partner} of one shape with rows, found {list(tensor.shape)} "
                f"and {list(tensors[partner].shape)}"
            )
        if part == "key":
            joined[f"{prefix}key_value.{suffix}"] = torch.cat([tensor, tensors[partner]])
    return joined


def _strip_prefixes(name: str) -> str:
    match = _PREFIXES.match(name)
    return name[match.end() :] if match else name
