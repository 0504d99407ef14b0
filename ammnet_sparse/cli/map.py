"""Completes the frames of a moving camera and fuses them into one map of the room.

    ammnet map --source SEQUENCE --out room
    ammnet map --source NEXT --out room --continue
    ammnet map --source FOLDER --out room --intrinsics fx,fy,cx,cy --odometry

SEQUENCE is a folder or file in the layout of 7-Scenes, TUM, ScanNet's export, Replica or Record3D (.r3d), or a folder
of color and depth images with a trajectory or poses; docs/maps.md lists the files of each. Intrinsics and depth scale
come from the sequence, where it has them.

First vertical, floor and walls of the room are found in the depth of all frames taken, then each frame is completed in
that room. Writes room.npz (probabilities), room.ply, room.glb, page.html, map.pgm with map.yaml for robots, and
state.npz, from which --continue goes on, with frames of the same world that are not in the map yet. An interrupted run
writes the map of the frames completed so far.

--odometry finds the poses in the images (pip install ammnet-sparse[odometry]). Where it loses track a new part begins,
with a map of its own in DIR-2, DIR-3 and so on; parts of one or two frames are left out.

Exit code: 0 done, 1 some frames were skipped (each is named), 2 wrong usage or no frame that can be used, 130
interrupted.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ammnet_sparse.camera.files.intrinsics import read_intrinsics
from ammnet_sparse.camera.files.sequences.layouts import open_sequence
from ammnet_sparse.camera.files.sequences.sequence import MIN_TURN, PosedFrame, PosedSequence
from ammnet_sparse.camera.odometry import Odometry
from ammnet_sparse.cli.camera_options import add_settings_options, check_settings, given_settings
from ammnet_sparse.cli.errors import FAILED, WRONG_USAGE, UsageError, command, with_options
from ammnet_sparse.cli.map_output import (
    MIN_MOTION,
    STATE,
    add_room_options,
    check_room_folder,
    check_room_options,
    finish_map,
    make_completer,
    write_map_files,
)
from ammnet_sparse.cli.options import (
    CommandParser,
    add_checkpoint_option,
    add_device_option,
    add_out_option,
    add_palette_option,
    add_precision_option,
    parse_positive,
    parse_positive_number,
)
from ammnet_sparse.completion import SceneCompleter
from ammnet_sparse.files.errors import DataError
from ammnet_sparse.progress import ProgressBar
from ammnet_sparse.scene_map.files import is_map
from ammnet_sparse.scene_map.room import GivenPose
from ammnet_sparse.scene_map.scene_map import SceneMap

_FEWEST = 3
"""Frames of a part between two losses of tracking; a shorter one makes no map."""
_SAME_PLACE = 0.001
"""Meters between the poses of a frame that is in the map already."""
_MOST_LINES = 20
"""Problems of a sequence that are printed; there may be thousands."""


@command("map")
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``ammnet map``; returns its exit code."""
    options = _parse(arguments)
    state = options.out / STATE
    if options.is_continued and not is_map(state):
        found = "no map, or a damaged one; choose another --out and" if state.exists() else "none;"
        raise UsageError(f"--continue: expected {state} of an earlier run, found {found} omit --continue")
    check_room_folder(options.out)
    sequence = _opened(options)
    for note in sequence.notes:
        print(f"note: {note}", file=sys.stderr)
    skipped: list[str] = []
    for problem in sequence.problems:
        _skip(problem, skipped)
    settings = sequence.camera_settings(given_settings(options))
    completer = make_completer(options, settings, has_color=sequence.has_color)
    parts = _parts(options, sequence, completer, skipped)
    name = options.out.name
    folders = [options.out, *(options.out.with_name(f"{name}-{number}") for number in range(2, len(parts) + 1))]
    for folder in folders[1:]:
        check_room_folder(folder)
    num_maps = 0
    for folder, frames in zip(folders, parts, strict=False):  # there may be no part
        num_maps += _map(options, completer, frames, folder=folder, every=sequence.frames, skipped=skipped)
    if len(skipped) > _MOST_LINES:
        print(f"skipped: {len(skipped) - _MOST_LINES} more", file=sys.stderr)
    if not num_maps:
        return WRONG_USAGE
    return FAILED if skipped else 0


def _skip(problem: str, skipped: list[str]) -> None:
    """Adds what is left out, and prints a line about it until there are too many."""
    skipped.append(problem)
    if len(skipped) <= _MOST_LINES:
        ProgressBar.write(f"skipped: {with_options(problem)}", file=sys.stderr)


def _opened(options: argparse.Namespace) -> PosedSequence:
    """The sequence, its frames named after it: so the frames of several sequences in one map have different names."""
    intrinsics = None if options.intrinsics is None else read_intrinsics(options.intrinsics)
    sequence = open_sequence(options.source, intrinsics=intrinsics, reads_poses=not options.odometry)
    if not sequence.has_poses and not options.odometry:
        raise DataError(
            f"{options.source}: expected poses of the frames ({sequence.layout}), found none; give `odometry` to find "
            "them in the images"
        )
    name = options.source.resolve().name
    frames = [dataclasses.replace(frame, name=f"{name}/{frame.name}") for frame in sequence.frames]
    return dataclasses.replace(sequence, frames=tuple(frames))


