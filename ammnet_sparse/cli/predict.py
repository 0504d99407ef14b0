"""Completes frames: of a set in the published layout, or of your own depth camera.

    ammnet predict [--checkpoint FILE] --out DIR --data DIR --ids 0003 0004
    ammnet predict [--checkpoint FILE] --out DIR --color c.jpg --depth d.png --intrinsics fx,fy,cx,cy
    ammnet predict [--checkpoint FILE] --out DIR --depth d.png --intrinsics fx,fy,cx,cy

Without --checkpoint weights shipped with the package are used (docs/models.md), depending on the input: nyu_seg2d_w64
for 2D label maps, nyu_rgb_w64 for color images, nyu_depth_w64 for depth alone; a message says which.

Writes for each frame NAME.npz with `labels`, uint8 [60, 36, 60] in the order (X, height, Y), classes 0..11, and
NAME.png; with --ply NAME_points.ply and NAME_cubes.ply, with --page one page.html of all frames, which any browser
opens. Voxels observed to be free are empty, unless --everywhere asks for a prediction there.

Own frames: --color and --depth are two files, or two folders whose files match by name, number or time stamp. The depth
image is registered to the color image. Sizes other than 480x640 are scaled and padded. Without --pose the vertical and
the floor are found in the depth, with a confidence. docs/own_camera.md has more.

Exit code: 0 done, 1 some frames were skipped or are almost outside the grid (each is named), 2 wrong usage or no frame
that can be used, 130 interrupted.
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ammnet_sparse.camera.files.frame_files import find_frames
from ammnet_sparse.camera.frames import LITTLE, read_frame
from ammnet_sparse.camera.settings import FileKind
from ammnet_sparse.cli.camera_options import (
    CAMERA_EXTRAS,
    CAMERA_FILES,
    add_camera_options,
    camera_settings,
    check_settings,
    given_options,
)
from ammnet_sparse.cli.errors import (
    FAILED,
    WRONG_USAGE,
    UsageError,
    check_keeps_inputs,
    check_output_folder,
    command,
    with_options,
    writing_to,
)
from ammnet_sparse.cli.options import (
    CommandParser,
    add_checkpoint_option,
    add_data_option,
    add_dataset_option,
    add_device_option,
    add_flips_option,
    add_out_option,
    add_palette_option,
    add_precision_option,
    add_sites_option,
    choose_device,
)
from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.grid import UNMAPPED
from ammnet_sparse.data.sets.ids import parse_frame_id
from ammnet_sparse.data.sets.source import open_frames, open_set
from ammnet_sparse.evaluation.flips import predicted_labels
from ammnet_sparse.evaluation.selection import check_grid, check_ids, check_inputs
from ammnet_sparse.files.errors import DataError, abbreviated
from ammnet_sparse.models.ammnet import AMMNet
from ammnet_sparse.models.ensemble import Ensemble, load_networks
from ammnet_sparse.models.weights.files import set_info_in
from ammnet_sparse.models.weights.shipped import Input2D, chosen_weights
from ammnet_sparse.pictures.outputs import CompletedScene, check_names, foreign_output, output_paths
from ammnet_sparse.pictures.page import Scene, is_page, write_page
from ammnet_sparse.progress import ProgressBar

_PAGE, _TITLE = "page.html", "Completed scenes"
_OF_SETS = ("data", "ids")


@command("predict")
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``ammnet predict``; returns its exit code."""
    options = _parse(arguments)
    skipped: list[str] = []
    outside: list[str] = []
    check_output_folder(options.out)
    with writing_to(options.out):
        count = _predict(options, skipped, outside)
    for message in skipped:
        print(f"skipped: {with_options(message)}", file=sys.stderr)
    for message in outside:
        print(f"mostly outside the grid: {message}", file=sys.stderr)
    kinds = [".npz", ".png", *([".ply"] if options.ply else []), *([_PAGE] if options.page else [])]
    frames = f"{count} frame{'s' * (count != 1)} completed ({', '.join(kinds)})"
    of_these = f", {len(outside)} of them with less than {LITTLE:.0%} of the depth in the grid" if outside else ""
    print(f"{options.out}: {frames}{of_these}" + (f", {len(skipped)} skipped" if skipped else ""))
    if not count:
        return WRONG_USAGE
    return FAILED if skipped or outside else 0


