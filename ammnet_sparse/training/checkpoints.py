"""The files of a run: weights, and the state that a resumed run continues from."""

import json
import os
import warnings
import zipfile
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

import ammnet_sparse
from ammnet_sparse.config import Config, ConfigError, Resume, changed_keys, config_from_dict, flat_plain, flat_values
from ammnet_sparse.data.set_info import NYU, SetInfo
from ammnet_sparse.evaluation.metrics import Scores
from ammnet_sparse.files.tensors import is_safetensors
from ammnet_sparse.files.writing import keep_as, replacing_open
from ammnet_sparse.models.ammnet import AMMNet
from ammnet_sparse.models.discriminator import Discriminator
from ammnet_sparse.models.weights.files import (
    SET_INFO,
    TRAINED_ON,
    UNOBSERVED,
    lists_in,
    lists_trained_on,
    save_weights,
)
from ammnet_sparse.models.weights.loading import join_states

CONFIG = "config.yaml"
LAST_WEIGHTS = "last.safetensors"
BEST_WEIGHTS = "best.safetensors"
STATE = "state.pt"
PREVIOUS_STATE = "state.previous.pt"
"""The previous state, used if the last one is damaged."""


_FORMS: dict[str, tuple[type, ...]] = {
    "progress": (dict,),
    "frames": (list,),
    "limit": (int, type(None)),
    "changes": (list,),
    "trained_before": (list,),
    "network": (dict,),
    "average": (dict, type(None)),
    "generator": (dict,),
    "discriminator": (dict, type(None)),
    "random_of_processes": (list,),
}
"""The types of a state's values."""


class CheckpointError(ValueError):
    """A run folder or state that cannot be continued; the message names the file."""


def save_run_weights(
    folder: Path, name: str, generator: AMMNet, discriminator: Discriminator, *, metadata: dict[str, str]
) -> None:
    """Writes the weights of generator and discriminator with their configuration."""
    state = join_states(generator.state_dict(), discriminator.state_dict())
    save_weights(folder / name, state, model_config=generator.config, metadata=metadata)


def summary(scores: Scores) -> str:
    """The two main figures in words."""
    return scores.named(f"SSC mIoU {100 * scores.ssc_miou:.1f} %, SC IoU {100 * scores.sc_iou:.1f} %")


def check_same_run(config: Config, saved: Any, *, folder: Path, may_change: bool = False) -> list[dict[str, Any]]:
    """Compares the configuration of a resumed run with the saved one.

    Args:
        may_change: allow other values of keys that affect what is trained, if the state permits.

    Returns:
        The keys that decide what is trained and have changed, each as {"key", "before", "now"} of plain values.

    Raises:
        ConfigError: a key that must stay differs.
    """
    if not isinstance(saved, dict):
        raise CheckpointError(f"{folder}: the state holds no configuration; start a new run with `initial_weights`")
    saved_config = config_from_dict(saved, source=f"{folder}: state")
    before, now = flat_values(saved_config), flat_values(config)
    changed = changed_keys(saved_config, config)
    for key in changed:
        kept = f"{key.name}: a resumed run keeps {before[key.name]}, found {now[key.name]}"
        if key.resume is Resume.KEPT:
            raise ConfigError(f"{kept}; to change it, start a new run with `initial_weights` of this one")
        if not may_change:
            raise ConfigError(f"{kept}; it decides what is trained: to change it anyway, add `may_change=True`")
    plain = {"before": flat_plain(saved), "now": flat_plain(config.model_dump(mode="json"))}
    names = [key.name for key in changed]
    return [{"key": name, "before": plain["before"].get(name), "now": plain["now"].get(name)} for name in names]


_OF_THE_MACHINE = {
    "data": ("root", "synthetic_root", "label_2d", "workers", "on_device", "cache_features"),
    "model": ("image_encoder_weights",),
    "loss": ("teachers",),
}
"""Keys that concern the location and reading of files and do not affect what is trained."""


