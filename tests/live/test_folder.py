"""Folders that are written to while they are watched."""

import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest

from ammnet_sparse.camera.files.frame_files import FrameFiles
from ammnet_sparse.camera.files.intrinsics import read_intrinsics
from ammnet_sparse.camera.files.stored import StoredImages, read_stored
from ammnet_sparse.files.errors import DataError
from ammnet_sparse.live import folder as watched
from ammnet_sparse.live.folder import FolderSource

INTRINSICS = read_intrinsics("520,520,319.5,239.5")


def write_pair(folder: Path, name: str, value: int, *, color: str = "", depth: str = "") -> None:
    for part in (color, depth):
        (folder / part).mkdir(parents=True, exist_ok=True)
    iio.imwrite(folder / color / f"{name}{'' if color else '.color'}.png", np.full((12, 16, 3), value, np.uint8))
    iio.imwrite(folder / depth / f"{name}{'' if depth else '.depth'}.png", np.full((12, 16), 1000 + value, np.uint16))


def watch(folder: Path, said: list[str], **options: Any) -> FolderSource:
    options = {"ends_when_idle": 0.3, **options}
    return FolderSource(folder, intrinsics=INTRINSICS, report=said.append, **options)


@pytest.mark.parametrize("places", [{}, {"color": "rgb", "depth": "depth"}, {"color": "color", "depth": "depth"}])
def test_frames_arrive_in_a_folder(tmp_path: Path, places: dict[str, str]) -> None:
    said: list[str] = []
    write_pair(tmp_path, "0001", 1, **places)
    time.sleep(0.02)
    write_pair(tmp_path, "0002", 2, **places)
    frames = watch(tmp_path, said).frames()
    first = next(frames)
    assert first.name == "0002" and int(first.depth[0, 0]) == 1002  # the last of those that are there
    assert first.color is not None and int(first.color[0, 0, 0]) == 2
    time.sleep(0.02)
    write_pair(tmp_path, "0003", 3, **places)
    assert next(frames).name == "0003"
    assert list(frames) == [] and said == []


