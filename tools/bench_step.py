#!/usr/bin/env python3
"""Frames per second of the sparse network against the dense reference, on the same frames.

    python tools/bench_step.py --data DIR [--width 32] [--batch-size 2] [--batches 5] [--device cpu]

Measured are the generator's training pass (forward, 3D cross-entropy, backward), one pass of the discriminator over the
truth (forward, backward; a step has five), and prediction of the scored voxels. The first batch warms up and does not
count. Frames are those for validation of a set with 2D label maps.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ammnet_sparse.config import ModelConfig
from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.grid import IGNORE_LABEL
from ammnet_sparse.data.layout import FrameFolder
from ammnet_sparse.evaluation.selection import parse_device, split_ids
from ammnet_sparse.models.ammnet import AMMNet
from ammnet_sparse.models.dense import DenseAMMNet
from ammnet_sparse.ops import one_hot_sites
from ammnet_sparse.sparse.sites import SiteSet, full_sites, sites_from_mask
from ammnet_sparse.training.losses import real_loss, scene_cross_entropy

Part = Callable[[Batch], object]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    try:
        device = parse_device(options.device)
        batches = [batch.to(device) for batch in _read(options)]
    except (OSError, ValueError) as error:
        print(f"bench_step.py: {error}", file=sys.stderr)
        return 2
    config = ModelConfig(width=options.width)
    networks = {
        "sparse": _sparse_parts(AMMNet(config).to(device)),
        "dense": _dense_parts(DenseAMMNet(config).to(device)),
    }
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    print(f"width {options.width}, {len(batches) - 1} batches of {options.batch_size} on {device}{threads}")
    print(f"{'frames per second (median)':30}{'sparse':>10}{'dense':>10}{'ratio':>8}")
    for part in networks["sparse"]:
        rates = [options.batch_size / _median_seconds(parts[part], batches) for parts in networks.values()]
        print(f"{part:30}{rates[0]:10.2f}{rates[1]:10.2f}{rates[0] / rates[1]:8.2f}", flush=True)
    return 0


def _read(options: argparse.Namespace) -> list[Batch]:
    folder = FrameFolder(options.data, read_image=False, read_label_map=True)
    size = options.batch_size
    ids = split_ids(folder, "val", limit=(options.batches + 1) * size)
    if len(ids) < 2 * size:
        raise ValueError(f"--batch-size: expected at most half of the {len(ids)} validation frames, found {size}")
    frames = [folder.read(frame_id).to_batch() for frame_id in ids]
    return [Batch.collate(frames[start : start + size]) for start in range(0, len(frames) - size + 1, size)]


def _sparse_parts(network: AMMNet) -> dict[str, Part]:
    def train_generator(batch: Batch) -> None:
        scene_cross_entropy(network.train()(batch), batch, label_smoothing=0.2).backward()

    def train_discriminator(batch: Batch) -> None:
        sites = sites_from_mask(batch.scored_mask.view(batch.batch_size, *batch.grid_shape))
        real_loss(network.discriminator(_truth(batch, sites), sites)).backward()

    def predict(batch: Batch) -> None:
        with torch.inference_mode():
            network.eval()(batch, voxels="scored")

    return {
        "generator, training": train_generator,
        "discriminator, one pass": train_discriminator,
        "prediction": predict,
    }


def _dense_parts(network: DenseAMMNet) -> dict[str, Part]:
    def train_generator(batch: Batch) -> None:
        assert batch.label is not None
        labels = batch.label.long().masked_fill(~batch.scored_mask, IGNORE_LABEL)
        logits = network.train()(batch).logits.flatten(2)
        F.cross_entropy(logits, labels, ignore_index=IGNORE_LABEL, label_smoothing=0.2).backward()

    def train_discriminator(batch: Batch) -> None:
        sites = full_sites(batch.batch_size, batch.grid_shape, batch.tsdf.device)
        real_loss(network.discriminator(sites.densify(_truth(batch, sites)).contiguous())).backward()

    def predict(batch: Batch) -> None:
        with torch.inference_mode():
            network.eval()(batch)

    return {
        "generator, training": train_generator,
        "discriminator, one pass": train_discriminator,
        "prediction": predict,
    }


def _truth(batch: Batch, sites: SiteSet) -> Tensor:
    assert batch.label is not None
    masked = batch.label.masked_fill(~batch.scored_mask, IGNORE_LABEL)
    return one_hot_sites(masked, sites.linear, ModelConfig().num_classes)


def _median_seconds(part: Part, batches: Sequence[Batch]) -> float:
    seconds = []
    for batch in batches:
        started = _now(batch.tsdf.device)
        part(batch)
        seconds.append(_now(batch.tsdf.device) - started)
    return statistics.median(seconds[1:])


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    description, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="bench_step.py",
        description=description,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of the set")
    parser.add_argument("--width", type=int, default=32, help="feature channels (default: 32)")
    parser.add_argument("--batch-size", type=int, default=2, help="frames a batch (default: 2)")
    parser.add_argument("--batches", type=int, default=5, help="batches that count (default: 5)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
