"""Trains AMMNet, on generated rooms or on a set in the published layout (data.root=PATH).

Examples:
  ammnet train
  ammnet train --config nyu_seg2d data.root=/data/nyu
  ammnet train --resume runs/2026-01-31_120000
  ammnet train --init-from runs/2026-01-31_120000/best.safetensors data.root=/data/own model.width=16

Exit code: 0 done, 1 the training failed, 2 wrong usage or data, 130 interrupted.
"""

import argparse
import datetime
import json
from collections.abc import Sequence
from pathlib import Path

from ammnet_sparse.cli.configs import DEFAULT_CONFIG, config_names, find_config
from ammnet_sparse.cli.errors import (
    CommandFailed,
    UsageError,
    check_output_folder,
    command,
    is_out_of_memory,
    writing_to,
)
from ammnet_sparse.cli.options import (
    CommandParser,
    add_device_option,
    add_limit_option,
    add_out_option,
    choose_device,
)
from ammnet_sparse.config import Config, describe_keys, load_config
from ammnet_sparse.data.synthetic.generate import ensure_rooms
from ammnet_sparse.models.weights.errors import WeightsError
from ammnet_sparse.models.weights.shipped import find_weights
from ammnet_sparse.training.checkpoints import BEST_WEIGHTS, STATE, CheckpointError
from ammnet_sparse.training.loop import DivergenceError, Run
from ammnet_sparse.training.preparation import check_runnable
from ammnet_sparse.training.records import RunResult, format_result

OUT_OF_MEMORY = (
    "to need less of it, in this order: training.recompute=elementwise (then blocks, full), "
    "training.mixed_precision=true on a GPU, a smaller training.batch_size with training.accumulate, a smaller "
    "model.width"
)


@command("train")
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``ammnet train``; returns its exit code."""
    options = _parse(arguments)
    folder, config = _run_folder_and_config(options)
    with writing_to(folder):
        run = _begin(options, folder, config)
        print(format_result(_train(run, folder)))
    return 0


def _begin(options: argparse.Namespace, folder: Path, config: Config) -> Run:
    """The run, its data and network in place; what it will do is printed."""
    device = choose_device(options.device)
    # Rooms take minutes: check what can be checked before they are generated.
    check_runnable(config, device, has_weights=bool(options.resume or options.init_from))
    initial_weights = None if options.init_from is None else _initial_weights(options.init_from)
    check_output_folder(folder, option="--out" if options.resume is None else "--resume")
    config = _with_data(config)
    run = Run(
        config,
        folder,
        device=device,
        resume=options.resume is not None,
        initial_weights=initial_weights,
        limit=options.limit,
    )
    done = run.progress
    begun = f"{done.epoch} epochs and {done.step} steps are done, " if done.step else ""
    print(
        f"Training in {folder}: {begun}{len(run.training_set)} training and {len(run.validation_set)} validation "
        f"frames of {config.data.root}, {config.training.epochs} epochs of {run.steps_per_epoch} steps on {run.device}",
        flush=True,
    )
    return run


def _train(run: Run, folder: Path) -> RunResult:
    """Trains to the end; whatever stops it says how to go on."""
    try:
        result = run.train()
    except DivergenceError as error:
        raise CommandFailed(f"{error}\n{_how_to_go_on(folder)}") from error
    except BaseException as error:
        if is_out_of_memory(error):
            error.add_note(OUT_OF_MEMORY)
        error.add_note(_how_to_go_on(folder))
        raise
    print(f"Best weights: {folder / BEST_WEIGHTS}")
    return result


def _initial_weights(name: str) -> Path:
    try:
        return find_weights(name)
    except WeightsError as error:
        raise UsageError(f"--init-from {error}") from error


def _run_folder_and_config(options: argparse.Namespace) -> tuple[Path, Config]:
    if options.resume is not None:
        if options.config is not None or options.init_from is not None or options.out is not None:
            raise UsageError("--resume: takes everything from its folder; leave out --config, --out, --init-from")
        path = options.resume / "config.yaml"
        if not path.is_file():
            raise CheckpointError(f"{path}: expected the configuration of a run, found nothing; name a run's folder")
        return options.resume, load_config(path, options.overrides)
    config = load_config(find_config(options.config or DEFAULT_CONFIG), options.overrides)
    folder = options.out or Path("runs") / datetime.datetime.now().strftime("%Y-%m-%d_%H%M%S")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out {folder}: expected a folder, found a file; choose another")
    if (folder / STATE).is_file():
        raise UsageError(f"--out {folder}: holds a run already; continue it with --resume {folder}, or choose another")
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"--out {folder}: expected a new or empty folder, found files in it; choose another")
    return folder, config


def _with_data(config: Config) -> Config:
    """With an absolute ``data.root``, so that the run can be resumed from any folder; rooms are made on first use."""
    root = (config.data.root or ensure_rooms(config.data)).resolve()
    return config.model_copy(update={"data": config.data.model_copy(update={"root": root})})


def _how_to_go_on(folder: Path) -> str:
    if not (folder / STATE).is_file():
        return "no state had been saved yet"
    return f"continue with: ammnet train --resume {folder}"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    keys = [f"  {key} ({kind}; {_as_text(default)}): {meaning}" for key, kind, default, meaning in describe_keys()]
    epilog = (
        "Keys, set as key.sub=value over the YAML file, with type and default; the defaults are those of the code, "
        f"the configuration {DEFAULT_CONFIG!r} changes some:\n" + "\n".join(keys)
    )
    parser = CommandParser("train", __doc__, epilog=epilog)
    parser.add_argument(
        "--config",
        metavar="FILE",
        help=f"YAML file, or the name of a shipped one: {', '.join(config_names())} (default: {DEFAULT_CONFIG})",
    )
    add_out_option(parser, "new folder for the run (default: runs/DATE_TIME)", metavar="DIR", aliases=["--output"])
    add_device_option(parser)
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="DIR",
        help="continue the run in this folder, with its configuration; keys that do not change what is trained "
        "may be set anew, for example training.epochs",
    )
    parser.add_argument(
        "--init-from",
        metavar="FILE",
        help="weights to start from (fine-tuning): a file, or the name of shipped ones; the widths must fit",
    )
    add_limit_option(parser, "training and the first N validation frames")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="configuration keys to change, see below")
    return parser.parse_with_keys(arguments)


def _as_text(default: object) -> str:
    """A default as YAML and the command line write it."""
    if default is None:
        return "empty"
    return json.dumps(default) if isinstance(default, bool | int | float | tuple) else str(default)
