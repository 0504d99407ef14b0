#!/usr/bin/env python3
"""Trains AMMNet, on generated rooms or on a set in the published layout (data.root=PATH).

Examples:
  python tools/train.py
  python tools/train.py --config configs/nyu_seg2d.yaml data.root=/data/nyu
  python tools/train.py --resume runs/2026-01-31_120000
  python tools/train.py --init-from runs/2026-01-31_120000/best.safetensors data.root=/data/own model.width=16

Exit code: 0 done, 1 the training failed, 2 wrong usage or data, 130 interrupted.
"""

import argparse
import datetime
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ammnet_sparse.config import Config, ConfigError, describe_keys, load_config
from ammnet_sparse.data.synthetic.generate import RoomsError, ensure_rooms
from ammnet_sparse.evaluation.selection import parse_device, parse_positive
from ammnet_sparse.training.checkpoints import BEST_WEIGHTS, STATE, CheckpointError
from ammnet_sparse.training.interruption import RunInterrupted
from ammnet_sparse.training.loop import DivergenceError, Run
from ammnet_sparse.training.preparation import check_runnable
from ammnet_sparse.training.records import RunResult, format_result

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
DEFAULT_CONFIG = CONFIGS / "default.yaml"
OUT_OF_MEMORY = (
    "the device is out of memory. In this order: training.recompute=elementwise (then blocks, full), "
    "training.mixed_precision=true, a smaller training.batch_size with training.accumulate, a smaller model.width"
)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    folder: Path | None = None
    try:
        folder, config = _run_folder_and_config(options)
        print(format_result(_train(options, folder, config)))
        return 0
    # Configuration, data and weights have errors of their own, all of them ValueErrors.
    except (OSError, RoomsError, ValueError) as error:
        return _fail(str(error), code=2)
    except DivergenceError as error:
        return _fail(f"{error}{_how_to_go_on(folder)}", code=1)
    except torch.OutOfMemoryError as error:
        return _fail(f"{str(error).splitlines()[0]}\n{OUT_OF_MEMORY}{_how_to_go_on(folder)}", code=1)
    except (RunInterrupted, KeyboardInterrupt) as error:
        return _fail(f"{str(error) or 'interrupted'}{_how_to_go_on(folder)}", code=130)


def _train(options: argparse.Namespace, folder: Path, config: Config) -> RunResult:
    device = parse_device(options.device)
    # Rooms take minutes: what would fail anyway shall fail before.
    check_runnable(config, device, has_weights=bool(options.resume or options.init_from))
    if options.init_from is not None and not options.init_from.is_file():
        raise ConfigError(f"--init-from {options.init_from}: expected a file of weights, found none; check the path")
    config = _with_data(config)
    run = Run(
        config,
        folder,
        device=device,
        resume=options.resume is not None,
        initial_weights=options.init_from,
        limit=options.limit,
    )
    done = run.progress
    begun = f"{done.epoch} epochs and {done.step} steps are done, " if done.step else ""
    print(
        f"Training in {folder}: {begun}{len(run.training_set)} training and {len(run.validation_set)} validation "
        f"frames of {config.data.root}, {config.training.epochs} epochs of {run.steps_per_epoch} steps on {run.device}",
        flush=True,
    )
    result = run.train()
    print(f"Best weights: {folder / BEST_WEIGHTS}")
    return result


def _run_folder_and_config(options: argparse.Namespace) -> tuple[Path, Config]:
    if options.resume is not None:
        if options.config is not None or options.init_from is not None or options.output is not None:
            raise ConfigError("--resume: takes everything from its folder; leave out --config, --output, --init-from")
        path = options.resume / "config.yaml"
        if not path.is_file():
            raise CheckpointError(f"{path}: expected the configuration of a run, found nothing; name a run's folder")
        return options.resume, load_config(path, options.overrides)
    config = load_config(options.config or DEFAULT_CONFIG, options.overrides)
    folder = options.output or Path("runs") / datetime.datetime.now().strftime("%Y-%m-%d_%H%M%S")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output {folder}: expected a folder, found a file; choose another")
    if (folder / STATE).is_file():
        raise ConfigError(
            f"--output {folder}: holds a run already; continue it with --resume {folder}, or choose another"
        )
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"--output {folder}: expected a new or empty folder, found files in it; choose another")
    return folder, config


def _with_data(config: Config) -> Config:
    """With an absolute ``data.root``, so that the run can be resumed from any folder; rooms are made on first use."""
    root = (config.data.root or ensure_rooms(config.data)).resolve()
    return config.model_copy(update={"data": config.data.model_copy(update={"root": root})})


def _fail(message: str, *, code: int) -> int:
    print(f"train.py: {message}", file=sys.stderr)
    return code


def _how_to_go_on(folder: Path | None) -> str:
    if folder is None or not (folder / STATE).is_file():
        return "; no state had been saved yet"
    return f"\ncontinue with: python tools/train.py --resume {folder}"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    description, _, examples = (__doc__ or "").partition("\n\n")
    keys = [f"  {key} ({kind}; {_as_text(default)}): {meaning}" for key, kind, default, meaning in describe_keys()]
    epilog = (
        f"{examples}\nKeys, set as key.sub=value over the YAML file, with type and default; the defaults are those of "
        f"the code, {DEFAULT_CONFIG.name} changes some:\n" + "\n".join(keys)
    )
    parser = argparse.ArgumentParser(
        prog="train.py",
        description=description,
        epilog=epilog.replace("%", "%%"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file (default: configs/default.yaml)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="new folder for the run (default: runs/DATE_TIME)")
    parser.add_argument("--device", default=None, metavar="D", help="cpu, cuda or cuda:N (default: cuda if there)")
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="DIR",
        help="continue the run in this folder, with its configuration; keys that do not change what is trained "
        "may be set anew, for example training.epochs",
    )
    parser.add_argument(
        "--init-from", type=Path, metavar="FILE", help="weights to start from (fine-tuning); the widths must fit"
    )
    parser.add_argument("--limit", type=parse_positive, metavar="N", help="only N training and N validation frames")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="configuration keys to change, see below")
    options, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        keys_among = [text.lstrip("-") for text in unknown if "=" in text]
        hint = f"; configuration keys have no dashes: {' '.join(keys_among)}" if keys_among else ""
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    if options.device is None:
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    return options


def _as_text(default: object) -> str:
    """A default as YAML and the command line write it."""
    if default is None:
        return "empty"
    return json.dumps(default) if isinstance(default, bool | int | float | tuple) else str(default)


if __name__ == "__main__":
    sys.exit(main())
