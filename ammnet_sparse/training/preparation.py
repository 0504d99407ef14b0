"""Checks before a run: the configuration and the data."""

import os
from pathlib import Path
from typing import Any

import torch

from ammnet_sparse.config import Config, ConfigError, Resume, changed_keys, config_from_dict, flat_plain, flat_values
from ammnet_sparse.data.dataset import EpochDataset, FrameDataset
from ammnet_sparse.data.device_dataset import DeviceDataset
from ammnet_sparse.data.grid import NUM_LABEL_MAP_CLASSES
from ammnet_sparse.data.sets.check import check_set
from ammnet_sparse.data.sets.conventions import unobserved_of
from ammnet_sparse.data.sets.files import DataError
from ammnet_sparse.data.sets.frame_source import FrameSource
from ammnet_sparse.data.sets.image_folder import FramesWithImages, Truth2D
from ammnet_sparse.data.sets.source import open_frames
from ammnet_sparse.data.sets.splits import training_ids, validation_ids
from ammnet_sparse.data.stage_dataset import StageDataset
from ammnet_sparse.data.volumes.tsdf import Unobserved
from ammnet_sparse.evaluation.selection import check_classes, check_labels
from ammnet_sparse.models.ammnet import AMMNet
from ammnet_sparse.models.image_encoders import ImageEncoder, image_encoder_class
from ammnet_sparse.models.weights.backbones import load_encoder_weights
from ammnet_sparse.processes import num_processes
from ammnet_sparse.sparse.convolutions import Backend
from ammnet_sparse.training.checkpoints import CheckpointError


def check_runnable(config: Config, device: torch.device, *, has_weights: bool) -> None:
    """Raises ConfigError for a valid configuration that cannot run on this device, or with the given weights.

    Args:
        has_weights: the run starts from weights (resumed or fine-tuned).
    """
    model = config.model
    if config.training.mixed_precision and device.type != "cuda":
        raise ConfigError(f"training.mixed_precision: fp16 needs a CUDA device, found {device}; set it to false")
    if config.data.cache_features:
        check_cacheable(config)
    if model.reads_label_map and model.num_label_map_classes < NUM_LABEL_MAP_CLASSES:
        raise ConfigError(
            f"model.num_label_map_classes: the data have {NUM_LABEL_MAP_CLASSES}, found {model.num_label_map_classes}"
        )
    if has_weights:
        return
    if model.freeze_encoders:
        raise ConfigError("model.freeze_encoders: expected trained encoders; give a run's weights with --init-from")
    if model.reads_image and model.freeze_image_encoder and model.image_encoder_weights is None:
        if image_encoder_class(model).installed_weights() is not None:  # raises if they are not installed
            return
        raise ConfigError(
            f"model.image_encoder_weights: a frozen {model.image_encoder} needs ImageNet weights, found none; name a "
            "local file, or train the backbone too with model.freeze_image_encoder=false"
        )


def check_cacheable(config: Config) -> None:
    """Raises ConfigError if the features of the image backbone differ between epochs."""
    for key, is_wrong, expected in (
        ("model.image_encoder", not config.model.reads_image, "a network that reads images"),
        ("model.freeze_image_encoder", not config.model.freeze_image_encoder, "true"),
        ("data.augment_2d", config.data.augment_2d, "false"),
    ):
        if is_wrong:
            raise ConfigError(f"data.cache_features: features are kept only with {key} {expected}; change one of them")


