"""Generates synthetic rooms in the layout of the published data.

    ammnet data rooms --out data/my_rooms --frames 1000 --validation-frames 100

Training generates its own rooms on first use; this is for sets of other sizes, or to generate them beforehand. An
interrupted run resumes when it is started again with the same parameters.

    ammnet data rooms --out data/walks --frames 6 --views 20

With --views every room is a folder with a sequence of posed frames, as a person would take them while walking through
it, in the layout of 7-Scenes (which `ammnet map --source` reads), and truth.npz: the classes of the whole room.

Exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ammnet_sparse.cli.errors import check_output_folder, command, writing_to
from ammnet_sparse.cli.options import CommandParser, add_out_option, either, parse_count, parse_positive
from ammnet_sparse.config import SyntheticConfig
from ammnet_sparse.data.synthetic.generate import generate_rooms
from ammnet_sparse.data.synthetic.walks import generate_walks


@command("data rooms")
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``ammnet data rooms``; returns its exit code."""
    options, out = _parse(arguments)
    check_output_folder(out)
    with writing_to(out):
        shared = {
            "seed": options.seed,
            "noise": options.noise,
            "workers": options.workers,
            "progress": not options.quiet,
        }
        if options.views:
            folder = generate_walks(out, rooms=options.frames, views=options.views, **shared)
            print(f"{options.frames} rooms of {options.views} frames in {folder}")
        else:
            folder = generate_rooms(out, frames=options.frames, validation_frames=options.validation_frames, **shared)
            print(f"{options.frames} frames in {folder}")
    return 0


def _parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, Path]:
    """The options, and the folder to write."""
    defaults = SyntheticConfig()
    parser = CommandParser("data rooms", __doc__)
    add = parser.add_argument
    add("folder", type=Path, nargs="?", metavar="DIR", help="the same as --out")
    add_out_option(parser, "folder of the set; must not hold anything else", metavar="DIR")
    add(
        "--frames",
        type=parse_positive,
        default=defaults.frames,
        metavar="N",
        help="number of frames, including validation frames; with --views, of rooms (default: %(default)s)",
    )
    add("--views", type=parse_positive, metavar="N", help="walks of N posed frames through each room, and its truth")
    add(
        "--validation-frames",
        type=parse_positive,
        default=defaults.validation_frames,
        metavar="N",
        help="number of frames in val.txt; no effect with --views (default: %(default)s)",
    )
    add("--seed", type=parse_count, default=defaults.seed, metavar="N", help="seed of the rooms (default: %(default)s)")
    add("--noise", choices=("none", "kinect"), default=defaults.noise, help="depth noise (default: %(default)s)")
    add("--workers", type=parse_positive, metavar="N", help="processes (default: one per core)")
    add("--quiet", action="store_true", help="no progress bar")
    options = parser.parse(arguments)
    return options, either(parser, "--out", (options.out, options.folder))
