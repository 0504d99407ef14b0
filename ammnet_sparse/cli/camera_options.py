"""The options that describe a user's camera and its files, shared by the commands that complete its frames."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ammnet_sparse.camera.files.frame_files import KIND_NAMES
from ammnet_sparse.camera.settings import SETTINGS, CameraSettings, FileKind
from ammnet_sparse.cli.options import CommandParser, parse_positive_number
from ammnet_sparse.data.volumes.tsdf import Unobserved
from ammnet_sparse.models.weights.files import UNOBSERVED

CAMERA_FILES = ("depth", "intrinsics")
"""Names of the options that every frame of a camera needs."""
CAMERA_EXTRAS = ("color", "pose", "label_map", "unobserved", *(name for name in SETTINGS if name != "intrinsics"))
"""Names of the other options that only frames of a camera have."""


def add_camera_options(group: argparse._ArgumentGroup) -> None:
    """``--color``, ``--depth``, ``--intrinsics`` and the other options of a camera."""
    group.add_argument(
        "--color", type=Path, metavar="PATH", help="color image, or a folder of them (default: none, depth alone)"
    )
    group.add_argument(
        "--depth", type=Path, metavar="PATH", help="depth image (png, tiff, exr, npy, npz), or a folder of them"
    )
    group.add_argument(
        "--pose",
        type=Path,
        metavar="PATH",
        help="camera-to-world matrix or tx ty tz qx qy qz qw in a text file, a trajectory, or a folder of poses",
    )
    group.add_argument(
        "--label-map",
        type=Path,
        metavar="PATH",
        help="2D label map for Seg2D checkpoints, one for all frames or a folder of them",
    )
    group.add_argument(
        "--unobserved",
        choices=("free", "surface"),
        help="with --dataset nyucad: value of unobserved space in the flipped TSDF, free (0.001, as in SSCNet's "
        "source) or surface (+1); default: as the weights were trained, else free",
    )
    add_settings_options(group)


def add_settings_options(group: argparse._ActionsContainer) -> None:
    """An option for each of ``SETTINGS``: ``--intrinsics`` and how a camera's images are to be read."""
    for name, setting in SETTINGS.items():
        group.add_argument(
            _option(name),
            type=parse_positive_number if setting.number else type(setting.choices[0]) if setting.choices else str,
            choices=setting.choices or None,
            metavar=setting.metavar,
            help=setting.meaning,
        )


def given_options(options: argparse.Namespace, names: Sequence[str]) -> list[str]:
    """The options that were given, as typed."""
    return [_option(name) for name in names if getattr(options, name) is not None]


def check_settings(parser: CommandParser, options: argparse.Namespace, missing: Mapping[FileKind, str]) -> None:
    """Ends with the usage if a setting is given for files that there are none of.

    Args:
        missing: by the kind of files, why there are none.
    """
    for name, setting in SETTINGS.items():
        kind = setting.of
        if kind is not None and kind in missing and getattr(options, name) is not None:
            parser.error(f"{_option(name)}: says how to read a {KIND_NAMES[kind]}, and {missing[kind]}")


def camera_settings(options: argparse.Namespace, metadata: Mapping[str, str]) -> CameraSettings:
    """The camera that the options describe. Raises DataError for intrinsics that cannot be read.

    Args:
        metadata: of the weights: how unobserved space was encoded in the TSDF that they were trained on.
    """
    trained = metadata.get(UNOBSERVED)
    unobserved: Unobserved = options.unobserved or ("surface" if trained == "surface" else "free")
    if options.dataset == "nyucad":
        reason = "as asked" if options.unobserved else "as in training" if trained else "as in SSCNet's source"
        print(f"Unobserved space in the flipped TSDF: {unobserved} ({reason}; --unobserved)", file=sys.stderr)
    return CameraSettings(**given_settings(options), tsdf_is_flipped=options.dataset == "nyucad", unobserved=unobserved)


def given_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Every setting by name, None where it was not given."""
    return {name: getattr(options, name) for name in SETTINGS}


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