def _parts(
    options: argparse.Namespace, sequence: PosedSequence, completer: SceneCompleter, skipped: list[str]
) -> list[list[PosedFrame]]:
    """The frames taken, by the part of the sequence within which their poses are known."""
    parts = [list(sequence.frames)]
    if options.odometry:
        parts = _tracked(sequence, Odometry(completer.settings), skipped)
    min_motion = options.min_motion
    if min_motion is None and options.every is None:
        min_motion = MIN_MOTION
    taken = [
        dataclasses.replace(sequence, frames=tuple(part)).taken(every=options.every or 1, min_motion=min_motion)
        for part in parts
    ]
    count, said = len(sequence.frames), "" if len(taken) == 1 else f", in {len(taken)} parts"
    print(f"{options.source} ({sequence.layout}): {sum(map(len, taken))} of {count} frames are taken{said}", flush=True)
    return taken


def _tracked(sequence: PosedSequence, odometry: Odometry, skipped: list[str]) -> list[list[PosedFrame]]:
    """The frames with poses found in the images; a new list begins where tracking is lost."""
    parts: list[list[PosedFrame]] = []
    for frame in ProgressBar(sequence.frames, title="finding the poses", unit="frame"):
        try:
            pose, begins = odometry.add(frame.read())
        except DataError as error:
            _skip(str(error), skipped)
            continue
        if begins:
            parts.append([])
        if begins and len(parts) > 1:
            ProgressBar.write(f"frame {frame.name}: tracking is lost; a new part begins", file=sys.stderr)
        parts[-1].append(dataclasses.replace(frame, pose=pose, pose_convention="opencv"))
    for part in parts:
        if len(part) < _FEWEST:
            names = " to ".join(dict.fromkeys(frame.name for frame in (part[0], part[-1])))
            _skip(f"frame {names}: expected a part of {_FEWEST} tracked frames or more, found {len(part)}", skipped)
    return [part for part in parts if len(part) >= _FEWEST]


def _map(
    options: argparse.Namespace,
    completer: SceneCompleter,
    frames: list[PosedFrame],
    *,
    folder: Path,
    every: Sequence[PosedFrame],
    skipped: list[str],
) -> bool:
    """Makes or continues the map in a folder, and writes it. Returns whether there is a frame in it.

    Args:
        frames: to add.
        every: all of the sequence, some of which may be in the map already and are read again if the room moves.
    """
    scene_map = SceneMap(completer)
    if options.is_continued:
        scene_map = SceneMap.load(folder / STATE, completer, frames={frame.name: frame.read for frame in every})
    present = scene_map.given_poses
    _check_same(every, present, folder=folder)
    frames = [frame for frame in frames if frame.name not in present]
    if present:
        print(f"{folder}: {len(present)} frames are in the map, {len(frames)} are new", flush=True)
    try:
        frames = _each(frames, lambda frame: scene_map.look_at(frame.read()), skipped, title="finding the room")
        frames = _each(frames, lambda frame: scene_map.add_frame(frame.read), skipped, title="completing")
        finish_map(scene_map, title="completing again")
    finally:  # an interrupted run writes the map of its completed frames
        if scene_map.num_frames:
            write_map_files(options, folder, scene_map)
    for note in scene_map.notes:
        _skip(note, skipped)
    return scene_map.num_frames > 0


def _check_same(frames: Sequence[PosedFrame], present: Mapping[str, GivenPose], *, folder: Path) -> None:
    """Raises UsageError for a frame of another sequence whose folder has the same name, by the place of its camera."""
    for frame in frames:
        if frame.pose is None or frame.name not in present:
            continue
        meters = float(np.linalg.norm((frame.pose - present[frame.name].matrix)[:3, 3]))
        if meters > _SAME_PLACE:
            raise UsageError(
                f"--continue: {folder} has a frame {frame.name} whose camera is {meters:.3f} m from that of --source; "
                "rename the folder of a sequence that is another one; make a new map of one with new poses"
            )


def _each(
    frames: Sequence[PosedFrame], call: Callable[[PosedFrame], object], skipped: list[str], *, title: str
) -> list[PosedFrame]:
    """Calls a function with every frame; the frames for which it raised no DataError."""
    done = []
    for frame in ProgressBar(frames, title=title, unit="frame"):
        try:
            call(frame)
        except DataError as error:
            said = str(error).removeprefix(f"frame {frame.name.rpartition('/')[2]}: ")
            _skip(said if frame.name in said else f"frame {frame.name}: {said}", skipped)
            continue
        done.append(frame)
    return done


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser("map", __doc__)
    parser.add_argument("--source", type=Path, required=True, metavar="SEQUENCE", help="folder, or file .r3d")
    add_out_option(parser, "folder to write to, made if missing", metavar="DIR", required=True)
    add_checkpoint_option(parser, default="shipped weights for the input")
    parser.add_argument("--every", type=parse_positive, metavar="N", help="take every Nth frame")
    parser.add_argument(
        "--min-motion",
        type=parse_positive_number,
        metavar="M",
        help=f"take a frame once the camera has moved M meters or turned {MIN_TURN:g} degrees since the last one taken "
        f"(default: {MIN_MOTION}; with --every none)",
    )
    parser.add_argument("--odometry", action="store_true", help="find the poses in the images, whether given or not")
    parser.add_argument(
        "--continue", action="store_true", dest="is_continued", help=f"add frames to the map in DIR, by its {STATE}"
    )
    add_settings_options(parser.add_argument_group("camera"))
    add_palette_option(parser)
    add_room_options(parser)
    add_device_option(parser)
    add_precision_option(parser, default="auto")
    options = parser.parse(arguments)
    if options.is_continued and options.odometry:
        parser.error("--continue: needs poses in the world of the map; --odometry finds them in a world of its own")
    check_room_options(parser, options)
    check_settings(parser, options, {"label_map": "sequences have none"})
    return options
