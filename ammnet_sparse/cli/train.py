"""Trains AMMNet, on generated rooms or on a set in the published layout (data.root=PATH).

Examples:
  ammnet train
  ammnet train --config nyu_seg2d data.root=/data/nyu
  ammnet train --resume runs/2026-01-31_120000
  ammnet train --init-from runs/2026-01-31_120000/best.safetensors data.root=/data/own model.width=16

Several cards: torchrun --nproc_per_node=2 -m ammnet_sparse train ...; training.batch_size is per process.
docs/training.md has more.

Exit code: 0 done, 1 the training failed, 2 wrong usage or data, 130 interrupted.
"""

import argparse
import contextlib
import datetime
import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from ammnet_sparse.cli.configs import DEFAULT_CONFIG, config_names, named_config
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
from ammnet_sparse.config import (
    Config,
    ConfigError,
    Key,
    Resume,
    describe_keys,
    flat_plain,
    given_keys,
    keys_without_effect,
    load_config,
    overridden_keys,
    with_overrides,
)
from ammnet_sparse.data.dataset import WorkerError
from ammnet_sparse.models.weights.checks import WeightsError
from ammnet_sparse.models.weights.shipped import find_weights
from ammnet_sparse.processes import (
    ProcessError,
    from_first_process,
    joined_processes,
    num_processes,
    rank,
)
from ammnet_sparse.training.checkpoints import BEST_WEIGHTS, CONFIG, LAST_WEIGHTS, STATE, CheckpointError, stored_config
from ammnet_sparse.training.device import memory_advice
from ammnet_sparse.training.loop import DivergenceError, Run
from ammnet_sparse.training.records import RunResult, format_result
from ammnet_sparse.training.run_folder import create_run_folder

RUNS = Path("runs")


@command("train")
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``ammnet train``; returns its exit code."""
    options = _parse(arguments)
    try:
        with joined_processes(options.device) as device:
            config = _resumed_config(options) if options.resume is not None else _new_config(options)
            if rank() == 0:
                _warn_of_keys_without_effect(config, options.overrides)
            run = _begin(options, config, device=choose_device(device))
            with writing_to(run.folder):
                result = _train(run)
            if rank() == 0:
                print(_outcome(run, result))
    except ProcessError as error:
        raise CommandFailed(str(error)) from error
    return 0


def _warn_of_keys_without_effect(config: Config, overrides: Sequence[str]) -> None:
    for key, reason in keys_without_effect(config, overridden_keys(overrides)).items():
        warnings.warn(f"{key}: has no effect: {reason}", stacklevel=2)


def _begin(options: argparse.Namespace, config: Config, *, device: torch.device) -> Run:
    """The run with its data and networks; prints what it will do."""
    initial_weights = _initial_weights(options)
    check_output_folder(options.resume or options.out or RUNS, option="--out" if options.resume is None else "--resume")
    is_root_given = "data.root" in overridden_keys(options.overrides)
    if options.resume and not is_root_given and config.data.root is not None and not config.data.root.exists():
        raise UsageError(
            f"--resume {options.resume}: expected its set {config.data.root}, found nothing; if it was moved, add "
            "data.root=PATH --change"
        )
    with _folder_of(options) as folder:
        if options.resume is not None:
            run = Run.resume(config, folder, device=device, limit=options.limit, may_change=options.change)
        else:
            run = Run.new(
                config,
                folder,
                device=device,
                initial_weights=initial_weights,
                only_shared=options.init_shared is not None,
                limit=options.limit,
            )
    done = run.progress
    begun = f"{done.epoch} epochs and {done.step} steps are done, " if done.step else ""
    if rank() > 0:
        return run
    several = num_processes() > 1
    each = f" in {num_processes()} processes with {config.training.batch_size} frames each" if several else ""
    among = " (among those)" if config.data.train_on_all else ""
    limited = "" if run.saves.limit is None else f" (--limit {run.saves.limit})"
    print(
        f"Training in {folder}: {begun}{len(run.training_set)} training and {len(run.validation_set)} validation "
        f"frames{among} of {run.config.data.root}{limited}, {config.training.epochs} epochs of {run.steps_per_epoch} "
        f"steps{each} on {run.device}",
        flush=True,
    )
    return run


@contextlib.contextmanager
def _folder_of(options: argparse.Namespace) -> Iterator[Path]:
    """The run's folder: the one named, or a new one, which is removed again on an error."""
    if named := options.resume or options.out:
        yield named
        return
    folder = from_first_process(create_run_folder(RUNS, _name_of_now()) if rank() == 0 else None)
    try:
        yield folder
    except BaseException:
        with contextlib.suppress(OSError):  # it is not empty any more
            folder.rmdir()
        raise


def _name_of_now() -> str:
    return datetime.datetime.now().strftime("%Y-%m-%d_%H%M%S")


def _train(run: Run) -> RunResult:
    """Trains to the end; errors say how to resume."""
    try:
        return run.train()
    except (DivergenceError, WorkerError) as error:
        raise CommandFailed(f"{error}\n{_how_to_go_on(run.folder)}") from error
    except BaseException as error:
        if is_out_of_memory(error):
            error.add_note(memory_advice(run.config))
        error.add_note(_how_to_go_on(run.folder))
        raise


def _outcome(run: Run, result: RunResult) -> str:
    """The last lines: the weights to use, and their scores where these mean anything."""
    if run.config.data.train_on_all:
        return (
            f"Last weights: {run.folder / LAST_WEIGHTS}\n"
            "trained on the validation frames too (data.train_on_all): their scores do not show which epoch is best"
        )
    return f"Best weights: {run.folder / BEST_WEIGHTS}\n{format_result(result)}"


