"""The published layouts of NYU and NYUCAD on disk: where the files of a frame are, and reading them.

``root`` holds, or holds in a folder ``NYU``::

    Label/0003.npz  TSDF/0003.npz  Mapping/0003.npz       or L, T and Mapping (CVSformer's repository)
    RGB/NYU0003_colors.{png,jpg}      or R, or {train,test}/RGB, {trainset,testset}/RGB with NYU0003_rgb.{png,jpg}
    Seg2D/0003.png                    or seg_result_label13/0003.png
    train.txt  test.txt  val.txt      frame ids, one per line: 0003, NYU0003 or NYU0003_0000

and for NYUCAD also, in a folder ``NYUCAD`` (``root`` may also be that folder, beside ``NYU`` or the folders above)::

    {train,test}/TSDF_lr/NYU0003_0000_voxels.npz    {train,test}/mapping/NYU0003_0000_voxels.npz

Labels, color images and 2D label maps of NYUCAD are those of NYU; lists of ids may be in any of these folders. A set
without lists (AMMNet's repository) has the lists given by its folders of color images. If TSDF files hold no label
weight, it is computed from label and TSDF, as for NYUCAD. A set of other classes, or on another grid, describes them in
``classes.yaml`` beside its lists (``set_info.py``).
"""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.data.frame import Frame
from ammnet_sparse.data.grid import GRID_SHAPE, DatasetName, GridShape
from ammnet_sparse.data.set_info import SET_FILE, SetInfo, check_grid_shape, read_set_info
from ammnet_sparse.data.sets.files import (
    as_label,
    as_label_weight,
    as_mapping,
    as_tsdf,
    read_color_image,
    read_label_map,
    read_npz_array,
)
from ammnet_sparse.data.sets.frame_source import FrameSource
from ammnet_sparse.data.sets.ids import (
    HALF_FOLDERS,
    IMAGE_FOLDERS,
    LABEL_FOLDERS,
    LABEL_MAP_FOLDERS,
    MAPPING_FOLDERS,
    TSDF_FOLDERS,
    existing_folder,
    find_half,
    first_existing,
    ids_of_folder,
    image_paths,
    parse_frame_id,
    read_id_list,
)
from ammnet_sparse.data.volumes.labels import label_weight_of
from ammnet_sparse.data.volumes.tsdf import unflip_tsdf
from ammnet_sparse.files.arrays import array_names
from ammnet_sparse.files.errors import DataError, abbreviated

_T = TypeVar("_T")


