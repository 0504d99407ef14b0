"""Completes frames of a set: class volumes, and pictures of prediction against truth.

    python tools/predict.py --checkpoint FILE --data DIR --ids 0003 0004 --out DIR

Writes for each frame <id>.npz with `labels`, uint8 [60, 36, 60] in the order (X, height, Y), classes 0..11, and
<id>.png. Voxels observed to be free are empty, unless --everywhere asks for a prediction there.
Exit code: 0 done, 2 wrong usage (no such file, frame or input).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

import ammnet_sparse
from ammnet_sparse.data.frame import Frame
from ammnet_sparse.data.grid import IGNORE_LABEL
from ammnet_sparse.evaluation.pictures import render_comparison
from ammnet_sparse.evaluation.selection import check_ids, open_set, parse_device


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    try:
        _predict(options)
    except (OSError, ValueError) as error:
        print(f"predict: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: {len(options.ids)} frames completed (.npz, .png)")
    return 0


def _predict(options: argparse.Namespace) -> None:
    device = parse_device(options.device)
    if not options.checkpoint.is_file():
        raise FileNotFoundError(f"--checkpoint: expected a file, found none at {options.checkpoint}; check the path")
    sites = {} if options.sites is None else {"sites": options.sites}
    model = ammnet_sparse.load_model(options.checkpoint, device=device, **sites)
    folder = open_set(options.data, dataset=options.dataset, config=model.config, for_pictures=True)
    check_ids(folder, options.ids)
    options.out.mkdir(parents=True, exist_ok=True)
    voxels = "all" if options.everywhere else "not_free"
    for frame_id in tqdm(options.ids, desc="predicting", unit="frame", file=sys.stderr, leave=False, disable=None):
        frame = folder.read(frame_id)
        with torch.inference_mode():
            labels = model(frame.to_batch().to(device), voxels=voxels).labels[0].cpu().numpy()
        np.savez_compressed(options.out / f"{frame.frame_id}.npz", labels=labels)
        iio.imwrite(options.out / f"{frame.frame_id}.png", _picture(frame, labels))


def _picture(frame: Frame, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Prediction against truth where that is known, else the prediction alone."""
    scored = None if frame.label is None else frame.label_weight & (frame.label != IGNORE_LABEL)
    return render_comparison(
        labels,
        frame.label,
        image=frame.image,
        label_map=frame.label_map,
        visible_mask=scored,
        title=f"Frame {frame.frame_id}" + ("" if scored is None else ", scored voxels"),
    )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    description, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="predict.py",
        description=description,
        epilog=rest.rpartition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="weights to use")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of the set")
    parser.add_argument("--ids", nargs="+", required=True, metavar="ID", help="frames, such as 0003")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to, made if missing")
    parser.add_argument("--dataset", choices=("nyu", "nyucad"), default="nyu", help="layout of the set (default: nyu)")
    parser.add_argument("--sites", choices=("sparse", "dense"), help="voxels computed (default: as trained)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument("--everywhere", action="store_true", help="predict in space observed to be free, too")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
