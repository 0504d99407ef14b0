"""The options that describe a user's camera and its files, shared by the commands that complete its frames."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ammnet_sparse.camera.files.depth import DEPTH_ENCODINGS
from ammnet_sparse.camera.files.intrinsics import read_intrinsics
from ammnet_sparse.camera.files.label_maps import LABEL_MAP_CLASSES
from ammnet_sparse.camera.geometry.given_pose import POSE_AXES
from ammnet_sparse.camera.images.stored import CameraSettings
from ammnet_sparse.camera.images.turning import TURNS
from ammnet_sparse.cli.options import CommandParser, parse_positive_number
from ammnet_sparse.data.volumes.tsdf import Unobserved
from ammnet_sparse.models.weights.files import UNOBSERVED

CAMERA_FILES = ("depth", "intrinsics")
"""Names of the options that every frame of a camera needs."""
CAMERA_EXTRAS = (
    "color",
    "color_intrinsics",
    "depth_scale",
    "depth_encoding",
    "rotate",
    "pose",
    "pose_up",
    "camera_height",
    "label_map",
    "label_map_classes",
    "unobserved",
)
"""Names of the other options that only frames of a camera have."""


def add_camera_options(group: argparse._ArgumentGroup) -> None:
    """``--color``, ``--depth``, ``--intrinsics`` and the other options of a camera."""
    group.add_argument(
        "--color", type=Path, metavar="PATH", help="color image, or a folder of them (default: depth is all)"
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
        help="with --dataset nyucad: what a flipped TSDF holds in unobserved space, 0.001 as SSCNet's source (free) or "
        "+1 (surface); default: as the weights say, else free",
    )
    add_settings_options(group)


def add_settings_options(group: argparse._ActionsContainer) -> None:
    """``--intrinsics`` and the other options that say how a camera's images are to be read."""
    group.add_argument(
        "--intrinsics",
        metavar="NUMBERS",
        help="fx,fy,cx,cy in pixels, or a file: these or a matrix, or JSON or YAML of Open3D, RealSense, ROS, ...",
    )
    group.add_argument(
        "--color-intrinsics",
        metavar="NUMBERS",
        help="of the color image, where it has other proportions than the depth image, whose --intrinsics then are",
    )
    group.add_argument(
        "--depth-scale",
        type=parse_positive_number,
        metavar="N",
        help="depth units per meter (default: 1000, millimeters; floats: meters, where that gives a room)",
    )
    group.add_argument(
        "--depth-encoding",
        choices=DEPTH_ENCODINGS,
        help="how depth is stored: rotated is SUN RGB-D's and SSCNet's, plain trusts --depth-scale (default: auto)",
    )
    group.add_argument(
        "--rotate",
        type=int,
        choices=TURNS,
        help="degrees clockwise that make the images upright, intrinsics and pose with them; 0: none (default: EXIF)",
    )
    group.add_argument(
        "--pose-up", choices=POSE_AXES, help="axis of the pose's world that is up, as --pose-up=-y (default: detected)"
    )
    group.add_argument(
        "--camera-height",
        type=parse_positive_number,
        metavar="M",
        help="meters above the floor (default: the floor is detected)",
    )
    group.add_argument(
        "--label-map-classes", choices=LABEL_MAP_CLASSES, help="classes of label maps (default: nyu13, 0..13)"
    )


def given_options(options: argparse.Namespace, names: Sequence[str]) -> list[str]:
    """The options that were given, as typed."""
    return ["--" + name.replace("_", "-") for name in names if getattr(options, name) is not None]


def check_camera_options(parser: CommandParser, options: argparse.Namespace) -> None:
    """Ends with the usage if camera options contradict each other."""
    if options.pose_up is not None and options.pose is None:
        parser.error("--pose-up: says which way is up in the world of --pose, and there is no --pose")
    if options.unobserved is not None and options.dataset != "nyucad":
        parser.error("--unobserved: says what a flipped TSDF holds, and --dataset is not nyucad")
    if options.color_intrinsics is not None and options.color is None:
        parser.error("--color-intrinsics: says how --color was taken, and there is no --color")
    if options.label_map_classes is not None and options.label_map is None:
        parser.error("--label-map-classes: says what the numbers of --label-map mean, and there is no --label-map")


def camera_settings(options: argparse.Namespace, metadata: Mapping[str, str]) -> CameraSettings:
    """The camera that the options describe. Raises DataError for intrinsics that cannot be read.

    Args:
        metadata: of the weights: how unobserved space was encoded in the TSDF that they were trained on.
    """
    trained = metadata.get(UNOBSERVED)
    unobserved: Unobserved = options.unobserved or ("surface" if trained == "surface" else "free")
    if options.dataset == "nyucad":
        reason = "as asked" if options.unobserved else "as the weights say" if trained else "as SSCNet's source has it"
        print(f"Unobserved space in the flipped TSDF: {unobserved} ({reason}; --unobserved)", file=sys.stderr)
    return CameraSettings(
        intrinsics=read_intrinsics(options.intrinsics),
        color_intrinsics=None if options.color_intrinsics is None else read_intrinsics(options.color_intrinsics),
        depth_scale=options.depth_scale,
        depth_encoding=options.depth_encoding or "auto",
        rotate=options.rotate,
        label_map_classes=options.label_map_classes or "nyu13",
        pose_up=options.pose_up,
        camera_height=options.camera_height,
        tsdf_is_flipped=options.dataset == "nyucad",
        unobserved=unobserved,
    )