class FrameFolder(FrameSource):
    """A set in the published layout.

    Args:
        root: the folder described at the top of this module.
        dataset: ``nyu``, or ``nyucad`` for NYUCAD's TSDF (flipped) and mapping; its label weight is recomputed.
        read_image: read color images; None: if the set has a folder of them (then every frame needs one).
        read_label_map: read 2D label maps; None: likewise.
        grid_shape: voxels along (X, height, Y) that the files hold; None: NYU's, or those of the set's description.

    Raises:
        DataError: no such folder, or it lacks the files asked for.
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
        if dataset not in get_args(DatasetName):
            raise DataError(f"dataset: expected 'nyu' or 'nyucad', found {dataset!r}")
        if not self.root.is_dir():
            found = "a file" if self.root.exists() else "nothing"
            raise DataError(f"{self.root}: expected the folder of a set, found {found}; check the path")
        self._cad = self._find_cad() if dataset == "nyucad" else None
        self._base = self._find_base()
        self.info = self._find_info(dataset, grid_shape)
        self._label_folder = existing_folder(self._base, LABEL_FOLDERS)
        self.has_labels = self._label_folder.is_dir()
        self._has_warned = False
        image_folders = [self._base / folder for folder in IMAGE_FOLDERS]
        self.reads_image = _decide(read_image, image_folders, name="read_image")
        label_map_folders = [self._base / folder for folder in LABEL_MAP_FOLDERS]
        self.reads_label_map = _decide(read_label_map, label_map_folders, name="read_label_map")

    def list_names(self) -> list[str]:
        """Names of the files ``<split>.txt``."""
        return sorted({file.stem for folder in self._list_folders() for file in folder.glob("*.txt")})

    def find_list(self, split: str) -> Path | None:
        """The file ``<split>.txt``, or the folder that defines the list."""
        lists = (folder / f"{split}.txt" for folder in self._list_folders())
        return next((path for path in lists if path.is_file()), None) or find_half(self._base, split, cad=self._cad)

    def listed_ids(self, split: str) -> list[str]:
        """The ids of ``<split>.txt`` as in file names (``NYU0003_0000``: ``0003``), repetitions included.

        Raises:
            DataError: no such list, an empty list, or a line that is not an id.
        """
        path = self.list_path(split)
        return ids_of_folder(path) if path.is_dir() else read_id_list(path)

    def paths(self, frame_id: str) -> dict[str, Path]:
        """The files of a frame by what they hold, or where they should be if none of the known spellings exists.

        Those that are not read are left out; nothing is opened. Takes any spelling of the id that lists may have.

        Raises:
            DataError: not an id.
        """
        frame_id = parse_frame_id(frame_id, source="frame_id")
        if self._cad is None:
            tsdf = existing_folder(self._base, TSDF_FOLDERS) / f"{frame_id}.npz"
            mapping = existing_folder(self._base, MAPPING_FOLDERS) / f"{frame_id}.npz"
        else:
            name = f"NYU{frame_id}_0000_voxels.npz"
            tsdf = first_existing(self._cad / half / "TSDF_lr" / name for half in HALF_FOLDERS)
            mapping = first_existing(self._cad / half / "mapping" / name for half in HALF_FOLDERS)
        paths = {"tsdf": tsdf, "mapping": mapping}
        if self.has_labels:
            paths["label"] = self._label_folder / f"{frame_id}.npz"
        if self.reads_image:
            paths["image"] = first_existing(image_paths(self._base, frame_id))
        if self.reads_label_map:
            paths["label_map"] = first_existing(self._base / folder / f"{frame_id}.png" for folder in LABEL_MAP_FOLDERS)
        return paths

    def files(self, frame_id: str) -> list[Path]:
        """The files that a frame is read from, or where they should be; nothing is opened."""
        return list(self.paths(frame_id).values())

    def read_with_problems(self, frame_id: str) -> tuple[Frame | None, list[DataError]]:
        """Reads and checks a frame; or None, with everything that is wrong with it."""
        paths = self.paths(frame_id)
        problems: list[DataError] = []

        def attempt(read: Callable[[Path], _T], name: str) -> _T | None:
            try:
                return read(paths[name]) if name in paths else None
            except DataError as error:
                problems.append(error)
                return None

        is_cad = self._cad is not None
        tsdf = attempt(lambda path: as_tsdf(self._array(path, "tsdf_lr" if is_cad else "arr_0"), path), "tsdf")
        mapping = attempt(lambda path: as_mapping(self._array(path, "arr_1" if is_cad else "arr_0"), path), "mapping")
        num_classes = self.info.num_classes
        label = attempt(lambda path: as_label(self._array(path, "arr_0"), path, num_classes=num_classes), "label")
        label_weight: NDArray[np.bool_] | None = None
        lacks_weight = is_cad or not paths["tsdf"].is_file()  # a missing file has been reported already
        if not lacks_weight and tsdf is not None:
            lacks_weight = "arr_1" not in array_names(paths["tsdf"])
        if not lacks_weight:
            label_weight = attempt(lambda path: as_label_weight(self._array(path, "arr_1"), path), "tsdf")
        image = attempt(read_color_image, "image")
        label_map = attempt(read_label_map, "label_map")
        if problems or tsdf is None or mapping is None:
            return None, list({str(problem): problem for problem in problems}.values())
        if label_weight is None:
            label_weight = _computed_label_weight(label, tsdf, is_flipped=is_cad)
            self._warn_of_computed_weight(paths["tsdf"])
        frame = Frame(
            frame_id=parse_frame_id(frame_id, source="frame_id"),
            tsdf=tsdf,
            mapping=mapping,
            label_weight=label_weight,
            label=label,
            image=image,
            label_map=label_map,
            tsdf_is_flipped=is_cad,
            label_weight_is_computed=lacks_weight,
            info=self.info,
        )
        return frame, []

    def _warn_of_computed_weight(self, path: Path) -> None:
        """Warns once per set; NYUCAD's files never hold a label weight, so no warning is needed there."""
        if self._cad is None and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"{self.root}: frames without a label weight (arr_1 of {path.parent.name}/{path.name}, for one): it is "
                "computed from label and TSDF: occupied, or TSDF below -0.5",
                stacklevel=4,
            )

    def _array(self, path: Path, key: str) -> NDArray[Any]:
        return read_npz_array(path, key, grid_shape=self.info.grid_shape)

    def _find_cad(self) -> Path:
        for folder in (self.root / "NYUCAD", self.root):
            if any((folder / half / "TSDF_lr").is_dir() for half in HALF_FOLDERS):
                return folder
        raise DataError(
            f"{self.root}: expected NYUCAD/train/TSDF_lr or NYUCAD/test/TSDF_lr for dataset nyucad, "
            f"found {abbreviated(_names_in(self.root))}; name the folder that holds NYUCAD"
        )

    def _find_base(self) -> Path:
        needed = [TSDF_FOLDERS, MAPPING_FOLDERS] if self._cad is None else [LABEL_FOLDERS]
        candidates = [self.root, self.root / "NYU"]
        if self._cad == self.root:
            candidates += [self.root.parent, self.root.parent / "NYU"]
        for folder in candidates:
            if all(any((folder / name).is_dir() for name in names) for names in needed):
                return folder
        listed = " and ".join(names[0] for names in needed)
        raise DataError(
            f"{self.root}: expected the folders {listed} there or in NYU, "
            f"found {abbreviated(_names_in(self.root))}; see the layouts of a set in the documentation"
        )

    def _find_info(self, dataset: DatasetName, grid_shape: GridShape | None) -> SetInfo:
        path = next((path for folder in self._list_folders() if (path := folder / SET_FILE).is_file()), None)
        if path is None:
            return SetInfo(dataset=dataset, grid_shape=grid_shape or GRID_SHAPE)
        info = read_set_info(path, dataset=dataset)
        check_grid_shape(info, grid_shape, source=path)
        return info

    def _list_folders(self) -> list[Path]:
        folders = [self._cad] if self._cad is not None else []
        return list(dict.fromkeys([*folders, self.root, self._base]))


def _computed_label_weight(
    label: NDArray[np.uint8] | None, tsdf: NDArray[np.float32], *, is_flipped: bool
) -> NDArray[np.bool_]:
    known = np.zeros(tsdf.shape, dtype=np.uint8) if label is None else label
    return label_weight_of(known, unflip_tsdf(tsdf) if is_flipped else tsdf).astype(np.bool_)


def _decide(wanted: bool | None, folders: Sequence[Path], *, name: str) -> bool:
    has_one = any(folder.is_dir() for folder in folders)
    if wanted and not has_one:
        raise DataError(
            f"{name}: expected one of the folders {', '.join(map(str, folders))}, found none; "
            f"add the files, or choose a model that does not read them"
        )
    return has_one if wanted is None else wanted


def _names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
