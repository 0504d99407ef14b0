"""Completes frames as they arrive and shows the newest in 3D in the browser.

    ammnet live --source FOLDER --intrinsics fx,fy,cx,cy
    ammnet live --source realsense
    ammnet live --source recording.bag --no-viewer --out completed
    ammnet live --source FOLDER --intrinsics fx,fy,cx,cy --map --out room

FOLDER is watched: color and depth images that are written into it, side by side or into subfolders color (rgb) and
depth, are matched by name as for `ammnet predict`. A frame that arrives while another is being completed replaces the
one that waits. A frame that cannot be used is named and skipped. Vertical, floor and room are kept from frame to frame.

With --map the frames have poses (in the folder, or in a subfolder pose) and are fused into one map of the room. The
page shows the room as it grows, the path of the camera and the newest image; a switch shows the newest frame alone.
Frames without a pose are named and skipped. At the end --out receives the files of the map, as of `ammnet map`.

The page is served to this machine alone (--host). Ctrl-C and SIGTERM end, with a summary; --frames and --idle end by
themselves.

Exit code: 0 done, 1 no frame was completed, 2 wrong usage or no such source, 130 interrupted.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ammnet_sparse.camera.files.intrinsics import read_intrinsics
from ammnet_sparse.camera.files.sequences.sequence import MIN_TURN
from ammnet_sparse.camera.files.stored import StoredImages
from ammnet_sparse.camera.settings import FileKind
from ammnet_sparse.cli.camera_options import add_settings_options, check_settings, given_options, given_settings
from ammnet_sparse.cli.errors import CommandFailed, UsageError, check_output_folder, command, with_options, writing_to
from ammnet_sparse.cli.map_output import (
    MIN_MOTION,
    ROOM_OPTIONS,
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
from ammnet_sparse.live.folder import FolderSource
from ammnet_sparse.live.mapping import LiveMap
from ammnet_sparse.live.newest import Newest, one_ahead
from ammnet_sparse.live.realsense import RealSenseSource
from ammnet_sparse.live.viewer import LAST_PORT, LOCAL_HOST, LiveViewer
from ammnet_sparse.pictures.outputs import CompletedScene, check_names
from ammnet_sparse.pictures.palettes import painted

Source = FolderSource | RealSenseSource

_REALSENSE = "realsense"
_SMOOTHING = 0.3
"""Weight of the newest interval in the frames per second that are shown."""


@command("live")
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``ammnet live``; returns its exit code."""
    options = _parse(arguments)
    if options.out is not None:
        (check_room_folder if options.map else check_output_folder)(options.out)
    source = _source(options)
    if options.out is not None and isinstance(source, FolderSource) and source.reads_from(options.out):
        raise UsageError(f"--out {options.out}: expected another folder than those of --source, found one of them")
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    settings = given_settings(options) | {"intrinsics": source.intrinsics}
    settings["depth_scale"] = settings["depth_scale"] or source.depth_scale
    completer = make_completer(options, settings, has_color=not options.depth_only, has_label_map=options.label_maps)
    live_map = None
    if options.map:
        min_motion = MIN_MOTION if options.min_motion is None else options.min_motion
        live_map = LiveMap(completer, min_motion=min_motion, palette=options.palette)
    viewer = None
    if not options.no_viewer:
        info = painted(completer.info, options.palette)
        viewer = LiveViewer(host=options.host, port=options.port, info=info, has_room=options.map)
        print(f"Open {viewer.address} in a browser; Ctrl-C ends", flush=True)
    counts = _Counts()
    try:
        print(f"Ready in {time.monotonic() - started:.1f} s, waiting for frames of {options.source}", flush=True)
        _complete(live_map or completer, source, viewer, options, counts)
    finally:  # interrupted, too
        if viewer is not None:
            viewer.stop()
        print(counts.describe(), flush=True)
        if live_map is not None and live_map.map.num_frames and options.out is not None:
            try:
                finish_map(live_map.map, title="completing again, as the room has moved (Ctrl-C skips)")
            except KeyboardInterrupt:
                pass
            finally:
                write_map_files(options, options.out, live_map.map)
    if not counts.completed:
        raise CommandFailed(f"{options.source}: no frame was completed")
    return 0


def _complete(
    completer: SceneCompleter | LiveMap,
    source: Source,
    viewer: LiveViewer | None,
    options: argparse.Namespace,
    counts: "_Counts",
) -> None:
    """Completes the frames of the source until it ends, and counts them."""
    rate, last = None, None
    with Newest(source.frames(), stop=source.stop) as newest:
        counts.of_source = lambda: (source.skipped, newest.replaced + source.passed_over)
        prepare: Callable[[StoredImages], Any] = completer.frame_of
        complete: Callable[[Any], CompletedScene] = completer.complete_frame
        for stored, ready in one_ahead(newest, prepare):
            try:
                if options.out is not None:
                    check_names(options.out, stored.name, has_ply=options.ply)
                scene = complete(ready.result()).painted(options.palette)
            except DataError as error:
                counts.skipped += 1
                print(f"skipped: frame {stored.name}: {with_options(str(error))}", file=sys.stderr, flush=True)
                continue
            now = time.monotonic()
            if last is not None:
                current = 1 / max(now - last, 1e-6)
                rate = current if rate is None else (1 - _SMOOTHING) * rate + _SMOOTHING * current
            last = now
            if viewer is not None:
                viewer.show(scene, rate=rate, room=completer.scene if isinstance(completer, LiveMap) else None)
            if options.out is not None:
                with writing_to(options.out):
                    scene.write_volume(options.out)
                    if options.ply:
                        scene.write_ply(options.out)
            counts.completed += 1
            print(_line(scene, rate), flush=True)
            if counts.completed == options.frames:
                break


