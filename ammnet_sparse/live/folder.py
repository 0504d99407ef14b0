"""Frames that are written into a folder while it is watched."""

import dataclasses
import os
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ammnet_sparse.camera.files.frame_files import FOLDERS, FrameFiles, find_frames, is_image_file
from ammnet_sparse.camera.files.intrinsics import Intrinsics
from ammnet_sparse.camera.files.poses import natural_order
from ammnet_sparse.camera.files.stored import StoredImages, read_stored
from ammnet_sparse.files.errors import DataError

POLL_SECONDS = 0.05
"""Seconds between two looks at a folder."""
SETTLE_SECONDS = 2.0
"""Seconds without a change for which an unreadable or lonely file is assumed to be still being written."""
_LONGEST_SPREAD, _MARGIN = 500_000_000, 5_000_000
"""Nanoseconds: the longest wait for the other files of a frame, and the margin added to each wait."""
_REWRITE_SECONDS = 1.0
"""Seconds since the last rewrite for which a folder is looked at ten times as often."""
_NUM_SPREADS, _CLEARLY = 9, 0.75
"""Spreads measured per order of a frame's files, and the largest ratio of the median spreads of two orders at which the
smaller one decides."""


class FolderSource:
    """Frames that are written into a folder while it is watched.

    Color and depth images lie in it side by side (``0007.color.jpg``, ``0007.depth.png``), or in subfolders (``color``
    or ``rgb``, ``depth``; also ``label_map``, ``pose``), and match as for ``ammnet predict``. Of the frames that are
    there at the start, and of several new ones, the last one is taken. A frame whose files are all written anew
    (``latest.png``) is a new frame.

    A file is read once it is complete. One that cannot be read, or that has no partner, is reported if it has not
    changed for two seconds.

    Args:
        folder: to watch; may still be empty.
        intrinsics: of the camera.
        has_color: False for depth alone.
        has_label_map: frames have 2D label maps.
        needs_pose: frames without a pose have no partner; poses may then lie beside the images, too.
        report: called with a message for each frame or file that cannot be used, once.
        ends_when_idle: seconds without a new frame after which the source ends; None: never. A frame that cannot be
            read is a new frame too.

    Attributes:
        skipped: number of frames that could not be read.
        passed_over: number of frames left out because a newer one was there.

    Raises:
        DataError: no such folder.
    """

    def __init__(
        self,
        folder: Path,
        *,
        intrinsics: Intrinsics,
        has_color: bool = True,
        has_label_map: bool = False,
        needs_pose: bool = False,
        report: Callable[[str], None],
        ends_when_idle: float | None = None,
    ) -> None:
        if not folder.is_dir():
            raise DataError(f"`folder={folder}`: expected a folder that frames are written to, found none")
        self.folder = folder
        self.intrinsics = intrinsics
        self.depth_scale: float | None = None
        self.has_color = has_color
        self.has_label_map = has_label_map
        self.needs_pose = needs_pose
        self.ends_when_idle = ends_when_idle
        self.skipped = self.passed_over = 0
        self._report = report
        self._stopped = threading.Event()
        self._done: dict[str, _State] = {}
        self._unreadable: dict[str, tuple[_State, float]] = {}
        self._messages: dict[str, float] = {}
        self._said: set[str] = set()
        self._last_change = self._last_rewrite = 0.0
        self._rewriting: dict[str, _Rewriting] = {}

    def reads_from(self, folder: Path) -> bool:
        """Whether what is written into this folder would be taken for a frame."""
        places = [self.folder / name for names in FOLDERS.values() for name in names]
        return os.path.realpath(folder) in {os.path.realpath(place) for place in (self.folder, *places)}

    def stop(self) -> None:
        """Ends ``frames``."""
        self._stopped.set()

    def frames(self) -> Iterator[StoredImages]:
        """Yields the newest frame whenever one arrives."""
        self._last_change = time.monotonic()
        while not self._stopped.is_set():
            frame = self._newest()
            if frame is not None:
                yield frame
                self._last_change = time.monotonic()
            elif self._is_idle():
                return
            else:
                is_rewritten = time.monotonic() - self._last_rewrite < _REWRITE_SECONDS
                self._stopped.wait(POLL_SECONDS / 10 if is_rewritten else POLL_SECONDS)

    def _is_idle(self) -> bool:
        """Whether the source ends: nothing new for long enough, and nothing that may still be told about."""
        if self.ends_when_idle is None or self._unreadable or self._messages.keys() - self._said:
            return False
        return time.monotonic() - self._last_change > self.ends_when_idle

    def _newest(self) -> StoredImages | None:
        """The last of the new frames that can be read; earlier ones count as seen."""
        states = [(paths, state) for paths in self._paths() if (state := _State.of(paths)) is not None]
        self._give_up_unreadable({paths.name: (paths, state) for paths, state in states})
        for paths, state in states:
            is_changed = state != self._done.get(paths.name, state)
            if is_changed and self._rewriting.setdefault(paths.name, _Rewriting()).note(state):
                self._last_rewrite = time.monotonic()
        new = [(paths, state) for paths, state in states if state.is_newer_than(self._done.get(paths.name))]
        by_time = sorted(new, key=lambda found: (found[1].written_at, natural_order(found[0].name)), reverse=True)
        for paths, state in by_time:
            order = self._rewriting[paths.name].order if paths.name in self._rewriting else None
            if order is not None and state.order != order:
                continue  # the first files of a frame whose others follow
            try:
                frame = read_stored(paths)
            except (DataError, OSError, ValueError):
                if paths.name not in self._unreadable:
                    self._wait_for(paths.name, state)
                continue
            if order is None:
                self._wait_for_others(state)
            if _State.of(paths) != state:
                self._last_change = self._last_rewrite = time.monotonic()
                continue
            self._unreadable.pop(paths.name, None)
            # Older ones are late; newer ones are still being written, and so may be those that cannot be read.
            late = {
                other.name: seen
                for other, seen in new
                if seen.written_at <= state.written_at and other.name not in self._unreadable
            }
            self.passed_over += len(late) - 1
            self._done |= late
            return frame
        return None

    def _wait_for_others(self, state: "_State") -> None:
        """Waits until the files of the next frame would have followed if the newest file is the first of them.

        They follow sooner than it came after this frame's, so twice that long is waited.
        """
        remaining = state.written_at + min(2 * state.spread, _LONGEST_SPREAD) + _MARGIN - time.time_ns()
        if 0 < remaining <= _LONGEST_SPREAD + _MARGIN:  # the clock of a file server may be another one
            self._stopped.wait(remaining / 1e9)

    def _wait_for(self, name: str, state: "_State") -> None:
        """Waits for an unreadable frame, which may still be being written, from now on."""
        self._last_change = time.monotonic()
        self._unreadable[name] = (state, self._last_change)

    def _give_up_unreadable(self, present: Mapping[str, tuple[FrameFiles, "_State"]]) -> None:
        """Gives up unreadable frames, with a report, if their files have not changed for long enough."""
        for name, (state, since) in list(self._unreadable.items()):
            if name not in present:
                del self._unreadable[name]
            elif present[name][1] != state:
                self._wait_for(name, present[name][1])
            elif time.monotonic() - since > SETTLE_SECONDS:
                del self._unreadable[name]
                try:
                    read_stored(present[name][0])
                except (DataError, OSError, ValueError) as error:
                    self._done[name] = state
                    self.skipped += 1
                    self._report(f"frame {name}: {error}")

    def _paths(self) -> list[FrameFiles]:
        """The frames whose files are all there."""
        color = self._place("color") if self.has_color else None
        depth, pose_place = self._place("depth"), self._place("pose")
        label_map = self._place("label_map") if self.has_label_map else None
        pose = pose_place if self.needs_pose or pose_place != self.folder else None
        frames: list[FrameFiles] = []
        try:
            frames, messages = find_frames(color, depth, pose=pose, label_map=label_map, leaves_out_doubles=True)
        except (DataError, OSError) as error:
            if not self.folder.is_dir():
                self._say_lasting(
                    {"gone": f"{self.folder}: expected the folder that frames are written to, found none"}
                )
                return frames
            places = {place for place in (color, depth, label_map) if place is not None}
            is_empty = not any(is_image_file(file) for place in places if place.is_dir() for file in place.iterdir())
            # An empty folder is waited for. What an error says may change with every file that arrives.
            self._say_lasting({} if is_empty else {"no frame": str(error)})
        else:
            self._say_lasting({message: message for message in messages})
        return frames

    def _say_lasting(self, messages: Mapping[str, str]) -> None:
        """Reports messages whose key has stood for long enough, each once: a missing partner may still be written."""
        now = time.monotonic()
        self._messages = {key: self._messages.get(key, now) for key in messages}
        self._said &= messages.keys()
        for key, since in self._messages.items():
            if key not in self._said and now - since > SETTLE_SECONDS:
                self._said.add(key)
                self._report(messages[key])

    def _place(self, kind: str) -> Path:
        return next((self.folder / name for name in FOLDERS[kind] if (self.folder / name).is_dir()), self.folder)