def run_metadata(
    config: Config,
    num_frames: Sequence[int],
    *,
    epoch: int,
    step: int,
    scores: Scores | None,
    unobserved: str | None = None,
    trained_before: Collection[str] = (),
    info: SetInfo = NYU,
) -> dict[str, str]:
    """Metadata of a file of weights: training configuration, data, length, figures and version, as text.

    Paths of the machine are left out, because such files are shared.

    Args:
        num_frames: training and validation frames.
        scores: of the weights on the validation frames; left out if these were trained on (``data.train_on_all``).
        unobserved: value of the set's flipped TSDF in unobserved space, ``free`` or ``surface``; None: it is
            not flipped, or unknown.
        trained_before: lists of frames that the weights of the start were trained on.
        info: the set that was trained on.
    """
    values = config.model_dump(mode="json")
    for section, keys in _OF_THE_MACHINE.items():
        for key in keys:
            del values[section][key]
    data = config.data
    are_rooms = data.root is not None and os.path.realpath(data.root) == os.path.realpath(data.synthetic_root)
    metadata = {
        "version": ammnet_sparse.__version__,
        "epoch": str(epoch),
        "epochs": str(config.training.epochs),
        "step": str(step),
        "data": f"{'generated rooms' if are_rooms else data.dataset}, {num_frames[0]} training and {num_frames[1]} "
        f"validation frames{', these among those' if data.train_on_all else ''}",
        "training_config": json.dumps(values),
    }
    metadata[TRAINED_ON] = " ".join(sorted(lists_in(metadata) | set(trained_before)))
    if unobserved is not None:
        metadata[UNOBSERVED] = unobserved
    if info.classes != NYU.classes or info.voxel_size != NYU.voxel_size:
        metadata[SET_INFO] = info.model_dump_json()
    if scores is not None and not data.train_on_all:
        metadata["validation"] = summary(scores)
        metadata["validation_scores"] = json.dumps(scores.to_json())
    return metadata


def lists_before(starts: Iterable[Path | None], config: Config) -> set[str]:
    """Lists of frames that the weights of the start were trained on, as far as the files say.

    Args:
        starts: files of weights, of other programs too, each or None.

    Warns:
        UserWarning: weights trained on ``val``, where the training is not on it anyway (``data.train_on_all``).
    """
    lists = set()
    for path in starts:
        if path is None or not is_safetensors(path):
            continue
        found = lists_trained_on(path)
        if "val" in found and not config.data.train_on_all:
            warnings.warn(
                f"{path}: was trained on the validation frames of its set too; if this run has the same set, its "
                "validation scores say little about other frames",
                stacklevel=3,
            )
        lists |= found
    return lists


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Replaces the state of a run atomically and keeps the previous one; tensors and plain values only.

    Raises:
        OSError: a full disk or a folder that cannot be written; names the file. Existing states are unchanged.
    """
    path = folder / STATE
    with replacing_open(path) as file:
        torch.save(state, file)
        if path.is_file():
            keep_as(path, folder / PREVIOUS_STATE)


def load_state(folder: Path) -> dict[str, Any]:
    """Reads what ``save_state`` wrote, onto the CPU; executes no code.

    Raises:
        CheckpointError: no such file, or a damaged one without a previous state.

    Warns:
        UserWarning: the state is damaged, and the previous one is used.
    """
    path, previous = folder / STATE, folder / PREVIOUS_STATE
    if not path.is_file() and not previous.is_file():
        raise CheckpointError(
            f"{path}: expected the state of an interrupted run, found nothing; start a new run, or "
            "one with `initial_weights` of it"
        )
    try:
        return _read_state(path)
    except CheckpointError as error:
        if not previous.is_file():
            raise CheckpointError(f"{error}; use {LAST_WEIGHTS} as `initial_weights` of a new run") from error
        try:
            state = _read_state(previous)
        except CheckpointError as second:
            raise CheckpointError(
                f"{error}; {second}; use {LAST_WEIGHTS} as `initial_weights` of a new run"
            ) from second
        warnings.warn(f"{error}; the run goes on from the state before it, {previous}", stacklevel=2)
        return state


def stored_config(folder: Path) -> dict[str, Any]:
    """The configuration in the state of a run, as nested plain values, in case its config.yaml is missing or damaged.

    Raises:
        CheckpointError: no state, or a damaged one.
    """
    config = load_state(folder).get("config")
    if not isinstance(config, dict):
        raise CheckpointError(f"{folder / STATE}: holds no configuration")
    return config


def _read_state(path: Path) -> dict[str, Any]:
    try:
        # torch.load does not verify the checksums of the archive.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise CheckpointError(f"{path}: damaged: the checksum of {damaged} is wrong")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # damaged files make the readers raise many kinds of errors
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path}: cannot be read ({reason})") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: expected a dict, found {type(state).__name__}")
    for name, forms in _FORMS.items():
        if name in state and not isinstance(state[name], forms):
            raise CheckpointError(f"{path}: damaged: {name} is of type {type(state[name]).__name__}")
    if isinstance(limit := state.get("limit"), bool) or (limit is not None and not 1 <= limit < 2**53):
        raise CheckpointError(f"{path}: damaged: limit is {state['limit']}")
    return state
