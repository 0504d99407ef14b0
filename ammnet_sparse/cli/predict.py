"""Completes frames: of a set in the published layout, or of your own depth camera.

    ammnet predict [--checkpoint FILE] --out DIR --data DIR --ids 0003 0004
    ammnet predict [--checkpoint FILE] --out DIR --color c.jpg --depth d.png --intrinsics fx,fy,cx,cy

Without --checkpoint weights shipped with the package are used (docs/models.md), by what the frames have: nyu_seg2d_w64
for 2D label maps, nyu_rgb_w64 for colour images, nyu_depth_w64 for depth alone; it is said which.

Writes for each frame NAME.npz with `labels`, uint8 [60, 36, 60] in the order (X, height, Y), classes 0..11, and
NAME.png; with --ply NAME_points.ply and NAME_cubes.ply, with --page one page.html of all frames, which any browser
opens. Voxels observed to be free are empty, unless --everywhere asks for a prediction there.

Own frames: --color and --depth are two files, or two folders whose files match by name. The depth image is registered
to the colour image. Sizes other than 480x640 are scaled and padded. Without --pose the vertical and the floor are
found in the depth, and it is said how sure that is. docs/own_camera.md has more.

Exit code: 0 done, 1 some frames were skipped (each is named), 2 wrong usage (no such file or input), 130 interrupted.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

import ammnet_sparse
from ammnet_sparse.cli.errors import check_output_folder, command, writing_to
from ammnet_sparse.cli.options import (
    CommandParser,
    add_checkpoint_option,
    add_data_option,
    add_dataset_option,
    add_device_option,
    add_flips_option,
    add_out_option,
    add_sites_option,
    choose_device,
)
from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.camera.images import DEPTH_SCALE, parse_intrinsics
from ammnet_sparse.data.camera.own_frames import find_own_frames, read_own_frame
from ammnet_sparse.data.camera.placement import POSE_AXES
from ammnet_sparse.data.sets.files import DataError
from ammnet_sparse.data.sets.source import open_frames
from ammnet_sparse.evaluation.flips import labels_over_flips
from ammnet_sparse.evaluation.selection import check_grid, check_ids, check_label_map, open_set
from ammnet_sparse.models.ammnet import AMMNet
from ammnet_sparse.models.weights.shipped import Input2D, chosen_weights
from ammnet_sparse.pictures.outputs import CompletedFrame, write_picture, write_ply_files, write_volume
from ammnet_sparse.pictures.page import Scene, write_page

_PAGE = "page.html"
_OF_SETS, _OF_CAMERAS = ("data", "ids"), ("color", "depth", "intrinsics")
_CAMERA_EXTRAS = ("depth_scale", "pose", "pose_up", "camera_height", "label_map")


@command("predict")
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``ammnet predict``; returns its exit code."""
    options = _parse(arguments)
    skipped: list[str] = []
    check_output_folder(options.out)
    with writing_to(options.out):
        count = _predict(options, skipped)
    for message in skipped:
        print(f"skipped: {message}", file=sys.stderr)
    kinds = [".npz", ".png", *([".ply"] if options.ply else []), *([_PAGE] if options.page else [])]
    frames = f"{count} frame{'s' * (count != 1)} completed ({', '.join(kinds)})"
    print(f"{options.out}: {frames}" + (f", {len(skipped)} skipped" if skipped else ""))
    return 1 if skipped else 0


def _predict(options: argparse.Namespace, skipped: list[str]) -> int:
    """Completes and writes every frame and counts them; adds those of a folder that cannot be used to ``skipped``."""
    device = choose_device(options.device)
    given = None if options.checkpoint is not None else _given_input(options)
    checkpoint, weights = chosen_weights(options.checkpoint, dataset=options.dataset, given=given)
    sites = {} if options.sites is None else {"sites": options.sites}
    model = ammnet_sparse.load_model(checkpoint, device=device, **sites)
    print(weights, file=sys.stderr)
    completed_frames = (
        _set_frames(options, model, device) if options.data else _own_frames(options, model, device, skipped)
    )
    scenes: list[Scene] = []
    count = 0
    for completed in completed_frames:
        write_volume(options.out, completed)
        write_picture(options.out, completed)
        if options.ply:
            write_ply_files(options.out, completed)
        if options.page:
            scenes.append(completed.to_scene())
        count += 1
    if scenes:
        write_page(options.out / _PAGE, scenes, title="Completed scenes")
    return count


def _given_input(options: argparse.Namespace) -> Input2D:
    """What the frames have beside depth, which the default weights follow."""
    if not options.data:
        return "color image" if options.label_map is None else "label map"
    frames = open_frames(options.data, dataset=options.dataset)
    if frames.reads_label_map:
        return "label map"
    return "color image" if frames.reads_image else "depth alone"


def _set_frames(options: argparse.Namespace, model: AMMNet, device: torch.device) -> Iterator[CompletedFrame]:
    folder = open_set(options.data, dataset=options.dataset, config=model.config, for_pictures=True)
    check_ids(folder, options.ids)
    options.out.mkdir(parents=True, exist_ok=True)
    for frame_id in tqdm(options.ids, desc="predicting", unit="frame", file=sys.stderr, leave=False, disable=None):
        frame = folder.read(frame_id)
        yield CompletedFrame.of_set(frame, _labels(model, Batch.from_frame(frame).to(device), options))


