"""Published weights of image backbones, and files of ``ammnet train-encoder``, read into image encoders."""

import dataclasses
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ammnet_sparse.files.errors import abbreviated
from ammnet_sparse.files.tensors import is_safetensors, read_tensors
from ammnet_sparse.files.torch_files import read_torch_file
from ammnet_sparse.models.image_encoders.encoder import ImageEncoder
from ammnet_sparse.models.weights.checks import WeightsError, check_plain, check_state

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network")
"""Keys under which checkpoints store the state dict."""
WRAPPING_MODULES = "module|_orig_mod|model|net|network"
"""Modules that training code wraps a network in, which prefix its names: DataParallel, torch.compile, Lightning."""
_PREFIXES = re.compile(rf"^(?:(?:{WRAPPING_MODULES}|encoder|segformer|backbone)\.)*")
_ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar", "")
"""Extensions of weights files; the content decides which format it is."""
_HEAD_PREFIX = "head."
"""Prefix of the head's names in a file of ammnet train-encoder; the backbone's is ``backbone.``."""


@dataclasses.dataclass(frozen=True)
class BackboneWeights:
    """Weights of a file, ready for a backbone.

    Attributes:
        state_dict: by timm's names, complete but for BatchNorm's ``num_batches_tracked``.
        unused_names: names in the file that are not part of a backbone (classifier heads), sorted.
    """

    state_dict: dict[str, Tensor]
    unused_names: tuple[str, ...]


def read_weights_file(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a weights file by name, on the CPU; no code in it is executed.

    Reads .safetensors, and .pth, .pt, .bin and .ckpt with ``weights_only=True``. A nested state dict is found
    (``unwrapped``), and entries that are not tensors are left out.

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
    contents = unwrapped(contents)
    if not isinstance(contents, dict):
        raise WeightsError(f"{path}: expected a dict of tensors by name, found {type(contents).__name__}")
    tensors = {str(name): value for name, value in contents.items() if isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(
            f"{path}: expected tensors by name, found {abbreviated(sorted(map(str, contents))) or 'nothing'}"
        )
    check_plain(tensors, source=path)
    return tensors


def unwrapped(contents: Any) -> Any:
    """The state dict of a checkpoint that holds it under ``state_dict``, ``model`` or the like, also nested twice."""
    for wrapper in _WRAPPERS * 2:
        if isinstance(contents, Mapping) and isinstance(contents.get(wrapper), Mapping):
            contents = contents[wrapper]
    return contents


def read_backbone_weights(encoder: ImageEncoder, path: str | Path) -> BackboneWeights:
    """Reads and checks a file against an encoder's backbone without changing it; every weight is accounted for.

    Args:
        path: file that ``read_weights_file`` reads, names as published, Hugging Face's or timm's, under any of
            the prefixes ``encoder.``, ``segformer.``, ``backbone.`` and those of WRAPPING_MODULES.

    Raises:
        WeightsError: the file cannot be read, or weights are missing, given twice, of another shape or type, not
            finite, or belong to a larger backbone. Names them.
    """
    tensors = encoder.joined_weights(read_weights_file(path), source=path)
    found: dict[str, Tensor] = {}
    name_in_file: dict[str, str] = {}
    unused = []
    for file_name, tensor in tensors.items():
        name = encoder.timm_key(_PREFIXES.sub("", file_name))
        if name is None:
            unused.append(file_name)
        elif name in found:
            raise WeightsError(f"{path}: {name} is given twice, as {name_in_file[name]} and {file_name}")
        else:
            found[name], name_in_file[name] = tensor, file_name
    if not found:
        raise WeightsError(
            f"{path}: expected ImageNet weights of a {encoder.title}, found none of its names among "
            f"{abbreviated(sorted(tensors))}"
        )
    # Files from before PyTorch 0.4.1 lack BatchNorm's counters, and nothing reads them.
    expected = {
        name: value
        for name, value in encoder.backbone.state_dict().items()
        if name in found or not name.endswith("num_batches_tracked")
    }
    check_state(expected, found, source=path, what=f"{encoder.title} (timm's names)", given_as=name_in_file)
    return BackboneWeights(found, tuple(sorted(unused)))


def load_backbone_weights(encoder: ImageEncoder, path: str | Path) -> tuple[str, ...]:
    """Loads ImageNet weights into the backbone; the head is unchanged. Either all or nothing is loaded.

    Reads .safetensors, or .pth, .pt and .bin as ``torch.load(weights_only=True)`` does (no code is executed):
    ``mit_b2.pth`` as published, Hugging Face's nvidia/mit-b2, timm's or torchvision's resnet50; nested under
    'state_dict' or 'model' or not, with or without the prefixes ``module.``, ``encoder.``, ``segformer.``,
    ``backbone.``.

    Returns:
        The names in the file that are not part of the backbone (classifier heads), sorted.

    Raises:
        WeightsError: as ``read_backbone_weights``.
    """
    loaded = read_backbone_weights(encoder, path)
    # Only BatchNorm's counters may be missing, which evaluation does not read.
    encoder.backbone.load_state_dict(loaded.state_dict, strict=False)
    return loaded.unused_names


def load_encoder_weights(encoder: ImageEncoder, path: str | Path) -> bool:
    """Loads the backbone (``load_backbone_weights``), and the head from a file of ammnet train-encoder if it fits.

    A head fits if its widths and classes are the same; the layer that reduces its channels to the network's width is
    not part of that file and is unchanged.

    Returns:
        Whether the head was loaded.

    Raises:
        WeightsError: as ``read_backbone_weights``.

    Warns:
        UserWarning: the file's head does not fit.
    """
    unused = load_backbone_weights(encoder, path)
    if f"{_HEAD_PREFIX}fuse.weight" not in unused:  # timm's classifiers begin like our head
        return False
    expected = encoder.head.state_dict()
    found = {
        name.removeprefix(_HEAD_PREFIX): value
        for name, value in read_weights_file(path).items()
        if name.startswith(_HEAD_PREFIX)
    }
    needed = {name for name in expected if not name.startswith("reduce")}
    if found.keys() != needed or any(expected[name].shape != value.shape for name, value in found.items()):
        warnings.warn(
            f"{path}: its head has other widths or classes than this network's (model.head_width, model.num_classes) "
            "and is left out; the head starts untrained",
            UserWarning,
            stacklevel=2,
        )
        return False
    encoder.head.load_state_dict(found, strict=False)
    return True