def check_same_run(config: Config, saved: Any, *, folder: Path, may_change: bool = False) -> list[dict[str, Any]]:
    """Compares the configuration of a resumed run with the saved one.

    Args:
        may_change: allow other values of keys that affect what is trained, if the state permits.

    Returns:
        The keys of that kind that have changed, each as {"key", "before", "now"} of plain values.

    Raises:
        ConfigError: a key that must stay differs.
    """
    if not isinstance(saved, dict):
        raise CheckpointError(f"{folder}: the state holds no configuration; start a new run with --init-from")
    saved_config = config_from_dict(saved, source=f"{folder}: state")
    before, now = flat_values(saved_config), flat_values(config)
    changed = changed_keys(saved_config, config)
    for key in changed:
        kept = f"{key.name}: a resumed run keeps {before[key.name]}, found {now[key.name]}"
        if key.resume is Resume.KEPT:
            raise ConfigError(f"{kept}; to change it, start a new run with --init-from and this run's weights")
        if not may_change:
            raise ConfigError(f"{kept}; it decides what is trained: to change it anyway, add --change")
    plain = {"before": flat_plain(saved), "now": flat_plain(config.model_dump(mode="json"))}
    names = [key.name for key in changed]
    return [{"key": name, "before": plain["before"].get(name), "now": plain["now"].get(name)} for name in names]


def open_datasets(
    config: Config, *, device: torch.device, limit: int | None, is_quick: bool, show_progress: bool
) -> tuple[FrameDataset | DeviceDataset, FrameDataset | DeviceDataset]:
    """Training and validation frames of ``data.root``, after a check of all of them.

    Args:
        device: keeps them with ``data.on_device``.
        limit: largest number of each.
        is_quick: only check that every file exists, instead of reading each frame once.

    Raises:
        ConfigError: no ``data.root``.
        DataError: no set there, one without the labels or the 2D input that the network needs, or broken frames,
            each named.
    """
    data, model = config.data, config.model
    frames = open_source(config)
    training, validation = (
        ids(frames, split=data.split, count=data.validation_frames, seed=data.validation_seed)[:limit]
        for ids in (training_ids, validation_ids)
    )
    if data.train_on_all:
        training = frames.frame_ids(data.split)[:limit]
    # Other lists of the set may contain frames that were never downloaded.
    check_set(frames, [data.split], quick=is_quick, workers=0, progress=show_progress).raise_if_broken()
    truth_2d = None
    if data.label_2d is not None and model.reads_image:
        truth_2d = Truth2D(data.label_2d, num_classes=model.num_classes)
        truth_2d.check([*training, *validation])
    if data.cache_features:
        frames = open_source(config, with_image=False)
    augment_2d = data.augment_2d and frames.reads_image
    if data.on_device:
        return (
            DeviceDataset(
                frames,
                training,
                device=device,
                augment_3d=data.augment_3d,
                augment_2d=augment_2d,
                largest_shift=data.largest_shift,
                truth_2d=truth_2d,
                seed=config.training.seed,
                progress=show_progress,
            ),
            DeviceDataset(frames, validation, device=device, truth_2d=truth_2d, progress=show_progress),
        )
    return (
        FrameDataset(
            frames,
            training,
            augment_3d=data.augment_3d,
            augment_2d=augment_2d,
            largest_shift=data.largest_shift,
            truth_2d=truth_2d,
            seed=config.training.seed,
        ),
        FrameDataset(frames, validation, truth_2d=truth_2d),
    )


def open_encoder_datasets(
    config: Config, *, device: torch.device, limit: int | None
) -> tuple[EpochDataset, EpochDataset]:
    """Frames for training an image encoder on 2D segmentation, and for scoring it: images and dense 2D truth.

    Raises:
        ConfigError: a configuration without an image encoder or ``data.label_2d``.
        DataError: as ``open_datasets``.
    """
    if not config.model.reads_image:
        raise ConfigError(f"model.image_encoder: expected a network for images, found {config.model.image_encoder}")
    if config.data.label_2d is None:
        raise ConfigError("data.label_2d: expected the folder of dense 2D truth that the encoder learns, found none")
    # Voxels are not used: moving them would only cost time.
    data = config.data.model_copy(update={"cache_features": False, "augment_3d": False, "largest_shift": 0})
    config = config.model_copy(update={"data": data})
    return open_datasets(config, device=device, limit=limit, is_quick=True, show_progress=False)


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


