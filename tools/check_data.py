"""Checks a set: reads every frame once, prints counts and every problem by frame.

    python tools/check_data.py ROOT [--dataset nyucad] [--split train] [--quick]

Exit code: 0 the set is clean, 1 it has problems, 2 wrong usage (no such set or list).
"""

import argparse
import sys
from collections.abc import Sequence

from ammnet_sparse.data.sets.check import PUBLISHED_LISTS, check_set
from ammnet_sparse.data.sets.files import DataError
from ammnet_sparse.data.sets.source import open_frames


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    try:
        folder = open_frames(options.root, dataset=options.dataset)
        report = check_set(
            folder,
            options.split,
            quick=options.quick,
            workers=options.workers,
            progress=sys.stderr.isatty(),
        )
    except DataError as error:
        print(f"check_data: {error}", file=sys.stderr)
        return 2
    print(report.describe())
    return 0 if report.is_clean else 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    description, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="check_data.py",
        description=description,
        epilog=rest.rpartition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("root", help="folder or packed file of the set")
    parser.add_argument("--dataset", choices=("nyu", "nyucad"), default="nyu", help="layout of the set (default: nyu)")
    parser.add_argument(
        "--split",
        action="append",
        default=[],
        metavar="NAME",
        help=f"list of frames, may be repeated (default: those of {', '.join(PUBLISHED_LISTS)} that are there)",
    )
    parser.add_argument("--quick", action="store_true", help="only look whether every file is there")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="threads (default: one a core)")
    options = parser.parse_args(arguments)
    if options.workers < 0:
        parser.error(f"--workers: expected 0 or more, found {options.workers}")
    return options


if __name__ == "__main__":
    sys.exit(main())
