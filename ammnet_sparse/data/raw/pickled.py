"""Frames in pickles: Occ-ScanNet's, and NYU's as MonoScene publishes them.

A pickle holds a dictionary: ``cam_pose`` [4, 4] camera to world, ``voxel_origin`` [3] the lower corner of the grid in
that world, z up, and ``target_1_4``, the class of each voxel, 255 for unknown: [60, 60, 36] along (x, y, z), or
[60, 36, 60] along (x, z, y). Occ-ScanNet's also names its images, ``img`` and ``depth_gt``, and has the ``intrinsic``
of the color image.
"""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ammnet_sparse.data.grid import GRID_SHAPE, IGNORE_LABEL, IMAGE_SHAPE, VOXEL_SIZE
from ammnet_sparse.data.raw.frames import CAMERAS, IntrinsicsName, read_depth
from ammnet_sparse.data.raw.plan import FoundFrames, PreparedFrame, SetPlan
from ammnet_sparse.data.sets.files import as_label
from ammnet_sparse.data.volumes.camera import Camera, CameraView, quarter_turn, voxels_in_view
from ammnet_sparse.files.content import read_text
from ammnet_sparse.files.errors import DataError, abbreviated
from ammnet_sparse.files.images import read_image
from ammnet_sparse.files.pickles import read_pickled_dict
from ammnet_sparse.files.yaml_text import short

Unknown = Literal["ignore", "empty"]
"""What voxels of unknown content count as: 255, neither trained on nor scored, or empty space."""
_LISTED = re.compile(r"(?:.*/)?gathered_data/([\w-]+)/([A-Za-z0-9-]+)\.pkl", re.ASCII)
_NYU_NAME = re.compile(r"NYU(\d{4})_0000", re.ASCII)
_LISTS = {"train": "train_subscenes.txt", "val": "val_subscenes.txt"}
_SHAPES = {(GRID_SHAPE[0], GRID_SHAPE[2], GRID_SHAPE[1]): (0, 1, 2), GRID_SHAPE: (0, 2, 1)}
"""Shapes of ``target_1_4``, and the order of its axes that makes it (x, y, z)."""
_TURNED = math.radians(50)
"""Frames of NYU as published look up to about 45 degrees off the Y axis; they stay as they are."""
_MOST_ROWS = 4
"""Of a matrix of a camera, and numbers in each."""
_REPLACE = "replace the file, or remove the frame from the list"


@dataclasses.dataclass(frozen=True)
class OccScanNetPlan(SetPlan):
    """A set from Occ-ScanNet.

    Its lists are ``train`` and ``val``. As everywhere, ``train.txt`` names the frames of ``val.txt`` too, which no
    training uses.

    Attributes:
        raw: folder of ``train_subscenes.txt``, ``val_subscenes.txt`` and ``gathered_data``.
        out: folder of the set, made if missing.
        unknown: what unknown voxels count as.
        images: folder of ``posed_images``; None: ``raw``.
    """

    raw: Path
    out: Path
    unknown: Unknown = "ignore"
    images: Path | None = None
    has_images = True

    def find(self) -> FoundFrames:
        listed: dict[str, list[str]] = {}
        problems: list[str] = []
        for name, path in ((name, self.raw / file) for name, file in _LISTS.items()):
            lines = read_text(path, what="a list of pickles").splitlines() if path.is_file() else []
            for number, line in enumerate(lines, 1):
                if match := _LISTED.fullmatch(line.strip()):
                    listed.setdefault(name, []).append(f"{match[1]}_{match[2]}")
                elif line.strip():
                    said = f"expected gathered_data/SCENE/NAME.pkl, found {short(line)}; correct it"
                    problems.append(f"{path}, line {number}: {said}")
        if not listed:
            names = " or ".join(_LISTS.values())
            raise DataError(f"{self.raw}: expected {names} with the frames of Occ-ScanNet, found none; check the path")
        return FoundFrames({**listed, "train": [name for ids in listed.values() for name in ids]}, tuple(problems))

    def sources(self, frame_id: str) -> list[Path]:
        scene, _, name = frame_id.rpartition("_")
        return [self.raw / "gathered_data" / scene / f"{name}.pkl"]

    def read(self, frame_id: str) -> PreparedFrame:
        (path,) = self.sources(frame_id)
        values = read_pickled_dict(path)
        image_path, depth_path = (_path_of(values, path, key, self.images or self.raw) for key in ("img", "depth_gt"))
        image, scale = _color(image_path)
        matrix = _numbers(values, path, "intrinsic", ((4, 4), (3, 3)))
        # Whole coordinates are the middles of pixels, so it is the edges at -0.5 that stay in place.
        (fx, cx), (fy, cy) = ((matrix[i, i] * scale[i], (matrix[i, 2] + 0.5) * scale[i] - 0.5) for i in range(2))
        depth, _ = read_depth(depth_path, "plain")
        camera = Camera(fx, fy, cx, cy)
        frame = _prepared(values, path, depth, camera=camera, depth_path=depth_path, unknown=self.unknown)
        return dataclasses.replace(frame, image=image)

    @property
    def record(self) -> dict[str, Any]:
        return {"from": "occscannet", "unknown": self.unknown}


