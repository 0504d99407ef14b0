#!/usr/bin/env python3
"""Trains for many steps and watches the memory of the process: it must stay flat.

    python tools/soak.py                      2,000 steps on random frames of a small grid
    python tools/soak.py --data NYU --width 16 --grid 60 36 60 --steps 500

Every frame has different sites, so nothing of one batch may remain in the next. The resident set is sampled
after each step and judged by medians over a hundred: from --settled on, none may be more than --tolerance away from
their mean, and the last no more above the first. Single steps differ by what the allocator keeps at the moment.

Exit code: 0 flat, 1 not, 2 wrong usage or data.
"""

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ammnet_sparse.cli.options import parse_positive
from ammnet_sparse.config import Config, load_config
from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.frame import Frame
from ammnet_sparse.data.grid import IMAGE_SHAPE, NUM_CLASSES, NUM_LABEL_MAP_CLASSES, NUM_PIXELS
from ammnet_sparse.data.sets.source import open_frames
from ammnet_sparse.training.game import AdversarialGame
from ammnet_sparse.training.networks import build_networks

WINDOW = 100
MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Flatness:
    """Medians of the resident set over windows of steps, in MiB, and how far they are from flat, as fractions."""

    medians: list[float]
    spread: float
    growth: float

    @classmethod
    def of(cls, resident: Sequence[float], *, settled: int) -> "Flatness":
        """Judges samples [steps] of MiB from step ``settled`` on, in whole windows."""
        kept = list(resident[settled:])
        window = min(WINDOW, max(len(kept) // 2, 1))
        medians = [
            statistics.median(kept[start : start + window]) for start in range(0, len(kept) - window + 1, window)
        ]
        mean = statistics.fmean(medians)
        spread = max(abs(value - mean) for value in medians) / mean
        return cls(medians, spread, growth=(medians[-1] - medians[0]) / medians[0])

    def is_flat(self, tolerance: float) -> bool:
        """Whether no median is further than ``tolerance`` from their mean, and the last no more above the first."""
        return self.spread <= tolerance and self.growth <= tolerance


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the soak; returns its exit code."""
    options = _parse(arguments)
    try:
        config = _configuration(options)
        resident = soak(config, _batches(options, config), steps=options.steps)
    except (OSError, ValueError) as error:
        print(f"soak.py: {error}", file=sys.stderr)
        return 2
    flatness = Flatness.of(resident, settled=options.settled)
    is_flat = flatness.is_flat(options.tolerance)
    print(
        f"{options.steps} steps of {options.batch} frames at width {options.width}: resident set "
        f"{min(flatness.medians):.1f} .. {max(flatness.medians):.1f} MiB after step {options.settled} (medians over "
        f"{WINDOW} steps), {100 * flatness.spread:.2f} % from their mean, last against first "
        f"{100 * flatness.growth:+.2f} %: {'flat' if is_flat else f'NOT flat within {100 * options.tolerance:g} %'}"
    )
    if options.json:
        values = {"resident_mib": resident, **dataclasses.asdict(flatness), "is_flat": is_flat}
        options.json.write_text(json.dumps(values) + "\n", encoding="utf-8")
    return 0 if is_flat else 1


def soak(config: Config, batches: Iterator[Batch], *, steps: int) -> list[float]:
    """The resident set in MiB after each training step."""
    networks = build_networks(config)
    game = AdversarialGame(networks, config, num_steps=steps, device=torch.device("cpu"))
    resident = []
    for step in tqdm(range(steps), unit="step", desc="soak"):
        game.step([next(batches)], seed=step).as_floats()
        resident.append(resident_mebibytes())
    return resident


def resident_mebibytes() -> float:
    """Resident memory of this process (Linux)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / MIB


def _batches(options: argparse.Namespace, config: Config) -> Iterator[Batch]:
    """Endless: the frames of a set repeatedly, or random ones that never repeat."""
    grid = config.model.grid_shape
    if options.data is None:
        return _random_batches(grid, options.batch)
    source = open_frames(options.data, read_image=False, read_label_map=True, grid_shape=grid)
    ids = source.frame_ids("train")
    if len(ids) < options.batch:
        raise ValueError(f"--batch: expected at most the {len(ids)} training frames of {options.data}")

    def endless() -> Iterator[Batch]:
        number = 0
        while True:
            chosen = [ids[(number + index) % len(ids)] for index in range(options.batch)]
            number += options.batch
            yield Batch.collate([Batch.from_frame(source.read(frame_id)) for frame_id in chosen])

    return endless()


def _random_batches(grid: tuple[int, int, int], batch_size: int) -> Iterator[Batch]:
    seed = 0
    while True:
        yield Batch.collate([Batch.from_frame(_random_frame(seed + index, grid)) for index in range(batch_size)])
        seed += batch_size


def _random_frame(seed: int, grid: tuple[int, int, int]) -> Frame:
    rng = np.random.default_rng(seed)
    share = rng.uniform(0.02, 0.2)  # so that the number of sites changes as it does between real frames
    pixels = rng.choice(NUM_PIXELS, size=grid, replace=False)
    return Frame(
        frame_id=f"{seed:06d}",
        tsdf=rng.uniform(-1, 1, grid).astype(np.float32),
        mapping=np.where(rng.random(grid) < share, pixels, -1).astype(np.int32),
        label_weight=rng.random(grid) < rng.uniform(0.1, 0.5),
        label=rng.integers(0, NUM_CLASSES, grid, dtype=np.uint8),
        label_map=rng.integers(0, NUM_LABEL_MAP_CLASSES, IMAGE_SHAPE, dtype=np.uint8),
    )


def _configuration(options: argparse.Namespace) -> Config:
    keys = [
        f"model.width={options.width}",
        f"model.discriminator_width={options.width}",
        f"model.grid_shape={list(options.grid)}",
        f"training.recompute='{options.recompute}'",  # off alone is false in YAML
    ]
    return load_config(None, [*keys, *options.overrides])


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="soak.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, metavar="DIR", help="set whose training frames are used (default: random frames)")
    add("--steps", type=parse_positive, default=2000, metavar="N", help="default: 2000")
    add("--settled", type=parse_positive, default=200, metavar="N", help="first step that is judged (default: 200)")
    add("--tolerance", type=float, default=0.02, metavar="P", help="fraction of the resident set (default: 0.02)")
    add("--batch", type=parse_positive, default=2, metavar="N", help="frames per step (default: 2)")
    add("--width", type=parse_positive, default=8, metavar="N", help="default: 8")
    add("--grid", type=parse_positive, nargs=3, default=(24, 12, 24), metavar="N", help="default: 24 12 24")
    add("--recompute", choices=("off", "elementwise", "blocks", "full"), default="off", help="default: off")
    add("--json", type=Path, metavar="FILE", help="file for the figures")
    add("overrides", nargs="*", metavar="key.sub=value", help="keys of the configuration to change")
    options = parser.parse_intermixed_args(arguments)
    if options.settled >= options.steps:
        parser.error(f"--settled: expected fewer than the {options.steps} steps, found {options.settled}")
    return options


if __name__ == "__main__":
    sys.exit(main())
