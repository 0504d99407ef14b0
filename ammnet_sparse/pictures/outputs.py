"""A completed scene and its output files: class volume, picture, PLY files and a scene of the page."""

import dataclasses
import functools
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ammnet_sparse.camera.frames import CameraFrame
from ammnet_sparse.data.frame import Frame
from ammnet_sparse.data.grid import EMPTY_LABEL, FLOOR_OFFSET
from ammnet_sparse.files.arrays import has_arrays
from ammnet_sparse.files.errors import DataError, reason
from ammnet_sparse.files.writing import replacing_open
from ammnet_sparse.pictures.comparison import depth_shades, render_comparison
from ammnet_sparse.pictures.page import Scene, write_page
from ammnet_sparse.pictures.palettes import Palette, painted
from ammnet_sparse.pictures.ply import write_ply

if TYPE_CHECKING:
    import torch

_FORMS = ("points", "cubes")
"""Kinds of PLY files."""
_LABELS = "labels"
"""The class volume in the npz file."""


@dataclasses.dataclass(frozen=True, eq=False)
class CompletedScene:
    """A frame with its prediction.

    Attributes:
        frame: what was predicted from: a frame of a set, or a ``CameraFrame``.
        labels: [60, 36, 60] uint8 in the order (X, height, Y), a class of ``frame.info``.
        seconds: time by stage: ``images`` (depth in meters, resampling), ``frame`` (vertical, floor, room, TSDF and
            mapping), ``network``; empty where it was not measured.
    """

    frame: Frame
    labels: NDArray[np.uint8]
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    _logits: "torch.Tensor | None" = None

    @property
    def name(self) -> str:
        """The name of the frame."""
        return self.frame.frame_id

    @property
    def own(self) -> CameraFrame:
        """The frame, of a user's camera: its placement, images and coverage. Raises TypeError for one of a set."""
        if not isinstance(self.frame, CameraFrame):
            raise TypeError(f"{self.name}: expected a frame of a user's camera, found one of a set")
        return self.frame

    @functools.cached_property
    def probabilities(self) -> NDArray[np.float32]:
        """[12, 60, 36, 60] float32 for 12 classes, probability of each; voxels observed to be free are empty.

        Raises:
            ValueError: ``ammnet predict`` made the scene, which keeps classes only.
        """
        if self._logits is None:
            raise ValueError(f"{self.name}: expected probabilities, found the classes only")
        found: NDArray[np.float32] = self._logits.float().softmax(dim=0).cpu().numpy()
        return found

    def log_probabilities(self, mask: NDArray[np.bool_]) -> NDArray[np.float32]:
        """[classes, N] float32, natural logarithms of the probabilities at the N voxels of a mask [60, 36, 60].

        Raises:
            ValueError: as ``probabilities``.
        """
        if self._logits is None:
            raise ValueError(f"{self.name}: expected probabilities, found the classes only")
        import torch

        with torch.inference_mode():
            logits = self._logits[:, torch.from_numpy(mask).to(self._logits.device)]
            found: NDArray[np.float32] = logits.float().log_softmax(dim=0).cpu().numpy()
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
        """[3], world (X, Y, Z) in meters of the outer corner of voxel (0, 0, 0); X = Y = 0 for a frame of a set."""
        return self.frame.origin if isinstance(self.frame, CameraFrame) else np.array([0.0, 0.0, FLOOR_OFFSET])

    @property
    def reliable_mask(self) -> NDArray[np.bool_]:
        """[60, 36, 60] bool, the kind of voxels that networks are trained on; of a frame of a set those scored."""
        return self.frame.reliable_mask if isinstance(self.frame, CameraFrame) else self.frame.scored_mask

    def points(self, *, only_reliable: bool = True) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
        """Centers of the occupied voxels, [N, 3] world (X, Y, Z) in meters, and their classes [N]."""
        mask = self.labels != EMPTY_LABEL
        if only_reliable:
            mask &= self.reliable_mask
        x, height, y = (indices + 0.5 for indices in np.nonzero(mask))
        return self.origin + self.frame.info.voxel_size * np.stack([x, y, height], axis=1), self.labels[mask]

    @property
    def shown_voxels(self) -> str:
        """The word for the voxels of ``reliable_mask``, which pictures and pages show: scored or reliable."""
        return "reliable" if self.frame.label is None else "scored"

    @property
    def level(self) -> str:
        """How high a user's camera is above the floor, and how sure that is; empty for a frame of a set."""
        if not isinstance(self.frame, CameraFrame):
            return ""
        floor = self.frame.placement.floor
        sure = "a guess" if floor.confidence == "guess" else floor.confidence
        return f"camera {floor.below:.2f} m above the floor ({sure})"

    def painted(self, palette: Palette) -> "CompletedScene":
        """The scene with other colors of its classes in everything that is written of it."""
        frame = dataclasses.replace(self.frame, info=painted(self.frame.info, palette))
        return dataclasses.replace(self, frame=frame)

    def describe(self) -> list[str]:
        """Lines that say how camera, floor and room were found, and how sure that is."""
        return self.own.describe()

    def write_volume(self, folder: str | Path) -> Path:
        """Writes ``<name>.npz``, which replaces an existing file atomically; the folder is made. Returns its path.

        ``labels``; of a frame of a camera also ``pose``: camera to world; ``origin``: of the grid in that world;
        ``voxel_size`` in meters; ``reliable``: the voxels shown; with a given pose ``world_from_given``, from its world
        to this one.
        """
        arrays: dict[str, NDArray[np.generic]] = {_LABELS: self.labels}
        if isinstance(self.frame, CameraFrame):
            arrays |= {
                "pose": self.world_from_camera,
                "origin": self.origin,
                "voxel_size": np.array(self.frame.info.voxel_size),
                "reliable": self.reliable_mask,
            }
            if self.world_from_given is not None:
                arrays["world_from_given"] = self.world_from_given
        path = _made(folder) / f"{self.name}.npz"
        with replacing_open(path) as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        return path

    def write_picture(self, folder: str | Path) -> Path:
        """Writes ``<name>.png``: prediction and, if known, truth, from the camera's side and from above."""
        frame = self.frame
        picture = render_comparison(
            self.labels,
            frame.label,
            image=self._shown_image(),
            label_map=frame.label_map,
            visible_mask=self.reliable_mask,
            title="; ".join(filter(None, [f"{self.name}: {self.shown_voxels} voxels", self.level])),
            info=frame.info,
        )
        path = _made(folder) / f"{self.name}.png"
        with replacing_open(path) as file:
            Image.fromarray(picture).save(file, format="PNG")
        return path

    def write_ply(self, folder: str | Path) -> list[Path]:
        """Writes ``<name>_points.ply`` and ``<name>_cubes.ply``, in meters, Z up; the folder is made."""
        x, y, z = self.origin.tolist()
        return [
            write_ply(
                _made(folder) / f"{self.name}_{form}.ply",
                self.labels,
                mask=self.reliable_mask,
                as_cubes=form == "cubes",
                origin=(x, y, z),
                info=self.frame.info,
            )
            for form in _FORMS
        ]

    def write_page(self, path: str | Path) -> Path:
        """Writes the scene in 3D, for any browser, offline."""
        _made(Path(path).parent)
        return write_page(path, [self.to_scene()], title=self.name)

    def to_scene(self, *, note: str = "") -> Scene:
        """The frame as a scene of the page, with a note, to which a frame of a camera adds how high the camera is."""
        frame, position = self.frame, None
        if isinstance(frame, CameraFrame):
            note = "\n".join(filter(None, [note, self.level]))
            x, y = ((frame.placement.pose[:2, 3] - frame.origin[:2]) / frame.info.voxel_size).tolist()
            position = (x, y)
        return Scene(
            self.name,
            self.labels,
            frame.label,
            self.reliable_mask,
            hit=frame.mapping,
            image=self._shown_image(),
            note=note,
            camera_position=position,
            info=frame.info,
        )

    def _shown_image(self) -> NDArray[np.uint8] | None:
        """The color image, or a camera's depth in shades if the frame has no other 2D input."""
        frame = self.frame
        if isinstance(frame, CameraFrame) and frame.image is None and frame.label_map is None:
            return depth_shades(frame.images.depth)
        return frame.image