@dataclasses.dataclass(frozen=True)
class MonoScenePlan(SetPlan):
    """A set from MonoScene's pickles of NYU.

    Attributes:
        raw: folder of ``NYU0003_0000.pkl``.
        out: folder of the set, made if missing.
        intrinsics: key of ``CAMERAS``, of the depth.
        split: name of the list that the frames are written to, ``train`` or ``test``.
        unknown: what unknown voxels count as.
        images: folder of ``NYU0003_0000_color.jpg`` and of the raw depth ``NYU0003_0000.png``; None: ``raw``.
    """

    raw: Path
    out: Path
    intrinsics: IntrinsicsName
    split: str = "train"
    unknown: Unknown = "ignore"
    images: Path | None = None
    has_images = True

    def find(self) -> FoundFrames:
        found = {path: _NYU_NAME.fullmatch(path.stem) for path in sorted(self.raw.glob("*.pkl"))}
        ids = [match[1] for match in found.values() if match]
        if not ids:
            names = abbreviated([path.name for path in found])
            raise DataError(f"{self.raw}: expected NYU0003_0000.pkl and so on, found {names}; check the path")
        others = tuple(f"{path}: not named as a frame; ignored" for path, match in found.items() if not match)
        return FoundFrames({self.split: ids}, notes=others)

    def sources(self, frame_id: str) -> list[Path]:
        return [self.raw / f"NYU{frame_id}_0000.pkl"]

    def read(self, frame_id: str) -> PreparedFrame:
        (path,) = self.sources(frame_id)
        values = read_pickled_dict(path)
        folder = self.images or self.raw
        depth_path = folder / f"{path.stem}.png"
        depth, note = read_depth(depth_path)
        camera = CAMERAS[self.intrinsics]
        frame = _prepared(values, path, depth, camera=camera, depth_path=depth_path, unknown=self.unknown)
        image, _ = _color(folder / f"{path.stem}_color.jpg")
        return dataclasses.replace(frame, image=image, note=note)

    @property
    def record(self) -> dict[str, Any]:
        return {"from": "monoscene", "intrinsics": self.intrinsics, "unknown": self.unknown}


def facing_forward(
    pose: NDArray[np.float64], origin: NDArray[np.float64], label: NDArray[np.uint8]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.uint8]]:
    """Pose, origin and labels in a world turned about its vertical by quarter turns, so that the camera looks along +Y.

    Args:
        pose: [4, 4] camera to world, z up.
        origin: [3] lower corner of the grid.
        label: [X, Y, Z], as many along X as along Y.
    """
    off = math.pi / 2 - math.atan2(pose[1, 2], pose[0, 2])
    off = (off + math.pi) % (2 * math.pi) - math.pi
    quarters = round(off / (math.pi / 2)) % 4 if abs(off) > _TURNED else 0
    turn = quarter_turn(quarters)
    corners = np.stack([origin, origin + np.array(label.shape) * VOXEL_SIZE]) @ turn[:3, :3].T
    return turn @ pose, corners.min(axis=0), np.rot90(label, quarters, axes=(0, 1))


