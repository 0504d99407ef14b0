"""Checks a set: reads every frame once, prints counts and every problem by frame.

    ammnet data check DIR [--dataset nyucad] [--splits train test] [--quick]

Exit code: 0 the set is clean, 1 it has problems, 2 wrong usage (no such set or list), 130 interrupted.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ammnet_sparse.cli.errors import command
from ammnet_sparse.cli.options import (
    CommandParser,
    add_data_option,
    add_dataset_option,
    add_splits_option,
    add_workers_option,
    either,
)
from ammnet_sparse.data.sets.check import PUBLISHED_LISTS, check_set
from ammnet_sparse.data.sets.source import open_frames


@command("data check")
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``ammnet data check``; returns its exit code."""
    options, root = _parse(arguments)
    report = check_set(
        open_frames(root, dataset=options.dataset),
        options.splits,
        quick=options.quick,
        workers=options.workers,
        progress=True,
    )
    print(report.describe())
    return 0 if report.is_clean else 1


def _parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, Path]:
    """The options, and the set."""
    parser = CommandParser("data check", __doc__)
    parser.add_argument("root", type=Path, nargs="?", metavar="DIR", help="the same as --data")
    add_data_option(parser)
    add_dataset_option(parser)
    add_splits_option(parser, f"lists of frames (default: those of {', '.join(PUBLISHED_LISTS)} that exist)")
    parser.add_argument("--quick", action="store_true", help="only check that every file exists")
    add_workers_option(parser, "threads (default: one per core)")
    options = parser.parse(arguments)
    return options, either(parser, "--data", (options.data, options.root))
