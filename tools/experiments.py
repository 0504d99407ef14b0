#!/usr/bin/env python3
"""Trains the variants whose comparison is wanted, one after the other, and puts them into one table.

    python tools/experiments.py --data NYU --out runs/screening --epochs 30 model.width=128
    python tools/experiments.py --data NYU --out runs/full --only base ema --seconds 560
    python tools/experiments.py --out runs/full --only base --table       the table alone

Each variant is configs/nyu_seg2d.yaml with a few keys changed, in a folder of its own. Calling again goes on where it
stopped: finished runs are left alone, others resumed. With --seconds the run in progress is stopped in time, with its
state saved. Keys given as key.sub=value hold for every variant.

Exit code: 0 all are finished, 1 a training failed, 2 wrong usage, 3 time is up and something is left to train.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ammnet_sparse.config import ConfigError, load_config
from ammnet_sparse.pictures.history import HistoryError, read_history
from ammnet_sparse.training.checkpoints import STATE

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIG = REPOSITORY / "configs" / "nyu_seg2d.yaml"
ALWAYS = ("training.checkpoint_minutes=1",)
# From the scored voxels of NYU's 695 training frames, empty as 1: 1 / ln(voxels), and 1 / ln(1.02 + share).
_MILD = "1,1.393,1.137,1.151,1.354,1.303,1.215,1.261,1.267,1.54,1.095,1.157"
_STRONG = "1,16.949,4.591,5.184,15.511,13.22,8.441,11.019,11.326,20.183,3.016,5.463"
EXPERIMENTS: dict[str, tuple[str, ...]] = {
    "base": (),
    "width128": ("model.width=128",),
    "ema": ("training.ema_decay=0.999",),
    "class_weights": (f"loss.class_weights=[{_MILD}]",),
    "class_weights_strong": (f"loss.class_weights=[{_STRONG}]",),
    "softmax": ("model.discriminator_input=softmax",),
    "warmup": ("optimizer.warmup_steps=500",),
    "band": ("model.encoder_band=true",),
    "no_adversarial": ("adversarial.enabled=false",),
    "no_modulation": ("model.modulation1=false", "model.modulation2=false", "model.modulation3=false"),
    "dense": ("model.sites=dense",),
}
"""By name: the keys that differ from the configuration file."""
_GRACE_SECONDS = 40
"""Before time is up: for the step in progress, and for saving the state."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    deadline = None if options.seconds is None else time.monotonic() + options.seconds - _GRACE_SECONDS
    code = 0
    try:
        for name in options.only:
            load_config(CONFIG, _overrides(name, options))  # a wrong key shall not show after hours
        if not options.table:
            options.out.mkdir(parents=True, exist_ok=True)
            for name in options.only:
                code = _train(name, options, deadline)
                if code:
                    break
        rows = [_row(name, options.out / name) for name in options.only]
    except (OSError, ConfigError) as error:
        print(f"experiments.py: {error}", file=sys.stderr)
        return 2
    print(_table(rows))
    if options.out.is_dir():
        (options.out / "experiments.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return code


def _train(name: str, options: argparse.Namespace, deadline: float | None) -> int:
    """Trains what is left of a variant: 0 it is finished, 1 it failed, 3 time is up."""
    folder = options.out / name
    if _is_finished(folder):
        return 0
    if deadline is not None and time.monotonic() > deadline - _GRACE_SECONDS:
        return 3
    command = [sys.executable, str(REPOSITORY / "tools" / "train.py")]
    if (folder / STATE).is_file():
        command += ["--resume", str(folder)]
    else:
        command += ["--config", str(CONFIG), "--output", str(folder), *_overrides(name, options)]
    command += ["--device", options.device] if options.device else []
    print(f"== {name}: {' '.join(command)}", flush=True)
    process = subprocess.Popen(command)
    try:
        process.wait(None if deadline is None else max(deadline - time.monotonic(), 1))
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.send_signal(signal.SIGTERM)  # the run saves its state
        process.wait()
    return {0: 0, 130: 3}.get(process.returncode, 1)


def _overrides(name: str, options: argparse.Namespace) -> list[str]:
    data = [] if options.data is None else [f"data.root={options.data}"]
    epochs = [] if options.epochs is None else [f"training.epochs={options.epochs}"]
    return [*ALWAYS, *data, *epochs, *EXPERIMENTS[name], *options.overrides]


def _is_finished(folder: Path) -> bool:
    if not (folder / STATE).is_file():
        return False
    try:
        epochs = read_history(folder).epochs
    except HistoryError:
        return False
    return bool(epochs) and epochs[-1]["epoch"] >= load_config(folder / "config.yaml").training.epochs


def _row(name: str, folder: Path) -> dict[str, Any]:
    """What is known of a run: epochs, best and last scores in percent, seconds in all, peak memory in MiB."""
    row: dict[str, Any] = {"name": name, "keys": list(EXPERIMENTS[name]), "epochs": 0, "best": None, "last": None}
    try:
        history = read_history(folder)
    except HistoryError:
        return row
    row["epochs"] = len(history.epochs)
    row["seconds"] = round(sum(line["seconds"] for line in history.epochs), 1)
    row["peak_memory_mib"] = max((line.get("peak_memory_mib", 0) for line in history.epochs), default=0) or None
    for key, line in (("best", history.best), ("last", history.validated[-1] if history.validated else None)):
        if line is not None:
            scores = line["validation"]
            row[key] = {"epoch": line["epoch"], "sc_iou": scores["sc"]["iou"], "ssc_miou": scores["ssc"]["miou"]}
    return row


def _table(rows: Sequence[dict[str, Any]]) -> str:
    lines = ["| run | epochs | best: epoch | SC IoU | SSC mIoU | last: SC IoU | SSC mIoU | s | peak MiB |"]
    lines.append("| --- |" + " --- |" * 8)
    for row in rows:
        cells = [row["name"], str(row["epochs"])]
        best, last = row["best"], row["last"]
        cells += ["-"] * 3 if best is None else [str(best["epoch"]), _digits(best["sc_iou"]), _digits(best["ssc_miou"])]
        cells += ["-"] * 2 if last is None else [_digits(last["sc_iou"]), _digits(last["ssc_miou"])]
        cells += [_digits(row.get("seconds"), 0), _digits(row.get("peak_memory_mib"), 0)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _digits(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    description, _, rest = (__doc__ or "").partition("\n\n")
    known = "\n".join(
        f"  {name}: {' '.join(keys) or 'as the configuration says'}" for name, keys in EXPERIMENTS.items()
    )
    parser = argparse.ArgumentParser(
        prog="experiments.py",
        description=description,
        epilog=f"{rest}\nVariants:\n{known}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the runs, made if missing")
    add("--data", type=Path, metavar="DIR", help="folder or packed file of the set; needed to begin a run")
    add("--only", nargs="+", choices=tuple(EXPERIMENTS), default=list(EXPERIMENTS), help="default: all")
    add("--epochs", type=int, metavar="N", help="instead of the configuration's")
    add("--seconds", type=float, metavar="S", help="stop in time to be done after so many (default: no limit)")
    add("--device", metavar="D", help="cpu, cuda or cuda:N (default: cuda if there)")
    add("--table", action="store_true", help="train nothing, print the table")
    add("overrides", nargs="*", metavar="key.sub=value", help="keys for every variant")
    options = parser.parse_intermixed_args(arguments)
    if (
        options.data is None
        and not options.table
        and not all((options.out / name / STATE).is_file() for name in options.only)
    ):
        parser.error("--data: expected a set to begin runs with, found none")
    return options


if __name__ == "__main__":
    sys.exit(main())