def _predict(options: argparse.Namespace, skipped: list[str], outside: list[str]) -> int:
    """Completes and writes every frame and counts them.

    Frames of a folder that cannot be used are added to ``skipped``, those almost outside the grid to
    ``outside``.
    """
    device = choose_device(options.device)
    given = None if options.checkpoint is not None else _given_input(options)
    chosen = [chosen_weights(name, dataset=options.dataset, given=given) for name in options.checkpoint or [None]]
    model = load_networks([path for path, _ in chosen], device=device, sites=options.sites, precision=options.precision)
    for _, weights in chosen:
        print(weights, file=sys.stderr)
    completed_frames = (
        _set_frames(options, model, device, skipped)
        if options.data
        else _own_frames(options, model, device, skipped, outside)
    )
    scenes: list[Scene] = []
    count = 0
    try:
        for scene in completed_frames:
            completed = scene.painted(options.palette)
            completed.write_volume(options.out)
            completed.write_picture(options.out)
            if options.ply:
                completed.write_ply(options.out)
            if options.page:
                scenes.append(completed.to_scene())
            count += 1
    finally:  # an interrupted run still writes the page of its completed frames
        if scenes:
            write_page(options.out / _PAGE, scenes, title=_TITLE)
    return count


def _given_input(options: argparse.Namespace) -> Input2D:
    """What the frames have beside depth; decides which weights are the default."""
    if not options.data:
        if options.label_map is not None:
            return "label map"
        return "depth alone" if options.color is None else "color image"
    frames = open_frames(options.data, dataset=options.dataset)
    if frames.reads_label_map:
        return "label map"
    return "color image" if frames.reads_image else "depth alone"


def _set_frames(
    options: argparse.Namespace, model: AMMNet | Ensemble, device: torch.device, skipped: list[str]
) -> Iterator[CompletedScene]:
    source = open_set(options.data, dataset=options.dataset, config=model.config, for_pictures=True)
    check_ids(source, options.ids)
    ids = [parse_frame_id(frame_id, source="--ids") for frame_id in options.ids]  # as the outputs are named
    if len(set(ids)) < len(ids):
        raise UsageError(f"--ids: expected each frame once, found {' '.join(options.ids)}")
    _check_replaced(options, ids, inputs=[path for frame_id in ids for path in source.files(frame_id)])
    options.out.mkdir(parents=True, exist_ok=True)
    for frame_id in ProgressBar(options.ids, title="predicting", unit="frame"):
        try:
            frame = source.read(frame_id)
            if (frame.mapping == UNMAPPED).all():
                raise DataError(
                    f"{source.root}: expected voxels that a pixel hits, found none: nothing to predict from"
                )
        except (DataError, OSError) as error:
            if len(options.ids) == 1:
                raise
            skipped.append(f"frame {frame_id}: {error}")
            continue
        yield CompletedScene(frame, _labels(model, Batch.from_frame(frame).to(device), options))


def _own_frames(
    options: argparse.Namespace, model: AMMNet | Ensemble, device: torch.device, skipped: list[str], outside: list[str]
) -> Iterator[CompletedScene]:
    info = set_info_in(getattr(model, "metadata", {}), model.config)
    check_grid(model.config, info)
    has_color, has_label_map = options.color is not None, options.label_map is not None
    for note in check_inputs(model.config, has_color=has_color, has_label_map=has_label_map):
        print(f"note: {with_options(note)}", file=sys.stderr)
    settings = camera_settings(options, getattr(model, "metadata", {}))
    found, unmatched = find_frames(options.color, options.depth, pose=options.pose, label_map=options.label_map)
    skipped += unmatched
    inputs = [path for paths in found for path in paths.files]
    inputs += [Path(text) for text in (options.intrinsics, options.color_intrinsics) if text is not None]
    _check_replaced(options, [paths.name for paths in found], inputs=inputs)
    options.out.mkdir(parents=True, exist_ok=True)
    for paths in ProgressBar(found, title="predicting", unit="frame"):
        try:
            check_names(options.out, paths.name, has_ply=options.ply)
            frame = dataclasses.replace(read_frame(paths, settings), info=info)
        except DataError as error:
            if len(found) == 1:
                raise
            skipped.append(f"frame {paths.name}: {error}")
            continue
        ProgressBar.write(f"{paths.name}:\n  " + with_options("\n  ".join(frame.describe())))
        if frame.coverage.share < LITTLE:
            outside.append(f"frame {paths.name}: {frame.coverage.share:.1%} of its depth is inside the grid")
        yield CompletedScene(frame, _labels(model, Batch.from_frame(frame).to(device), options))


