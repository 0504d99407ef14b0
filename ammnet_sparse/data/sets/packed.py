"""A packed set: all frames of a set in one file that is read directly, without decompressing archives.

The file is in the safetensors format. Only the requested parts are read, and the page cache shares them between
processes. It is not memory-mapped, because truncating a mapped file kills the process (``files/tensors.py``).
``packing.pack_set`` makes it. Arrays, F frames, sizes and bits as in ``compact.CompactFrame``::

    tsdf          [F, X, H, Y] float16 or float32     hits         [N, 2] int32, those of all frames in turn
    label_weight  [F, ceil(V / 8)] uint8              hit_offsets  [F + 1] int64: frame f has hits[o[f] : o[f + 1]]
    label         [F, ceil(V / 2)] uint8, optional    checksums    [F, 6] uint32, CRC-32 of a frame's part of
    label_map     [F, 480, 320] uint8, optional                    tsdf, label_weight, label, label_map, image, hits
    image         [F, 480, 640, 3] uint8, optional                 (0 if there is none)

Metadata of the file: ``format``, ``version``, and ``set``, a ``PackedHeader`` as JSON.
"""

import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
from numpy.typing import NDArray

from ammnet_sparse.data.frame import Frame
from ammnet_sparse.data.grid import DatasetName, GridShape
from ammnet_sparse.data.set_info import NYU, Color, SetInfo, check_grid_shape
from ammnet_sparse.data.sets.compact import CompactFrame, compact_shapes, impossible_arrays
from ammnet_sparse.data.sets.frame_source import FrameSource
from ammnet_sparse.data.sets.ids import parse_frame_id, repeated_ids
from ammnet_sparse.files.content import open_file
from ammnet_sparse.files.errors import DataError, abbreviated
from ammnet_sparse.files.tensors import read_tensors_header

PACKED_FORMAT = "ammnet_sparse packed set"
PACKED_VERSION = "1"
FRAME_ARRAYS = ("tsdf", "label_weight", "label", "label_map", "image")
"""Arrays with the same size for all frames."""
CHECKED_ARRAYS = (*FRAME_ARRAYS, "hits")
"""Columns of ``checksums``."""
OPTIONAL_ARRAYS = ("label", "label_map", "image")

SAFETENSORS_TYPES = {
    "float16": "F16",
    "float32": "F32",
    "uint8": "U8",
    "uint32": "U32",
    "int32": "I32",
    "int64": "I64",
}
"""Names of types in the format."""
_NUMPY_TYPES = {code: name for name, code in SAFETENSORS_TYPES.items()}

_OWN = ("classes", "voxel_size")
"""Fields that the header holds only where they differ from NYU's."""
_PACK_AGAIN = "make it again with `ammnet data pack`"


