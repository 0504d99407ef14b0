"""Which files make one frame of a user's camera: matched by name, by number, or by time stamp."""

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ammnet_sparse.camera.files.poses import associate, natural_order, time_stamp
from ammnet_sparse.files.content import read_text
from ammnet_sparse.files.errors import DataError, abbreviated

_TYPES: Mapping[str, Sequence[str]] = {
    "color": (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"),
    "depth": (".png", ".tif", ".tiff", ".pgm", ".exr", ".npy", ".npz"),
    "pose": (".txt", ".npy", ".json"),
    "label_map": (".png", ".tif", ".tiff", ".bmp", ".npy", ".npz"),
}
_WORDS = {
    "color": "colou?rs?|rgb|images?|img",
    "depth": "depths?",
    "pose": "poses?",
    "label_map": "label[_-]?maps?|labels?|seg|seg2d",
}
"""Words in file names that say what a file is; frames are matched by what is left of their names."""
FOLDERS: Mapping[str, Sequence[str]] = {
    "color": ("color", "colors", "colour", "rgb", "image", "images"),
    "depth": ("depth", "depths"),
    "label_map": ("label", "labels", "label_map", "seg2d"),
    "pose": ("pose", "poses"),
}
"""Usual names of folders of one kind of files."""
KIND_NAMES = {"color": "color image", "depth": "depth image", "pose": "pose", "label_map": "label map"}
_LISTS = {"color": "rgb.txt", "depth": "depth.txt"}
"""TUM's lists of files by time stamp."""
_TRAJECTORIES = ("groundtruth.txt", "transforms.json")
"""Names of the files of all poses in a folder: TUM's, nerfstudio's."""
_INDEX_FILES = ("thumbs.db", "desktop.ini")
_PUBLISHED = re.compile(r"(NYU\d{4})_0000", re.ASCII)

Files = dict[str, Path]
"""Files of one kind by the key of their frame."""


@dataclasses.dataclass(frozen=True)
class FrameFiles:
    """The files of one frame; its name is what their names have in common.

    Attributes:
        color: None for a depth image alone.
        pose: a file of one pose, or of a trajectory, which ``time`` or ``index`` then looks up.
        time: seconds, where the file names are time stamps.
        index: the frame's place among all frames found, which are in natural order: 2 before 10.
        count: the number of all frames found.
        numbers: the numbers in the names of all of them, if each has exactly one.
    """

    name: str
    color: Path | None
    depth: Path
    pose: Path | None = None
    label_map: Path | None = None
    time: float | None = None
    index: int = 0
    count: int = 1
    numbers: tuple[int, ...] | None = None

    @property
    def files(self) -> list[Path]:
        """The files that the frame has."""
        return [path for path in (self.color, self.depth, self.pose, self.label_map) if path is not None]


def find_frames(
    color: Path | None,
    depth: Path,
    *,
    pose: Path | None = None,
    label_map: Path | None = None,
    leaves_out_doubles: bool = False,
) -> tuple[list[FrameFiles], list[str]]:
    """The frames of files or folders.

    In folders, files are matched by name without the words that say what they are (color, rgb, depth, pose, label,
    ...) and without ending: ``frame-000000.color.jpg``, ``frame-000000.depth.png`` and ``frame-000000.pose.txt`` are
    one frame, as are ``rgb/0007.jpg`` and ``depth/0007.png``, ``NYU0003_colors.jpg`` and ``NYU0003_0000.png``, or
    ``color.jpg`` and ``depth.png``. Where no names agree, the numbers in them are compared. Names that are time stamps,
    and TUM's folders with ``rgb.txt`` and ``depth.txt``, are associated by time. All kinds may be in one folder.
    One pose (or trajectory) and one label map for a folder of frames may be files. Without ``color`` it is depth alone.
    In one folder ``7.jpg`` beside ``7.png`` is the color image, because no depth comes as jpg.

    Args:
        leaves_out_doubles: two files that could both be the color (depth, ...) image of a frame are no error; the
            frame is left out, with a message.

    Returns:
        The frames in natural order of their names, or by time, and a message for each file in these folders that lacks
        a partner.

    Raises:
        DataError: a missing file or folder, a file beside a folder, two files of one frame, or no frame at all.
    """
    given = {"color": color, "depth": depth, "pose": pose, "label_map": label_map}
    _check_paths(given)
    is_list = depth.suffix.lower() == ".txt" and (color is None or color.suffix.lower() == ".txt")
    if depth.is_file() and not is_list:
        return [_single(color, depth, pose, label_map)], []
    if pose is not None:
        given["pose"] = next((pose / name for name in _TRAJECTORIES if (pose / name).is_file()), pose)
    folders = {
        kind: path
        for kind, path in given.items()
        if path is not None and (path.is_dir() or (is_list and kind in ("color", "depth")))
    }
    doubles: list[str] = []
    found = {}
    for kind, folder in folders.items():
        gives_way = _TYPES["depth"] if kind == "color" and folder == folders["depth"] else ()
        if kind == "pose":
            gives_way = (".json",)  # annotations come as json, too
        found[kind] = _files_of(folder, kind, preferably_not=gives_way, doubles=doubles)
    if doubles and not leaves_out_doubles:
        raise DataError(doubles[0])
    files = _matched(found)
    if color is not None:
        # A name without a word for its kind matches both; one file is never both images of a frame.
        files["color"] = {key: path for key, path in files["color"].items() if files["depth"].get(key) != path}
    _check_kinds(files, folders)
    complete = sorted(set.intersection(*(set(kind) for kind in files.values())), key=natural_order)
    if not complete:
        raise _no_frame(files, folders)
    if all(time_stamp(key) is not None for key in complete):
        complete.sort(key=lambda key: time_stamp(key) or 0.0)
    by_number = _by_number(complete)
    numbers = None if by_number is None else tuple(by_number)
    frames = [
        FrameFiles(
            key or Path(os.path.realpath(color or depth)).name,
            **{kind: files[kind][key] if kind in files else path for kind, path in given.items()},  # type: ignore[arg-type]
            time=time_stamp(key),
            index=index,
            count=len(complete),
            numbers=numbers,
        )
        for index, key in enumerate(complete)
    ]
    return frames, sorted([*doubles, *_unmatched(files, folders)], key=natural_order)


def is_image_file(path: Path) -> bool:
    """Whether it is a file, but neither hidden (``._0001.png``) nor an index, which programs put beside images."""
    return path.is_file() and not path.name.startswith(".") and path.name.lower() not in _INDEX_FILES


def _check_paths(given: Mapping[str, Path | None]) -> None:
    """Raises DataError for a path without file or folder, and for a file beside a folder."""
    for kind, path in given.items():
        name = kind.replace("_", " ")
        if path is not None and not path.exists():
            raise DataError(f"{name} {path}: expected a file or a folder, found nothing; check the path")
        if path is not None and not path.is_file() and not path.is_dir():
            raise DataError(f"{name} {path}: expected a file or a folder, found a pipe or a device")
    color, depth = given["color"], given["depth"]
    if color is not None and depth is not None and color.is_dir() != depth.is_dir():
        raise DataError(f"expected two files or two folders, found {color} and {depth}; name two of a kind")


def _single(color: Path | None, depth: Path, pose: Path | None, label_map: Path | None) -> FrameFiles:
    for name, path in (("pose", pose), ("label map", label_map)):
        if path is not None and path.is_dir():
            raise DataError(f"{name} {path}: expected a file for one frame, found a folder; name the file")
    if color is not None and os.path.realpath(color) == os.path.realpath(depth):
        raise DataError(f"color and depth: expected two files, found {color} for both")
    first, kind = (depth, "depth") if color is None else (color, "color")
    name = _key(first, kind) or Path(os.path.realpath(first)).parent.name or first.stem
    return FrameFiles(name, color, depth, pose, label_map, time=time_stamp(first.stem))


def _files_of(folder: Path, kind: str, *, preferably_not: Sequence[str], doubles: list[str]) -> Files:
    """Files of a folder, or of TUM's list in it, by the name of their frame; without other kinds.

    Args:
        preferably_not: types of files that are used only where a frame has none of another type.
        doubles: receives a message for each frame of several files, which is left out.
    """
    if folder.is_file():
        return _listed(folder)
    listed = folder / _LISTS.get(kind, "")
    if kind in ("color", "depth") and listed.is_file():
        return _listed(listed)
    found: Files = {}
    left_out: set[str] = set()
    others = "|".join(word for other, word in _WORDS.items() if other != kind)
    for path in sorted(folder.iterdir(), key=lambda path: natural_order(path.name)):
        is_other = _has_word(path, others) and not _has_word(path, _WORDS[kind])
        if is_other or path.suffix.lower() not in _TYPES[kind] or not is_image_file(path):
            continue
        key = _key(path, kind)
        if key in found and _has_word(path, _WORDS[kind]) != _has_word(found[key], _WORDS[kind]):
            # Of NYU0003_colors.png and NYU0003_0000.png, the first is named after its kind.
            found[key] = path if _has_word(path, _WORDS[kind]) else found[key]
            continue
        if key in found:
            gives_way = [file.suffix.lower() in preferably_not for file in (found[key], path)]
            if gives_way[0] != gives_way[1]:
                found[key] = path if gives_way[0] else found[key]
                continue
            doubles.append(
                f"{folder}: expected one {kind.replace('_', ' ')} file per frame, found {found[key].name} and "
                f"{path.name}; remove one, or keep the kinds in separate folders"
            )
            left_out.add(key)
        found[key] = path
    return {key: path for key, path in found.items() if key not in left_out}


def _listed(path: Path) -> Files:
    """The files of TUM's list of time stamps and names, by the name of each file."""
    found: Files = {}
    for line in read_text(path, what="a list of time stamps and files").splitlines():
        parts = line.split("#")[0].split()
        if not parts:
            continue
        if len(parts) != 2 or time_stamp(parts[0]) is None:
            raise DataError(f"{path}: expected a time stamp and a file in each line, found {line.strip()[:60]!r}")
        file = path.parent / parts[1]
        if file.is_file():
            found[parts[0]] = file
    return found


def _matched(files: dict[str, Files]) -> dict[str, Files]:
    """The files with keys that agree: as their names do, by time stamp, or by the number in their names."""
    first_kind = "color" if "color" in files else "depth"
    first = files[first_kind]
    for kind in ("depth", "label_map", "pose"):
        others = files.get(kind)
        if not others or kind == first_kind:
            continue
        times = {key: time_stamp(key) for key in (*first, *others)}
        if first and all(time is not None for time in times.values()) and not set(others) <= set(first):
            keys, other_keys = list(first), list(others)
            pairs = associate([times[key] or 0.0 for key in keys], [times[key] or 0.0 for key in other_keys])
            by_time = {other_keys[other]: keys[one] for one, other in pairs}
            files[kind] = {by_time.get(key, f"{key} ({kind})"): path for key, path in others.items()}
        elif not set(first) & set(others):
            numbers, other_numbers = _by_number(first), _by_number(others)
            if numbers and other_numbers and set(numbers) & set(other_numbers):
                names = {number: key for number, key in numbers.items()}
                files[kind] = {names.get(n, f"{key} ({kind})"): others[key] for n, key in other_numbers.items()}
    return files


def _by_number(keys: Iterable[str]) -> dict[int, str] | None:
    """Keys by the only number in each, or by the first of Redwood's ``NUMBER-MICROSECONDS``.

    None where one has none or several, or two have the same.
    """
    numbers: dict[int, str] = {}
    for key in keys:
        redwood = re.fullmatch(r"(\d+)-\d+", key)
        found = re.findall(r"\d+", key) if redwood is None else [redwood[1]]
        if len(found) != 1 or int(found[0]) in numbers:
            return None
        numbers[int(found[0])] = key
    return numbers


def _check_kinds(files: Mapping[str, Files], folders: Mapping[str, Path]) -> None:
    """Raises DataError for a folder that holds no file of its kind."""
    for kind, found in files.items():
        if not found:
            raise DataError(
                f"{folders[kind]}: expected {KIND_NAMES[kind]}s ({', '.join(_TYPES[kind])}), found none; check the path"
            )


def _no_frame(files: Mapping[str, Files], folders: Mapping[str, Path]) -> DataError:
    """The error that says which kind of file has no partner."""
    common = set(files.get("color", files["depth"])) & set(files["depth"])
    if not common:
        return DataError(
            f"{folders['color']} and {folders['depth']}: expected frames whose files share a name, found "
            f"color images {_first_of(files['color'])} and depth images "
            f"{_first_of(files['depth'])} with no match; rename the files"
        )
    for kind in ("label_map", "pose"):
        if kind in files and not common & set(files[kind]):
            return DataError(
                f"{folders[kind]}: expected {KIND_NAMES[kind]}s of the frames {_first_of(common)}, found "
                f"{_first_of(files[kind])} with no match; rename them, or give one file for all frames"
            )
        common &= set(files.get(kind, common))
    return DataError(
        f"{folders['depth']}: expected frames with all of {', '.join(KIND_NAMES[kind] for kind in files)}, found none"
    )


def _first_of(keys: Iterable[str]) -> str:
    return abbreviated(sorted(keys, key=natural_order), 3)


def _unmatched(files: Mapping[str, Files], folders: Mapping[str, Path]) -> list[str]:
    """A message for each color and depth image that makes no frame: which kind it lacks."""
    messages = []
    for kind in ("color", "depth"):
        types = {path.suffix for path in files.get(kind, {}).values() if _has_word(path, _WORDS[kind])}
        for key, path in files.get(kind, {}).items():
            if types and path.suffix not in types and not _has_word(path, _WORDS[kind]):
                continue  # truth.npz beside frame-000000.depth.png is no depth image
            lacking = [other for other in files if key not in files[other]]
            if lacking and (kind == "color" or "color" in lacking or "color" not in files):
                names = " and ".join(f"no {KIND_NAMES[other]} of that name in {folders[other]}" for other in lacking)
                messages.append(f"{path}: has no partner: {names}")
    return messages


def _has_word(path: Path, words: str) -> bool:
    return re.search(rf"(?<![a-z])(?:{words})(?![a-z])", path.stem.lower()) is not None


def _key(path: Path, kind: str) -> str:
    """What is left of a file's name without ending and without the word for its kind."""
    published = _PUBLISHED.fullmatch(path.stem)
    if published is not None:
        return published.group(1)
    if time_stamp(path.stem) is not None:
        return path.stem
    left = re.sub(rf"(?<![a-z])(?:{_WORDS[kind]})(?![a-z])", "", path.stem, flags=re.IGNORECASE)
    return re.sub(r"([._-])[._-]+", r"\1", left).strip("._- ")
