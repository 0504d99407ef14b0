"""Weights of a network on disk: one safetensors file that also says which network they belong to."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors
import safetensors.torch
from pydantic import ValidationError
from torch import Tensor, nn

from ammnet_sparse.config import ModelConfig
from ammnet_sparse.models.weights.errors import WeightsError, some_names

FORMAT = "ammnet_sparse"
"""Value of the metadata key ``format`` in our files."""
_RESERVED = ("config", "format")


def save_weights(
    path: str | Path,
    state: Mapping[str, Tensor],
    *,
    model_config: ModelConfig,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes weights with the configuration of their network; a file of that name is replaced at once or not at all.

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
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        safetensors.torch.save_file(tensors, unfinished, metadata=metadata)
        os.replace(unfinished, path)
    except (OSError, safetensors.SafetensorError) as error:
        raise WeightsError(f"{path}: cannot write the weights ({error})") from error


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], ModelConfig, dict[str, str]]:
    """Reads what ``save_weights`` wrote: tensors on the CPU, the network's configuration, the other metadata.

    Raises:
        WeightsError: no such file, no safetensors file, one without our metadata, or a configuration with
            unknown keys or values out of range.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: expected a file with weights, found {'a folder' if path.is_dir() else 'nothing'}")
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            metadata = dict(file.metadata() or {})
            config = _read_config(path, metadata)
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, safetensors.SafetensorError) as error:
        raise WeightsError(
            f"{path}: expected an undamaged safetensors file ({error}); a .pth checkpoint of the dense AMMNet is "
            "converted by `ammnet convert`"
        ) from error
    return tensors, config, {key: value for key, value in metadata.items() if key not in _RESERVED}


def load_into(
    network: nn.Module, state: Mapping[str, Tensor], *, source: str | Path, may_lack: Sequence[str] = ()
) -> None:
    """Copies weights into a network after checking all of them; on an error the network is unchanged.

    Args:
        network: the network that the configuration of the file describes.
        state: tensors by name.
        source: where they come from, for messages.
        may_lack: parts (``image_encoder.backbone``, ``discriminator``) that ``state`` need not hold.

    Raises:
        WeightsError: missing or unknown names, or wrong shapes.
    """
    expected = network.state_dict()
    missing = [
        name for name in expected if name not in state and not any(name.startswith(f"{part}.") for part in may_lack)
    ]
    unknown = [name for name in state if name not in expected]
    misshapen = [
        f"{name} (expected {list(expected[name].shape)}, found {list(value.shape)})"
        for name, value in state.items()
        if name in expected and value.shape != expected[name].shape
    ]
    problems = {"missing names": missing, "unknown names": unknown, "wrong shapes": misshapen}
    if any(problems.values()):
        found = "; ".join(f"{title}: {some_names(names)}" for title, names in problems.items() if names)
        raise WeightsError(f"{source}: expected the weights of this {type(network).__name__}; found {found}")
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
            f"{path}: the configuration in its metadata does not fit this version of the program: {problems}"
        ) from error
    except ValueError as error:
        raise WeightsError(f"{path}: the configuration in its metadata is no JSON: {error}") from error
