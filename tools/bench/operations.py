"""Operations and waits of a training step, for tools/bench_model.py."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from bench.measurement import Stopwatch
from bench.operation_counter import Operations
from bench.steps import make_game
from bench.variants import Variant, build

from ammnet_sparse.config import Config
from ammnet_sparse.data.batch import Batch
from ammnet_sparse.training.game import StepReport

MOST_SHOWN = 30
"""Names of operators that a row keeps."""


def measure_operations(
    variant: Variant, config: Config, frames: Sequence[Batch], device: torch.device, *, batch_size: int
) -> dict[str, Any]:
    """Operations of the second step of ``batch_size`` frames, as keys of a row: the first step fills caches."""
    game = make_game(build(variant, config, device), config, Stopwatch(device))
    endless = itertools.cycle(frames)
    counted = Operations()
    for step in range(2):
        batch = Batch.collate([next(endless) for _ in range(batch_size)]).to(device)
        counted = Operations()
        with counted:
            report = game.step([batch], seed=step)
            if isinstance(report, StepReport):
                report.as_floats()  # what the loop does with it
    return {
        "operations": counted.num_launching,
        "views": counted.views,
        "host_waits": counted.num_waits,
        "waits_by_name": dict(counted.waits),
        "operations_by_name": dict(counted.launching.most_common(MOST_SHOWN)),
    }


def print_operations(rows: Sequence[dict[str, Any]]) -> None:
    """A line for each variant that was counted."""
    shown = [row for row in rows if "operations" in row]
    if not shown:
        return
    print(f"\n{'a training step dispatches':38}{'operations':>12}{'views':>8}{'waits':>8}")
    for row in shown:
        name = f"{row['net']:7}{row['variant']:22}{row['dtype']}"
        print(f"  {name:36}{row['operations']:12,}{row['views']:8,}{row['host_waits']:8}")