def _own_frames(
    options: argparse.Namespace, model: AMMNet, device: torch.device, skipped: list[str]
) -> Iterator[CompletedFrame]:
    check_grid(model.config)
    check_label_map(model.config, has_label_map=options.label_map is not None)
    camera = parse_intrinsics(options.intrinsics)
    found, lonely = find_own_frames(options.color, options.depth, pose=options.pose, label_map=options.label_map)
    skipped += [f"{path}: has no partner of that name" for path in lonely]
    options.out.mkdir(parents=True, exist_ok=True)
    for paths in tqdm(found, desc="predicting", unit="frame", file=sys.stderr, leave=False, disable=None):
        try:
            own = read_own_frame(
                paths,
                camera=camera,
                depth_scale=DEPTH_SCALE if options.depth_scale is None else options.depth_scale,
                pose_up=options.pose_up,
                camera_height=options.camera_height,
                tsdf_is_flipped=options.dataset == "nyucad",
            )
        except DataError as error:
            if len(found) == 1:
                raise
            skipped.append(f"frame {paths.name}: {error}")
            continue
        tqdm.write("\n  ".join([f"{paths.name}:", *own.describe()]))
        yield CompletedFrame.of_camera(own, _labels(model, Batch.from_frame(own.frame).to(device), options))


def _labels(model: AMMNet, batch: Batch, options: argparse.Namespace) -> NDArray[np.uint8]:
    voxels: Literal["all", "not_free"] = "all" if options.everywhere else "not_free"
    with torch.inference_mode():
        if options.flips is None:
            found = model(batch, voxels=voxels).labels
        else:
            found = labels_over_flips(
                lambda turned: model(turned, voxels=voxels).probabilities, batch, count=options.flips
            )
    labels: NDArray[np.uint8] = found[0].cpu().numpy()
    return labels


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser("predict", __doc__)
    add_checkpoint_option(parser, default="by what the frames have, see below")
    add_out_option(parser, "folder to write to, made if missing", metavar="DIR", required=True)
    add_dataset_option(parser, note="; for own frames: what the checkpoint was trained on, as NYUCAD's TSDF is flipped")
    add_sites_option(parser)
    add_device_option(parser)
    parser.add_argument("--everywhere", action="store_true", help="predict in space observed to be free, too")
    add_flips_option(parser)
    parser.add_argument("--ply", action="store_true", help="write PLY files, as points and as cubes")
    parser.add_argument("--page", action="store_true", help=f"write {_PAGE}, to turn the scenes in a browser")
    group = parser.add_argument_group("frames of a set")
    add_data_option(group)
    group.add_argument("--ids", nargs="+", metavar="ID", help="frames, such as 0003")
    _add_camera_options(parser.add_argument_group("frames of your own camera"))
    options = parser.parse(arguments)
    _check_source(parser, options)
    return options


def _add_camera_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--color", type=Path, metavar="PATH", help="colour image, or a folder of them")
    group.add_argument("--depth", type=Path, metavar="PATH", help="depth image of 16 bits, or a folder of them")
    group.add_argument(
        "--intrinsics", metavar="NUMBERS", help="fx,fy,cx,cy in pixels, or a text file with them or a 3x3 matrix"
    )
    group.add_argument(
        "--depth-scale", type=float, default=None, metavar="N", help="depth units a metre (default: 1000, millimetres)"
    )
    group.add_argument(
        "--pose", type=Path, metavar="PATH", help="text file with the 4x4 camera-to-world matrix, or a folder of them"
    )
    group.add_argument(
        "--pose-up", choices=POSE_AXES, help="axis of the pose's world that is up, as --pose-up=-y (default: found out)"
    )
    group.add_argument(
        "--camera-height", type=float, metavar="M", help="metres above the floor (default: the floor is looked for)"
    )
    group.add_argument(
        "--label-map", type=Path, metavar="PATH", help="2D label map 0..13, or a folder of them, for Seg2D checkpoints"
    )


def _check_source(parser: CommandParser, options: argparse.Namespace) -> None:
    """Either a set or a camera, with all that it needs."""

    def given(names: Sequence[str]) -> list[str]:
        return ["--" + name.replace("_", "-") for name in names if getattr(options, name) is not None]

    from_set, from_camera = given(_OF_SETS), given((*_OF_CAMERAS, *_CAMERA_EXTRAS))
    if from_set and from_camera:
        parser.error(f"expected frames of a set or of a camera, found {from_set[0]} and {from_camera[0]}")
    needed = _OF_CAMERAS if from_camera else _OF_SETS
    lacking = [f"--{name}" for name in needed if getattr(options, name) is None]
    if lacking:
        what = "frames of a camera" if from_camera else "frames of a set (own frames: --color, --depth, --intrinsics)"
        parser.error(f"the following arguments are required: {', '.join(lacking)}, for {what}")
    if options.pose_up is not None and options.pose is None:
        parser.error("--pose-up: says which way is up in the world of --pose, and there is no --pose")
    if options.camera_height is not None and not 0 < options.camera_height < 100:
        parser.error(f"--camera-height: expected metres above 0, found {options.camera_height}")
