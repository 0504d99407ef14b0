"""Sets of synthetic rooms on disk, in the layout of NYU (``docs``: Data), made by several processes.

A set is written into a sibling folder ``<name>.partial`` and renamed when complete, so that a folder of rooms is
never incomplete. An interrupted run can be resumed: frame i depends only on the seed and i. A ``<name>.partial`` of
other rooms, or of anybody else, is never touched.
"""

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ammnet_sparse.config import DataConfig
from ammnet_sparse.data.parallel import available_cores, map_in_processes
from ammnet_sparse.data.synthetic.frame import Noise, SyntheticFrame, generate_frame
from ammnet_sparse.data.volumes.tsdf import mapping_to_disk
from ammnet_sparse.files.content import read_text
from ammnet_sparse.files.writing import remove_unfinished, replacing_open, write_text
from ammnet_sparse.progress import ProgressBar

GENERATOR_VERSION = 1
"""Incremented whenever the same parameters give different files."""
PARAMETERS_FILE = "rooms.json"
_FOLDERS = ("Label", "TSDF", "Mapping", "RGB", "Seg2D")


class RoomsError(ValueError):
    """A folder that cannot be written or does not hold the requested rooms; the message says what to do."""


def ensure_rooms(config: DataConfig, *, progress: bool = True) -> Path:
    """The folder of the configured rooms, generated on first use.

    Every set of parameters has a folder of its own in ``config.synthetic_root``, so that a change of the
    configuration neither reuses nor overwrites other rooms; its name lists the parameters, for people who clean up.

    Raises:
        RoomsError: the folder exists and holds something else.
    """
    rooms = config.synthetic
    name = f"rooms_{rooms.frames}_{rooms.validation_frames}_seed{rooms.seed}_{rooms.noise}_v{GENERATOR_VERSION}"
    return generate_rooms(
        config.synthetic_root / name,
        frames=rooms.frames,
        validation_frames=rooms.validation_frames,
        seed=rooms.seed,
        noise=rooms.noise,
        progress=progress,
    )


