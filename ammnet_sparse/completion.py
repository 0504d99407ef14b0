"""Completing frames of one camera from Python, one after another: ``SceneCompleter``."""

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ammnet_sparse.camera.files.arrays import squeezed
from ammnet_sparse.camera.files.depth import DepthEncoding, meters_from_values
from ammnet_sparse.camera.files.intrinsics import Intrinsics, intrinsics_by_name, read_intrinsics
from ammnet_sparse.camera.files.label_maps import LabelMapClasses, label_map_from_values
from ammnet_sparse.camera.files.poses import checked, matrix_of_rows
from ammnet_sparse.camera.geometry.placement import Placement
from ammnet_sparse.camera.images.stored import CameraSettings, StoredFrame, UprightFrame, upright_frame
from ammnet_sparse.camera.images.turning import TURNS, View
from ammnet_sparse.camera.own_frames import OwnFrame, make_own_frame
from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.grid import EMPTY_LABEL, IMAGE_SHAPE, VOXEL_SIZE
from ammnet_sparse.data.volumes.camera import Camera
from ammnet_sparse.evaluation.selection import check_grid, check_inputs
from ammnet_sparse.files.errors import DataError, reason
from ammnet_sparse.models.ammnet import AMMNet
from ammnet_sparse.models.weights.files import UNOBSERVED, data_section
from ammnet_sparse.models.weights.loading import load_model
from ammnet_sparse.pictures.outputs import CompletedFrame, write_picture, write_ply_files, write_volume
from ammnet_sparse.pictures.page import write_page

Result = TypeVar("Result")
GivenIntrinsics = Sequence[float] | Mapping[str, Any] | NDArray[Any] | str | Path | Intrinsics
"""(fx, fy, cx, cy), these by name, a matrix, or a file."""


@dataclasses.dataclass(frozen=True, eq=False)
class CompletedScene:
    """A completed frame.

    Attributes:
        labels: [60, 36, 60] uint8 in the order (X, height, Y), class 0..11.
        reliable_mask: [60, 36, 60] bool, the kind of voxels that networks are trained on.
        own: the frame that was completed: placement of the camera, TSDF, mapping, images.
        seconds: time by stage: ``images`` (depth in meters, resampling), ``frame`` (vertical, floor, room, TSDF and
            mapping), ``network``.
    """

    labels: NDArray[np.uint8]
    reliable_mask: NDArray[np.bool_]
    own: OwnFrame
    seconds: dict[str, float]
    _logits: torch.Tensor

    @property
    def name(self) -> str:
        """The name of the frame."""
        return self.own.frame.frame_id

    @functools.cached_property
    def probabilities(self) -> NDArray[np.float32]:
        """[12, 60, 36, 60] float32, probability of each class; voxels observed to be free are empty."""
        found: NDArray[np.float32] = self._logits.float().softmax(dim=0).cpu().numpy()
        return found

    @property
    def world_from_camera(self) -> NDArray[np.float64]:
        """[4, 4], from the upright camera (x right, y down, z forward) to the scene's world (Z up, floor at 0)."""
        return self.own.placement.pose

    @property
    def camera_from_world(self) -> NDArray[np.float64]:
        """[4, 4], the inverse."""
        return np.asarray(np.linalg.inv(self.world_from_camera), dtype=np.float64)

    @property
    def world_from_given(self) -> NDArray[np.float64] | None:
        """[4, 4], from the world of the given pose to the scene's; None without a pose."""
        return self.own.placement.world_from_given

    @property
    def origin(self) -> NDArray[np.float64]:
        """[3], world (X, Y, Z) in meters of the outer corner of voxel (0, 0, 0)."""
        return self.own.origin

    def points(self, *, only_reliable: bool = True) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
        """Centers of the occupied voxels, [N, 3] world (X, Y, Z) in meters, and their classes [N]."""
        mask = self.labels != EMPTY_LABEL
        if only_reliable:
            mask &= self.reliable_mask
        x, height, y = (indices + 0.5 for indices in np.nonzero(mask))
        return self.origin + VOXEL_SIZE * np.stack([x, y, height], axis=1), self.labels[mask]

    def describe(self) -> list[str]:
        """Lines that say how camera, floor and room were found, and how sure that is."""
        return self.own.describe()

    def write_ply(self, folder: str | Path) -> None:
        """``<name>_points.ply`` and ``<name>_cubes.ply``, in meters, Z up; the folder is made."""
        write_ply_files(_made(folder), self._completed)

    def write_volume(self, folder: str | Path) -> None:
        """``<name>.npz``: labels, pose, origin and the reliable voxels, as ``ammnet predict`` writes them."""
        write_volume(_made(folder), self._completed)

    def write_picture(self, folder: str | Path) -> None:
        """``<name>.png``: input and prediction, from the camera's side and from above."""
        write_picture(_made(folder), self._completed)

    def write_page(self, path: str | Path) -> None:
        """The scene in 3D, for any browser, offline."""
        _made(Path(path).parent)
        write_page(path, [self._completed.to_scene()], title=self.name)

    @property
    def _completed(self) -> CompletedFrame:
        return CompletedFrame.of_camera(self.own, self.labels)


