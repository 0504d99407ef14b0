"""The check of a whole set: every frame is read once, and everything that is wrong is reported by frame."""

import contextlib
import dataclasses
import math
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.data.frame import Frame
from ammnet_sparse.data.grid import IGNORE_LABEL, UNMAPPED
from ammnet_sparse.data.parallel import available_cores, map_in_threads
from ammnet_sparse.data.set_info import SetInfo
from ammnet_sparse.data.sets.conventions import FrameConventions, convention_problems, conventions_of, unobserved_of
from ammnet_sparse.data.sets.files import missing_file
from ammnet_sparse.data.sets.frame_source import FrameSource, held_out_lists
from ammnet_sparse.data.sets.ids import repeated_ids
from ammnet_sparse.files.errors import DataError, abbreviated, reason
from ammnet_sparse.progress import ProgressBar

PUBLISHED_LISTS = ("train", "test", "val")
"""The lists that are checked by default, if the set has them."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something wrong with a set.

    Attributes:
        frame_id: empty if it concerns a list, or the whole set.
        message: file, expected, found, and what to do.
        is_broken: frames cannot be read, or lists contradict each other. Otherwise everything can be read and would
            be trained on and scored, but not as intended.
    """

    frame_id: str
    message: str
    is_broken: bool = True

    def __str__(self) -> str:
        return f"{self.frame_id}: {self.message}" if self.frame_id else self.message


@dataclasses.dataclass(frozen=True, eq=False)
class SplitStatistics:
    """Counts over the readable frames of a list, each frame counted once.

    Attributes:
        frames: how many are listed and how many of them could be read.
        scored: [frames] scored voxels (label weight set, label not 255; without labels: label weight set).
        hit: [frames] voxels that a pixel hits.
        classes: scored voxels of each class by name; zeros without labels.
        occupied: voxels of a class but empty, scored or not.
        num_voxels: voxels of a frame.
    """

    num_listed: int
    num_read: int
    scored: NDArray[np.int64]
    hit: NDArray[np.int64]
    classes: dict[str, int]
    occupied: int
    num_voxels: int


@dataclasses.dataclass(frozen=True)
class SetReport:
    """The result of ``check_set``. ``statistics`` is empty after a quick check; ``notes`` are not problems."""

    problems: tuple[Problem, ...]
    num_frames: int
    statistics: dict[str, SplitStatistics]
    notes: tuple[str, ...] = ()

    @property
    def is_clean(self) -> bool:
        return not self.problems

    def raise_if_broken(self, limit: int = 20) -> None:
        """Raises DataError naming every problem (the first ``limit`` in full) if frames or lists are broken.

        Warns about the set as a whole, for example about a TSDF of another convention.
        """
        if any(problem.is_broken for problem in self.problems):
            raise DataError("\n".join(self._problem_lines(limit)))
        for problem in self.problems:
            if not problem.frame_id:
                warnings.warn(problem.message, stacklevel=2)

    def describe(self, limit: int | None = None) -> str:
        """The report as text: statistics of each list, then the problems (at most ``limit`` of them)."""
        lines = [line for name, counts in self.statistics.items() for line in _statistics_lines(name, counts)]
        lines += [f"note: {note}" for note in self.notes]
        if self.problems:
            return "\n".join([*lines, *self._problem_lines(limit)])
        return "\n".join([*lines, f"{self.num_frames} frames checked, no problems"])

    def _problem_lines(self, limit: int | None) -> list[str]:
        frames = {problem.frame_id for problem in self.problems if problem.frame_id}
        shown = self.problems if limit is None else self.problems[:limit]
        num = f"{len(self.problems)} problem{'s' * (len(self.problems) != 1)}"
        head = f"{num}, {len(frames)} of {self.num_frames} frames affected:"
        if not frames:
            head = f"{num} of the set as a whole:"
        lines = [head, *(f"  {problem}" for problem in shown)]
        rest = sorted({problem.frame_id for problem in self.problems[len(shown) :]} - {""})
        if len(shown) < len(self.problems):
            lines.append(f"  and {len(self.problems) - len(shown)} more, of {abbreviated(rest, limit=1000)}")
        return lines