def _initial_weights(options: argparse.Namespace) -> Path | None:
    """The file of --init-from or --init-shared, or None."""
    if options.init_from is not None and options.init_shared is not None:
        raise UsageError("--init-from, --init-shared: expected one of them, found both")
    for option, name in (("--init-from", options.init_from), ("--init-shared", options.init_shared)):
        if name is not None:
            try:
                return find_weights(name)
            except WeightsError as error:
                raise UsageError(f"{option} {error}") from error
    return None


def _resumed_config(options: argparse.Namespace) -> Config:
    """The configuration of the resumed run: from its config.yaml, or from its state if that is damaged."""
    if any(given is not None for given in (options.config, options.init_from, options.init_shared, options.out)):
        raise UsageError("--resume: takes everything from its folder; omit --config, --out, --init-from, --init-shared")
    path = options.resume / CONFIG
    if not path.is_file() and not (options.resume / STATE).is_file():
        raise CheckpointError(f"{path}: expected the configuration of a run, found nothing; name a run's folder")
    problem = _damage_of(path)
    if problem is None:
        return load_config(path, options.overrides)
    warnings.warn(f"{problem}; the configuration in the run's state is taken", stacklevel=2)
    return with_overrides(stored_config(options.resume), options.overrides, source=str(options.resume / STATE))


def _damage_of(path: Path) -> str | None:
    """What is wrong with a run's config.yaml, compared with the one in its state; None if it is undamaged.

    Raises:
        ConfigError: a file that cannot be used, and no state to take the configuration from.
    """
    has_state = (path.parent / STATE).is_file()
    try:
        config = load_config(path)
    except ConfigError as error:
        if not has_state:
            raise
        return str(error).splitlines()[0]
    # A run writes every key that it knows. Missing keys mean an older version, or a truncated file.
    given = given_keys(config)
    if not has_state or given >= {key.name for key in describe_keys()}:
        return None
    cut = flat_plain(stored_config(path.parent)).keys() - given
    return f"{path}: lacks keys that the run has, such as {min(cut)}" if cut else None


def _new_config(options: argparse.Namespace) -> Config:
    if options.change:
        raise UsageError("--change: belongs to --resume, whose run it changes")
    folder = options.out
    if folder is not None:
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"--out {folder}: expected a folder, found a file; choose another")
        if (folder / STATE).is_file():
            raise UsageError(
                f"--out {folder}: holds a run already; continue it with --resume {folder}, or choose another"
            )
        if folder.is_dir() and any(folder.iterdir()):
            raise UsageError(f"--out {folder}: expected a new or empty folder, found files in it; choose another")
    config = named_config(options.config or DEFAULT_CONFIG, options.overrides)
    if config.data.root is None and not any(key.startswith("data.synthetic") for key in given_keys(config)):
        raise UsageError(
            f"data.root: expected the set that --config {options.config} trains on, found none; add data.root=PATH, or "
            f"train on generated rooms with --config {DEFAULT_CONFIG}"
        )
    return config


def _how_to_go_on(folder: Path) -> str:
    if not (folder / STATE).is_file():
        return "no state had been saved yet"
    return f"continue with: ammnet train --resume {folder}"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    epilog = (
        "Keys, set as key.sub=value over the YAML file, with type and default; the defaults are those of the code, "
        f"the configuration {DEFAULT_CONFIG!r} changes some. A resumed run keeps the keys marked [kept], "
        "may change those marked [free], and the others with --change:\n" + "\n".join(map(_described, describe_keys()))
    )
    parser = CommandParser("train", __doc__, epilog=epilog)
    parser.add_argument(
        "--config",
        metavar="FILE",
        help=f"YAML file, the name of a shipped one: {', '.join(config_names())} (default: {DEFAULT_CONFIG}), "
        "or a row of the paper's tables, such as table3/baseline (see ammnet experiments)",
    )
    add_out_option(parser, "new folder for the run (default: runs/DATE_TIME)", metavar="DIR", aliases=["--output"])
    add_device_option(parser)
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="DIR",
        help="continue the run in this folder, with its configuration; keys that do not change what is trained "
        "may be changed, for example training.epochs",
    )
    parser.add_argument(
        "--change",
        action="store_true",
        help="with --resume: also accept keys that change what is trained, such as optimizer.learning_rate, and record "
        "them in the run's metrics.jsonl and state; the network, the split and the seed stay. data.root=PATH names the "
        "same set in another place",
    )
    parser.add_argument(
        "--init-from",
        metavar="FILE",
        help="weights to start from (fine-tuning): a file, or the name of shipped ones; the widths must fit",
    )
    parser.add_argument(
        "--init-shared",
        metavar="FILE",
        help="start from the weights of a file that this network has too, for example with another 2D input",
    )
    add_limit_option(parser, "training and the first N validation frames")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="configuration keys to change, see below")
    return parser.parse_with_keys(arguments)


def _described(key: Key) -> str:
    """A line of help."""
    marks = {Resume.KEPT: " [kept]", Resume.FREE: " [free]", Resume.ASKED: ""}
    condition = "" if key.only_if is None or not key.only_if.condition else f"; only if {key.only_if.condition}"
    return f"  {key.name} ({key.kind}; {_as_text(key.default)}): {key.meaning}{condition}{marks[key.resume]}"


def _as_text(default: object) -> str:
    """A default as YAML and the command line write it."""
    if default is None:
        return "empty"
    return json.dumps(default) if isinstance(default, bool | int | float | tuple) else str(default)