class PackedHeader(pydantic.BaseModel):
    """The description of a packed set.

    Attributes:
        dataset: layout that it was made from.
        grid_shape: voxels along (X, height, Y).
        frame_ids: the frames in the order of the arrays.
        lists: ids of ``train``, ``test``, ``val`` and others.
        tsdf_error: largest difference between a stored TSDF and that of the files; 0 where it is exact.
        classes: names and colors, in the order of the labels; None: NYU's.
        voxel_size: meters; None: NYU's.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    dataset: DatasetName
    grid_shape: tuple[int, int, int]
    frame_ids: list[str]
    lists: dict[str, list[str]]
    tsdf_error: float
    classes: dict[str, Color] | None = None
    voxel_size: float | None = None

    @classmethod
    def of(cls, info: SetInfo, lists: dict[str, list[str]]) -> "PackedHeader":
        """The header of a set, with the ids of its lists by name."""
        ids = list(dict.fromkeys(frame_id for listed in lists.values() for frame_id in listed))
        own = {name: getattr(info, name) for name in _OWN if getattr(info, name) != getattr(NYU, name)}
        return cls(dataset=info.dataset, grid_shape=info.grid_shape, frame_ids=ids, lists=lists, tsdf_error=0.0, **own)

    @property
    def info(self) -> SetInfo:
        """The description of the set."""
        own = {name: getattr(self, name) for name in _OWN if getattr(self, name) is not None}
        return SetInfo(dataset=self.dataset, grid_shape=self.grid_shape, **own)

    @pydantic.model_validator(mode="after")
    def _check(self) -> "PackedHeader":
        if repeated := repeated_ids(self.frame_ids):
            raise ValueError(f"frame_ids: expected every frame once, found {abbreviated(repeated)} more than once")
        for name, ids in self.lists.items():
            if stray := sorted(set(ids) - set(self.frame_ids)):
                raise ValueError(f"lists: expected frames of the file in {name}, found {abbreviated(stray)}")
        self.info  # noqa: B018  raises for a set that cannot be
        return self


class PackedFrames(FrameSource):
    """The frames of a packed set. Can be sent to other processes.

    Args:
        root: the file.
        dataset: what the set must have been made from.
        read_image: read color images; None: if the file has them.
        read_label_map: read 2D label maps; None: likewise.
        grid_shape: voxels along (X, height, Y) that it must have; None: any.

    Raises:
        DataError: not a packed set, a damaged one, or one that lacks the parts asked for.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        dataset: DatasetName = "nyu",
        read_image: bool | None = None,
        read_label_map: bool | None = None,
        grid_shape: GridShape | None = None,
    ) -> None:
        self.root = Path(root)
        self._open()
        self.info = self.header.info
        if dataset != self.info.dataset:
            raise DataError(
                f"{self.root}: expected a set made from dataset {dataset}, found {self.info.dataset}; "
                f"choose dataset {self.info.dataset}, or another file"
            )
        check_grid_shape(self.info, grid_shape, source=self.root)
        self.has_labels = "label" in self._entries
        self.reads_image = self._decide(read_image, "image", "color images, which `ammnet data pack --images` adds")
        self.reads_label_map = self._decide(read_label_map, "label_map", "2D label maps")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in _OF_THE_OPEN_FILE}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def list_names(self) -> list[str]:
        """Names of the lists of the file."""
        return sorted(self.header.lists)

    def find_list(self, split: str) -> Path | None:
        """A name of a list for messages, not the path of a file."""
        return self.root / f"{split}.txt" if split in self.header.lists else None

    def listed_ids(self, split: str) -> list[str]:
        """The ids of a list in its order; lists with repetitions are not packed."""
        self.list_path(split)
        return list(self.header.lists[split])

    def files(self, frame_id: str) -> list[Path]:
        """The packed file, for every frame that it holds; for others a file that cannot exist."""
        return [self.root if parse_frame_id(frame_id, source="frame_id") in self._index else self.root / frame_id]

    def read(self, frame_id: str) -> Frame:
        """A frame, as copies. Its content was checked when it was packed.

        Raises:
            DataError: no such frame in the file, or a damaged one.
        """
        return self.read_compact(frame_id).unpack()

    def read_compact(self, frame_id: str) -> CompactFrame:
        """Copies of the stored arrays of a frame, compared with the checksums when first read.

        Raises:
            DataError: no such frame, a damaged one, or a file that was truncated after it was opened.
        """
        compact = self._read(frame_id)
        if compact.frame_id not in self._verified:
            if damaged := self._damaged_arrays(compact):
                raise self._damaged(compact.frame_id, damaged[0])
            self._verified.add(compact.frame_id)
        return compact

    def read_with_problems(self, frame_id: str) -> tuple[Frame | None, list[DataError]]:
        """As ``read``, always compared with the checksums; None and the damaged arrays if they differ."""
        try:
            compact = self._read(frame_id)
            problems = [self._damaged(compact.frame_id, name) for name in self._damaged_arrays(compact)]
            return (None, problems) if problems else (compact.unpack(), [])
        except DataError as error:
            return None, [error]

    def _read(self, frame_id: str) -> CompactFrame:
        frame_id = parse_frame_id(frame_id, source="frame_id")
        if frame_id not in self._index:
            raise DataError(f"{self.root}: expected frames of the set, found unknown id {frame_id}; correct the id")
        index = self._index[frame_id]

        def row(name: str) -> NDArray[Any]:
            return self._rows(name, index, index + 1)[0]

        start, end = self._hit_offsets[index : index + 2].tolist()
        return CompactFrame(
            frame_id=frame_id,
            tsdf=row("tsdf"),
            hits=self._rows("hits", start, end),
            label_weight=row("label_weight"),
            label=row("label") if self.has_labels else None,
            label_map=row("label_map") if self.reads_label_map else None,
            image=row("image") if self.reads_image else None,
            tsdf_is_flipped=self.info.tsdf_is_flipped,
            info=self.info,
        )

    def _damaged_arrays(self, compact: CompactFrame) -> list[str]:
        """Names of the arrays that differ from what was packed, or that cannot be what was packed."""
        expected = dict(zip(CHECKED_ARRAYS, self._checksums[self._index[compact.frame_id]].tolist(), strict=True))
        changed = [name for name, found in checksums(compact).items() if found != expected[name]]
        return changed or impossible_arrays(compact)

    def describe(self) -> str:
        """Lists and size of the file, type and size of its arrays, and how the TSDF is stored."""
        num_frames = len(self.header.frame_ids)
        lists = ", ".join(f"{name} {len(ids)}" for name, ids in self.header.lists.items())
        lines = [
            f"{self.root}: {num_frames} frames ({lists}), {self.root.stat().st_size / 1e6:.1f} MB",
            f"  {'array':<13} {'type':<8} {'bytes a frame':>13} {'MB':>8}",
        ]
        for name, entry in self._entries.items():
            kind, size = _NUMPY_TYPES[entry.type_name], entry.end - entry.start
            lines.append(f"  {name:<13} {kind:<8} {size / num_frames:>13,.0f} {size / 1e6:>8.1f}")
        error = self.header.tsdf_error
        return "\n".join([*lines, f"TSDF {f'rounded by at most {error:.2g}' if error else 'exactly as in the files'}"])

    def _open(self) -> None:
        if not os.path.exists(self.root):
            raise DataError(f"{self.root}: expected a packed set, found no file; check the path")
        advice = f"{_PACK_AGAIN}, or copy the file again"
        self._file = open_file(self.root, what="a packed set", advice=advice)
        header = read_tensors_header(self.root, what="a packed set", advice=advice)
        self._entries = header.entries
        self.header = _read_header(self.root, header.metadata)
        self._check_arrays()
        self._hit_offsets: NDArray[np.int64] = self._rows("hit_offsets", 0, self._entries["hit_offsets"].shape[0])
        self._checksums: NDArray[np.uint32] = self._rows("checksums", 0, len(self.header.frame_ids))
        self._verified: set[str] = set()
        num_hits = self._entries["hits"].shape[0]
        offsets = self._hit_offsets
        if offsets[0] != 0 or offsets[-1] != num_hits or (np.diff(offsets) < 0).any():
            raise DataError(f"{self.root}: hit_offsets: expected ascending 0..{num_hits}, found others; {_PACK_AGAIN}")
        self._index = {frame_id: index for index, frame_id in enumerate(self.header.frame_ids)}

    def _rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows ``start`` to ``stop`` of an array's first axis, read from the file; by threads at once, too."""
        entry = self._entries[name]
        rows = np.empty((stop - start, *entry.shape[1:]), dtype=_NUMPY_TYPES[entry.type_name])
        place = entry.start + start * rows[:1].nbytes
        if rows.nbytes and os.preadv(self._file.fileno(), [rows.data], place) < rows.nbytes:
            raise DataError(
                f"{self.root}: expected a packed set, found an end within {name}: the file was cut while it was in "
                f"use; {_PACK_AGAIN}, or copy the file again"
            )
        return rows

    def _check_arrays(self) -> None:
        found = {name: (entry.type_name, list(entry.shape)) for name, entry in self._entries.items()}
        tsdf_type = "float32" if found.get("tsdf", ("", []))[0] == "F32" else "float16"
        num_hits = next(iter(found.get("hits", ("", []))[1]), 0)
        expected = {
            name: (SAFETENSORS_TYPES[str(kind)], list(shape))
            for name, (kind, shape) in file_arrays(self.header, tsdf_type=tsdf_type, num_hits=num_hits).items()
            if name in found or name not in OPTIONAL_ARRAYS
        }
        wrong = [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]
        if wrong:
            name = min(wrong)
            raise DataError(
                f"{self.root}: {name}: expected {expected.get(name, 'no such array')}, "
                f"found {found.get(name, 'none')}; {_PACK_AGAIN}"
            )

    def _decide(self, wanted: bool | None, name: str, what: str) -> bool:
        if wanted and name not in self._entries:
            raise DataError(
                f"{self.root}: expected {what}, found none; pack the set again with them, or choose a model that does "
                "not read them"
            )
        return name in self._entries if wanted is None else wanted

    def _damaged(self, frame_id: str, name: str) -> DataError:
        return DataError(
            f"{self.root}: {name} of frame {frame_id}: expected the packed bytes, found others; "
            f"{_PACK_AGAIN}, or copy the file again"
        )


