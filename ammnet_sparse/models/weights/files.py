"""Weights of a network on disk: one safetensors file that includes the network's configuration."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from pydantic import ValidationError
from torch import Tensor, nn

from ammnet_sparse.config import ModelConfig
from ammnet_sparse.data.set_info import NYU, SetInfo
from ammnet_sparse.files.errors import reason
from ammnet_sparse.files.tensors import read_tensors, read_tensors_header
from ammnet_sparse.files.writing import replacing
from ammnet_sparse.models.weights.checks import WeightsError, check_state

UNOBSERVED = "tsdf_unobserved"
"""Metadata key: unobserved space in the flipped TSDF that a network was trained on, ``free`` or ``surface``."""
SET_INFO = "set_info"
"""Metadata key: a ``SetInfo`` as JSON, of weights that were trained on a set of other classes than NYU's."""
TRAINED_ON = "trained_on"
"""Metadata key: lists of frames that the weights, and those they started from, were trained on; blanks between."""
FORMAT = "ammnet_sparse"
"""Value of the metadata key ``format`` in our files."""
_RESERVED = ("config", "format")
_WHAT = "an undamaged safetensors file"
_ADVICE = "a .pth checkpoint of the dense AMMNet is converted by `ammnet convert`"


def save_weights(
    path: str | Path,
    state: Mapping[str, Tensor],
    *,
    model_config: ModelConfig,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes weights with the configuration of their network; an existing file is replaced atomically.

    Args:
        path: file to write, ending in .safetensors.
        state: tensors by the names of the network's state dict, on any device.
        model_config: kept as JSON; without ``image_encoder_weights``, whose weights ``state`` holds.
        metadata: more to keep, text by key; not ``config`` and ``format``, which are written here.

    Raises:
        WeightsError: another ending, a reserved metadata key, or a folder that cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise WeightsError(f"{path}: expected a name ending in .safetensors, found {path.suffix!r}")
    metadata = dict(metadata or {})
    if reserved := [key for key in _RESERVED if key in metadata]:
        raise WeightsError(f"metadata: the keys {', '.join(reserved)} are written by save_weights; choose others")
    config = model_config.model_copy(update={"image_encoder_weights": None})
    metadata |= {"format": FORMAT, "config": config.model_dump_json()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    try:
        with replacing(path) as temporary:
            safetensors.torch.save_file(tensors, temporary, metadata=metadata)
    except OSError as error:
        raise WeightsError(f"{path}: cannot write the weights: {error.strerror or error}") from error
    except safetensors.SafetensorError as error:
        raise WeightsError(f"{path}: cannot write the weights: {error}") from error


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], ModelConfig, dict[str, str]]:
    """Reads what ``save_weights`` wrote: tensors on the CPU, the network's configuration, the other metadata.

    Raises:
        WeightsError: no such file, not a safetensors file, one without our metadata, or a configuration with
            unknown keys or values out of range.
    """
    path = Path(path)
    metadata = _read_metadata(path)
    config = _read_config(path, metadata)
    tensors = read_tensors(path, what=_WHAT, advice=_ADVICE, raises=WeightsError)
    return tensors, config, {key: value for key, value in metadata.items() if key not in _RESERVED}


def lists_trained_on(path: str | Path) -> set[str]:
    """Lists of frames (``train``, ``val``) that weights on disk were trained on; empty where the file does not say.

    Raises:
        WeightsError: no such file, or not a safetensors file.
    """
    return lists_in(_read_metadata(Path(path)))


def lists_in(metadata: Mapping[str, str]) -> set[str]:
    """The same from the metadata of a file."""
    lists = set(metadata.get(TRAINED_ON, "").split())
    data = data_section(metadata)
    if "split" in data:
        lists.add(str(data["split"]))
    if data.get("train_on_all"):
        lists.add("val")
    return lists


def set_info_in(metadata: Mapping[str, str], config: ModelConfig) -> SetInfo:
    """The description of the set that weights were trained on, from the metadata of their file.

    Raises:
        WeightsError: another description, or one of other classes than the network's.
    """
    try:
        info = SetInfo.model_validate_json(metadata[SET_INFO]) if SET_INFO in metadata else NYU
    except ValidationError as error:
        raise WeightsError(f"metadata {SET_INFO}: expected the description of a set, found {reason(error)}") from error
    if info.num_classes != config.num_classes:
        raise WeightsError(
            f"metadata {SET_INFO}: expected {config.num_classes} classes, as many as model.num_classes, found "
            f"{info.num_classes}"
            + ("" if SET_INFO in metadata else " (NYU's); name them by `ammnet convert --classes`")
        )
    return info


def data_section(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Keys ``data.*`` of the training configuration; empty where the metadata, another program's, has none."""
    try:
        data = json.loads(metadata["training_config"])["data"]
    except (KeyError, TypeError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _read_metadata(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise WeightsError(f"{path}: expected a file with weights, found {'a folder' if path.is_dir() else 'nothing'}")
    return read_tensors_header(path, what=_WHAT, advice=_ADVICE, raises=WeightsError).metadata


def load_into(
    network: nn.Module, state: Mapping[str, Tensor], *, source: str | Path, may_lack: Sequence[str] = ()
) -> None:
    """Copies weights into a network after checking all of them; on an error the network is unchanged.

    Args:
        network: the network that the configuration of the file describes.
        state: tensors by name, of any float type of 16 bits and more.
        source: where they come from, for messages.
        may_lack: parts (``image_encoder.backbone``, ``discriminator``) that ``state`` need not hold.

    Raises:
        WeightsError: missing or unknown names, wrong shapes or types, values that are not finite, negative variances.
    """
    check_state(network.state_dict(), state, source=source, what=type(network).__name__, may_lack=may_lack)
    network.load_state_dict(dict(state), strict=False)


def _read_config(path: Path, metadata: Mapping[str, str]) -> ModelConfig:
    if metadata.get("format") != FORMAT or "config" not in metadata:
        raise WeightsError(
            f"{path}: expected the metadata format: {FORMAT} and config, found keys {sorted(metadata)}; weights of "
            "other programs are converted by `ammnet convert`"
        )
    try:
        return ModelConfig.model_validate(json.loads(metadata["config"]))
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}" for problem in error.errors()
        )
        raise WeightsError(
            f"{path}: the configuration in its metadata does not fit this version of the program: {problems[:1000]}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: the configuration in its metadata is not JSON: {reason(error)}") from error