class SceneCompleter:
    """Completes the frames of one camera, one after another.

    Vertical, floor and room are kept and smoothed between frames, and found again if the depth contradicts them.
    Everything compiled or built on first use is prepared by the constructor, so that no call waits for it.

    Args:
        weights: file of weights, or the name of shipped ones.
        intrinsics: (fx, fy, cx, cy) in pixels, these by name, a matrix [3, 3], or a file (docs/own_camera.md,
            Intrinsics), of the depth image or of the color image: of the one whose center is closer to (cx, cy).
        color_intrinsics: of the color image, if its proportions differ; ``intrinsics`` are then the depth image's.
        depth_scale: units of the depth image per meter; None: 1000 for integers, and for floats 1 if that gives a room.
        depth_encoding: how depth is stored, as ``ammnet predict --depth-encoding``.
        camera_height: meters above the floor, if known.
        pose_up: which axis of the poses' world is up (``-y``, ``z``, ...); None: detected.
        rotate: degrees clockwise that make the images upright: 0, 90, 180 or 270; None: as ``exif_turn`` says.
        label_map_classes: the class list of label maps, as ``ammnet predict --label-map-classes``.
        device: where the network computes.
        keeps_camera: False treats every frame independently.

    Raises:
        WeightsError: no such weights.
        DataError: intrinsics that cannot be read, or an invalid ``depth_scale``, ``depth_encoding``,
            ``camera_height``, ``pose_up``, ``rotate`` or ``label_map_classes``.
        ValueError: a device that is not available.
    """

    def __init__(
        self,
        weights: str | Path,
        *,
        intrinsics: GivenIntrinsics,
        color_intrinsics: GivenIntrinsics | None = None,
        depth_scale: float | None = None,
        depth_encoding: DepthEncoding = "auto",
        camera_height: float | None = None,
        pose_up: str | None = None,
        rotate: int | None = None,
        label_map_classes: LabelMapClasses = "nyu13",
        device: torch.device | str = "cpu",
        keeps_camera: bool = True,
    ) -> None:
        self.settings = CameraSettings(
            intrinsics=_as_intrinsics(intrinsics),
            color_intrinsics=None if color_intrinsics is None else _as_intrinsics(color_intrinsics),
            depth_scale=depth_scale,
            depth_encoding=depth_encoding,
            rotate=rotate,
            label_map_classes=label_map_classes,
            pose_up=pose_up,
            camera_height=camera_height,
        )
        self.keeps_camera = keeps_camera
        self.model: AMMNet = load_model(weights, device=device)
        check_grid(self.model.config)
        self.settings = dataclasses.replace(
            self.settings,
            tsdf_is_flipped=self._is_flipped,
            unobserved="surface" if self.model.metadata.get(UNOBSERVED) == "surface" else "free",
        )
        self.device = torch.device(device)
        self._previous: Placement | None = None
        self._count = 0
        self._warm_up()

    def __call__(
        self,
        color: NDArray[np.uint8] | None,
        depth: NDArray[Any],
        pose: ArrayLike | None = None,
        *,
        label_map: NDArray[Any] | None = None,
        exif_turn: int = 0,
        name: str | None = None,
    ) -> CompletedScene:
        """Completes a frame.

        Args:
            color: [rows, columns, 3] uint8 RGB; None for weights that read depth alone or label maps.
            depth: [rows, columns], integers or floats, registered to the color image; 0, NaN and the like are invalid.
            pose: [4, 4] or [3, 4] camera to world (camera axes x right, y down, z forward), or None.
            label_map: [rows, columns] whole numbers of ``label_map_classes`` (nyu13: 0..13, 0 void), for weights that
                read one.
            exif_turn: degrees clockwise by which the color image's EXIF turns it (and what is stored like it).
            name: name of the frame for messages and files; None: its number. It names files, so it has no slash.

        Raises:
            DataError: arrays of another shape or type, missing input that the weights need, no depth in the grid, or a
                name that no file can have.
        """
        started = time.perf_counter()
        name = f"{self._count:06d}" if name is None else name
        _check_name(name)
        self._count += 1
        unread = check_inputs(self.model.config, has_color=color is not None, has_label_map=label_map is not None)
        seconds: dict[str, float] = {}
        upright = _timed(seconds, "images", lambda: self._upright(color, depth, pose, label_map, exif_turn))
        upright = upright._replace(notes=(*unread, *upright.notes))
        placed = _timed(seconds, "frame", lambda: upright.placed(self.settings, name=name, previous=self._previous))
        self._previous = placed.placement if self.keeps_camera else None
        labels, logits = _timed(seconds, "network", lambda: self._predict(placed))
        seconds["all"] = time.perf_counter() - started
        return CompletedScene(labels, placed.reliable_mask, placed, seconds, logits)

    def forget(self) -> None:
        """Forgets vertical, floor and room, for a next frame from another place."""
        self._previous = None

    @property
    def _is_flipped(self) -> bool:
        return bool(data_section(self.model.metadata).get("dataset") == "nyucad")

    def _upright(
        self,
        color: NDArray[Any] | None,
        depth: NDArray[Any],
        pose: ArrayLike | None,
        label_map: NDArray[Any] | None,
        exif_turn: int,
    ) -> UprightFrame:
        if exif_turn not in TURNS:
            raise DataError(f"exif_turn: expected one of {', '.join(map(str, TURNS))} degrees, found {exif_turn}")
        color = None if color is None else _as_array(color, "color", "[rows, columns, 3]")
        label_map = None if label_map is None else squeezed(_as_array(label_map, "label map", "[rows, columns]"))
        meters, notes = meters_from_values(
            squeezed(_as_array(depth, "depth", "[rows, columns]")),
            scale=self.settings.depth_scale,
            encoding=self.settings.depth_encoding,
            usual_scale=self.settings.intrinsics.depth_scale,
        )
        if label_map is not None:
            label_map, more = label_map_from_values(label_map, classes=self.settings.label_map_classes)
            notes += more
        given = None if pose is None else _as_pose(pose)
        frame = upright_frame(StoredFrame(color, meters, label_map, given, exif_turn), self.settings)
        return frame._replace(notes=(*notes, *frame.notes))

    def _predict(self, placed: OwnFrame) -> tuple[NDArray[np.uint8], torch.Tensor]:
        with torch.inference_mode():
            prediction = self.model(Batch.from_frame(placed.frame).to(self.device), voxels="not_free")
            labels: NDArray[np.uint8] = prediction.labels[0].cpu().numpy()  # waits for the device
            return labels, prediction.logits[0]

    def _warm_up(self) -> None:
        """Completes one synthetic frame, which compiles kernels and fills caches."""
        rows, columns = IMAGE_SHAPE
        camera = Camera(518.9, 518.9, 319.5, 239.5)
        down = (np.arange(rows) - camera.cy) / camera.fy
        floor = np.where(down > 0.05, 1.3 / np.maximum(down, 0.05), 6.0)
        depth = np.minimum(floor, 3.0)[:, None].repeat(columns, axis=1).astype(np.float32)
        color = np.zeros((rows, columns, 3), dtype=np.uint8)
        label_map = np.zeros((rows, columns), dtype=np.uint8)
        images = View(color, depth, camera, label_map=label_map).to_network_images()
        first = make_own_frame(images, name="warm-up", tsdf_is_flipped=self._is_flipped)
        again = make_own_frame(images, name="warm-up", previous=first.placement, tsdf_is_flipped=self._is_flipped)
        self._predict(again)


