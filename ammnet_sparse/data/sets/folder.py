"""The published layout of NYU and NYUCAD on disk: where the files of a frame are, and reading them.

``root`` holds, or holds in a folder ``NYU``::

    Label/0003.npz  TSDF/0003.npz  Mapping/0003.npz
    RGB/NYU0003_colors.{png,jpg}        or {train,test}/RGB/NYU0003_rgb.{png,jpg}
    Seg2D/0003.png                      or seg_result_label13/0003.png
    train.txt  test.txt  val.txt        frame ids, one a line: 0003, NYU0003 or NYU0003_0000

and for NYUCAD besides, in a folder ``NYUCAD`` (``root`` may also be that folder, beside ``NYU`` or the folders above)::

    {train,test}/TSDF_lr/NYU0003_0000_voxels.npz    {train,test}/mapping/NYU0003_0000_voxels.npz

Labels, colours and 2D label maps of NYUCAD are those of NYU; lists of ids may stand in any of these folders.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.data.frame import Frame
from ammnet_sparse.data.grid import GRID_SHAPE
from ammnet_sparse.data.sets.compact import CompactFrame
from ammnet_sparse.data.sets.files import (
    DataError,
    as_label,
    as_label_weight,
    as_mapping,
    as_tsdf,
    read_color_image,
    read_label_map,
    read_npz_array,
)
from ammnet_sparse.data.sets.splits import (
    check_list_name,
    parse_frame_id,
    read_id_list,
    repeated_ids,
    some,
    training_ids,
    validation_ids,
)
from ammnet_sparse.data.volumes.labels import label_weight_of
from ammnet_sparse.data.volumes.tsdf import unflip_tsdf

__all__ = ["DataError", "Frame", "FrameFolder", "FramePaths", "training_ids", "validation_ids"]

_IMAGE_NAMES = (("RGB", "_colors"), ("train/RGB", "_rgb"), ("test/RGB", "_rgb"))
_IMAGE_TYPES = (".png", ".jpg", ".jpeg")
_LABEL_MAP_FOLDERS = ("Seg2D", "seg_result_label13")
_CAD_HALVES = ("train", "test")

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class FramePaths:
    """Where the files of a frame are, or should be where none of the known spellings exists; None: not read."""

    tsdf: Path
    mapping: Path
    label: Path | None = None
    image: Path | None = None
    label_map: Path | None = None

    def missing(self) -> list[Path]:
        """The files that are needed and not there."""
        paths = (getattr(self, field.name) for field in dataclasses.fields(self))
        return [path for path in paths if path is not None and not path.is_file()]


class FrameFolder:
    """A set in the published layout.

    Args:
        root: the folder described at the top of this module.
        dataset: ``nyu``, or ``nyucad`` for NYUCAD's TSDF (flipped) and mapping; its label weight is recomputed.
        read_image: read colour images; None: where the set has a folder of them (then every frame needs one).
        read_label_map: read 2D label maps; None: likewise.
        grid_shape: voxels along (X, height, Y) that the files hold.

    Raises:
        DataError: no such folder, or it lacks what is asked for.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        dataset: Literal["nyu", "nyucad"] = "nyu",
        read_image: bool | None = None,
        read_label_map: bool | None = None,
        grid_shape: tuple[int, int, int] = GRID_SHAPE,
    ) -> None:
        self.root = Path(root)
        self.dataset: Literal["nyu", "nyucad"] = dataset
        self.grid_shape = grid_shape
        if dataset not in ("nyu", "nyucad"):
            raise DataError(f"dataset: expected 'nyu' or 'nyucad', found {dataset!r}")
        if not self.root.is_dir():
            raise DataError(f"{self.root}: expected the folder of a set, found {_kind(self.root)}; check the path")
        self._cad = self._find_cad() if dataset == "nyucad" else None
        self._base = self._find_base()
        self.has_labels = (self._base / "Label").is_dir()
        image_folders = [self._base / folder for folder, _ in _IMAGE_NAMES]
        self.reads_image = _decide(read_image, image_folders, name="read_image")
        label_map_folders = [self._base / folder for folder in _LABEL_MAP_FOLDERS]
        self.reads_label_map = _decide(read_label_map, label_map_folders, name="read_label_map")

    def has_split(self, split: str) -> bool:
        """Whether the set has a list ``<split>.txt``."""
        return self._find_list(split) is not None

    def frame_ids(self, split: str) -> list[str]:
        """The ids of ``<split>.txt`` in its order, as the names of the files have them (``NYU0003_0000``: ``0003``).

        Raises:
            DataError: no such list, an empty one, a line that is no id, an id that is there twice.
        """
        ids = self.listed_ids(split)
        if repeated := repeated_ids(ids):
            raise DataError(
                f"{self.list_path(split)}: expected every frame once, found {some(repeated)} more than once; "
                "take the repetitions out"
            )
        return ids

    def listed_ids(self, split: str) -> list[str]:
        """As ``frame_ids``, repetitions included."""
        return read_id_list(self.list_path(split))

    def list_path(self, split: str) -> Path:
        """The file ``<split>.txt``. Raises DataError where there is none, naming the lists that are there."""
        path = self._find_list(split)
        if path is None:
            found = sorted({file.stem for folder in self._list_folders() for file in folder.glob("*.txt")})
            raise DataError(
                f"{self.root}: expected a list of frame ids {split}.txt, found lists {found}; "
                "add it, or name another split"
            )
        return path

    def paths(self, frame_id: str) -> FramePaths:
        """Where the files of a frame are; nothing is opened. Any spelling of the id that lists may have.

        Raises:
            DataError: not an id.
        """
        frame_id = parse_frame_id(frame_id, source="frame_id")
        if self._cad is None:
            tsdf = self._base / "TSDF" / f"{frame_id}.npz"
            mapping = self._base / "Mapping" / f"{frame_id}.npz"
        else:
            name = f"NYU{frame_id}_0000_voxels.npz"
            tsdf = _first_existing(self._cad / half / "TSDF_lr" / name for half in _CAD_HALVES)
            mapping = _first_existing(self._cad / half / "mapping" / name for half in _CAD_HALVES)
        images = (
            self._base / folder / f"NYU{frame_id}{suffix}{kind}"
            for folder, suffix in _IMAGE_NAMES
            for kind in _IMAGE_TYPES
        )
        label_maps = (self._base / folder / f"{frame_id}.png" for folder in _LABEL_MAP_FOLDERS)
        return FramePaths(
            tsdf=tsdf,
            mapping=mapping,
            label=self._base / "Label" / f"{frame_id}.npz" if self.has_labels else None,
            image=_first_existing(images) if self.reads_image else None,
            label_map=_first_existing(label_maps) if self.reads_label_map else None,
        )

    def has_frame(self, frame_id: str) -> bool:
        """Whether there is a TSDF of that id."""
        return self.paths(frame_id).tsdf.is_file()

    def missing_files(self, frame_id: str) -> list[Path]:
        """The files of a frame that are needed and not there; nothing is opened."""
        return self.paths(frame_id).missing()

    def read_compact(self, frame_id: str) -> CompactFrame:
        """As ``read``, in few bytes."""
        return CompactFrame.pack(self.read(frame_id))

    def read(self, frame_id: str) -> Frame:
        """Reads and checks a frame.

        Raises:
            DataError: a missing or unreadable file, or one of the wrong shape, type or values (the first one found).
        """
        frame, problems = self.read_with_problems(frame_id)
        if frame is None:
            raise problems[0]
        return frame

    def read_with_problems(self, frame_id: str) -> tuple[Frame | None, list[DataError]]:
        """As ``read``, but with everything that is wrong with the frame; then the frame is None."""
        paths = self.paths(frame_id)
        problems: list[DataError] = []

        def attempt(read: Callable[[Path], _T], path: Path | None) -> _T | None:
            try:
                return None if path is None else read(path)
            except DataError as error:
                problems.append(error)
                return None

        is_cad = self._cad is not None
        tsdf = attempt(lambda path: as_tsdf(self._array(path, "tsdf_lr" if is_cad else "arr_0"), path), paths.tsdf)
        mapping = attempt(
            lambda path: as_mapping(self._array(path, "arr_1" if is_cad else "arr_0"), path), paths.mapping
        )
        label = attempt(lambda path: as_label(self._array(path, "arr_0"), path), paths.label)
        label_weight: NDArray[np.bool_] | None = None
        if not is_cad and paths.tsdf.is_file():  # a missing file has been reported already
            label_weight = attempt(lambda path: as_label_weight(self._array(path, "arr_1"), path), paths.tsdf)
        image = attempt(read_color_image, paths.image)
        label_map = attempt(read_label_map, paths.label_map)
        if problems or tsdf is None or mapping is None:
            return None, _without_repetitions(problems)
        if label_weight is None:
            label_weight = _recomputed_label_weight(label, tsdf)
        frame_id = parse_frame_id(frame_id, source="frame_id")
        return Frame(frame_id, tsdf, mapping, label_weight, label, image, label_map, tsdf_is_flipped=is_cad), []

    def _array(self, path: Path, key: str) -> NDArray[Any]:
        return read_npz_array(path, key, grid_shape=self.grid_shape)

    def _find_cad(self) -> Path:
        for folder in (self.root / "NYUCAD", self.root):
            if any((folder / half / "TSDF_lr").is_dir() for half in _CAD_HALVES):
                return folder
        raise DataError(
            f"{self.root}: expected NYUCAD/train/TSDF_lr or NYUCAD/test/TSDF_lr for dataset nyucad, "
            f"found {some(_names_in(self.root))}; name the folder that holds NYUCAD"
        )

    def _find_base(self) -> Path:
        needed = ("TSDF", "Mapping") if self._cad is None else ("Label",)
        candidates = [self.root, self.root / "NYU"]
        if self._cad == self.root:
            candidates += [self.root.parent, self.root.parent / "NYU"]
        for folder in candidates:
            if all((folder / name).is_dir() for name in needed):
                return folder
        raise DataError(
            f"{self.root}: expected the folders {' and '.join(needed)} there or in NYU, "
            f"found {some(_names_in(self.root))}; see the layout of a set in the documentation"
        )

    def _list_folders(self) -> list[Path]:
        folders = [self._cad] if self._cad is not None else []
        return list(dict.fromkeys([*folders, self.root, self._base]))

    def _find_list(self, split: str) -> Path | None:
        check_list_name(split)
        return next((path for folder in self._list_folders() if (path := folder / f"{split}.txt").is_file()), None)


def _recomputed_label_weight(label: NDArray[np.uint8] | None, flipped: NDArray[np.float32]) -> NDArray[np.bool_]:
    known = np.zeros(flipped.shape, dtype=np.uint8) if label is None else label
    return label_weight_of(known, unflip_tsdf(flipped)).astype(np.bool_)


def _decide(wanted: bool | None, folders: Sequence[Path], *, name: str) -> bool:
    has_one = any(folder.is_dir() for folder in folders)
    if wanted and not has_one:
        raise DataError(
            f"{name}: expected one of the folders {', '.join(map(str, folders))}, found none; "
            f"add the files, or choose a model that does not read them"
        )
    return has_one if wanted is None else wanted


def _first_existing(candidates: Iterator[Path]) -> Path:
    """The first file that exists; else the first whose folder does; else the first."""
    listed = list(candidates)
    for path in listed:
        if path.is_file():
            return path
    return next((path for path in listed if path.parent.is_dir()), listed[0])


def _without_repetitions(problems: list[DataError]) -> list[DataError]:
    return list({str(problem): problem for problem in problems}.values())


def _names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _kind(path: Path) -> str:
    return "a file" if path.exists() else "nothing"
