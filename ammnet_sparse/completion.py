"""Completing frames of one camera from Python, one after another: ``SceneCompleter``."""

import dataclasses
import functools
import inspect
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ammnet_sparse.camera.files.intrinsics import Intrinsics
from ammnet_sparse.camera.files.poses import checked, matrices_of_rows
from ammnet_sparse.camera.files.stored import StoredImages, as_array, squeezed
from ammnet_sparse.camera.frames import CameraFrame, make_frame
from ammnet_sparse.camera.geometry.placement import Placement
from ammnet_sparse.camera.images import CameraImages, camera_images
from ammnet_sparse.camera.settings import SETTINGS, TURNS, CameraSettings
from ammnet_sparse.data.batch import Batch
from ammnet_sparse.data.grid import IMAGE_SHAPE
from ammnet_sparse.data.volumes.camera import Camera
from ammnet_sparse.devices import Precision, checked_device
from ammnet_sparse.evaluation.selection import check_grid, check_inputs
from ammnet_sparse.files.errors import DataError
from ammnet_sparse.models.ammnet import AMMNet
from ammnet_sparse.models.weights.files import UNOBSERVED, data_section, set_info_in
from ammnet_sparse.models.weights.loading import load_model
from ammnet_sparse.pictures.outputs import CompletedScene


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedFrame:
    """A frame that waits for the network, and seconds by stage so far (``CompletedScene.seconds``)."""

    frame: CameraFrame
    seconds: dict[str, float]


class SceneCompleter:
    """Completes the frames of one camera, one after another.

    Vertical, floor and room are kept and smoothed between frames, and found again if the depth contradicts them.
    Everything compiled or built on first use is prepared by the constructor, so that no call waits for it.
    A process that is forked after that computes with one thread: PyTorch's others do not exist there.

    Args:
        weights: file of weights, or the name of shipped ones.
        device: where the network computes.
        precision: of the network; auto: bfloat16 on CPUs with instructions for it, float32 elsewhere.
        keeps_camera: False treats every frame independently.
        camera: ``intrinsics``, and whatever else is known about the camera: the fields of ``CameraSettings``, which are
            the options of ``ammnet predict``, such as ``depth_scale=5000`` or ``camera_height=1.2``.

    Raises:
        WeightsError: no such weights.
        DataError: intrinsics that cannot be read, or another setting that makes no sense.
        ValueError: a device that is not available, or another precision.
    """

    def __init__(
        self,
        weights: str | Path,
        *,
        device: torch.device | str = "cpu",
        precision: Precision = "auto",
        keeps_camera: bool = True,
        **camera: Any,
    ) -> None:
        self.settings = CameraSettings(**camera)
        self.device = checked_device(device)
        if self.device.type == "meta":
            raise ValueError("device: expected one that holds values, such as cpu or cuda, found 'meta'")
        self.keeps_camera = keeps_camera
        self.model: AMMNet = load_model(weights, device=device)
        self.model.precision = precision
        metadata = self.model.metadata
        self.info = set_info_in(metadata, self.model.config)
        check_grid(self.model.config, self.info)
        self.settings = dataclasses.replace(
            self.settings,
            tsdf_is_flipped=data_section(metadata).get("dataset") == "nyucad",
            unobserved="surface" if metadata.get(UNOBSERVED) == "surface" else "free",
        )
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
        name = f"{self._count:06d}" if name is None else name
        if not isinstance(exif_turn, int | np.integer) or exif_turn not in TURNS:
            raise DataError(f"exif_turn: expected one of {', '.join(map(str, TURNS))} degrees, found {exif_turn}")
        stored = stored_arrays(color, depth, pose, label_map=label_map, name=name)
        return self.complete(dataclasses.replace(stored, exif_turn=int(exif_turn)))

    def complete(self, stored: StoredImages) -> CompletedScene:
        """Completes a frame whose images were read from files or by a source of ``ammnet live``; errors as a call."""
        return self.complete_frame(self.frame_of(stored))

    def frame_of(self, stored: StoredImages) -> PreparedFrame:
        """Everything before the network, which keeps the camera; frames are prepared one after another.

        The next frame may be prepared in another thread while ``complete_frame`` is at work. Errors as a call.
        """
        start = time.perf_counter()
        self._count += 1
        images = self.images_of(stored)
        return self._prepared(images, stored.name, None, seconds=time.perf_counter() - start)

    def images_of(self, stored: StoredImages) -> CameraImages:
        """The images of a frame as the network takes them; errors as a call."""
        has_color, has_label_map = stored.color is not None, stored.label_map is not None
        unread = check_inputs(self.model.config, has_color=has_color, has_label_map=has_label_map)
        images = camera_images(stored, self.settings)
        return dataclasses.replace(images, notes=(*unread, *images.notes))

    def complete_images(self, images: CameraImages, *, name: str, placement: Placement) -> CompletedScene:
        """Completes a frame of ``images_of`` in a known room, which keeps nothing for the next; errors as a call.

        Args:
            placement: the camera in that room (``make_frame``).
        """
        return self.complete_frame(self._prepared(images, name, placement, seconds=0.0))

    def complete_frame(self, prepared: PreparedFrame) -> CompletedScene:
        """Completes a frame of ``frame_of``."""
        start = time.perf_counter()
        labels, logits = self._predict(prepared.frame)
        stages = {**prepared.seconds, "network": time.perf_counter() - start}
        return CompletedScene(prepared.frame, labels, {**stages, "all": sum(stages.values())}, logits)

    def _prepared(
        self, images: CameraImages, name: str, placement: Placement | None, *, seconds: float
    ) -> PreparedFrame:
        start = time.perf_counter()
        frame = make_frame(images, self.settings, name=name, previous=self._previous, placement=placement)
        if placement is None:
            self._previous = frame.placement if self.keeps_camera else None
        frame = dataclasses.replace(frame, info=self.info)
        return PreparedFrame(frame, {"images": seconds, "frame": time.perf_counter() - start})

    def forget(self) -> None:
        """Forgets vertical, floor and room, for a next frame from another place."""
        self._previous = None

    def _predict(self, frame: CameraFrame) -> tuple[NDArray[np.uint8], torch.Tensor]:
        with torch.inference_mode():
            prediction = self.model(Batch.from_frame(frame).to(self.device), voxels="not_free")
            labels: NDArray[np.uint8] = prediction.labels[0].cpu().numpy()  # waits for the device
            return labels, prediction.logits[0]

    def _warm_up(self) -> None:
        """Completes one synthetic frame, which compiles kernels and fills caches."""
        _compute_forks_with_one_thread()
        rows, columns = IMAGE_SHAPE
        camera = Camera(518.9, 518.9, 319.5, 239.5)
        down = (np.arange(rows) - camera.cy) / camera.fy
        floor = np.where(down > 0.05, 1.3 / np.maximum(down, 0.05), 6.0)
        depth = np.minimum(floor, 3.0)[:, None].repeat(columns, axis=1).astype(np.float32)
        color = np.zeros((rows, columns, 3), dtype=np.uint8)
        images = CameraImages(color, depth, camera, np.zeros((rows, columns), dtype=np.uint8))
        settings = dataclasses.replace(self.settings, intrinsics=Intrinsics(camera), camera_height=None)
        first = make_frame(images, settings, name="warm-up")
        self._predict(make_frame(images, settings, name="warm-up", previous=first.placement))


