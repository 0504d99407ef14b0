"""Packs a set in the published layout into one file that is read directly, without decompressing archives.

    ammnet data pack --data data/nyu --out nyu_packed.safetensors [--splits train test] [--images]
    ammnet train data.root=nyu_packed.safetensors

The file takes the place of the folder everywhere (data.root, --data) and gives the same frames. 2D label
maps are packed if the set has them; color images, 0.9 MB per frame, with --images. The TSDF is stored as
float16 if that represents every value, otherwise as float32; --tsdf float16 rounds it and prints the largest error.
The file gets its final name once every frame was read back and compared.

Exit code: 0 done, 1 some frames are broken (each is named; nothing is written), 2 wrong usage or the disk is full,
130 interrupted.
"""

import argparse
import os
from collections.abc import Sequence

from ammnet_sparse.cli.errors import CommandFailed, UsageError, check_output_file, command, writing_to
from ammnet_sparse.cli.options import (
    CommandParser,
    add_data_option,
    add_dataset_option,
    add_out_option,
    add_splits_option,
    add_workers_option,
)
from ammnet_sparse.data.sets.packing import BrokenFramesError, pack_set
from ammnet_sparse.data.sets.source import open_frames


@command("data pack")
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``ammnet data pack``; returns its exit code."""
    options = _parse(arguments)
    check_output_file(options.out)
    if options.out.exists() and os.path.realpath(options.out) == os.path.realpath(options.data):
        raise UsageError(f"--out {options.out}: expected another file than the set to pack, found the set itself")
    frames = open_frames(
        options.data,
        dataset=options.dataset,
        read_image=options.images,
        read_label_map=False if options.no_label_maps else None,
    )
    try:
        with writing_to(options.out):
            packed = pack_set(
                frames,
                options.out,
                splits=options.splits,
                tsdf=options.tsdf,
                overwrite=options.overwrite,
                workers=options.workers,
                progress=True,
            )
    except BrokenFramesError as error:
        raise CommandFailed(str(error)) from error
    print(f"{packed.describe()}; every frame was read back and compared")
    if not options.images and open_frames(options.data, dataset=options.dataset).reads_image:
        print("color images of the set left out; --images packs them")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser("data pack", __doc__)
    add_data_option(parser, required=True)
    add_out_option(parser, "file to write", metavar="FILE", required=True)
    add_dataset_option(parser)
    add_splits_option(
        parser, "lists of frames (default: those of train, test, val that are there); val comes with train"
    )
    parser.add_argument("--images", action="store_true", help="pack color images too")
    parser.add_argument("--no-label-maps", action="store_true", help="leave 2D label maps out")
    parser.add_argument(
        "--tsdf", choices=("exact", "float16"), default="exact", help="how the TSDF is stored (default: exact)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    add_workers_option(parser, "threads (default: one per core)")
    return parser.parse(arguments)
