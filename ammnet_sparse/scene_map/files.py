"""A map as a file, to be continued: one npz of numbers, and a text about them in JSON; nothing in it is executed."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
from numpy.typing import NDArray
from pydantic import Field

from ammnet_sparse.camera.files.poses import PoseConvention
from ammnet_sparse.camera.geometry.room import Floor
from ammnet_sparse.camera.geometry.surface import Confidence
from ammnet_sparse.data.set_info import SetInfo
from ammnet_sparse.data.volumes.camera import checked_pose
from ammnet_sparse.files.arrays import ArrayHeader, has_arrays, read_array
from ammnet_sparse.files.errors import DataError, reason
from ammnet_sparse.files.writing import replacing_open
from ammnet_sparse.scene_map.cells import MOST_CELLS, SurfaceCells
from ammnet_sparse.scene_map.estimate import Reading
from ammnet_sparse.scene_map.frames import MapFrame
from ammnet_sparse.scene_map.fused import FusedFrames
from ammnet_sparse.scene_map.fusion import VIEWS, WEIGHTS
from ammnet_sparse.scene_map.room import GivenPose, Room

_WHAT, _ADVICE = "a map that was saved", "save it again"
_FARTHEST_BLOCK = 100_000
_Count = Annotated[int, Field(ge=0, lt=2**31)]


class _RoomText(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)

    floor: Floor
    up_confidence: Confidence
    up_reason: str
    walls_share: float
    convention: PoseConvention | None


class _ReadingText(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    num_frames: Annotated[int, Field(ge=1, lt=2**31)]
    halvings: Annotated[int, Field(ge=0, lt=60)]


class _Text(pydantic.BaseModel):
    """Everything in the file that is no array."""

    model_config = pydantic.ConfigDict(extra="forbid")

    version: Literal[1]
    info: SetInfo
    room: _RoomText
    names: list[str]
    conventions: list[PoseConvention]
    num_seen: _Count
    looked_at: list[str] = []
    readings: dict[PoseConvention, _ReadingText]


@dataclasses.dataclass(frozen=True, eq=False)
class SavedMap:
    """What a file of a map holds.

    Attributes:
        fused: the evidence and its room.
        frames: in the map; none can be read again.
        readings: of the estimate of the room; empty for a room that was given.
        num_seen: frames that the estimate has seen.
        looked_at: names of those that may be no ``frames`` of the map yet.
    """

    fused: FusedFrames
    frames: list[MapFrame]
    readings: dict[PoseConvention, Reading]
    num_seen: int
    looked_at: tuple[str, ...] = ()


def write_map(path: str | Path, saved: SavedMap) -> None:
    """Writes a map, atomically. Raises OSError if it cannot be written."""
    fused, frames = saved.fused, saved.frames
    room = fused.room
    text = _Text(
        version=1,
        info=fused.info,
        room=_RoomText(**{name: getattr(room, name) for name in _RoomText.model_fields}),
        names=[frame.name for frame in frames],
        conventions=[frame.given.convention for frame in frames],
        num_seen=saved.num_seen,
        looked_at=list(saved.looked_at),
        readings={
            name: _ReadingText(num_frames=one.num_frames, halvings=one.cells.halvings)
            for name, one in saved.readings.items()
        },
    )
    unknown = np.full((4, 4), np.nan)
    others = [unknown if frame.given.other is None else frame.given.other for frame in frames]
    blocks = sorted(fused.blocks.items())
    evidence = np.array([block for _, block in blocks], dtype=np.int32).reshape(-1, *fused.shape)
    arrays: dict[str, NDArray[Any]] = {
        "text": np.frombuffer(text.model_dump_json().encode("utf-8", "backslashreplace"), dtype=np.uint8),
        "map_from_given": room.map_from_given,
        "poses": np.array([frame.given.matrix for frame in frames], dtype=np.float64).reshape(-1, 4, 4),
        "other_poses": np.array(others, dtype=np.float64).reshape(-1, 4, 4),
        "positions": np.array([position for position, _ in blocks], dtype=np.int32).reshape(-1, 2),
        "sums": evidence[:, :WEIGHTS],
        "weights": evidence[:, WEIGHTS],
        "views": evidence[:, VIEWS],
    }
    for name, one in saved.readings.items():
        arrays |= {f"{name}_keys": one.cells.keys, f"{name}_sums": one.cells.sums, f"{name}_cameras": one.cameras}
    with replacing_open(path) as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def is_map(path: Path) -> bool:
    """Whether a file holds a map, by the names of its arrays."""
    return has_arrays(path, "text", "map_from_given", "positions")


def read_map(path: str | Path) -> SavedMap:
    """Reads a map. Raises DataError for a file that is missing, damaged, or no map."""
    try:
        return _read_map(Path(path))
    except (pydantic.ValidationError, json.JSONDecodeError, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError.about(path, expected=_WHAT, found=reason(error), advice=_ADVICE) from error


def _read_map(path: Path) -> SavedMap:
    content = _array(path, "text", np.uint8, (None,))
    text = _Text.model_validate_json(content.tobytes().decode("utf-8"))
    info, count = text.info, len(text.names)
    if len(text.conventions) != count:
        raise ValueError(f"{count} names and {len(text.conventions)} conventions")
    poses = _array(path, "poses", np.float64, (count, 4, 4))
    others = _array(path, "other_poses", np.float64, (count, 4, 4))
    room = Room(_array(path, "map_from_given", np.float64, (4, 4)), **{name: value for name, value in text.room})
    fused = FusedFrames(room, info)
    positions = _array(path, "positions", np.int32, (None, 2))
    if np.abs(positions).max(initial=0) > _FARTHEST_BLOCK or len(np.unique(positions, axis=0)) < len(positions):
        raise ValueError("positions of blocks that are far away or not unique")
    box = fused.shape[1:]
    sums = _array(path, "sums", np.int32, (len(positions), info.num_classes, *box))
    weights, views = (_array(path, name, np.int32, (len(positions), *box)) for name in ("weights", "views"))
    if min(weights.min(initial=0), views.min(initial=0)) < 0:
        raise ValueError("negative weights or numbers of views")
    for row, (x, y) in enumerate(positions.tolist()):
        fused.blocks[x, y] = np.concatenate([sums[row], weights[row, None], views[row, None]])
    frames = []
    for name, convention, pose, other in zip(text.names, text.conventions, poses, others, strict=True):
        given = GivenPose(checked_pose(pose), convention, None if np.isnan(other[0, 0]) else checked_pose(other))
        frames.append(MapFrame(name, given, None))
    readings = {name: _reading(path, name, one) for name, one in text.readings.items()}
    return SavedMap(
        fused=fused, frames=frames, readings=readings, num_seen=text.num_seen, looked_at=tuple(text.looked_at)
    )


def _reading(path: Path, name: str, text: _ReadingText) -> Reading:
    keys = _array(path, f"{name}_keys", np.int64, (None,))
    sums = _array(path, f"{name}_sums", np.int64, (len(keys), 7))
    if len(keys) > MOST_CELLS or len(np.unique(keys)) < len(keys) or sums[:, 0].min(initial=1) < 1:
        raise ValueError(f"{name}: too many samples of the surface, or some that are not unique or weigh nothing")
    cameras = _array(path, f"{name}_cameras", np.int64, (text.num_frames, 9))
    order = np.argsort(keys)  # older files have them in the order in which they were seen
    return Reading(SurfaceCells(keys[order], sums[order], text.halvings), cameras)


def _array(path: Path, key: str, dtype: type[np.generic], shape: tuple[int | None, ...]) -> NDArray[Any]:
    """An array of exactly this type and shape; None stands for any length."""

    def check(header: ArrayHeader) -> str | None:
        fits = len(header.shape) == len(shape) and all(
            expected in (None, found) for expected, found in zip(shape, header.shape, strict=True)
        )
        return None if fits and header.dtype == np.dtype(dtype) else header.describe()

    expected = f"{np.dtype(dtype)} of shape {['any' if one is None else one for one in shape]}"
    return read_array(path, key, what=f"{_WHAT}: {expected}", check=check, advice=_ADVICE)
