"""Makes a set in the published layout from other files: label, TSDF, label weight, mapping.

    ammnet data prepare --raw depthbin/NYUtrain --out data/nyu --intrinsics nyu
    ammnet data prepare --from occscannet --raw occscannet --out data/occscannet
    ammnet data prepare --from monoscene --raw base/NYUtrain --images depthbin/NYUtrain --out data/nyu --intrinsics nyu

--from sscnet (default): the raw .png and .bin files. The frames are listed in train.txt, or in test.txt if the raw
folder's name ends in test; run it for both folders into the same --out. Add color images (RGB) and 2D label maps
(Seg2D) as published. With --flipped the TSDF is written in NYUCAD's convention; read such a set with dataset nyucad.
--from occscannet: the pickles that train_subscenes.txt and val_subscenes.txt list, with their images.
--from monoscene: NYU's pickles as MonoScene publishes them. Of pickles nothing but arrays and plain values is read.
An interrupted run resumes when it is started again; frames that are complete are read and checked.

Exit code: 0 every frame is there, 1 some files were skipped (each is named), 2 wrong usage, 130 interrupted.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ammnet_sparse.cli.errors import UsageError, check_output_folder, command, with_options, writing_to
from ammnet_sparse.cli.options import CommandParser, add_out_option, parse_positive
from ammnet_sparse.data.raw.frames import CAMERAS, RawPlan
from ammnet_sparse.data.raw.pickled import MonoScenePlan, OccScanNetPlan, Unknown
from ammnet_sparse.data.raw.preparation import PreparationReport, prepare_set
from ammnet_sparse.data.volumes.tsdf import Unobserved

_BELONG_TO = {
    "nyu": "a Kinect's depth: the published NYU files come from these",
    "nyucad": "rendered depth: NYUCAD, SSCNet, MonoScene",
}
_UNOBSERVED = {"free": "as free space, 0.001", "surface": "as a surface, +1"}


_UNKNOWN = {"ignore": "neither trained on nor scored", "empty": "empty space, as the published loader takes them"}
_OF_FORM = {
    "images": ("occscannet", "monoscene"),
    "unknown": ("occscannet", "monoscene"),
    "intrinsics": ("sscnet", "monoscene"),
    "split": ("sscnet", "monoscene"),
    "depth_encoding": ("sscnet",),
    "flipped": ("sscnet",),
    "unobserved": ("sscnet",),
}
"""Options by the forms of files that have them."""


@command("data prepare")
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``ammnet data prepare``; returns its exit code."""
    options = _parse(arguments)
    check_output_folder(options.out)
    plan = _sscnet_plan(options) if options.form == "sscnet" else _pickled_plan(options)
    with writing_to(options.out):
        report = prepare_set(plan, workers=options.workers, progress=True)
    print_preparation(report, options.out)
    return 0 if report.is_clean else 1


def print_preparation(report: PreparationReport, out: Path) -> None:
    """Prints what was prepared, every problem, and the lists."""
    print(with_options(report.describe()))
    for name, number in report.listed.items():
        print(f"{out / name}.txt: {f'{number} frames' if number else 'no list, as no frame is complete'}")


def _sscnet_plan(options: argparse.Namespace) -> RawPlan:
    split = _say_intrinsics(options)
    if options.unobserved is not None and not options.flipped:
        raise UsageError("--unobserved: has an effect with --flipped only; add it")
    unobserved: Unobserved = options.unobserved or "free"
    convention = "flipped, in NYUCAD's layout" if options.flipped else "not flipped"
    if options.flipped:
        print(f"Unobserved space in the TSDF: {_UNOBSERVED[unobserved]} (--unobserved {unobserved})")
    print(f"TSDF: {convention}; frames listed in {split}.txt", flush=True)
    return RawPlan(
        options.raw,
        options.out,
        options.intrinsics,
        split,
        bool(options.flipped),
        unobserved,
        None if options.depth_encoding in (None, "auto") else options.depth_encoding,
    )


def _pickled_plan(options: argparse.Namespace) -> OccScanNetPlan | MonoScenePlan:
    unknown: Unknown = options.unknown or "ignore"
    split = _say_intrinsics(options) if options.form == "monoscene" else ""
    print(f"Unknown voxels: {_UNKNOWN[unknown]} (--unknown {unknown})", flush=True)
    if options.form == "occscannet":
        return OccScanNetPlan(options.raw, options.out, unknown, options.images)
    return MonoScenePlan(options.raw, options.out, options.intrinsics, split, unknown, options.images)


def _say_intrinsics(options: argparse.Namespace) -> str:
    """Prints the intrinsics of NYU's depth; returns the name of the list."""
    camera = CAMERAS[options.intrinsics]
    print(
        f"intrinsics {options.intrinsics}: fx {camera.fx}, fy {camera.fy}, cx {camera.cx}, cy {camera.cy} "
        f"({_BELONG_TO[options.intrinsics]})"
    )
    return options.split or ("test" if options.raw.name.lower().endswith("test") else "train")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser("data prepare", __doc__)
    add = parser.add_argument
    add(
        "--from",
        dest="form",
        choices=("sscnet", "occscannet", "monoscene"),
        default="sscnet",
        help="form of the files (default: sscnet)",
    )
    add("--raw", type=Path, required=True, metavar="DIR", help="folder of NYU0003_0000.png and .bin, or of the pickles")
    add_out_option(parser, "folder of the set, made if missing", metavar="DIR", required=True)
    add(
        "--intrinsics",
        choices=sorted(CAMERAS),
        help="camera of NYU's depth: nyu (Kinect) or nyucad (rendered); the wrong one makes half of the mapping wrong",
    )
    add(
        "--images",
        type=Path,
        metavar="DIR",
        help="folder of posed_images of Occ-ScanNet, or of NYU0003_0000_color.jpg and .png (default: --raw)",
    )
    add(
        "--unknown",
        choices=tuple(_UNKNOWN),
        help="voxels labeled 255 in pickles: ignore (default), or empty, as Occ-ScanNet's published loader takes them",
    )
    add("--flipped", action="store_true", default=None, help="flipped TSDF, as in SSCNet, DDRNet and NYUCAD")
    add(
        "--unobserved",
        choices=tuple(_UNOBSERVED),
        help="with --flipped: value of unobserved space, free (0.001, as in SSCNet's source; default) or surface (+1)",
    )
    add(
        "--depth-encoding",
        choices=("auto", "rotated", "plain"),
        help="how the .png hold millimeters: bits rotated by 3 (SSCNet), plain, or detected from the values (default)",
    )
    add("--split", choices=("train", "test"), help="list of NYU's frames (default: from the folder's name)")
    add("--workers", type=parse_positive, metavar="N", help="processes (default: one per core)")
    options = parser.parse(arguments)
    for name, forms in _OF_FORM.items():
        if getattr(options, name) is not None and options.form not in forms:
            parser.error(f"--{name.replace('_', '-')}: has an effect with --from {' or '.join(forms)} only")
    if options.intrinsics is None and options.form in _OF_FORM["intrinsics"]:
        parser.error("the following arguments are required: --intrinsics")
    return options