def test_files_that_grow_slowly_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as a file changes it is being written, however long that takes."""
    monkeypatch.setattr(watched, "SETTLE_SECONDS", 0.5)
    said: list[str] = []
    write_pair(tmp_path, "0001", 1)
    path = tmp_path / "0001.depth.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:8])

    def complete() -> None:
        for end in range(12, len(whole), len(whole) // 8):
            time.sleep(0.2)
            path.write_bytes(whole[:end])
        path.write_bytes(whole)

    writer = threading.Thread(target=complete)
    writer.start()
    frames = list(watch(tmp_path, said, ends_when_idle=0.6).frames())
    writer.join()
    assert [frame.name for frame in frames] == ["0001"] and said == []


def test_files_written_anew_are_a_new_frame(tmp_path: Path) -> None:
    said: list[str] = []
    write_pair(tmp_path, "latest", 1)
    source = watch(tmp_path, said)
    frames = source.frames()
    assert int(next(frames).depth[0, 0]) == 1001
    time.sleep(0.02)
    iio.imwrite(tmp_path / "latest.color.png", np.full((12, 16, 3), 2, np.uint8))
    assert source._newest() is None  # color of one moment and depth of another are no frame
    write_pair(tmp_path, "latest", 2)
    frame = next(frames)
    assert frame.color is not None and (int(frame.depth[0, 0]), int(frame.color[0, 0, 0])) == (1002, 2)
    assert list(frames) == [] and said == []


def test_corrupt_files_are_named_while_good_ones_keep_coming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched, "SETTLE_SECONDS", 0.2)
    said: list[str] = []
    source = watch(tmp_path, said)
    seen = []
    for number in range(30):
        name = f"{number:04d}"
        write_pair(tmp_path, name, number)
        if number % 5 == 1:
            path = tmp_path / f"{name}.depth.png"
            path.write_bytes(path.read_bytes()[:40])
        frame = source._newest()
        seen.append(None if frame is None else frame.name)
        time.sleep(0.03)
    good = [f"{number:04d}" for number in range(30) if number % 5 != 1]
    assert [name for name in seen if name is not None] == good
    named = [line.split(":")[0] for line in said]
    assert named == [f"frame {number:04d}" for number in range(1, 30, 5)][: len(named)] and len(named) >= 3
    assert source.skipped == len(named) and source.passed_over == 0


def test_files_that_replace_others_of_the_same_time_are_a_new_frame(tmp_path: Path) -> None:
    """As on file systems whose times are seconds."""
    folder, other = tmp_path / "watched", tmp_path / "other"
    write_pair(folder, "latest", 1)
    write_pair(other, "latest", 2)
    for file in (*folder.iterdir(), *other.iterdir()):
        os.utime(file, ns=(10**18, 10**18))
    source = watch(folder, [])
    first = source._newest()
    assert first is not None and int(first.depth[0, 0]) == 1001 and source._newest() is None
    for name in ("latest.color.png", "latest.depth.png"):
        os.replace(other / name, folder / name)
    second = source._newest()
    assert second is not None and int(second.depth[0, 0]) == 1002


def test_which_of_the_files_of_a_stream_belong_together_is_learned(tmp_path: Path) -> None:
    """Depth 10 ms after color, every 33 ms: the pair of depth and next color settles as well as that of one moment."""

    def write(value: int, *, part: str, at: int) -> StoredImages | None:
        write_pair(tmp_path / "new", "latest", value)
        os.utime(tmp_path / "new" / f"latest.{part}.png", ns=(at * 10**6, at * 10**6))
        os.replace(tmp_path / "new" / f"latest.{part}.png", tmp_path / f"latest.{part}.png")
        return source._newest()

    source = watch(tmp_path, [])
    write_pair(tmp_path, "latest", 0)
    found = []
    for value in range(1, 30):
        found += [write(value, part="color", at=33 * value), write(value, part="depth", at=33 * value + 10)]
    frames = [frame for frame in found[20:] if frame is not None]
    moments = [
        (int(frame.color[0, 0, 0]), int(frame.depth[0, 0]) - 1000) for frame in frames if frame.color is not None
    ]
    assert len(moments) >= 18 and all(color == depth for color, depth in moments)


@pytest.mark.parametrize(("gaps", "is_told"), [((10, 23), True), ((15, 18), False)])
def test_order_of_rewritten_files(tmp_path: Path, gaps: tuple[int, int], is_told: bool) -> None:
    color, depth = tmp_path / "color.png", tmp_path / "depth.png"
    rewriting, now, times = watched._Rewriting(), 0, {color: 0, depth: 0}
    for _ in range(12):
        for path, gap in ((color, gaps[1]), (depth, gaps[0])):
            now += gap
            times[path] = now
            state = watched._State(tuple((path, time, 0, 0) for path, time in times.items()))
            assert rewriting.note(state) and not rewriting.note(state)
    assert rewriting.order == ((color, depth) if is_told else None)


def test_files_without_partner_are_said_once_and_block_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched, "SETTLE_SECONDS", 0.2)
    said: list[str] = []
    write_pair(tmp_path, "0001", 1, color="color", depth="depth")
    for name, folder in (("0002.png", "color"), ("0003.png", "depth")):
        (tmp_path / folder / name).write_bytes((tmp_path / folder / "0001.png").read_bytes())
    for name in ("0004.png", "0004.color.png"):
        (tmp_path / "color" / name).write_bytes((tmp_path / "color" / "0001.png").read_bytes())
    (tmp_path / "color" / "0005.jpg").write_bytes(b"")
    (tmp_path / "color" / "0005.bmp").write_bytes(b"")
    frames = list(watch(tmp_path, said, ends_when_idle=0.6).frames())
    assert [frame.name for frame in frames] == ["0001"]
    assert sorted(Path(line.split(":")[0]).name for line in said) == [
        "0002.png", "0003.png", "0004.color.png", "color",
    ]  # fmt: skip
    assert "0005.bmp and 0005.jpg" in next(line for line in said if "one color file per frame" in line)
    assert "has no partner: no depth image" in said[0] + said[1]


def test_the_first_color_image_of_a_folder_arrives_before_its_depth(tmp_path: Path) -> None:
    said: list[str] = []

    def write() -> None:
        time.sleep(0.2)
        (tmp_path / "7.jpg").write_bytes(iio.imwrite("<bytes>", np.full((12, 16, 3), 9, np.uint8), extension=".jpg"))
        time.sleep(0.2)
        iio.imwrite(tmp_path / "7.png", np.full((12, 16), 1500, np.uint16))

    writer = threading.Thread(target=write)
    writer.start()
    frames = list(watch(tmp_path, said, ends_when_idle=1.0).frames())
    writer.join()
    assert [(frame.name, int(frame.depth[0, 0])) for frame in frames] == [("7", 1500)] and said == []
    assert frames[0].color is not None and abs(int(frames[0].color[0, 0, 0]) - 9) < 3


def test_frames_that_cannot_be_read_are_counted_and_put_the_end_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched, "SETTLE_SECONDS", 0.1)
    said: list[str] = []
    source = watch(tmp_path, said, ends_when_idle=0.5)

    def write() -> None:
        for index in range(4):
            time.sleep(0.3)
            write_pair(tmp_path, f"{index}", index)
            if index < 3:
                (tmp_path / f"{index}.depth.png").write_bytes(b"broken")

    writer = threading.Thread(target=write)
    writer.start()
    frames = list(source.frames())
    writer.join()
    assert [frame.name for frame in frames] == ["3"]
    assert source.skipped == len(said) == 3


def test_an_empty_folder_is_waited_for_and_stopped(tmp_path: Path) -> None:
    source = watch(tmp_path, [], ends_when_idle=None)
    threading.Timer(0.2, source.stop).start()
    assert list(source.frames()) == []
    with pytest.raises(DataError, match="expected a folder that frames are written to"):
        watch(tmp_path / "absent", [])


def test_frames_left_out_for_newer_ones_are_counted(tmp_path: Path) -> None:
    said: list[str] = []
    for index in range(4):
        write_pair(tmp_path, f"{index:04d}", index)
        time.sleep(0.02)
    source = watch(tmp_path, said)
    assert [frame.name for frame in source.frames()] == ["0003"]
    assert source.passed_over == 3 and source.skipped == 0 and said == []


def test_a_folder_that_is_removed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched, "SETTLE_SECONDS", 0.2)
    said: list[str] = []
    folder = tmp_path / "frames"
    write_pair(folder, "0001", 1)
    frames = watch(folder, said).frames()
    assert next(frames).name == "0001"
    shutil.rmtree(folder)
    assert list(frames) == []
    assert said == [f"{folder}: expected the folder that frames are written to, found none"]


def test_files_that_change_while_they_are_read_make_no_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does the first file of the next frame with the last of this one: what follows makes one."""
    write_pair(tmp_path, "latest", 1)
    reads: list[int] = []

    def read(paths: FrameFiles) -> StoredImages:
        stored = read_stored(paths)
        reads.append(int(stored.depth[0, 0]) - 1000)
        if reads[-1] == 1:
            write_pair(tmp_path, "latest", 2)
        return stored

    monkeypatch.setattr(watched, "read_stored", read)
    frames = list(watch(tmp_path, []).frames())
    assert [int(frame.depth[0, 0]) - 1000 for frame in frames] == [2] and reads == [1, 2]
    assert frames[0].color is not None and int(frames[0].color[0, 0, 0]) == 2


def test_half_of_the_next_frame_is_waited_for(tmp_path: Path) -> None:
    write_pair(tmp_path, "latest", 1)
    now = time.time()
    os.utime(tmp_path / "latest.depth.png", (now - 0.2, now - 0.2))
    (tmp_path / "next").mkdir()
    write_pair(tmp_path / "next", "latest", 2)
    os.replace(tmp_path / "next" / "latest.color.png", tmp_path / "latest.color.png")
    frames: list[StoredImages] = []
    thread = threading.Thread(target=lambda: frames.extend(watch(tmp_path, []).frames()))
    thread.start()
    time.sleep(0.1)
    os.replace(tmp_path / "next" / "latest.depth.png", tmp_path / "latest.depth.png")
    thread.join()
    assert [int(frame.depth[0, 0]) for frame in frames] == [1002]
