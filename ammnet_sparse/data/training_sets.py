"""Opens the frames of a training: a set or generated rooms, checked, with the 2D input that the network reads."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from ammnet_sparse.config import Config, ConfigError
from ammnet_sparse.data.dataset import EpochDataset, FrameDataset
from ammnet_sparse.data.device_dataset import DeviceDataset
from ammnet_sparse.data.grid import NUM_LABEL_MAP_CLASSES
from ammnet_sparse.data.sets.check import check_set
from ammnet_sparse.data.sets.conventions import unobserved_of
from ammnet_sparse.data.sets.frame_source import FrameSource, training_ids, validation_ids
from ammnet_sparse.data.sets.image_folder import FramesWithImages, Truth2D
from ammnet_sparse.data.sets.source import check_labels, open_set
from ammnet_sparse.data.volumes.tsdf import Unobserved
from ammnet_sparse.processes import rank, wait_for_all


def with_rooms(config: Config) -> Config:
    """With an absolute ``data.root``, so that the run can be resumed from any folder; rooms are made on first use.

    Collective: the first process generates them.

    Raises:
        ConfigError: a network that the frames do not fit, found before rooms are made, which takes minutes.
        RoomsError: other files where the rooms belong.
    """
    model, root = config.model, config.data.root
    if model.reads_label_map and model.num_label_map_classes < NUM_LABEL_MAP_CLASSES:
        raise ConfigError(
            f"model.num_label_map_classes: the data have {NUM_LABEL_MAP_CLASSES}, found {model.num_label_map_classes}"
        )
    if root is None:
        if rank() > 0:
            wait_for_all()
        from ammnet_sparse.data.synthetic.generate import ensure_rooms  # imports numba, which takes half a second

        root = ensure_rooms(config.data)
        if rank() == 0:
            wait_for_all()
    return config.model_copy(update={"data": config.data.model_copy(update={"root": Path(os.path.realpath(root))})})


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
    make: Callable[..., FrameDataset | DeviceDataset] = FrameDataset
    if data.on_device:
        make = partial(DeviceDataset, device=device, progress=show_progress)
    return (
        make(
            frames,
            training,
            augment_3d=data.augment_3d,
            augment_2d=augment_2d,
            largest_shift=data.largest_shift,
            truth_2d=truth_2d,
            seed=config.training.seed,
        ),
        make(frames, validation, truth_2d=truth_2d),
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
    plain = open_set(data.root, dataset=data.dataset, config=model.model_copy(update={"inputs": "tsdf"}))
    check_labels(plain)
    images = data.images if model.reads_image and with_image else None
    if model.reads_image and (not with_image or images is not None):
        model = model.model_copy(update={"inputs": "tsdf"})
    frames = open_set(data.root, dataset=data.dataset, config=model, with_label_maps=data.label_maps)
    return frames if images is None else FramesWithImages(frames, images)


def unobserved_in(frames: EpochDataset, config: Config) -> Unobserved | None:
    """The value of unobserved space in the flipped TSDF of these frames, from the first that show it; or None."""
    if config.data.dataset != "nyucad":
        return None
    found = (unobserved_of(frames[index].tsdf.cpu().numpy()) for index in range(min(8, len(frames))))
    return next((name for name in found if name is not None), None)
