"""Small networks, batches and sets for the tests of training, on the smallest grid there is."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ammnet_sparse.config import Config, config_from_dict
from ammnet_sparse.data.batch import Batch
from ammnet_sparse.models.image_encoders.efficientnet import EfficientNetLite0
from ammnet_sparse.training.game import AdversarialGame
from ammnet_sparse.training.loop import Run
from ammnet_sparse.training.networks import build_networks
from tests.data.frames import random_frame, write_frame, write_list
from tests.models import scenes

GRID = (12, 12, 12)
TINY_KEYS = [
    "model.width=8",
    "model.stem_widths=[3,8]",
    "model.discriminator_width=8",
    f"model.grid_shape={list(GRID)}",
    "training.batch_size=2",
]
"""A network and batch of that size, on a command line."""


def tiny_config(**sections: dict[str, Any]) -> Config:
    """Width 8, without dropout; ``sections`` add keys."""
    model = {
        "width": 8,
        "stem_widths": [3, 8],
        "grid_shape": list(GRID),
        "discriminator_width": 8,
        "encoder_dropout": 0,
        "decoder_dropout": 0,
        "head_dropout": 0,
    }
    values = {**sections, "model": model | sections.get("model", {})}
    return config_from_dict(values, source="test")


def tiny_batch(seeds: Iterable[int], *, has_image: bool = False) -> Batch:
    """Random frames of every class with label maps, half of their voxels scored."""
    frames = (random_frame(seed, grid_shape=GRID, has_image=has_image, has_label_map=True) for seed in seeds)
    return Batch.collate([Batch.from_frame(frame) for frame in frames])


def tiny_set(root: Path, *, frames: int = 6, validation: int = 2) -> Path:
    """A set of random frames; the last ones are listed in val.txt."""
    ids = [f"{number:04d}" for number in range(1, frames + 1)]
    for seed, frame_id in enumerate(ids):
        write_frame(root, random_frame(seed, frame_id=frame_id, grid_shape=GRID, has_label_map=True))
    write_list(root / "train.txt", ids)
    write_list(root / "val.txt", ids[-validation:])
    return root


def tiny_image_set(root: Path) -> Path:
    """Two training frames and one for validation, with images, label maps, dense 2D truth; random backbone weights."""
    ids = ["0001", "0002", "0003"]
    (root / "Label2D").mkdir()
    for seed, frame_id in enumerate(ids):
        write_frame(root, random_frame(seed, frame_id=frame_id, grid_shape=GRID, has_image=True, has_label_map=True))
        truth = np.random.default_rng(seed).integers(1, 12, (480, 640), dtype=np.uint8)
        Image.fromarray(truth).save(root / "Label2D" / f"{frame_id}.png")
    write_list(root / "train.txt", ids)
    write_list(root / "val.txt", ids[-1:])
    torch.manual_seed(0)
    torch.save(EfficientNetLite0.build_backbone().state_dict(), root / "backbone.pth")
    return root


def make_run(config: Config, folder: Path, *, resume: bool = False, **options: Any) -> Run:
    """A run on the CPU, new or resumed."""
    make = Run.resume if resume else Run.new
    return make(config, folder, device=torch.device("cpu"), show_progress=False, **options)


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl of a run, without measured times."""
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in entry.items() if key not in ("seconds", "wait_seconds")} for entry in entries]


def make_game(
    config: Config, *, dtype: torch.dtype = torch.float32, device: str = "cpu", num_steps: int = 10
) -> AdversarialGame:
    """Networks and their optimizations, as a run makes them, from seed 0; no weights are read."""
    config = config.model_copy(update={"training": config.training.model_copy(update={"seed": 0})})
    networks = build_networks(config, is_resumed=True).to(device, dtype)
    return AdversarialGame(networks, config, num_steps=num_steps, device=torch.device(device))


def both(game: AdversarialGame) -> nn.ModuleDict:
    """The children of both networks, named as files of weights name them."""
    return scenes.both(game.generator, game.discriminator)


def state_of(network: nn.Module) -> dict[str, Tensor]:
    """Copies of parameters and buffers."""
    return {name: value.clone() for name, value in network.state_dict().items()}


def differing(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """Names of the tensors that are not bit-identical."""
    assert before.keys() == after.keys()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}