def with_image_stages(
    frames: EpochDataset, config: Config, network: AMMNet, *, device: torch.device, show_progress: bool
) -> StageDataset:
    """The frames with the features of the network's frozen image backbone (``data.cache_features``)."""
    encoder = network.image_encoder
    assert encoder is not None
    encoder.eval()
    source = open_source(config)
    return StageDataset(frames, source, extract=encoder.extract_stages, device=device, progress=show_progress)


def open_source(config: Config, *, with_image: bool = True) -> FrameSource:
    """The set of ``data.root`` with the 2D input that the network reads, images of ``data.images`` included.

    Args:
        with_image: False omits images, whatever the network reads.

    Raises:
        ConfigError: no ``data.root``.
        DataError: no set there, or one without the labels or the 2D input that the network needs.
    """
    data, model = config.data, config.model
    if data.root is None:
        raise ConfigError("data.root: expected the folder or packed file of a set, found none")
    # First without 2D input, so that an error below can only concern it.
    plain = open_frames(
        data.root, dataset=data.dataset, read_image=False, read_label_map=False, grid_shape=model.grid_shape
    )
    check_labels(plain)
    check_classes(plain, model.num_classes)
    if not model.reads_image and not model.reads_label_map:
        return plain
    if model.reads_image and not with_image:
        return plain
    if model.reads_image and data.images is not None:
        return FramesWithImages(plain, data.images)
    try:
        return open_frames(
            data.root,
            dataset=data.dataset,
            read_image=model.reads_image,
            read_label_map=model.reads_label_map,
            grid_shape=model.grid_shape,
        )
    except DataError as error:
        raise DataError(f"model.image_encoder {model.image_encoder}: {error}") from error


def unobserved_in(frames: EpochDataset, config: Config, *, most_frames: int = 8) -> Unobserved | None:
    """The value of unobserved space in the flipped TSDF of these frames, from the first that show it; or None."""
    if config.data.dataset != "nyucad":
        return None
    found = (unobserved_of(frames[index].tsdf.cpu().numpy()) for index in range(min(most_frames, len(frames))))
    return next((name for name in found if name is not None), None)


def steps_per_epoch(config: Config, *, num_frames: int) -> int:
    """Updates per epoch for a number of training frames, over all processes.

    Raises:
        ConfigError: no update, or a warm-up that is longer than the run.
    """
    training, optimizer = config.training, config.optimizer
    frames = training.batch_size * training.accumulate * num_processes()
    steps = num_frames // frames
    if steps == 0:
        factors = "times training.accumulate" + (" and the number of processes" if num_processes() > 1 else "")
        raise ConfigError(
            f"training.batch_size: a step needs {frames} frames ({factors}), found {num_frames} training "
            "frames; lower it"
        )
    if optimizer.warmup_steps >= steps * training.epochs:
        raise ConfigError(
            f"optimizer.warmup_steps: expected fewer than the {steps * training.epochs} steps of the run, found "
            f"{optimizer.warmup_steps}"
        )
    return steps


def make_deterministic() -> None:
    """Deterministic algorithms wherever PyTorch has them, for the whole process."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is initialized
    torch.use_deterministic_algorithms(True, warn_only=True)


def convolution_backend(config: Config, device: torch.device) -> Backend:
    """The convolution backend of a run.

    Deterministic runs on CUDA avoid spconv, which chooses its algorithms by timing in each process.

    Raises:
        ConfigError: a deterministic run on CUDA with spconv.
    """
    backend = config.training.convolution_backend
    if not config.training.deterministic or device.type != "cuda":
        return backend
    if backend == "spconv":
        raise ConfigError(
            "training.convolution_backend: spconv chooses its algorithms by timing, so that a run with "
            "training.deterministic=true is not reproducible; set it to auto or gather"
        )
    return "gather" if backend == "auto" else backend
