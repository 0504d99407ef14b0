"""The files of a room's map: class volume, meshes, page, and the map of places where a robot can be."""

import dataclasses
from pathlib import Path

import numpy as np

from ammnet_sparse.files.arrays import has_arrays
from ammnet_sparse.files.writing import replacing_open
from ammnet_sparse.pictures.gltf import write_glb
from ammnet_sparse.pictures.occupancy import HEIGHTS, write_occupancy
from ammnet_sparse.pictures.page import Scene, is_page, write_page
from ammnet_sparse.pictures.palettes import Palette, painted
from ammnet_sparse.pictures.ply import write_ply
from ammnet_sparse.scene_map.volume import MapVolume

VOLUME, PAGE = "room.npz", "page.html"
ROOM_FILES = (VOLUME, "room.ply", "room.glb", "map.pgm", "map.yaml", PAGE)
"""Names of the files that ``write_room`` writes."""
_TITLE = "Room"


def write_room(
    folder: str | Path,
    volume: MapVolume,
    *,
    palette: Palette = "set",
    heights: tuple[float, float] = HEIGHTS,
    resolution: float | None = None,
) -> list[Path]:
    """Writes every file of a map into a folder, which is made; each replaces an existing one atomically.

    ``room.npz`` has the arrays of the volume, ``labels``, ``classes`` (their names) and ``voxel_size``. ``room.ply``
    (cubes) and ``room.glb`` are meshes in meters in the map's world. ``page.html`` shows the room in 3D, and
    ``map.pgm`` with ``map.yaml`` where a robot can be.

    Args:
        folder: to write to.
        volume: of the room.
        palette: colors of the classes.
        heights: lowest and highest in meters above the floor; what is occupied between them is in a robot's way.
        resolution: of ``map.pgm`` in meters per pixel; None: a pixel per voxel.

    Returns:
        The paths written.

    Raises:
        ValueError: a map without a frame.
        OSError: a file cannot be written.
    """
    folder = Path(folder)
    volume = dataclasses.replace(volume, info=painted(volume.info, palette))
    scene = room_scene(volume)
    folder.mkdir(parents=True, exist_ok=True)
    labels, info = volume.labels, volume.info
    x, y, z = volume.origin.tolist()
    return [
        _write_volume(folder / VOLUME, volume),
        write_ply(folder / "room.ply", labels, as_cubes=True, origin=(x, y, z), info=info),
        write_glb(folder / "room.glb", labels, known=volume.is_known, origin=(x, y, z), info=info),
        *write_occupancy(folder, volume, heights=heights, resolution=resolution),
        write_page(folder / PAGE, [scene], title=_TITLE),
    ]


def room_scene(volume: MapVolume) -> Scene:
    """The map as a scene of the page, with the path of the camera; its note has the number of frames."""
    count = len(volume.poses)
    size = volume.info.voxel_size
    voxels_from_world = np.zeros((4, 4))
    voxels_from_world[[0, 1, 2, 3], [0, 2, 1, 3]] = 1
    voxels_from_world[:3, 3] = -volume.origin[[0, 2, 1]]
    voxels_from_world[:3] /= size
    return Scene(
        "room",
        volume.labels,
        note=f"{count} frame{'s' * (count != 1)} in the map",
        poses=voxels_from_world @ volume.poses,
        info=volume.info,
    )


def foreign_room_files(folder: Path) -> list[Path]:
    """Files of another origin that ``write_room`` would replace.

    A ``room.npz`` with the arrays of a map is of an earlier one, and so are the other files beside it, but for a page
    with another title.
    """
    present = [folder / name for name in ROOM_FILES if (folder / name).exists()]
    if has_arrays(folder / VOLUME, "num_views", "map_from_given"):
        return [path for path in present if path.name == PAGE and not is_page(path, title=_TITLE)]
    return present


def _write_volume(path: Path, volume: MapVolume) -> Path:
    with replacing_open(path) as file:
        np.savez_compressed(
            file,  # type: ignore[arg-type]
            labels=volume.labels,
            probabilities=volume.probabilities,
            num_views=volume.num_views,
            origin=volume.origin,
            voxel_size=np.array(volume.info.voxel_size),
            classes=np.array(volume.info.class_names),
            poses=volume.poses,
            names=np.array(volume.names, dtype=np.str_),
            map_from_given=volume.map_from_given,
        )
    return path
