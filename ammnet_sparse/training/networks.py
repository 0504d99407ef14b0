"""The two networks of a run, and their initial weights."""

import dataclasses
import json
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ammnet_sparse.config import Config, ConfigError, ModelConfig
from ammnet_sparse.models.ammnet import ENCODER_NAMES, AMMNet
from ammnet_sparse.models.discriminator import Discriminator
from ammnet_sparse.models.image_encoders import ImageEncoder, image_encoder_class
from ammnet_sparse.models.weights.backbones import load_encoder_weights
from ammnet_sparse.models.weights.checks import WeightsError
from ammnet_sparse.models.weights.files import load_into, read_weights
from ammnet_sparse.models.weights.loading import (
    DISCRIMINATOR,
    OPTIONAL_PARTS,
    fit_state_projections,
    join_states,
    names_of,
    split_state,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Networks:
    """Generator and discriminator, with one state dict; the discriminator's prefix is ``discriminator.``."""

    generator: AMMNet
    discriminator: Discriminator

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Networks":
        """Moves both networks, in place."""
        self.generator.to(device, dtype)
        self.discriminator.to(device, dtype)
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """Weights of both networks."""
        return join_states(self.generator.state_dict(), self.discriminator.state_dict())

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores ``state_dict``. Raises RuntimeError for weights of other networks."""
        generator, discriminator = split_state(state)
        self.generator.load_state_dict(generator)
        self.discriminator.load_state_dict(discriminator)


def build_networks(
    config: Config, *, initial_weights: Path | None = None, only_shared: bool = False, is_resumed: bool = False
) -> Networks:
    """The networks as the seed initializes them, or from weights; a resumed run's state replaces them all.

    The image backbone starts from ``model.image_encoder_weights``, or from weights that are installed or timm's.

    Args:
        initial_weights, only_shared: see ``initialize_from``.
        is_resumed: do not read the image backbone's weights, which may have been moved since.

    Raises:
        ConfigError: parts that are not trained, without weights for them.
        WeightsError: weights that cannot be read or do not fit, or are not installed.
    """
    if config.model.freeze_encoders and not is_resumed and (initial_weights is None or only_shared):
        raise ConfigError("model.freeze_encoders: expected trained encoders; give a run's weights as `initial_weights`")
    torch.manual_seed(config.training.seed)
    networks = Networks(AMMNet(config.model), Discriminator(config.model))
    encoder = networks.generator.image_encoder
    if encoder is not None and not is_resumed:
        weights = config.model.image_encoder_weights
        if weights is None and (initial_weights is None or only_shared):
            weights = encoder.installed_weights()
            if weights is None and config.model.freeze_image_encoder:
                raise ConfigError(
                    f"model.image_encoder_weights: a frozen {config.model.image_encoder} needs ImageNet weights, found "
                    "none; name a local file, or train the backbone too with model.freeze_image_encoder=false"
                )
        if weights is not None:
            load_encoder_weights(encoder, weights)
    if initial_weights is not None:
        initialize_from(networks, initial_weights, only_shared=only_shared)
    networks.generator.set_recompute(config.training.recompute)
    networks.discriminator.set_recompute(config.training.recompute)
    return networks


def build_encoder(config: Config) -> ImageEncoder:
    """The image encoder of a configuration, trainable as a whole, from ImageNet weights; ``head_width`` wide.

    Raises:
        ConfigError: a backbone whose weights are neither given nor installed.
        WeightsError: weights that cannot be read or do not fit.
    """
    model = config.model
    weights = model.image_encoder_weights or image_encoder_class(model).installed_weights()
    if weights is None:
        raise ConfigError(
            f"model.image_encoder_weights: {model.image_encoder} starts from ImageNet weights, found none; name a file"
        )
    changes = {"width": model.head_width or model.width, "freeze_image_encoder": False}
    encoder = image_encoder_class(model)(model.model_copy(update=changes))
    load_encoder_weights(encoder, weights)
    return encoder


def initialize_from(networks: Networks, path: str | Path, *, only_shared: bool = False) -> None:
    """Weights of another run, or converted ones, to start from (fine-tuning); widths must fit, sites may differ.

    Where the generator freezes its encoders (Figure 2), only they are taken: its decoder is trained from the start, and
    the file may be of a network with other inputs. Parts that a converted checkpoint may lack, the discriminator and
    the image encoder, are unchanged; a warning says so if they are random and never trained.

    Args:
        only_shared: take the generator's weights that both networks have, by name and shape, for example those of the
            TSDF encoder and the decoder of a network with another 2D input; a warning says which parts are untrained.

    Raises:
        WeightsError: a file that is missing, damaged, or of another network.
    """
    file_state, file_config, _ = read_weights(path)
    config = networks.generator.config
    expected = networks.generator.state_dict()
    state, discriminator = split_state(file_state)
    state = fit_state_projections(state, expected, trained=file_config.sites, wanted=config.sites)
    may_lack: tuple[str, ...] = OPTIONAL_PARTS
    if only_shared:
        state, discriminator = _shared(state, expected, path), {}
    elif config.freeze_encoders:
        discriminator = {}
        state = {
            name: value
            for encoder in ENCODER_NAMES
            for name, value in state.items()
            if name.startswith(f"{encoder}.") and names_of(encoder, expected)
        }
        may_lack = ("image_encoder.backbone", "decoder")
    try:
        load_into(networks.generator, state, source=path, may_lack=may_lack)
        if discriminator:
            load_into(networks.discriminator, discriminator, source=f"{path}: {DISCRIMINATOR}")
    except WeightsError as error:
        if keys := _keys_to_set(file_config, config):
            raise WeightsError(
                f"{path}: weights of another network; to start from them set {' '.join(keys)}"
            ) from error
        raise
    if not only_shared:
        _warn_of_random_backbone(networks.generator, state, path)


def _shared(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: str | Path) -> dict[str, Tensor]:
    """``expected`` with the weights of ``state`` that have the same name and shape; warns of the others."""
    shared = {name: value for name, value in state.items() if name in expected and value.shape == expected[name].shape}
    if not shared:
        raise WeightsError(f"{path}: expected weights that this network has too, found none of its names and shapes")
    parts = sorted({name.partition(".")[0] for name in expected.keys() - shared.keys()})
    warnings.warn(
        f"{path}: {len(shared)} of the generator's {len(expected)} tensors are taken from it"
        + (f"; others of {', '.join(parts)} start untrained" if parts else ""),
        stacklevel=3,
    )
    return {**expected, **shared}


def _keys_to_set(wanted: ModelConfig, config: ModelConfig) -> list[str]:
    """``model.key=value`` for the keys that affect shapes and names of weights and differ."""
    keys = ["width", "stem_widths", "image_encoder", "num_label_map_classes"]
    if not config.freeze_encoders:  # only their weights are loaded
        keys += ["grid_shape", "num_classes", "inputs", "fusion", "modulation1", "modulation2", "modulation3"]
        keys.append("discriminator_width")
    before, now = wanted.model_dump(mode="json"), config.model_dump(mode="json")
    return [f"model.{key}={_as_override(before[key])}" for key in keys if before[key] != now[key]]


def _as_override(value: object) -> str:
    """A plain value in the syntax of the command line."""
    return json.dumps(value, separators=(",", ":")) if isinstance(value, list | bool) else str(value)


def _warn_of_random_backbone(network: AMMNet, state: Mapping[str, Tensor], path: str | Path) -> None:
    needs_one = network.config.reads_image and network.config.freeze_image_encoder
    is_given = network.config.image_encoder_weights is not None or bool(names_of("image_encoder.backbone", state))
    if needs_one and not is_given:
        warnings.warn(
            f"{path}: holds no image backbone, so the frozen one stays random: set model.image_encoder_weights",
            stacklevel=3,
        )