def check_set(
    source: FrameSource,
    split_names: Sequence[str] = (),
    *,
    quick: bool = False,
    workers: int = 1,
    progress: bool = True,
) -> SetReport:
    """Reads every frame of the lists once and reports what is missing, unreadable or wrong, by frame.

    It reports

    * files that are missing, unreadable, of the wrong shape, type or values;
    * frames without a hit pixel or a scored voxel;
    * files of another convention (``conventions.py``), judged over the set, and single frames whose TSDF has another
      convention than the rest;
    * frames that are in a list twice, frames of ``val.txt`` that are not in ``train.txt`` where that is checked, and
      frames of ``test.txt`` that are in another list;
    * lists that are empty or contain lines that are not ids.

    Args:
        split_names: names of lists; none: those of train, test and val that the set has.
        quick: only check that every file exists, without reading any.
        workers: threads; 0 is one per core (decompression runs beside Python).
        progress: show a progress bar on standard error.

    Raises:
        DataError: a named list is missing, or none is named and the set has none.
    """
    names = chosen_lists(source, split_names)
    all_lists, problems = _read_lists(source, with_validation(source, names))
    problems += _list_problems(source, all_lists)
    listed = {name: ids for name, ids in all_lists.items() if name in names}
    frame_ids = list(dict.fromkeys(frame_id for ids in listed.values() for frame_id in ids))
    if quick:
        missing = ((frame_id, path) for frame_id in frame_ids for path in source.missing_files(frame_id))
        problems += [Problem(frame_id, str(missing_file(path))) for frame_id, path in missing]
        return SetReport(tuple(problems), len(frame_ids), {})
    checked: dict[str, _CheckedFrame] = {}
    results = map_in_threads(
        lambda frame_id: _check_frame(source, frame_id), frame_ids, workers=workers or available_cores()
    )
    with warnings.catch_warnings(), contextlib.closing(results):
        warnings.simplefilter("ignore")  # warnings of frames become notes below
        bar = ProgressBar(results, total=len(frame_ids), title="frames", unit="frame", is_shown=progress)
        for frame_id, (frame, found) in zip(frame_ids, bar, strict=True):
            problems += [Problem(frame_id, str(problem), is_broken=frame is None) for problem in found]
            if frame is not None:
                checked[frame_id] = frame
    judged = {name: frame.conventions for name, frame in checked.items() if frame.conventions is not None}
    suspicions = convention_problems(judged, info=source.info)
    problems += [Problem("", f"{source.root}: {text}", is_broken=False) for text in suspicions]
    statistics = {name: _sum_up(ids, checked, info=source.info) for name, ids in listed.items()}
    return SetReport(tuple(problems), len(frame_ids), statistics, tuple(_notes(source, checked)))


def chosen_lists(source: FrameSource, names: Sequence[str]) -> list[str]:
    """Names of lists, each once; without any, those of train, test and val that the set has; DataError for none."""
    chosen = list(dict.fromkeys(names)) or [name for name in PUBLISHED_LISTS if source.has_split(name)]
    if not chosen:
        source.list_path("train")  # raises, naming the existing lists
    return chosen


def with_validation(source: FrameSource, names: Sequence[str]) -> list[str]:
    """The same with the lists held out beside ``train``."""
    return [*names, *(name for name in held_out_lists(source) if "train" in names and name not in names)]


def _notes(source: FrameSource, checked: dict[str, "_CheckedFrame"]) -> Iterator[str]:
    num_computed = sum(frame.label_weight_is_computed for frame in checked.values())
    if num_computed and not source.info.tsdf_is_flipped:
        yield (
            f"{source.root}: {num_computed} of {len(checked)} frames have no label weight (arr_1 of TSDF); it is "
            "computed from label and TSDF: occupied, or TSDF below -0.5"
        )
    found = Counter(frame.unobserved for frame in checked.values() if frame.unobserved is not None)
    if found:
        name = found.most_common(1)[0][0]
        value = "0.001, as SSCNet's source has it" if name == "free" else "+1, as EdgeNet's files have it"
        yield f"{source.root}: the flipped TSDF of unobserved space is {value} (--unobserved {name})"


def _read_lists(source: FrameSource, names: Sequence[str]) -> tuple[dict[str, list[str]], list[Problem]]:
    listed: dict[str, list[str]] = {}
    problems = []
    for name in names:
        source.list_path(name)  # a missing list is wrong usage, a broken one a problem of the set
        try:
            listed[name] = source.listed_ids(name)
        except DataError as error:
            problems.append(Problem("", str(error)))
    return listed, problems


