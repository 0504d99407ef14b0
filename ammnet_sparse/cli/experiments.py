"""Trains the rows of a table of the paper, and prints the table beside the paper's figures.

Examples:
  ammnet experiments                                       list the tables and figures
  ammnet experiments table3 --data NYU --base seg2d --width 64 --epochs 20 --seeds 1 2 3
  ammnet experiments table4 m1 m1_m2 --data NYU model.image_encoder_weights=mit_b2.pth
  ammnet experiments table3 --base seg2d --only-table      print what has been trained so far

A row (in configs/experiments/TABLE.yaml; ammnet train --config TABLE/ROW) changes the keys of the base that the paper's
row names. Keys given as key.sub=value apply to every row. Rows of several tables that are the same in the paper are
trained once. OUT/BASE/TABLE.json has the figures of all its rows and seeds.

Run it again to continue: finished runs are kept, others resumed. All runs of a folder have the same width, set and so
on: other settings need another --out. Without --epochs existing runs keep their number of epochs. With more epochs they
are prolonged; their learning rate follows the longer schedule only from there on, so the result differs from that of a
run started with that length. With --seconds, and on Ctrl-C or SIGTERM, the current run is stopped and its state saved.

Exit code: 0 all are finished, 1 a training failed, 2 wrong usage or data, 3 time is up and something is left to train,
130 interrupted.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from ammnet_sparse.cli.configs import TABLES, find_config
from ammnet_sparse.cli.errors import UsageError, check_output_folder, command, writing_to
from ammnet_sparse.cli.options import (
    CommandParser,
    add_data_option,
    add_device_option,
    add_out_option,
    parse_count,
    parse_positive,
)
from ammnet_sparse.config import overridden_keys
from ammnet_sparse.experiments.results import RunScores, as_json, format_table, scores_of
from ammnet_sparse.experiments.runs import (
    GRACE_SECONDS,
    RunPlan,
    Settings,
    check_settings,
    plan_run,
    train_run,
    trained_runs,
)
from ammnet_sparse.experiments.tables import Row, Table, read_table, table_names
from ammnet_sparse.files.writing import write_text

BASES = {"segformer": "nyu_segformer", "seg2d": "nyu_seg2d", "rgb": "ablations_rgb"}
"""The configuration of each choice of ``--base``."""
_DEFAULT_SEED = 8332
_ALWAYS = ("training.checkpoint_minutes=1",)


@command("experiments")
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``ammnet experiments``; returns its exit code."""
    options = _parse(arguments)
    folder = TABLES
    if not options.names:
        for name in table_names(folder):
            table = read_table(folder, name)
            print(f"{name:10}{table.title}\n{'':10}rows: {', '.join(table.rows)}")
        return 0
    table = read_table(folder, options.names[0])
    rows = table.chosen(options.names[1:])
    overrides = _overrides(options)
    settings = Settings(
        folder=folder,
        out=options.out / options.base,
        base=find_config(BASES[options.base]),
        overrides=overrides,
        device=options.device,
        deadline=None if options.seconds is None else time.monotonic() + options.seconds,
        keeps_epochs="training.epochs" not in overridden_keys(overrides),
    )
    seeds = options.seeds or [_DEFAULT_SEED]
    # All configurations are built before anything is trained, so that a wrong key is found at once, not after hours.
    # Seed by seed: the first seed of every row already gives a table.
    plans = [plan_run(table, row, seed=seed, settings=settings) for seed in seeds for row in rows]
    code = 0 if options.only_table else _train(plans, settings, has_data=options.data is not None)
    planned = {} if options.only_table else {plan.folder: plan for plan in plans}
    shows_all = options.only_table and options.seeds is None
    found = [(row, _scores(table, row, settings=settings, planned=planned)) for row in table.rows.values()]
    shown = [(row, [run for run in runs if shows_all or run.seed in seeds]) for row, runs in found if row in rows]
    print(format_table(table, shown))
    if any(runs for _, runs in found):
        with writing_to(settings.out):
            write_text(settings.out / f"{table.name}.json", json.dumps(as_json(table, found), indent=1) + "\n")
    return code


def _train(plans: Sequence[RunPlan], settings: Settings, *, has_data: bool) -> int:
    """Trains what is missing; the exit code."""
    if not has_data:
        raise UsageError("--data: expected the set to train on, found none (--only-table prints what is trained)")
    check_output_folder(settings.out)
    for plan in plans:
        check_settings(plan)
    for plan in plans:
        if code := train_run(plan, settings):
            return code
    return 0


def _scores(table: Table, row: Row, *, settings: Settings, planned: dict[Path, RunPlan]) -> list[RunScores]:
    """The scores of all runs of a row that have validated an epoch; those planned may lack some of theirs."""
    runs = [planned.get(run.folder, run) for run in trained_runs(table, row, settings=settings)]
    return [scores for run in runs if (scores := scores_of(row, run, settings=settings)) is not None]


def _overrides(options: argparse.Namespace) -> tuple[str, ...]:
    given = []
    if options.data is not None:
        given.append(f"data.root={json.dumps(os.path.realpath(options.data))}")
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
        default="segformer",
        help="2D input: the paper's SegFormer-B2 (default), label maps, or EfficientNet-Lite2",
    )
    parser.add_argument(
        "--seeds",
        type=parse_count,
        nargs="+",
        metavar="N",
        help=f"one run of each row per seed (default: {_DEFAULT_SEED}; with --only-table all that were trained)",
    )
    parser.add_argument("--width", type=parse_positive, metavar="C", help="feature channels (default: 256)")
    parser.add_argument("--epochs", type=parse_positive, metavar="N", help="epochs (default: 150)")
    parser.add_argument("--seconds", type=parse_positive, metavar="S", help="stop after S seconds, with states saved")
    parser.add_argument("--only-table", action="store_true", help="train nothing, print what has been trained")
    add_device_option(parser)
    options = parser.parse_with_keys(arguments)
    if options.seconds is not None and options.seconds <= GRACE_SECONDS:
        parser.error(
            f"--seconds: expected more than {GRACE_SECONDS}, which are reserved for the last step and saving, found "
            f"{options.seconds}"
        )
    if options.seeds is not None and len(set(options.seeds)) < len(options.seeds):
        parser.error(f"--seeds: expected each seed once, found {' '.join(map(str, options.seeds))}")
    return argparse.Namespace(
        **{name: value for name, value in vars(options).items() if name not in ("words", "out")},
        names=[word for word in options.words if "=" not in word],
        overrides=[word for word in options.words if "=" in word],
        out=options.out or Path("runs") / "experiments",
    )
