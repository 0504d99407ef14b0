"""Packs a set in the published layout into one file that is read where it lies, without unpacking archives.

    python tools/pack_data.py --data data/nyu --out nyu_packed.safetensors [--splits train test] [--images]
    python tools/train.py data.root=nyu_packed.safetensors

The file takes the place of the folder everywhere (data.root, --data, check_data.py) and gives the same frames. 2D label
maps are packed where the set has them; colour images on --images, as they take 0.9 MB a frame. The TSDF is stored as
float16 where that holds every value, else as float32; --tsdf float16 rounds it, and says by how much.
The file gets its name when it is complete and every frame was read back and compared.

Exit code: 0 done, 1 some frames are broken (each is named; nothing is written), 2 wrong usage or the disk is full.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ammnet_sparse.data.sets.files import DataError
from ammnet_sparse.data.sets.packing import BrokenFramesError, pack_set
from ammnet_sparse.data.sets.source import open_frames


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    try:
        frames = open_frames(
            options.data,
            dataset=options.dataset,
            read_image=options.images,
            read_label_map=False if options.no_label_maps else None,
        )
        summary = pack_set(
            frames,
            options.out,
            splits=options.splits,
            tsdf=options.tsdf,
            overwrite=options.overwrite,
            workers=options.workers,
            progress=sys.stderr.isatty(),
        )
    except BrokenFramesError as error:
        print(f"pack_data: {error}", file=sys.stderr)
        return 1
    except (DataError, OSError) as error:
        print(f"pack_data: {error}", file=sys.stderr)
        return 2
    print(summary.describe())
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    description, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="pack_data.py",
        description=description,
        epilog=rest.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of the set")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="file to write")
    parser.add_argument("--dataset", choices=("nyu", "nyucad"), default="nyu", help="layout of the set (default: nyu)")
    parser.add_argument(
        "--splits",
        nargs="+",
        default=[],
        metavar="NAME",
        help="lists of frames (default: those of train, test, val that are there); val comes with train",
    )
    parser.add_argument("--images", action="store_true", help="pack colour images too")
    parser.add_argument("--no-label-maps", action="store_true", help="leave 2D label maps out")
    parser.add_argument(
        "--tsdf", choices=("exact", "float16"), default="exact", help="how the TSDF is stored (default: exact)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="threads (default: one a core)")
    options = parser.parse_args(arguments)
    if options.workers < 0:
        parser.error(f"--workers: expected 0 or more, found {options.workers}")
    if not options.out.parent.is_dir():
        parser.error(f"--out: expected a folder {options.out.parent}, found none; make it first")
    return options


if __name__ == "__main__":
    sys.exit(main())
