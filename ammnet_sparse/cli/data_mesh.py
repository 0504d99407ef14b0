"""Makes a set from posed RGB-D frames of a room and its labeled mesh or point cloud.

    ammnet data mesh --source scene0000_00 --mesh scene0000_00_vh_clean_2.labels.ply --labels nyu40.yaml --out data/mine
    ammnet data mesh --source kitchen --mesh kitchen.ply --classes classes.yaml --out data/mine --split val

SEQUENCE is one that `ammnet map` takes: 7-Scenes, TUM, ScanNet's export, Replica, Record3D, or folders with poses. The
mesh is in the world of the poses. Its vertices or faces have a property label: the number of a class of classes.yaml,
or a number that --labels gives the class of. Run it for every room into the same --out; an interrupted run resumes when
it is started again. docs/sets.md explains what becomes of every voxel.

Exit code: 0 every frame is there, 1 some frames were skipped (each is named), 2 wrong usage, 130 interrupted.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ammnet_sparse.camera.labeled_mesh import read_label_numbers
from ammnet_sparse.camera.mesh_sets import MeshPlan
from ammnet_sparse.cli.camera_options import add_settings_options, check_settings, given_settings
from ammnet_sparse.cli.data_prepare import print_preparation
from ammnet_sparse.cli.errors import check_output_folder, command, writing_to
from ammnet_sparse.cli.options import CommandParser, add_out_option, parse_positive
from ammnet_sparse.data.raw.preparation import prepare_set
from ammnet_sparse.data.set_info import NYU, read_set_info


@command("data mesh")
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``ammnet data mesh``; returns its exit code."""
    options = _parse(arguments)
    check_output_folder(options.out)
    info = NYU if options.classes is None else read_set_info(options.classes, dataset="nyu")
    plan = MeshPlan(
        options.source,
        options.mesh,
        options.out,
        tuple(given_settings(options).items()),
        info,
        None if options.labels is None else tuple(read_label_numbers(options.labels, info).items()),
        options.split,
        options.unknown,
        options.every,
    )
    with writing_to(options.out):
        report = prepare_set(plan, workers=options.workers)
    print_preparation(report, options.out)
    return 0 if report.is_clean else 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser("data mesh", __doc__)
    add = parser.add_argument
    add("--source", type=Path, required=True, metavar="SEQUENCE", help="folder or file of posed frames")
    add("--mesh", type=Path, required=True, metavar="FILE", help="labeled PLY file: triangles, or points alone")
    add_out_option(parser, "folder of the set, made if missing", metavar="DIR", required=True)
    add("--classes", type=Path, metavar="FILE", help="classes.yaml of the set (default: NYU's twelve classes)")
    add(
        "--labels",
        type=Path,
        metavar="FILE",
        help="YAML of class names, each with its numbers in the mesh (default: numbers by the order of the classes)",
    )
    add("--split", choices=("train", "val", "test"), default="train", help="list of the frames (default: train)")
    add("--every", type=parse_positive, default=1, metavar="N", help="take every Nth frame (default: 1)")
    add(
        "--unknown",
        choices=("ignore", "empty"),
        default="ignore",
        help="voxels without surface that no frame looks through: neither trained on nor scored (default), or empty",
    )
    add("--workers", type=parse_positive, metavar="N", help="processes (default: one per core)")
    add_settings_options(parser.add_argument_group("the camera"))
    options = parser.parse(arguments)
    check_settings(parser, options, {"label_map": "the frames have none"})
    return options