def _check_replaced(options: argparse.Namespace, names: Sequence[str], *, inputs: Sequence[Path]) -> None:
    """Raises UsageError, before anything is written, if the outputs would replace anything but earlier predictions.

    Such as the dense 2D truth of a set, which has the same names and is no input.
    """
    folder, page = options.out, options.out / _PAGE
    check_keeps_inputs([page, *(path for name in names for path in output_paths(folder, name))], inputs)
    foreign = [path for name in names if (path := foreign_output(folder, name)) is not None]
    if options.page and page.exists() and not is_page(page, title=_TITLE):
        foreign.append(page)
    if foreign:
        raise UsageError(
            f"--out {folder}: expected no files of these names but those of earlier predictions, found "
            f"{abbreviated([path.name for path in foreign])} of another origin, which would be overwritten; choose "
            "another folder"
        )


def _labels(model: AMMNet | Ensemble, batch: Batch, options: argparse.Namespace) -> NDArray[np.uint8]:
    voxels: Literal["all", "not_free"] = "all" if options.everywhere else "not_free"
    with torch.inference_mode():
        found = predicted_labels(model, batch, voxels=voxels, flips=options.flips)
    labels: NDArray[np.uint8] = found[0].cpu().numpy()
    return labels


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser("predict", __doc__)
    add_checkpoint_option(parser, default="depends on the input, see below", is_repeated=True)
    add_out_option(parser, "folder to write to, made if missing", metavar="DIR", required=True)
    add_dataset_option(parser, note="; for own frames: of the checkpoint's training set, as NYUCAD's TSDF is flipped")
    add_sites_option(parser)
    add_device_option(parser)
    add_precision_option(parser, default="auto")
    parser.add_argument("--everywhere", action="store_true", help="also predict voxels observed to be free")
    add_flips_option(parser)
    parser.add_argument("--ply", action="store_true", help="write PLY files, as points and as cubes")
    parser.add_argument("--page", action="store_true", help=f"write {_PAGE}, to view the scenes in a browser")
    add_palette_option(parser)
    group = parser.add_argument_group("frames of a set")
    add_data_option(group)
    group.add_argument("--ids", nargs="+", metavar="ID", help="frames, such as 0003")
    add_camera_options(parser.add_argument_group("frames of your own camera"))
    options = parser.parse(arguments)
    _check_source(parser, options)
    return options


def _check_source(parser: CommandParser, options: argparse.Namespace) -> None:
    """Checks that either a set or a camera is given, with everything that it needs."""
    from_set = given_options(options, _OF_SETS)
    from_camera = given_options(options, (*CAMERA_FILES, *CAMERA_EXTRAS))
    if from_set and from_camera:
        parser.error(f"expected frames of a set or of a camera, found {from_set[0]} and {from_camera[0]}")
    needed = CAMERA_FILES if from_camera else _OF_SETS
    lacking = [f"--{name}" for name in needed if getattr(options, name) is None]
    if lacking:
        what = "frames of a camera" if from_camera else "frames of a set (own frames: --color, --depth, --intrinsics)"
        parser.error(f"the following arguments are required: {', '.join(lacking)}, for {what}")
    if options.unobserved is not None and options.dataset != "nyucad":
        parser.error("--unobserved: has an effect with --dataset nyucad only; omit it")
    kinds: tuple[FileKind, ...] = ("color", "label_map", "pose")
    check_settings(
        parser,
        options,
        {kind: f"there is no --{kind.replace('_', '-')}" for kind in kinds if getattr(options, kind) is None},
    )
