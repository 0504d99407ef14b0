"""The output files of a completed frame: class volume, picture, PLY files and a scene of the page."""

import dataclasses
import zipfile
from collections.abc import Mapping
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.camera.own_frames import OwnFrame
from ammnet_sparse.data.frame import Frame
from ammnet_sparse.data.grid import FLOOR_OFFSET
from ammnet_sparse.data.set_info import NYU, SetInfo
from ammnet_sparse.files.writing import replacing_open
from ammnet_sparse.pictures.comparison import depth_shades, render_comparison
from ammnet_sparse.pictures.page import Scene
from ammnet_sparse.pictures.ply import write_ply


@dataclasses.dataclass(frozen=True, eq=False)
class CompletedFrame:
    """A frame with its prediction.

    Attributes:
        frame: what was predicted from.
        labels: [X, H, Y] uint8, a class of ``frame.info``.
        shown_mask: [X, H, Y] bool, the voxels that pictures, PLY files and page show; None: all.
        shown_as: describes that mask in the picture's title.
        origin: world (X, Y, Z) in meters of the outer corner of voxel (0, 0, 0); without a known camera X = Y = 0.
        arrays: further arrays for the npz file.
        note: text for the page.
        camera_position: (X, Y) of the camera in voxels of the grid, or None.
        depth: [480, 640] meters, 0 where missing; the picture shows it if the frame has no 2D input. None: unknown.
    """

    frame: Frame
    labels: NDArray[np.uint8]
    shown_mask: NDArray[np.bool_] | None = None
    shown_as: str = ""
    origin: tuple[float, float, float] = (0.0, 0.0, FLOOR_OFFSET)
    arrays: Mapping[str, NDArray[np.generic]] = dataclasses.field(default_factory=dict)
    note: str = ""
    camera_position: tuple[float, float] | None = None
    depth: NDArray[np.float32] | None = None

    @property
    def name(self) -> str:
        return self.frame.frame_id

    @classmethod
    def of_set(cls, frame: Frame, labels: NDArray[np.uint8], *, note: str = "") -> "CompletedFrame":
        """A completed frame of a set: shows the scored voxels; without a truth, those with label weight."""
        shown_as = "voxels with label weight" if frame.label is None else "scored voxels"
        return cls(frame, labels, frame.scored_mask, shown_as, note=note)

    @classmethod
    def of_camera(cls, own: OwnFrame, labels: NDArray[np.uint8], info: SetInfo = NYU) -> "CompletedFrame":
        """A completed frame of a user's camera: shows its reliable voxels; the npz file has the position of the grid.

        ``info`` is the set that the network was trained on, which names the classes.

        ``pose``: camera to world; ``origin``: of the grid in that world; ``voxel_size`` in meters; ``reliable``: the
        mask shown; with a given pose ``world_from_given``, from its world to this one.
        """
        arrays: dict[str, NDArray[np.generic]] = {
            "pose": own.placement.pose,
            "origin": own.origin,
            "voxel_size": np.array(info.voxel_size),
            "reliable": own.reliable_mask,
        }
        if own.placement.world_from_given is not None:
            arrays["world_from_given"] = own.placement.world_from_given
        x, y, z = own.origin.tolist()
        floor = own.placement.floor
        note = f"camera {floor.camera_height:.2f} m above the floor ({floor.confidence})"
        position = ((own.placement.pose[:2, 3] - own.origin[:2]) / info.voxel_size).tolist()
        return cls(
            dataclasses.replace(own.frame, info=info),
            labels,
            own.reliable_mask,
            "reliable voxels",
            (x, y, z),
            arrays,
            note,
            camera_position=(position[0], position[1]),
            depth=own.images.depth,
        )

    @property
    def shown_image(self) -> NDArray[np.uint8] | None:
        """The color image, or the depth in shades if the frame has no other 2D input."""
        frame = self.frame
        if frame.image is not None or frame.label_map is not None or self.depth is None:
            return frame.image
        return depth_shades(self.depth)

    def to_scene(self) -> Scene:
        """The frame as a scene of the page."""
        frame = self.frame
        return Scene(
            self.name,
            self.labels,
            frame.label,
            self.shown_mask,
            hit=frame.mapping,
            image=self.shown_image,
            note=self.note,
            camera_position=self.camera_position,
            info=frame.info,
        )


_FORMS = ("points", "cubes")
"""Kinds of PLY files."""
_LABELS = "labels"
"""The class volume in the npz file."""


def output_paths(folder: Path, name: str) -> list[Path]:
    """Every file that may be written for a frame of this name."""
    return [folder / f"{name}.npz", folder / f"{name}.png", *(folder / f"{name}_{form}.ply" for form in _FORMS)]


def foreign_output(folder: Path, name: str) -> Path | None:
    """A file of another origin that a frame of this name would replace; None if there is none.

    A volume, ``<name>.npz``, with ``labels`` is of an earlier completion, and so are the other files beside it.
    """
    volume, *others = output_paths(folder, name)
    if volume.exists():
        return None if _is_completion(volume) else volume
    return next((path for path in others if path.exists()), None)


def _is_completion(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return f"{_LABELS}.npy" in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def write_volume(folder: Path, completed: CompletedFrame) -> None:
    """``<name>.npz``: ``labels`` and the other arrays of ``completed``; an existing file is replaced atomically."""
    arrays = {_LABELS: completed.labels, **completed.arrays}
    with replacing_open(folder / f"{completed.name}.npz") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def write_picture(folder: Path, completed: CompletedFrame) -> None:
    """``<name>.png``: prediction and, if known, truth, from the camera's side and from above."""
    frame = completed.frame
    picture = render_comparison(
        completed.labels,
        frame.label,
        image=completed.shown_image,
        label_map=frame.label_map,
        visible_mask=completed.shown_mask,
        title=f"{completed.name}: {completed.shown_as}" if completed.shown_as else completed.name,
        info=frame.info,
    )
    iio.imwrite(folder / f"{completed.name}.png", picture)


def write_ply_files(folder: Path, completed: CompletedFrame) -> None:
    """``<name>_points.ply`` and ``<name>_cubes.ply``, in meters, Z up."""
    for form in _FORMS:
        write_ply(
            folder / f"{completed.name}_{form}.ply",
            completed.labels,
            mask=completed.shown_mask,
            as_cubes=form == "cubes",
            origin=completed.origin,
            info=completed.frame.info,
        )