def _timed(seconds: dict[str, float], stage: str, compute: Callable[[], Result]) -> Result:
    started = time.perf_counter()
    result = compute()
    seconds[stage] = time.perf_counter() - started
    return result


def _made(folder: str | Path) -> Path:
    Path(folder).mkdir(parents=True, exist_ok=True)
    return Path(folder)


def _as_pose(pose: ArrayLike) -> NDArray[np.float64]:
    matrix = _as_array(pose, "pose", "a matrix [4, 4] or [3, 4] from camera to world").astype(np.float64)
    if matrix.shape not in ((3, 4), (4, 4)):
        raise DataError(f"pose: expected a matrix [4, 4] or [3, 4] from camera to world, found {list(matrix.shape)}")
    return checked(matrix_of_rows(matrix), Path("pose"))


def _as_array(values: ArrayLike, name: str, expected: str) -> NDArray[Any]:
    """An array of numbers; a tensor without its gradient. Raises DataError for anything else."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
    try:
        array = np.asarray(values)
    except ValueError as error:  # lists of unequal lengths
        raise DataError(f"{name}: expected {expected} of numbers, found {reason(error)}") from error
    if array.dtype.kind not in "iufb":
        raise DataError(f"{name}: expected {expected} of numbers, found {type(values).__name__} of {array.dtype}")
    return array


def _check_name(name: str) -> None:
    separators = {"/", "\0", os.sep}
    if not isinstance(name, str) or not name.strip() or name in (".", "..") or separators & set(name):
        raise DataError(f"name: expected a name that a file can have, found {name!r}")


def _as_intrinsics(value: GivenIntrinsics) -> Intrinsics:
    if isinstance(value, Intrinsics):
        return value
    if isinstance(value, Mapping):
        return intrinsics_by_name(value)
    if isinstance(value, str | Path):
        return read_intrinsics(str(value))
    numbers = _as_array(value, "intrinsics", "(fx, fy, cx, cy), a matrix or a file").astype(np.float64)
    if numbers.shape == (4,) or numbers.shape in ((3, 3), (3, 4), (4, 4)):
        return read_intrinsics(",".join(repr(float(number)) for number in numbers.ravel()))
    raise DataError(f"intrinsics: expected (fx, fy, cx, cy), a matrix or a file, found shape {list(numbers.shape)}")
