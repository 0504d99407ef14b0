#!/usr/bin/env python3
"""Trains AMMNet, on generated rooms or on a set in the published layout (data.root=PATH).

Examples:
  python tools/train.py
  python tools/train.py --config configs/nyu_seg2d.yaml data.root=/data/nyu
  python tools/train.py --resume runs/2026-01-31_120000
"""

import argparse
import datetime
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ammnet_sparse.config import Config, ConfigError, describe_keys, load_config
from ammnet_sparse.data.layout import DataError
from ammnet_sparse.data.synthetic.generate import RoomsError, ensure_rooms
from ammnet_sparse.evaluation.selection import parse_device
from ammnet_sparse.models.image_weights import WeightsError
from ammnet_sparse.training.checkpoints import CheckpointError
from ammnet_sparse.training.loop import Run, format_result

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
DEFAULT_CONFIG = CONFIGS / "default.yaml"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    try:
        folder, config = _run_folder_and_config(options)
        if config.data.root is None:
            config = _with_rooms(config)
        run = Run(
            config,
            folder,
            device=parse_device(options.device),
            resume=options.resume is not None,
            initial_weights=options.init_from,
            limit=options.limit,
        )
        print(
            f"Training in {folder}: {len(run.training_set)} training and {len(run.validation_set)} validation frames "
            f"of {config.data.root}, {config.training.epochs} epochs of {run.steps_per_epoch} steps on {run.device}",
            flush=True,
        )
        result = run.train()
    except (ConfigError, DataError, RoomsError, WeightsError, CheckpointError, ValueError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\ntrain.py: interrupted; continue with --resume {folder}", file=sys.stderr)
        return 130
    print(format_result(result))
    return 0


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
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"--output {folder}: expected a new or empty folder; use --resume to continue the run in it")
    return folder, config


def _with_rooms(config: Config) -> Config:
    root = ensure_rooms(config.data)
    return config.model_copy(update={"data": config.data.model_copy(update={"root": root})})


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    description, _, examples = (__doc__ or "").partition("\n\n")
    keys = [f"  {key} ({kind}, default {default}): {meaning}" for key, kind, default, meaning in describe_keys()]
    epilog = (
        f"{examples}\nKeys, set as key.sub=value over the YAML file; defaults are those of the code, "
        f"{DEFAULT_CONFIG.name} changes some:\n" + "\n".join(keys)
    )
    parser = argparse.ArgumentParser(
        prog="train.py",
        description=description,
        epilog=epilog.replace("%", "%%"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file (default: configs/default.yaml)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="new folder for the run (default: runs/DATE_TIME)")
    parser.add_argument("--device", default=None, metavar="D", help="cpu, cuda or cuda:N (default: cuda if there)")
    parser.add_argument("--resume", type=Path, metavar="DIR", help="continue the run in this folder")
    parser.add_argument("--init-from", type=Path, metavar="FILE", help="weights to start from (fine-tuning)")
    parser.add_argument("--limit", type=_positive, metavar="N", help="only N training and N validation frames")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="configuration keys to change")
    options = parser.parse_intermixed_args(arguments)
    if options.device is None:
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    return options


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, found {value}")
    return value


if __name__ == "__main__":
    sys.exit(main())
