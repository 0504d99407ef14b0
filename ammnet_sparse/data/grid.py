"""The voxel grid, the camera image, and the classes: constants shared by the whole project.

Array axes of the grid are (world X lateral, world Z height, world Y forward), C order, so that
the flat voxel index is ``x * 36 * 60 + h * 60 + y``.
"""

from typing import Literal, NamedTuple

DatasetName = Literal["nyu", "nyucad"]
"""The published layouts of a set's files."""

GridShape = tuple[int, int, int]
"""Voxels along (X, height, Y)."""

GRID_SHAPE = (60, 36, 60)
"""Voxels along (X, height, Y)."""
VOXEL_SIZE = 0.08
"""Edge of a voxel in meters."""
FLOOR_OFFSET = -0.05
"""World height in meters of the lower face of height index 0: the floor lies at 0."""

IMAGE_SHAPE = (480, 640)
"""Rows and columns of the color image, of the depth image and of the 2D label map."""
NUM_PIXELS = 480 * 640
UNMAPPED_ON_DISK = NUM_PIXELS
"""Value in files for a voxel that no pixel hits."""
UNMAPPED = -1
"""The same in tensors."""

FINE_PER_VOXEL = 4
"""Fine voxels along an edge of a voxel."""
TRUNCATION = 12
"""Fine voxels (0.24 m) from the surface at which the TSDF saturates."""
TSDF_DEPTH_RANGE = (0.5, 8.0)
"""Meters: pixels nearer or farther leave the voxels they see unobserved."""
TSDF_TOLERANCE = 1e-3
"""How far a stored |TSDF| may exceed 1 by rounding (float16 has steps of 1e-3 there)."""
FREE_TSDF = 0.999
"""A voxel that no pixel hits is observed to be free if its TSDF is at least this."""

NUM_LABEL_MAP_CLASSES = 14
"""Classes of the 2D label map (``Seg2D``): void and 13 classes, used one-hot."""


class SceneClass(NamedTuple):
    """A class of the completed scene with its usual color."""

    name: str
    color: tuple[int, int, int]


CLASSES = (
    SceneClass("empty", (22, 191, 206)),
    SceneClass("ceiling", (214, 38, 40)),
    SceneClass("floor", (43, 160, 4)),
    SceneClass("wall", (158, 216, 229)),
    SceneClass("window", (114, 158, 206)),
    SceneClass("chair", (204, 204, 91)),
    SceneClass("bed", (255, 186, 119)),
    SceneClass("sofa", (147, 102, 188)),
    SceneClass("table", (30, 119, 181)),
    SceneClass("tvs", (188, 188, 33)),
    SceneClass("furniture", (255, 127, 12)),
    SceneClass("objects", (196, 175, 214)),
)
CLASS_NAMES = tuple(entry.name for entry in CLASSES)
NUM_CLASSES = len(CLASSES)
EMPTY_LABEL = 0
IGNORE_LABEL = 255
"""Outside the room, or unknown: not trained on and not scored."""
IGNORE_COLOR = (153, 153, 153)