def generate_rooms(
    folder: str | os.PathLike[str],
    *,
    frames: int,
    validation_frames: int,
    seed: int,
    noise: Noise,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Generates a set of rooms, unless ``folder`` holds it already.

    Args:
        folder: folder of the set; created.
        frames: how many, validation frames included; ids are 0001, 0002, ... in ``train.txt``.
        validation_frames: how many of them ``val.txt`` lists, evenly spread; fewer than ``frames``.
        seed: the same seed gives the same files, whatever the number of workers.
        noise: "none", or "kinect" for depth like a Kinect's.
        workers: processes; None for one per available core, 1 to work in this process. More than one need a
            main script that is guarded by ``if __name__ == "__main__"``.
        progress: shows a progress bar.

    Returns:
        ``folder``.

    Raises:
        ValueError: parameters out of range.
        RoomsError: ``folder`` holds something else, or a frame fails.
    """
    if frames < 2:
        raise ValueError(f"frames: expected at least 2 (one to train on, one to validate on), found {frames}")
    if not 1 <= validation_frames < frames:
        raise ValueError(f"validation_frames: expected 1..{frames - 1} of {frames} frames, found {validation_frames}")
    return generate_set(
        Path(folder),
        {"frames": frames, "validation_frames": validation_frames, "seed": seed, "noise": noise},
        folders=_FOLDERS,
        texts=_lists(frames, validation_frames),
        complete_with=[f"Label/{_frame_id(index)}.npz" for index in range(frames)],
        make=_make_frame,
        unit="frame",
        workers=workers,
        progress=progress,
    )


def generate_set(
    folder: Path,
    parameters: dict[str, Any],
    *,
    folders: Sequence[str],
    complete_with: Sequence[str],
    make: Callable[[Path, dict[str, Any], int], None],
    unit: str,
    workers: int | None,
    progress: bool,
    texts: Mapping[str, str] | None = None,
) -> Path:
    """``folder``, made beside itself and renamed when complete, unless it is there already.

    Args:
        folder: of the set.
        parameters: everything that its files depend on, among it ``seed`` and ``noise``.
        folders: names of those in it, which exist when ``make`` is called.
        complete_with: the file that is written last, for every frame or room.
        make: writes the files of one of these into a folder, by parameters and index; it can be pickled.
        unit: what is made, for messages.
        workers: processes.
        progress: shows a progress bar.
        texts: files of the whole set by name, such as its lists.

    Raises:
        ValueError: parameters out of range.
        RoomsError: ``folder`` holds something else, or a frame fails.
    """
    if parameters["seed"] < 0:
        raise ValueError(f"seed: expected 0 or more, found {parameters['seed']}")
    if parameters["noise"] not in ("none", "kinect"):
        raise ValueError(f"noise: expected 'none' or 'kinect', found {parameters['noise']!r}")
    if workers is not None and workers < 1:
        raise ValueError(f"workers: expected at least 1, or None for one per core, found {workers}")
    parameters = {"generator_version": GENERATOR_VERSION, **parameters}
    if _holds(folder, parameters):
        return folder
    partial_folder = _prepare(folder, parameters, folders)
    try:
        for name, text in (texts or {}).items():
            write_text(partial_folder / name, text)
        todo = [index for index, file in enumerate(complete_with) if not (partial_folder / file).exists()]
        one = partial(_make_one, make, unit, partial_folder, parameters)
        with contextlib.closing(map_in_processes(one, todo, workers=workers or available_cores())) as results:
            for _ in ProgressBar(results, total=len(todo), title="generating rooms", unit=unit, is_shown=progress):
                pass
        for place in (partial_folder, *(partial_folder / name for name in folders)):
            remove_unfinished(place)
        partial_folder.rename(folder)
    except OSError:
        # Another process may have finished the same set meanwhile; both write the same files.
        if not _holds(folder, parameters):
            raise
    return folder


def _make_one(
    make: Callable[[Path, dict[str, Any], int], None], unit: str, folder: Path, parameters: dict[str, Any], index: int
) -> None:
    try:
        make(folder, parameters, index)
    except OSError:
        raise
    except Exception as error:
        raise RoomsError(f"{unit} {index} of seed {parameters['seed']}: {type(error).__name__}: {error}") from error


def _read_parameters(folder: Path) -> Any:
    try:
        return json.loads(read_text(folder / PARAMETERS_FILE, what="the parameters of generated rooms"))
    except (OSError, ValueError, RecursionError):
        return None


def _holds(folder: Path, parameters: dict[str, Any]) -> bool:
    """Whether the folder holds a complete set with these parameters; RoomsError if it holds something else."""
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise RoomsError(f"{folder}: expected a folder for generated rooms, found a file; choose another folder")
    found = _read_parameters(folder)
    if found == parameters:
        return True
    if found is None and not any(folder.iterdir()):
        return False
    described = f"rooms of {found}" if found is not None else f"files but no readable {PARAMETERS_FILE}"
    raise RoomsError(f"{folder}: expected rooms of {parameters}, found {described}; delete it or choose another folder")


def _prepare(folder: Path, parameters: dict[str, Any], folders: Sequence[str]) -> Path:
    """The folder to work in: a new one, or that of an interrupted run of the same parameters."""
    working = folder.with_name(folder.name + ".partial")
    if working.exists() and not working.is_dir():
        raise RoomsError(f"{working}: expected a folder for unfinished rooms, found a file; choose another folder")
    working.mkdir(parents=True, exist_ok=True)
    found = _read_parameters(working)
    if found is None:
        remove_unfinished(working)
    if found != parameters and (found is not None or any(working.iterdir())):
        described = f"rooms of {found}" if found is not None else f"files but no readable {PARAMETERS_FILE}"
        raise RoomsError(
            f"{working}: expected unfinished rooms of {parameters}, found {described}; remove it if nobody needs it, "
            "or choose another folder"
        )
    write_text(working / PARAMETERS_FILE, json.dumps(parameters, indent=2) + "\n")
    for name in folders:
        (working / name).mkdir(exist_ok=True)
    return working


def _make_frame(folder: Path, parameters: dict[str, Any], index: int) -> None:
    frame = generate_frame(parameters["seed"], index, noise=parameters["noise"])
    write_frame(folder, _frame_id(index), frame)


def write_frame(folder: Path, frame_id: str, frame: SyntheticFrame) -> None:
    """Writes the files of a frame in the layout of NYU; the label comes last. The folders exist already."""
    tsdf, weight = frame.tsdf.astype(np.float16), frame.label_weight
    mapping = mapping_to_disk(frame.mapping)
    with replacing_open(folder / "RGB" / f"NYU{frame_id}_colors.jpg") as file:
        Image.fromarray(frame.image).save(file, format="JPEG", quality=92)
    with replacing_open(folder / "Seg2D" / f"{frame_id}.png") as file:
        Image.fromarray(frame.label_map).save(file, format="PNG")
    for name, arrays in (
        ("Mapping", {"arr_0": mapping}),
        ("TSDF", {"arr_0": tsdf, "arr_1": weight}),
        ("Label", {"arr_0": frame.label}),
    ):
        with replacing_open(folder / name / f"{frame_id}.npz") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def _lists(frames: int, validation_frames: int) -> dict[str, str]:
    """The lists of a set by file name."""
    # Rooms are independent, so evenly spread frames are as good as random ones.
    validation = [(2 * k + 1) * frames // (2 * validation_frames) for k in range(validation_frames)]
    lists = {"train.txt": range(frames), "val.txt": validation}
    return {name: "".join(f"{_frame_id(index)}\n" for index in indices) for name, indices in lists.items()}


def _frame_id(index: int) -> str:
    return f"{index + 1:04d}"