# The settings by name, for ``help`` and the completion of notebooks.
SceneCompleter.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [
        *(one for one in inspect.signature(SceneCompleter).parameters.values() if one.name != "camera"),
        *(one for one in inspect.signature(CameraSettings).parameters.values() if one.name in SETTINGS),
    ]
)


@functools.cache
def _compute_forks_with_one_thread() -> None:
    """Processes forked from now on do not wait for PyTorch's threads, which only the present process has."""
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


def stored_arrays(
    color: NDArray[np.uint8] | None,
    depth: NDArray[Any],
    pose: ArrayLike | None,
    *,
    label_map: NDArray[Any] | None,
    name: str,
) -> StoredImages:
    """The arrays of a frame, checked, as if they were read from files; arguments and errors as ``SceneCompleter``."""
    _check_name(name)
    return StoredImages(
        name,
        None if color is None else as_array(color, "color", "[rows, columns, 3]"),
        squeezed(as_array(depth, "depth", "[rows, columns]")),
        None if label_map is None else squeezed(as_array(label_map, "label map", "[rows, columns]")),
        None if pose is None else _as_pose(pose),
    )


def _as_pose(pose: ArrayLike) -> NDArray[np.float64]:
    matrix = as_array(pose, "pose", "a matrix [4, 4] or [3, 4] from camera to world").astype(np.float64)
    if matrix.shape not in ((3, 4), (4, 4)):
        raise DataError(f"pose: expected a matrix [4, 4] or [3, 4] from camera to world, found {list(matrix.shape)}")
    return checked(matrices_of_rows(matrix[None])[0], Path("pose"))


def _check_name(name: str) -> None:
    separators = {"/", "\0", os.sep}
    if not isinstance(name, str) or not name.strip() or name in (".", "..") or separators & set(name):
        raise DataError(f"name: expected a name that a file can have, found {name!r}")
