"""From files of another form to a set in the published layout, frame by frame, restartable.

The files of a frame, such as SSCNet's ``NYU0003_0000.png`` and ``NYU0003_0000.bin``, are::

    Label/0003.npz     arr_0: class of each voxel, uint8
    TSDF/0003.npz      arr_0: TSDF, float32, not flipped;  arr_1: label weight, uint8;  view: field of view, if known
    Mapping/0003.npz   arr_0: pixel of each voxel, int32, 307200 for none
    RGB/NYU0003_colors.jpg, if there are color images
    <list>.txt         the frames, one id per line
    classes.yaml       classes and grid, if the classes are not NYU's
    prepared.json      what the frames depend on, so that a folder never mixes two choices

and with the flipped convention, instead of ``TSDF`` and ``Mapping``, what NYUCAD's readers expect::

    NYUCAD/<split>/TSDF_lr/NYU0003_0000_voxels.npz   tsdf_lr: flipped TSDF;  label_weight
    NYUCAD/<split>/mapping/NYU0003_0000_voxels.npz   arr_1: as above

Color images and 2D label maps are not part of SSCNet's raw files: add them to the folder as published.
"""

import dataclasses
import json
from collections.abc import Sequence, Set
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ammnet_sparse.data.grid import GRID_SHAPE
from ammnet_sparse.data.parallel import available_cores, map_in_processes
from ammnet_sparse.data.raw.plan import FoundFrames, PreparedFrame, SetPlan
from ammnet_sparse.data.set_info import NYU, SET_FILE, read_set_info, write_set_info
from ammnet_sparse.data.sets import files
from ammnet_sparse.data.sets.files import VIEW_KEY
from ammnet_sparse.data.sets.ids import read_id_list
from ammnet_sparse.data.volumes.labels import label_weight_of
from ammnet_sparse.data.volumes.tsdf import flip_tsdf, mapping_to_disk, unflip_tsdf
from ammnet_sparse.files.content import read_text
from ammnet_sparse.files.errors import DataError, abbreviated, reason
from ammnet_sparse.files.writing import remove_unfinished, replacing, replacing_open, write_text
from ammnet_sparse.progress import ProgressBar

Outcome = Literal["written", "rewritten", "complete", "failed"]

_KEYS = {False: ("arr_0", "arr_1", "arr_0"), True: ("tsdf_lr", "label_weight", "arr_1")}
"""Of TSDF, label weight and mapping in their files, by whether the TSDF is flipped."""
RECORD = "prepared.json"
_RECORD_VERSION, _SEQUENCES = 1, "sequences"


@dataclasses.dataclass(frozen=True)
class FrameResult:
    """The outcome of a frame; ``message`` names the file and what was wrong if it failed, or says what was repaired."""

    frame_id: str
    outcome: Outcome
    message: str = ""


@dataclasses.dataclass(frozen=True)
class PreparationReport:
    """The outcome of ``prepare_set``.

    Attributes:
        found: the frames, and what was noticed about the files.
        results: of every frame.
        listed: number of frames in every list by its name.
    """

    found: FoundFrames
    results: tuple[FrameResult, ...]
    listed: dict[str, int]

    def count(self, outcome: Outcome) -> int:
        return sum(result.outcome == outcome for result in self.results)

    @property
    def failures(self) -> list[str]:
        """Every file that was skipped, with the reason."""
        return [*self.found.problems, *(result.message for result in self.results if result.outcome == "failed")]

    @property
    def is_clean(self) -> bool:
        return not self.failures

    def describe(self) -> str:
        """The report as text: notes, every problem, and the counts last."""
        repaired: dict[str, list[str]] = {}
        for result in self.results:
            if result.message and result.outcome != "failed":
                repaired.setdefault(result.message, []).append(result.frame_id)
        notes = [*self.found.notes, *(f"{note} ({abbreviated(ids)})" for note, ids in repaired.items())]
        lines = [*(f"note: {note}" for note in notes), *(f"skipped: {failure}" for failure in self.failures)]
        counts = (
            f"{self.count('written')} frames written, {self.count('rewritten')} replaced, "
            f"{self.count('complete')} complete before and verified, {len(self.failures)} problems"
        )
        return "\n".join([*lines, counts])


