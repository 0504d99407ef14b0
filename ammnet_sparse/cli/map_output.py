"""A room's map as output of a command: options, the check of the folder, completer, and files."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ammnet_sparse.cli.errors import UsageError, check_output_folder, with_options, writing_to
from ammnet_sparse.cli.options import choose_device, parse_positive_number
from ammnet_sparse.completion import SceneCompleter
from ammnet_sparse.evaluation.selection import check_inputs
from ammnet_sparse.files.errors import abbreviated
from ammnet_sparse.models.weights.shipped import Input2D, chosen_weights
from ammnet_sparse.pictures.occupancy import HEIGHTS
from ammnet_sparse.pictures.room_files import ROOM_FILES, foreign_room_files, write_room
from ammnet_sparse.progress import ProgressBar
from ammnet_sparse.scene_map.files import is_map
from ammnet_sparse.scene_map.scene_map import SceneMap

STATE = "state.npz"
"""Name of the file from which `ammnet map` continues a map."""
MIN_MOTION = 0.1
"""Meters that the camera moves from one frame of a map to the next, by default."""
ROOM_OPTIONS = ("map_heights", "map_resolution")
_FINEST, _COARSEST = 0.01, 1.0
"""Meters per pixel of map.pgm; a finer map of a large room would not fit into memory."""


def add_room_options(parser: argparse._ActionsContainer) -> None:
    """``--map-heights LOW HIGH`` and ``--map-resolution M``; None if not given."""
    low, high = HEIGHTS
    parser.add_argument(
        "--map-heights",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help=f"meters above the floor between which map.pgm counts a place as occupied (default: {low:g} {high:g})",
    )
    parser.add_argument(
        "--map-resolution",
        type=_parse_resolution,
        metavar="M",
        help=f"meters per pixel of map.pgm, {_FINEST:g} to {_COARSEST:g} (default: a voxel, 0.08)",
    )


def _parse_resolution(text: str) -> float:
    """Meters per pixel, as an argparse type."""
    resolution = parse_positive_number(text)
    if not _FINEST <= resolution <= _COARSEST:
        raise argparse.ArgumentTypeError(f"expected {_FINEST:g} to {_COARSEST:g} meters per pixel, found {text!r}")
    return resolution


def check_room_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Ends the process if the heights are not ascending numbers."""
    if options.map_heights is not None and not options.map_heights[0] < options.map_heights[1]:
        parser.error(f"--map-heights: expected a lower and a higher number, found {options.map_heights}")


def check_room_folder(folder: Path) -> None:
    """Raises UsageError, before any work is done, if the files of a map cannot be written into the folder.

    Also if they would replace anything but the files of an earlier map.
    """
    check_output_folder(folder)
    foreign, state = foreign_room_files(folder), folder / STATE
    if state.exists() and not is_map(state):
        foreign.append(state)
    if foreign:
        raise UsageError(
            f"--out {folder}: expected no files of these names but those of an earlier map, found "
            f"{abbreviated([path.name for path in foreign])} of another origin, which would be overwritten; choose "
            "another folder"
        )


def make_completer(
    options: argparse.Namespace, settings: Mapping[str, Any], *, has_color: bool, has_label_map: bool = False
) -> SceneCompleter:
    """A completer of the weights that the options name or the input needs; prints which, and what they leave unread.

    Args:
        settings: of the camera, by name.
        has_color: frames have color images.
        has_label_map: they have label maps.
    """
    given: Input2D = "label map" if has_label_map else "color image" if has_color else "depth alone"
    checkpoint, weights = chosen_weights(options.checkpoint, dataset="nyu", given=given)
    print(weights, file=sys.stderr)
    device = choose_device(options.device)
    completer = SceneCompleter(checkpoint, device=device, precision=options.precision, **settings)
    for note in check_inputs(completer.model.config, has_color=has_color, has_label_map=has_label_map):
        print(f"note: {with_options(note)}", file=sys.stderr)
    return completer


def finish_map(scene_map: SceneMap, *, title: str) -> None:
    """Completes again the frames of a map whose place later frames have moved, under a progress bar."""
    with ProgressBar(title=title, unit="frame", total=0) as bar:

        def advance(num_left: int) -> None:
            bar.total = max(bar.total or 0, num_left)
            bar.update(bar.total - num_left - bar.n)

        scene_map.finish(advance)


def write_map_files(options: argparse.Namespace, folder: Path, scene_map: SceneMap) -> None:
    """Writes a map into a folder as the options say, and prints how it was found."""
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        scene_map.save(folder / STATE)
        write_room(
            folder,
            scene_map.volume(),
            palette=options.palette,
            heights=HEIGHTS if options.map_heights is None else tuple(options.map_heights),
            resolution=options.map_resolution,
        )
    for line in scene_map.room.describe():
        print(f"  {with_options(line)}")
    count = scene_map.num_frames
    print(f"{folder}: {count} frame{'s' * (count != 1)} in the map ({', '.join((*ROOM_FILES, STATE))})", flush=True)
