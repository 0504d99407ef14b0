"""Trains the rows of a table of the paper, and prints the table beside the paper's figures.

Examples:
  ammnet experiments                                       the tables and figures there are
  ammnet experiments table3 --data NYU --base seg2d --width 64 --epochs 20 --seeds 1 2 3
  ammnet experiments table4 m1 m1_m2 --data NYU model.image_encoder_weights=mit_b2.pth
  ammnet experiments table3 --base seg2d --only-table      what has been trained so far

A row is a configuration (configs/experiments/TABLE/ROW.yaml) that differs from the base in the keys that the paper's
row names. Run it again to continue: finished runs are kept, others resumed. Rows of several tables
that are the same network are trained once. With --seconds the current run is stopped in time, with its state saved.
Keys given as key.sub=value apply to every row.

Exit code: 0 all are finished, 1 a training failed, 2 wrong usage or data, 3 time is up and something is left to train.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

from ammnet_sparse.cli.configs import find_config
from ammnet_sparse.cli.errors import UsageError, check_output_folder, command, writing_to
from ammnet_sparse.cli.options import (
    CommandParser,
    add_data_option,
    add_device_option,
    add_out_option,
    parse_count,
    parse_positive,
)
from ammnet_sparse.experiments.results import as_json, format_table, scores_of
from ammnet_sparse.experiments.runs import Settings, plan_run, train_run
from ammnet_sparse.experiments.tables import read_table, table_names

BASES = ("segformer", "seg2d", "rgb")
TIME_IS_UP = 3
_ALWAYS = ("training.checkpoint_minutes=1",)


@command("experiments")
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``ammnet experiments``; returns its exit code."""
    options = _parse(arguments)
    folder = find_config("experiments/segformer").parent
    if not options.names:
        for name in table_names(folder):
            table = read_table(folder, name)
            print(f"{name:10}{table.title}\n{'':10}rows: {', '.join(table.rows)}")
        return 0
    table = read_table(folder, options.names[0])
    rows = table.chosen(options.names[1:])
    settings = Settings(
        folder=folder,
        out=options.out / options.base,
        base=None if options.base == BASES[0] else find_config(f"experiments/{options.base}"),
        overrides=_overrides(options),
        device=options.device,
        deadline=None if options.seconds is None else time.monotonic() + options.seconds,
    )
    # All configurations are built before anything is trained, so that a wrong key is found at once, not after hours.
    plans = {row.name: [plan_run(table, row, seed=seed, settings=settings) for seed in options.seeds] for row in rows}
    code = 0
    if not options.only_table:
        if options.data is None:
            raise UsageError("--data: expected the set to train on, found none (--only-table prints what is trained)")
        check_output_folder(options.out)
        # Seed by seed: the first seed of every row already gives a table.
        for index in range(len(options.seeds)):
            for row in rows:
                code = code or train_run(plans[row.name][index], settings)
    found = [(row, [scores for plan in plans[row.name] if (scores := scores_of(plan)) is not None]) for row in rows]
    print(format_table(table, found))
    if settings.out.is_dir():
        with writing_to(settings.out):
            text = json.dumps(as_json(table, found), indent=1) + "\n"
            (settings.out / f"{table.name}.json").write_text(text, encoding="utf-8")
    return code


def _overrides(options: argparse.Namespace) -> tuple[str, ...]:
    given = []
    if options.data is not None:
        given.append(f"data.root={json.dumps(str(options.data.resolve()))}")
    if options.width is not None:
        given.append(f"model.width={options.width}")
    if options.epochs is not None:
        given.append(f"training.epochs={options.epochs}")
    return (*_ALWAYS, *given, *options.overrides)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser("experiments", __doc__)
    parser.add_argument("words", nargs="*", metavar="TABLE [ROW ...] [key.sub=value ...]", help="a table, and its rows")
    add_data_option(parser, note=" to train on")
    add_out_option(parser, "folder of runs and tables (default: runs/experiments)", metavar="DIR")
    parser.add_argument(
        "--base",
        choices=BASES,
        default=BASES[0],
        help="2D input: the paper's SegFormer-B2 (default), label maps, or EfficientNet-Lite2",
    )
    parser.add_argument(
        "--seeds", type=parse_count, nargs="+", default=[8332], metavar="N", help="a run of each row for each"
    )
    parser.add_argument("--width", type=parse_positive, metavar="C", help="feature channels (default: 256)")
    parser.add_argument("--epochs", type=parse_positive, metavar="N", help="epochs (default: 150)")
    parser.add_argument(
        "--seconds", type=parse_positive, metavar="S", help="stop in so many seconds, with states saved"
    )
    parser.add_argument("--only-table", action="store_true", help="train nothing, print what has been trained")
    add_device_option(parser)
    options = parser.parse_with_keys(arguments)
    return argparse.Namespace(
        **{name: value for name, value in vars(options).items() if name not in ("words", "out")},
        names=[word for word in options.words if "=" not in word],
        overrides=[word for word in options.words if "=" in word],
        out=options.out or Path("runs") / "experiments",
    )