def prepare_set(plan: SetPlan, *, workers: int | None = None, progress: bool = True) -> PreparationReport:
    """Prepares every frame of a plan; frames that are complete already are read and checked instead.

    A file is written under another name, read back and compared before it takes its own name, so an interrupted run
    leaves no partial file and can be resumed. A frame whose sources are newer than its own files is made again.

    Args:
        plan: what to prepare, from which files.
        workers: processes; None for one per available core, 1 to work in this process.
        progress: show a progress bar on standard error.

    Raises:
        DataError: no frames, or an output folder that was prepared with other settings.
        ValueError: a number of workers below 1.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers: expected at least 1, found {workers}")
    found = plan.find()
    frame_ids = sorted({frame_id for listed in found.lists.values() for frame_id in listed})
    _claim_folder(plan)
    made = map_in_processes(partial(prepare_frame, plan), frame_ids, workers=workers or available_cores())
    results = list(ProgressBar(made, total=len(frame_ids), title="preparing", unit="frame", is_shown=progress))
    for folder in {path.parent for frame_id in frame_ids for path in plan.paths(frame_id).values()}:
        if folder.is_dir():
            remove_unfinished(folder)
    failed = {result.frame_id for result in results if result.outcome == "failed"}
    listed = {name: _write_list(plan.out / f"{name}.txt", ids, failed=failed) for name, ids in found.lists.items()}
    return PreparationReport(found, tuple(results), listed)


def prepare_frame(plan: SetPlan, frame_id: str) -> FrameResult:
    """Makes, writes and reads back one frame, or checks it if it is complete; never raises for bad sources."""
    exists = all(path.is_file() for path in plan.paths(frame_id).values())
    damage = _damage(plan, frame_id) if exists else ""
    if exists and not damage:
        return FrameResult(frame_id, "complete")
    sources = plan.sources(frame_id)
    try:
        frame = plan.read(frame_id)
        _write_frame(plan, frame_id, frame)
    except DataError as error:
        return FrameResult(frame_id, "failed", str(error))
    except OSError as error:
        return FrameResult(frame_id, "failed", f"{error.filename or sources[0]}: cannot be read or written ({error})")
    except Exception as error:  # one bad frame must not stop the others
        names = " and ".join([str(sources[0]), *(path.name for path in sources[1:])])
        return FrameResult(frame_id, "failed", f"{names}: cannot be prepared ({reason(error)})")
    notes = [note for note in (damage and f"{damage}; made again", frame.note) if note]
    outcome: Outcome = "rewritten" if exists else "written"
    return FrameResult(frame_id, outcome, "; ".join(notes))


def _claim_folder(plan: SetPlan) -> None:
    """Records how the folder is prepared. Raises DataError if it was prepared with other settings."""
    record: dict[str, Any] = {"version": _RECORD_VERSION, **plan.record}
    sequences: Any = {}
    path = plan.out / RECORD
    if path.exists():
        try:
            found = json.loads(read_text(path, what="how the set was prepared"))
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path}: cannot be read ({reason(error)}); choose another folder for the output"
            ) from error
        if isinstance(found, dict):
            sequences = found.pop(_SEQUENCES, {})
            if found.get("flipped"):
                found.setdefault("unobserved", "surface")  # written before there was a choice
        if found != record:
            raise DataError(f"{plan.out}: expected a set prepared with {record}, found {found}; choose another folder")
    else:
        _begin_set(plan)
    if plan.sequence is not None:
        record[_SEQUENCES] = _with_sequence(path, sequences, *plan.sequence)
    write_text(path, json.dumps(record, indent=2) + "\n")


def _begin_set(plan: SetPlan) -> None:
    """Makes the folder, with ``classes.yaml``. Raises DataError if it has files of another origin."""
    folders = ("Label", "TSDF", "Mapping", "NYUCAD", *(["RGB"] if plan.has_images else []))
    foreign = [name for name in folders if (plan.out / name).exists()]
    described = plan.out / SET_FILE
    is_described = described.exists()
    if is_described and read_set_info(described, dataset="nyu") != plan.info:
        foreign.append(SET_FILE)
    if foreign:
        raise DataError(
            f"{plan.out}: expected a new folder or one with {RECORD}, found {', '.join(foreign)} of another origin; "
            "choose another folder"
        )
    plan.out.mkdir(parents=True, exist_ok=True)
    if plan.info != NYU and not is_described:
        write_set_info(described, plan.info)


def _with_sequence(path: Path, sequences: Any, name: str, place: Path) -> dict[str, str]:
    """The sequences of a set by name, and one more. Raises DataError for another one of the same name."""
    expected = str(place.resolve())
    found = sequences.get(name, expected) if isinstance(sequences, dict) else sequences
    if found != expected:
        raise DataError(
            f"{path}: expected {expected} for the frames named {name}, found {found}; rename one of the two, or "
            f"correct {_SEQUENCES!r} there if it was moved"
        )
    return {**sequences, name: expected}


def _write_frame(plan: SetPlan, frame_id: str, frame: PreparedFrame) -> None:
    """Writes the files of a frame, its volumes verified by reading them back; the label comes last."""
    tsdf_key, weight_key, mapping_key = _KEYS[plan.is_flipped]
    tsdf = flip_tsdf(frame.tsdf, unobserved=plan.unobserved) if plan.is_flipped else frame.tsdf
    view = {} if frame.view is None else {VIEW_KEY: frame.view}
    contents: dict[str, dict[str, NDArray[Any]]] = {
        "TSDF": {tsdf_key: tsdf, weight_key: frame.label_weight, **view},
        "Mapping": {mapping_key: mapping_to_disk(frame.mapping)},
        "Label": {"arr_0": frame.label},
    }
    for name, path in plan.paths(frame_id).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if name == "RGB":
            assert frame.image is not None
            with replacing_open(path) as file:
                Image.fromarray(frame.image).save(file, format="JPEG", quality=92)
        else:
            _write_verified(path, contents[name])


def _write_verified(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    with replacing(path) as temporary:
        with temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        for key, values in arrays.items():
            stored = files.read_npz_array(temporary, key, grid_shape=GRID_SHAPE)
            if stored.dtype != values.dtype or not np.array_equal(stored.reshape(-1), values):
                raise DataError(f"{path}: {key} differs from what was written; check the disk")


def _damage(plan: SetPlan, frame_id: str) -> str:
    """What is wrong with the files of a complete frame; empty if nothing is."""
    paths = plan.paths(frame_id)
    try:
        newest = max(path.stat().st_mtime for path in plan.sources(frame_id))
        if newest > min(path.stat().st_mtime for path in paths.values()):
            return f"{paths['Label']}: older than its raw files"
        tsdf_key, weight_key, mapping_key = _KEYS[plan.is_flipped]
        read = partial(files.read_npz_array, grid_shape=GRID_SHAPE)
        num_classes = plan.info.num_classes
        label = files.as_label(read(paths["Label"], "arr_0"), paths["Label"], num_classes=num_classes)
        tsdf = files.as_tsdf(read(paths["TSDF"], tsdf_key), paths["TSDF"])
        weight = files.as_label_weight(read(paths["TSDF"], weight_key), paths["TSDF"])
        files.as_mapping(read(paths["Mapping"], mapping_key), paths["Mapping"])
        if "RGB" in paths:
            files.read_color_image(paths["RGB"])
    except (DataError, OSError) as error:
        return str(error)
    expected = label_weight_of(label, unflip_tsdf(tsdf) if plan.is_flipped else tsdf)
    # Unflipping rounds: a voxel at -0.5 may fall on either side.
    if int((expected.astype(np.bool_) != weight).sum()) > (8 if plan.is_flipped else 0):
        return f"{paths['TSDF']}: label weight does not follow from label and TSDF"
    return ""


def _write_list(path: Path, frame_ids: Sequence[str], *, failed: Set[str]) -> int:
    """Writes a list: the frames that have not failed, and those already listed that this run did not see.

    Without any the list is removed, because an empty list is invalid. Returns their number.
    """
    listed = set(frame_ids) - failed
    if path.is_file():
        listed |= set(read_id_list(path)) - set(frame_ids)
    if listed:
        write_text(path, "".join(f"{frame_id}\n" for frame_id in sorted(listed)))
    else:
        path.unlink(missing_ok=True)
    return len(listed)