def _list_problems(source: FrameSource, listed: dict[str, list[str]]) -> Iterator[Problem]:
    for name, ids in listed.items():
        for frame_id in repeated_ids(ids):
            yield Problem(frame_id, f"{source.list_path(name)}: is listed {ids.count(frame_id)} times; keep one")
    for name in held_out_lists(source):
        if "train" in listed and name in listed:
            for frame_id in sorted(set(listed[name]) - set(listed["train"])):
                yield Problem(frame_id, f"{source.list_path(name)}: is not in train.txt; correct one of the lists")
    for name in listed:
        if "test" in listed and name != "test":
            for frame_id in sorted(set(listed["test"]) & set(listed[name])):
                yield Problem(frame_id, f"{source.list_path('test')}: is in {name}.txt too; take it out of one")


@dataclasses.dataclass(frozen=True, eq=False)
class _CheckedFrame:
    """What the check keeps of a readable frame."""

    scored: int
    hit: int
    occupied: int
    classes: NDArray[np.int64]
    conventions: FrameConventions | None
    unobserved: str | None
    label_weight_is_computed: bool


def _check_frame(source: FrameSource, frame_id: str) -> tuple[_CheckedFrame | None, list[DataError]]:
    try:
        frame, problems = source.read_with_problems(frame_id)
        if frame is None:
            return None, problems
        checked = _measure(frame)
    except Exception as error:  # one bad frame must not stop the check of the others
        return None, [DataError(f"{source.root}: frame {frame_id}: cannot be checked ({reason(error)})")]
    lacks = []
    if not checked.hit:
        lacks.append("a voxel that a pixel hits, found none: nothing can be predicted from it")
    if not checked.scored:
        lacks.append("a scored voxel (label weight set, label not 255), found none: it is not scored")
    problems = [DataError(f"{source.root}: frame {frame_id}: expected {what}; check its files") for what in lacks]
    return checked, problems


def _measure(frame: Frame) -> _CheckedFrame:
    classes = np.zeros(frame.info.num_classes, dtype=np.int64)
    occupied, scored = 0, frame.label_weight
    if frame.label is not None:
        scored = frame.label_weight & (frame.label != IGNORE_LABEL)
        occupied = int(((frame.label > 0) & (frame.label != IGNORE_LABEL)).sum())
        classes = np.bincount(frame.label[scored], minlength=classes.size)
    return _CheckedFrame(
        scored=int(scored.sum()),
        hit=int((frame.mapping != UNMAPPED).sum()),
        occupied=occupied,
        classes=classes,
        conventions=conventions_of(frame),
        unobserved=unobserved_of(frame.tsdf) if frame.tsdf_is_flipped else None,
        label_weight_is_computed=frame.label_weight_is_computed,
    )


def _sum_up(ids: list[str], checked: dict[str, _CheckedFrame], *, info: SetInfo) -> SplitStatistics:
    unique = list(dict.fromkeys(ids))
    read = [checked[frame_id] for frame_id in unique if frame_id in checked]
    classes = sum((entry.classes for entry in read), np.zeros(info.num_classes, dtype=np.int64))
    return SplitStatistics(
        num_listed=len(unique),
        num_read=len(read),
        scored=np.array([entry.scored for entry in read], dtype=np.int64),
        hit=np.array([entry.hit for entry in read], dtype=np.int64),
        classes=dict(zip(info.class_names, classes.tolist(), strict=True)),
        occupied=sum(entry.occupied for entry in read),
        num_voxels=math.prod(info.grid_shape),
    )


def _statistics_lines(name: str, counts: SplitStatistics) -> list[str]:
    lines = [f"{name}: {counts.num_listed} frames, {counts.num_read} of them readable"]
    if not counts.num_read:
        return lines
    total = counts.num_read * counts.num_voxels
    for title, values in (("scored voxels", counts.scored), ("hit voxels", counts.hit)):
        lines.append(
            f"  {title:<15} {values.sum():>12,}  {values.sum() / total:6.1%} of the grid;"
            f"  a frame: mean {values.mean():,.0f}, min {values.min():,}, max {values.max():,}"
        )
    lines.append(f"  {'occupied voxels':<15} {counts.occupied:>12,}  {counts.occupied / total:6.1%} of the grid")
    num_scored = max(sum(counts.classes.values()), 1)
    lines.append("  scored voxels by class:")
    lines += [
        f"    {class_name:<13} {number:>12,}  {number / num_scored:6.1%}"
        for class_name, number in counts.classes.items()
    ]
    return lines