@dataclasses.dataclass(frozen=True)
class _State:
    """The files of a frame as they are now: (path, time of the last change in nanoseconds, bytes, inode) of each.

    The inode tells a file that replaced another where times are coarse (FAT, network drives).
    """

    files: tuple[tuple[Path, int, int, int], ...]

    @classmethod
    def of(cls, paths: FrameFiles) -> "_State | None":
        """None if one was removed meanwhile."""
        files = [path for path in (paths.color, paths.depth, paths.label_map) if path is not None]
        try:
            status = [path.stat() for path in files]
        except OSError:
            return None
        found = zip(files, status, strict=True)
        return cls(tuple((path, one.st_mtime_ns, one.st_size, one.st_ino) for path, one in found))

    @property
    def written_at(self) -> int:
        """When the last of the files was written, in nanoseconds."""
        return max(changed for _, changed, *_ in self.files)

    @property
    def spread(self) -> int:
        """Nanoseconds between the first and the last of the files."""
        return self.written_at - min(changed for _, changed, *_ in self.files)

    @property
    def order(self) -> tuple[Path, ...]:
        """The files as they were written."""
        return tuple(path for path, *_ in sorted(self.files, key=lambda file: file[1]))

    def is_newer_than(self, other: "_State | None") -> bool:
        """Whether every file was written since; until then a frame would be of two moments."""
        return other is None or not set(self.files) & set(other.files)


class _Rewriting:
    """The orders in which files that are rewritten under one name are seen, with their spreads in each.

    Files written color first are seen as color and depth of one frame, and, until the next depth is there, as depth and
    the color of the next. The two of one frame are nearer to each other.
    """

    def __init__(self) -> None:
        self._last: _State | None = None
        self._spreads: dict[tuple[Path, ...], deque[int]] = {}

    def note(self, state: _State) -> bool:
        """Adds the files as they are now; returns whether they have changed."""
        if state == self._last:
            return False
        self._last = state
        self._spreads.setdefault(state.order, deque(maxlen=_NUM_SPREADS)).append(state.spread)
        return True

    @property
    def order(self) -> tuple[Path, ...] | None:
        """The order in which the files of one frame are written; None where their times do not tell, or not yet."""
        medians = sorted(
            (statistics.median(spreads), order)
            for order, spreads in self._spreads.items()
            if len(spreads) == _NUM_SPREADS
        )
        if len(medians) < 2 or medians[0][0] > _CLEARLY * medians[1][0]:
            return None
        return medians[0][1]
