"""The description of a set: its classes with their colors, its grid, and the size of its voxels."""

from pathlib import Path
from typing import Annotated, Any

import pydantic
import yaml
from pydantic import Field

from ammnet_sparse.data.grid import CLASSES, GRID_SHAPE, VOXEL_SIZE, DatasetName, GridShape
from ammnet_sparse.files.content import read_text
from ammnet_sparse.files.errors import DataError
from ammnet_sparse.files.writing import write_text
from ammnet_sparse.files.yaml_text import YamlProblem, parse_yaml, short

SET_FILE = "classes.yaml"
"""The description of a set, in its folder."""
MOST_CLASSES = 15
"""Empty space included: packed sets and caches hold a class in four bits, and one value means ignore."""

_Channel = Annotated[int, Field(ge=0, le=255)]
Color = tuple[_Channel, _Channel, _Channel]
"""Red, green, blue."""
CLASS_NAME = r"^[^\W_][\w .,/()+-]{0,39}$"
"""Names of classes that pages, tables and matplotlib's formulas show unchanged."""
_Size = Annotated[int, Field(ge=1)]


class SetInfo(pydantic.BaseModel):
    """The description of a set; the defaults are NYU's.

    Attributes:
        dataset: published layout of its files; the TSDF of ``nyucad`` is flipped.
        classes: color (red, green, blue) of each class by its name, in the order of the labels; the first is empty
            space.
        grid_shape: voxels along (X, height, Y).
        voxel_size: edge of a voxel in meters.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    dataset: DatasetName = "nyu"
    classes: dict[Annotated[str, Field(pattern=CLASS_NAME)], Color] = Field(
        default_factory=lambda: dict(CLASSES), min_length=3, max_length=MOST_CLASSES
    )
    grid_shape: tuple[_Size, _Size, _Size] = GRID_SHAPE
    voxel_size: float = Field(VOXEL_SIZE, gt=0, allow_inf_nan=False)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by label."""
        return tuple(self.classes)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def tsdf_is_flipped(self) -> bool:
        return self.dataset == "nyucad"

    @property
    def ceiling(self) -> int | None:
        """The label of the class ``ceiling``, which hides the room in a view from above; None without one."""
        return self.class_names.index("ceiling") if "ceiling" in self.classes else None

    @property
    def shell(self) -> tuple[int, ...]:
        """The labels of the classes that enclose a room, through which pictures of a whole room show its inside."""
        return tuple(label for label, name in enumerate(self.classes) if name in ("ceiling", "wall", "window"))


NYU = SetInfo()
"""The set of the paper: twelve classes on a grid of 60 x 36 x 60 voxels of 8 cm."""


def read_set_info(path: Path, *, dataset: DatasetName) -> SetInfo:
    """The description of a set in a YAML file; ``grid_shape`` and ``voxel_size`` may be left out if they are NYU's.

    For instance::

        classes: {empty: [22, 191, 206], floor: [43, 160, 4], wall: [158, 216, 229], things: [255, 127, 12]}
        grid_shape: [60, 36, 60]
        voxel_size: 0.08

    Raises:
        DataError: unreadable, or values that no set can have.
    """
    what, advice = "the description of a set", "correct the file"
    try:
        values: Any = parse_yaml(read_text(path, what=what, advice=advice))
        if not isinstance(values, dict) or "classes" not in values or "dataset" in values:
            raise YamlProblem(f"{short(values)} instead of classes, grid_shape and voxel_size")
        return SetInfo(**{"dataset": dataset, **values})
    except pydantic.ValidationError as error:
        problem = error.errors(include_url=False)[0]
        found = f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
    except (YamlProblem, TypeError) as error:  # TypeError: keys that are not text
        found = str(error)
    raise DataError.about(path, expected=what, found=found, advice=advice)


def write_set_info(path: Path, info: SetInfo) -> None:
    """Writes the description of a set as ``read_set_info`` reads it."""
    values = info.model_dump(mode="json", exclude={"dataset"})
    write_text(path, yaml.safe_dump(values, sort_keys=False, default_flow_style=None))


def check_grid_shape(info: SetInfo, grid_shape: GridShape | None, *, source: Path) -> None:
    """Raises DataError where a set has another grid than the one asked for; None asks for none."""
    if grid_shape is not None and tuple(grid_shape) != info.grid_shape:
        raise DataError(
            f"{source}: expected voxels (X, height, Y) = {tuple(grid_shape)}, found {info.grid_shape}; "
            "use a set made for the grid"
        )
