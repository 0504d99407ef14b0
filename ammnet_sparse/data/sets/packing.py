"""Makes a packed set (``packed.py``): frames are read by threads and written one by one, so little memory is used.

The file is written under a temporary name; before it is renamed, every frame is read back and compared.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from ammnet_sparse.data.frame import Frame
from ammnet_sparse.data.parallel import available_cores, map_in_threads
from ammnet_sparse.data.sets.check import Problem, SetReport, chosen_lists, with_validation
from ammnet_sparse.data.sets.compact import CompactFrame
from ammnet_sparse.data.sets.frame_source import FrameSource
from ammnet_sparse.data.sets.packed import (
    CHECKED_ARRAYS,
    FRAME_ARRAYS,
    PACKED_FORMAT,
    PACKED_VERSION,
    SAFETENSORS_TYPES,
    PackedFrames,
    PackedHeader,
    checksums,
    file_arrays,
)
from ammnet_sparse.files.errors import DataError
from ammnet_sparse.files.writing import remove_unfinished, replacing
from ammnet_sparse.progress import ProgressBar

TsdfStorage = Literal["exact", "float16"]
"""``exact``: float16 if that represents every value of every frame, otherwise float32. ``float16``: rounded."""


class BrokenFramesError(DataError):
    """Frames of the set cannot be read; the message names them all."""


def pack_set(
    source: FrameSource,
    out: Path,
    *,
    splits: Sequence[str] = (),
    tsdf: TsdfStorage = "exact",
    overwrite: bool = False,
    workers: int = 0,
    progress: bool = True,
) -> PackedFrames:
    """Packs the frames of a set's lists into one file, with everything that ``source`` reads; the packed set.

    Args:
        splits: names of lists; none: those of train, test and val that the set has. ``val`` comes with ``train``.
        tsdf: how TSDFs are stored.
        overwrite: replace an existing file.
        workers: threads; 0 is one per core.
        progress: show progress bars on standard error.

    Raises:
        BrokenFramesError: frames that cannot be read, all of them named; nothing is written.
        DataError: no such list, or a file that exists already.
        OSError: the file cannot be written.
    """
    if out.exists() and not (overwrite and out.is_file()):
        raise DataError(f"{out}: expected no file yet, found one; choose another name, or `overwrite=True`")
    # With val, so that the choice of validation frames is the same as for the folder.
    lists = {name: source.frame_ids(name) for name in with_validation(source, chosen_lists(source, splits))}
    header = PackedHeader.of(source.info, lists)
    workers = workers or available_cores()
    remove_unfinished(out.parent, name=out.name)
    with replacing(out) as unfinished:
        try:
            is_exact = tsdf == "exact"
            _write(source, unfinished, header, "float16", is_exact=is_exact, workers=workers, progress=progress)
        except _InexactError:
            _write(source, unfinished, header, "float32", is_exact=True, workers=workers, progress=progress)
        _verify(PackedFrames(unfinished, dataset=source.info.dataset), workers=workers, progress=progress)
    return PackedFrames(out, dataset=source.info.dataset)


class _InexactError(Exception):
    """A TSDF that float16 does not represent although it must be exact."""


@dataclasses.dataclass(frozen=True)
class _Packed:
    frame: CompactFrame
    tsdf_error: float
    checksums: dict[str, int]


def _write(
    source: FrameSource,
    path: Path,
    header: PackedHeader,
    tsdf_type: str,
    *,
    is_exact: bool,
    workers: int,
    progress: bool,
) -> None:
    """Writes all frames; raises ``_InexactError`` at the first TSDF that is not exact but must be."""

    def pack(frame_id: str) -> _Packed | list[DataError]:
        frame, problems = source.read_with_problems(frame_id)
        return problems if frame is None else _pack(frame, tsdf_type)

    ids = header.frame_ids
    problems: list[Problem] = []
    tsdf_error = 0.0
    with path.open("wb") as file:
        writer = _Writer(file, header, _present_arrays(source), tsdf_type=tsdf_type)
        bar = ProgressBar(
            map_in_threads(pack, ids, workers=workers),
            total=len(ids),
            title="packing",
            unit="frame",
            is_shown=progress,
        )
        for frame_id, packed in zip(ids, bar, strict=True):
            if isinstance(packed, list):
                problems += [Problem(frame_id, str(problem)) for problem in packed]
                continue
            if is_exact and packed.tsdf_error:
                raise _InexactError
            tsdf_error = max(tsdf_error, packed.tsdf_error)
            if not problems:
                writer.add(packed)
        if problems:
            report = SetReport(tuple(problems), len(ids), {})
            raise BrokenFramesError(f"nothing was packed:\n{report.describe(limit=20)}")
        writer.finish(tsdf_error)


def _pack(frame: Frame, tsdf_type: str) -> _Packed:
    compact = CompactFrame.pack(frame, tsdf_type=tsdf_type)
    unpacked = compact.unpack()
    for name in ("mapping", "label_weight", "label", "label_map"):
        if not np.array_equal(getattr(unpacked, name), getattr(frame, name)):
            raise RuntimeError(f"frame {frame.frame_id}: {name} changes when it is packed; this is a defect, report it")
    error = float(np.abs(unpacked.tsdf - frame.tsdf).max())
    return _Packed(compact, error, checksums(compact))


def _verify(packed: PackedFrames, *, workers: int, progress: bool) -> None:
    """Reads every frame back and compares its arrays with the checksums. Raises OSError if they differ."""
    ids = packed.header.frame_ids
    results = map_in_threads(lambda frame_id: packed.read_with_problems(frame_id)[1], ids, workers=workers)
    for problems in ProgressBar(results, total=len(ids), title="verifying", unit="frame", is_shown=progress):
        if problems:
            raise OSError(f"{problems[0]}\nthe file differs from what was written to it; check the disk")


class _Writer:
    """Writes a file in the safetensors format frame by frame; the library needs all arrays in memory at once.

    The number of hits is only known after the last frame, so their array comes last, and the header reserves space
    for a larger number and is written at the end, padded with blanks as the format allows.
    """

    def __init__(self, file: BinaryIO, header: PackedHeader, present: Sequence[str], *, tsdf_type: str) -> None:
        self._file = file
        self._header = header
        self._present = present
        self._tsdf_type = tsdf_type
        self._hit_counts: list[int] = []
        self._checksums: list[list[int]] = []
        most_hits = len(header.frame_ids) * int(np.prod(header.grid_shape))
        room = len(self._header_bytes(num_hits=most_hits, tsdf_error=2 / 3)) + 64
        self._header_size = -(-room // 8) * 8
        self._positions: dict[str, int] = {}
        position = 8 + self._header_size
        for name, (kind, shape) in self._arrays(num_hits=0).items():
            self._positions[name] = position
            position += kind.itemsize * int(np.prod(shape))
        self._end = position

    def add(self, packed: _Packed) -> None:
        """Writes the next frame."""
        index = len(self._hit_counts)
        for name in FRAME_ARRAYS:
            if name in self._present:
                values = getattr(packed.frame, name)
                self._put(self._positions[name] + index * values.nbytes, values)
        self._put(self._end, packed.frame.hits)
        self._end += packed.frame.hits.nbytes
        self._hit_counts.append(len(packed.frame.hits))
        self._checksums.append([packed.checksums.get(name, 0) for name in CHECKED_ARRAYS])

    def finish(self, tsdf_error: float) -> None:
        """Writes the header."""
        offsets = np.concatenate([[0], np.cumsum(self._hit_counts)]).astype(np.int64)
        self._put(self._positions["hit_offsets"], offsets)
        self._put(self._positions["checksums"], np.array(self._checksums, dtype=np.uint32))
        text = self._header_bytes(num_hits=int(offsets[-1]), tsdf_error=tsdf_error).ljust(self._header_size)
        self._file.seek(0)
        self._file.write(self._header_size.to_bytes(8, "little") + text)
        self._file.flush()

    def _put(self, position: int, values: np.ndarray[Any, Any]) -> None:
        self._file.seek(position)
        self._file.write(np.ascontiguousarray(values).data)

    def _arrays(self, *, num_hits: int) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
        arrays = file_arrays(self._header, tsdf_type=self._tsdf_type, num_hits=num_hits)
        return {name: value for name, value in arrays.items() if name not in FRAME_ARRAYS or name in self._present}

    def _header_bytes(self, *, num_hits: int, tsdf_error: float) -> bytes:
        described = self._header.model_copy(update={"tsdf_error": tsdf_error}).model_dump_json(exclude_none=True)
        metadata = {"format": PACKED_FORMAT, "version": PACKED_VERSION, "set": described}
        entries: dict[str, Any] = {"__metadata__": metadata}
        start = 0
        for name, (kind, shape) in self._arrays(num_hits=num_hits).items():
            end = start + kind.itemsize * int(np.prod(shape))
            entries[name] = {"dtype": SAFETENSORS_TYPES[str(kind)], "shape": shape, "data_offsets": [start, end]}
            start = end
        return json.dumps(entries, separators=(",", ":")).encode()


def _present_arrays(source: FrameSource) -> list[str]:
    is_absent = {
        "label": not source.has_labels,
        "label_map": not source.reads_label_map,
        "image": not source.reads_image,
    }
    return [name for name in FRAME_ARRAYS if not is_absent.get(name, False)]