_OF_THE_OPEN_FILE = ("_file", "_entries", "_hit_offsets", "_checksums", "_verified", "_index", "header")


def file_arrays(
    header: PackedHeader, *, tsdf_type: str, num_hits: int
) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """Type and shape of every array that a file may have, in the order in which they are written."""
    num_frames = len(header.frame_ids)
    of_frame = compact_shapes(header.grid_shape, tsdf_type=tsdf_type)
    return {
        "hit_offsets": (np.dtype(np.int64), (num_frames + 1,)),
        "checksums": (np.dtype(np.uint32), (num_frames, len(CHECKED_ARRAYS))),
        **{name: (kind, (num_frames, *shape)) for name, (kind, shape) in of_frame.items()},
        "hits": (np.dtype(np.int32), (num_hits, 2)),
    }


def checksums(frame: CompactFrame) -> dict[str, int]:
    """CRC-32 of each array that a frame has."""
    arrays = {name: getattr(frame, name) for name in CHECKED_ARRAYS}
    return {name: zlib.crc32(np.ascontiguousarray(array).data) for name, array in arrays.items() if array is not None}


def _read_header(path: Path, metadata: dict[str, str]) -> PackedHeader:
    if metadata.get("format") != PACKED_FORMAT:
        raise DataError(
            f"{path}: expected a packed set, found another safetensors file with metadata {sorted(metadata)}; name a "
            "set's folder, or a file made by `ammnet data pack`"
        )
    if metadata.get("version") != PACKED_VERSION:
        raise DataError(
            f"{path}: expected version {PACKED_VERSION} of packed sets, found {metadata.get('version')!r}; "
            f"{_PACK_AGAIN}"
        )
    try:
        return PackedHeader.model_validate_json(metadata.get("set", ""))
    except pydantic.ValidationError as error:
        problem = error.errors(include_url=False)[0]["msg"]
        raise DataError(f"{path}: expected the description of a packed set, found {problem}; {_PACK_AGAIN}") from error