@dataclasses.dataclass
class _Counts:
    """Completed and skipped frames, and the source's own counts: skipped, and left out for newer ones."""

    completed: int = 0
    skipped: int = 0
    of_source: Callable[[], tuple[int, int]] = lambda: (0, 0)

    def describe(self) -> str:
        skipped, replaced = self.of_source()
        skipped += self.skipped
        left_out = f", {replaced} left out for newer ones" if replaced else ""
        frames = f"{self.completed} frame{'s' * (self.completed != 1)} completed"
        return f"{frames}{left_out}" + (f", {skipped} skipped" if skipped else "")


def _source(options: argparse.Namespace) -> Source:
    """The source that ``--source`` names."""
    path = Path(options.source)
    if _is_realsense(options):
        return RealSenseSource(None if options.source == _REALSENSE else path)
    if options.intrinsics is None:
        raise DataError(f"--source {path}: expected --intrinsics of the camera whose frames lie there, found none")
    return FolderSource(
        path,
        intrinsics=read_intrinsics(options.intrinsics),
        has_color=not options.depth_only,
        has_label_map=options.label_maps,
        needs_pose=options.map,
        report=lambda line: print(f"skipped: {with_options(line)}", file=sys.stderr, flush=True),
        ends_when_idle=options.idle,
    )


def _line(scene: CompletedScene, rate: float | None) -> str:
    stages = ", ".join(f"{name} {1000 * seconds:.0f}" for name, seconds in scene.seconds.items())
    share = f"{scene.own.coverage.share:.0%} of the depth in the grid"
    return f"{scene.name}: {share}; ms: {stages}" + ("" if rate is None else f"; {rate:.1f} frames per second")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser("live", __doc__)
    parser.add_argument(
        "--source",
        required=True,
        metavar="FOLDER|realsense|FILE.bag",
        help="folder that frames are written to, a connected RealSense camera, or its recording",
    )
    add_checkpoint_option(parser, default="shipped weights for the input")
    add_settings_options(parser.add_argument_group("camera"))
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--depth-only", action="store_true", help="a folder of depth images alone")
    kinds.add_argument("--label-maps", action="store_true", help="the folder has 2D label maps too")
    add_out_option(parser, "folder for NAME.npz of every completed frame", metavar="DIR")
    parser.add_argument("--ply", action="store_true", help="with --out: PLY files too")
    add_palette_option(parser)
    group = parser.add_argument_group("map of the room")
    group.add_argument("--map", action="store_true", help="fuse the frames, which have poses, into one map of the room")
    group.add_argument(
        "--min-motion",
        type=parse_positive_number,
        metavar="M",
        help=f"add a frame to the map if the camera has moved by M meters or turned by {MIN_TURN:g} degrees since the "
        f"last one (default: {MIN_MOTION:g})",
    )
    add_room_options(group)
    parser.add_argument("--no-viewer", action="store_true", help="serve no page")
    parser.add_argument("--host", default=LOCAL_HOST, help="address that the page is served at (default: %(default)s)")
    parser.add_argument("--port", type=_parse_port, default=8080, help="port of the page (default: %(default)s)")
    parser.add_argument("--frames", type=parse_positive, metavar="N", help="end after N completed frames")
    parser.add_argument(
        "--idle", type=parse_positive_number, metavar="S", help="end when a folder has had no new frame for S seconds"
    )
    add_device_option(parser)
    add_precision_option(parser, default="auto")
    options = parser.parse(arguments)
    if options.ply and options.out is None:
        parser.error("--ply: writes into the folder of --out; add --out")
    _check_map(parser, options)
    missing: dict[FileKind, str] = {} if options.label_maps else {"label_map": "there is no --label-maps"}
    if options.depth_only:
        missing["color"] = "--depth-only has none"
    if _is_realsense(options):
        if options.label_maps:
            parser.error("--label-maps: a RealSense camera delivers none; they come with the frames of a folder")
        given = given_options(options, ("intrinsics", "color_intrinsics"))
        if given:
            parser.error(f"{', '.join(given)}: of the frames of a folder; a RealSense camera knows its own intrinsics")
        missing["pose"] = "a RealSense camera has none"
    check_settings(parser, options, missing)
    return options


def _check_map(parser: CommandParser, options: argparse.Namespace) -> None:
    """Ends the process if options of a map contradict the others."""
    check_room_options(parser, options)
    if options.map and _is_realsense(options):
        parser.error("--map: needs poses, which a RealSense camera lacks; they come with the frames of a folder")
    of_map = given_options(options, ("min_motion", *ROOM_OPTIONS))
    if of_map and not options.map:
        parser.error(f"{', '.join(of_map)}: of a map of the room; add --map")
    of_files = given_options(options, ROOM_OPTIONS)
    if of_files and options.out is None:
        parser.error(f"{', '.join(of_files)}: of a file in the folder of --out; add --out")


def _parse_port(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or not 1 <= int(text) <= LAST_PORT:
        raise argparse.ArgumentTypeError(f"expected a port from 1 to {LAST_PORT}, found {text!r}")
    return int(text)


def _is_realsense(options: argparse.Namespace) -> bool:
    """Whether the source is a RealSense camera or its recording, not a folder."""
    return options.source == _REALSENSE or Path(options.source).suffix == ".bag"
