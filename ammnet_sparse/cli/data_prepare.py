"""Makes a set in the published layout from SSCNet's raw .png and .bin files: label, TSDF, label weight, mapping.

    ammnet data prepare --raw depthbin/NYUtrain --out data/nyu --intrinsics nyu

An interrupted run resumes when it is started again; frames that are complete are read and checked.
The frames are listed in train.txt, or in test.txt if the raw folder's name ends in test; run it for both folders
into the same --out. Add color images (RGB) and 2D label maps (Seg2D) as published. With --flipped
the TSDF is written in NYUCAD's convention; read such a set with dataset nyucad.

Exit code: 0 every frame is there, 1 some files were skipped (each is named), 2 wrong usage, 130 interrupted.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ammnet_sparse.cli.errors import UsageError, check_output_folder, command, with_options, writing_to
from ammnet_sparse.cli.options import CommandParser, add_out_option, parse_positive
from ammnet_sparse.data.raw.frames import CAMERAS
from ammnet_sparse.data.raw.preparation import PreparationPlan, prepare_set
from ammnet_sparse.data.volumes.tsdf import Unobserved

_BELONG_TO = {
    "nyu": "a Kinect's depth: the published NYU files come from these",
    "nyucad": "rendered depth: NYUCAD, SSCNet, MonoScene",
}
_UNOBSERVED = {"free": "as free space, 0.001", "surface": "as a surface, +1"}


@command("data prepare")
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``ammnet data prepare``; returns its exit code."""
    options = _parse(arguments)
    check_output_folder(options.out)
    split = options.split or ("test" if options.raw.name.lower().endswith("test") else "train")
    camera = CAMERAS[options.intrinsics]
    print(
        f"intrinsics {options.intrinsics}: fx {camera.fx}, fy {camera.fy}, cx {camera.cx}, cy {camera.cy} "
        f"({_BELONG_TO[options.intrinsics]})"
    )
    if options.unobserved is not None and not options.flipped:
        raise UsageError("--unobserved: has an effect with --flipped only; add it")
    unobserved: Unobserved = options.unobserved or "free"
    convention = "flipped, in NYUCAD's layout" if options.flipped else "not flipped"
    if options.flipped:
        print(f"Unobserved space in the TSDF: {_UNOBSERVED[unobserved]} (--unobserved {unobserved})")
    print(f"TSDF: {convention}; frames listed in {split}.txt", flush=True)
    plan = PreparationPlan(
        options.raw,
        options.out,
        options.intrinsics,
        split,
        options.flipped,
        unobserved,
        None if options.depth_encoding == "auto" else options.depth_encoding,
    )
    with writing_to(options.out):
        report = prepare_set(plan, workers=options.workers, progress=True)
    print(with_options(report.describe()))
    listed = f"{report.num_listed} frames" if report.num_listed else "no list, as no frame is complete"
    print(f"{options.out / split}.txt: {listed}")
    return 0 if report.is_clean else 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser("data prepare", __doc__)
    parser.add_argument("--raw", type=Path, required=True, metavar="DIR", help="folder of NYU0003_0000.png and .bin")
    add_out_option(parser, "folder of the set, made if missing", metavar="DIR", required=True)
    parser.add_argument(
        "--intrinsics",
        choices=sorted(CAMERAS),
        required=True,
        help="camera of the depth: nyu (Kinect) or nyucad (rendered); the wrong one makes half of the mapping wrong",
    )
    parser.add_argument("--flipped", action="store_true", help="flipped TSDF, as in SSCNet, DDRNet and NYUCAD")
    parser.add_argument(
        "--unobserved",
        choices=tuple(_UNOBSERVED),
        help="with --flipped: value of unobserved space, free (0.001, as in SSCNet's source; default) or surface (+1)",
    )
    parser.add_argument(
        "--depth-encoding",
        choices=("auto", "rotated", "plain"),
        default="auto",
        help="how the .png hold millimeters: bits rotated by 3 (SSCNet), plain, or detected from the values (default)",
    )
    parser.add_argument(
        "--split", choices=("train", "test"), help="list of the frames (default: from the folder's name)"
    )
    parser.add_argument("--workers", type=parse_positive, metavar="N", help="processes (default: one per core)")
    return parser.parse(arguments)