def _prepared(
    values: dict[str, Any],
    path: Path,
    depth: NDArray[np.float32],
    *,
    camera: Camera,
    depth_path: Path,
    unknown: Unknown,
) -> PreparedFrame:
    """The volumes of a pickle and its depth, without the image. Raises ValueError, too, for an impossible camera."""
    target = _numbers(values, path, "target_1_4", tuple(_SHAPES))
    label = as_label(target.transpose(_SHAPES[target.shape]), path)
    pose, origin = _numbers(values, path, "cam_pose", ((4, 4),)), _numbers(values, path, "voxel_origin", ((3,),))
    pose, origin, label = facing_forward(pose.astype(np.float64), origin.astype(np.float64), label)
    view = CameraView(camera, pose, origin)
    flat = label.transpose(0, 2, 1).reshape(-1)
    if unknown == "empty":
        flat = np.where(flat == IGNORE_LABEL, np.uint8(0), flat)
    frame = PreparedFrame.of(depth, flat, view=view, depth_path=depth_path, label_path=path)
    return dataclasses.replace(frame, view=voxels_in_view(view))


def _numbers(values: dict[str, Any], path: Path, key: str, shapes: tuple[tuple[int, ...], ...]) -> NDArray[Any]:
    """An array of a pickle. Raises DataError if it is missing, or has none of the shapes."""
    found = values.get(key)
    if isinstance(found, list) and len(found) <= _MOST_ROWS and all(map(_is_row, found)):
        found = np.array(found, dtype=np.float64)
    if not isinstance(found, np.ndarray) or found.shape not in shapes or found.dtype.kind not in "iuf":
        described = f"{found.dtype} of shape {list(found.shape)}" if isinstance(found, np.ndarray) else short(found)
        wanted = " or ".join(str(list(shape)) for shape in shapes)
        raise DataError(f"{path}: {key}: expected numbers of shape {wanted}, found {described}; {_REPLACE}")
    return found


def _is_row(value: object) -> bool:
    """Whether a value is a number or a row of a matrix: lists within lists can stand for billions of numbers."""
    parts = value if isinstance(value, list | tuple) else [value]
    return len(parts) <= _MOST_ROWS and all(
        part.size <= _MOST_ROWS if isinstance(part, np.ndarray) else isinstance(part, int | float) for part in parts
    )


def _path_of(values: dict[str, Any], path: Path, key: str, folder: Path) -> Path:
    """The image that a pickle names, in ``posed_images`` of a folder, wherever it was on the machine of its writer."""
    named = values.get(key)
    parts = Path(named).parts[-2:] if isinstance(named, str) else ()
    if len(parts) != 2 or ".." in parts or "/" in parts:
        raise DataError(f"{path}: {key}: expected posed_images/SCENE/NAME, found {short(named)}; {_REPLACE}")
    return folder.joinpath("posed_images", *parts)


def _color(path: Path) -> tuple[NDArray[np.uint8], tuple[float, float]]:
    """A color image at 480x640, and how much wider and higher it became. Raises DataError for other proportions."""
    pixels = read_image(path, what="a color image", mode="RGB", upright=False, advice=_REPLACE).pixels
    scale = IMAGE_SHAPE[1] / pixels.shape[1], IMAGE_SHAPE[0] / pixels.shape[0]
    if abs(scale[0] / scale[1] - 1) > 0.02:
        raise DataError(
            f"{path}: expected an image of 4 to 3, found {pixels.shape[1]}x{pixels.shape[0]}; its depth is another view"
        )
    if pixels.shape[:2] != IMAGE_SHAPE:
        size = IMAGE_SHAPE[1], IMAGE_SHAPE[0]
        pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
    return pixels, scale