def _made(folder: str | Path) -> Path:
    Path(folder).mkdir(parents=True, exist_ok=True)
    return Path(folder)


def output_paths(folder: Path, name: str) -> list[Path]:
    """Every file that may be written for a frame of this name."""
    return [folder / f"{name}.npz", folder / f"{name}.png", *(folder / f"{name}_{form}.ply" for form in _FORMS)]


def check_names(folder: Path, name: str, *, has_ply: bool) -> None:
    """Raises DataError if the files of a frame of this name cannot be written into an existing folder."""
    for path in output_paths(folder, name)[: None if has_ply else 2]:
        try:
            if not stat.S_ISDIR(path.stat().st_mode):
                continue
            found = "a folder of that name"
        except FileNotFoundError:
            continue
        except OSError as error:
            found = error.strerror or reason(error)
        shown = f"{path.name[:40]}..." if len(path.name) > 60 else path.name
        raise DataError.about(folder, expected=f"to write {shown}", found=found, advice="rename the frame's files")


def foreign_output(folder: Path, name: str) -> Path | None:
    """A file of another origin that a frame of this name would replace; None if there is none.

    A volume, ``<name>.npz``, with ``labels`` is of an earlier completion, and so are the other files beside it.
    """
    volume, *others = output_paths(folder, name)
    if os.path.exists(volume):  # Path.exists raises for names that are too long
        return None if has_arrays(volume, _LABELS) else volume
    return next((path for path in others if os.path.exists(path)), None)
