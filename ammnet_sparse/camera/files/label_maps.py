"""2D label maps of other class lists mapped to NYU's 13 classes, which the networks read.

Sources of the lists: NYU's 40 classes of Gupta et al. (CVPR 2013) and their mapping to the 13 of Couprie et al. (ICLR
2013), as Handa's nyuv2-meta-data publishes it; the 150 classes of the ADE20K scene parsing benchmark (Zhou et al., CVPR
2017), mapped here by name in the same spirit: doors are wall, curtains and blinds window, counters furniture.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.data.grid import NUM_LABEL_MAP_CLASSES
from ammnet_sparse.files.errors import DataError

LabelMapClasses = Literal["nyu13", "nyu40", "ade20k"]
LABEL_MAP_CLASSES: tuple[LabelMapClasses, ...] = ("nyu13", "nyu40", "ade20k")

NYU13_NAMES = (
    "void", "bed", "books", "ceiling", "chair", "floor", "furniture",
    "objects", "picture", "sofa", "table", "tv", "wall", "window",
)  # fmt: skip
NYU40_NAMES = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture", "counter",
    "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat", "clothes", "ceiling", "books",
    "refrigerator", "television", "paper", "towel", "shower curtain", "box", "whiteboard", "person", "night stand",
    "toilet", "sink", "lamp", "bathtub", "bag", "other structure", "other furniture", "other prop",
)  # fmt: skip
NYU40_TO_NYU13 = (
    0, 12, 5, 6, 1, 4, 9, 10, 12, 13, 6, 8, 6, 13, 10, 6, 13, 6, 7, 7, 5,
    7, 3, 2, 6, 11, 7, 7, 7, 7, 7, 7, 6, 7, 7, 7, 7, 7, 7, 6, 7,
)  # fmt: skip
"""[41] class of NYU's 13 for 0 (void) and each of the 40."""
ADE20K_NAMES = (
    "wall", "building", "sky", "floor", "tree", "ceiling", "road", "bed", "windowpane", "grass", "cabinet", "sidewalk",
    "person", "earth", "door", "table", "mountain", "plant", "curtain", "chair", "car", "water", "painting", "sofa",
    "shelf", "house", "sea", "mirror", "rug", "field", "armchair", "seat", "fence", "desk", "rock", "wardrobe", "lamp",
    "bathtub", "railing", "cushion", "base", "box", "column", "signboard", "chest of drawers", "counter", "sand",
    "sink", "skyscraper", "fireplace", "refrigerator", "grandstand", "path", "stairs", "runway", "case", "pool table",
    "pillow", "screen door", "stairway", "river", "bridge", "bookcase", "blind", "coffee table", "toilet", "flower",
    "book", "hill", "bench", "countertop", "stove", "palm", "kitchen island", "computer", "swivel chair", "boat",
    "bar", "arcade machine", "hovel", "bus", "towel", "light", "truck", "tower", "chandelier", "awning",
    "streetlight", "booth", "television receiver", "airplane", "dirt track", "apparel", "pole", "land", "bannister",
    "escalator", "ottoman", "bottle", "buffet", "poster", "stage", "van", "ship", "fountain", "conveyer belt",
    "canopy", "washer", "plaything", "swimming pool", "stool", "barrel", "basket", "waterfall", "tent", "bag",
    "minibike", "cradle", "oven", "ball", "food", "step", "tank", "trade name", "microwave", "pot", "animal",
    "bicycle", "lake", "dishwasher", "screen", "blanket", "sculpture", "hood", "sconce", "vase", "traffic light",
    "tray", "ashcan", "fan", "pier", "crt screen", "plate", "monitor", "bulletin board", "shower", "radiator",
    "glass", "clock", "flag",
)  # fmt: skip
_ADE20K_BY_CLASS = {
    "bed": ("bed", "cradle"),
    "books": ("book",),
    "ceiling": ("ceiling",),
    "chair": ("chair", "armchair", "seat", "swivel chair", "stool", "bench", "ottoman"),
    "floor": ("floor", "rug", "earth", "road", "sidewalk", "path", "land", "runway"),
    "furniture": (
        "cabinet", "shelf", "wardrobe", "chest of drawers", "counter", "refrigerator", "case", "bookcase", "countertop",
        "kitchen island", "bar", "buffet", "stage", "booth",
    ),
    "picture": ("painting", "poster"),
    "sofa": ("sofa",),
    "table": ("table", "desk", "pool table", "coffee table"),
    "tv": ("television receiver", "screen", "crt screen", "monitor"),
    "wall": ("wall", "door", "column", "screen door", "fireplace", "bulletin board", "building", "house"),
    "window": ("windowpane", "curtain", "blind", "sky", "tree", "skyscraper", "mountain", "hill", "tower", "grass"),
    "void": (
        "water", "sea", "field", "rock", "sand", "grandstand", "river", "bridge", "hovel", "dirt track", "waterfall",
        "lake", "pier", "swimming pool", "fountain", "airplane", "ship",
    ),
}  # fmt: skip
"""ADE20K's names for the 13 classes; unlisted ones are objects."""
_INDOORS = (
    "wall",
    "floor",
    "ceiling",
    "bed",
    "windowpane",
    "cabinet",
    "door",
    "table",
    "curtain",
    "chair",
    "painting",
    "sofa",
)
_OUTDOORS = (
    "building",
    "sky",
    "tree",
    "road",
    "grass",
    "sidewalk",
    "earth",
    "mountain",
    "car",
    "water",
    "house",
    "sea",
)
_IGNORED = 255


def label_map_from_values(
    values: NDArray[Any], *, name: str = "label map", classes: LabelMapClasses = "nyu13"
) -> tuple[NDArray[np.uint8], list[str]]:
    """A 2D label map [rows, columns] uint8 in NYU's 13 classes, 0..13 (0 void), and notes.

    Args:
        values: [rows, columns] whole numbers, as integers or floats.
        name: of the label map, for messages.
        classes: what the numbers mean. Of ``nyu40`` and ``ade20k`` both usual numberings are read: from 1 with 0 for
            void, as in the published files, and from 0 with 255 for void, as networks trained on them output.

    Raises:
        DataError: several channels, no pixel, fractions, or numbers that the classes do not have.
    """
    if values.ndim != 2 or not values.size or values.dtype.kind not in "iubf":
        raise DataError(
            f"{name}: expected one channel of classes 0..{NUM_LABEL_MAP_CLASSES - 1} (0 void), found {values.dtype} of "
            f"shape {list(values.shape)}; pictures of classes in color do not say which is which"
        )
    if values.dtype.kind == "f" and not (np.isfinite(values).all() and (values == np.round(values)).all()):
        raise DataError(f"{name}: expected whole numbers of classes, found fractions, infinity or NaN; round them")
    low, high = int(values.min()), int(values.max())
    most = {"nyu13": NUM_LABEL_MAP_CLASSES - 1, "nyu40": 40, "ade20k": 150}[classes]
    labels = values.astype(np.int64)
    known = labels[labels != _IGNORED] if classes != "nyu13" else labels
    if low < 0 or int(known.max(initial=0)) > most:
        hint = "; `label_map_classes='nyu40'` or ade20k reads other lists" if classes == "nyu13" and low >= 0 else ""
        found = f"{low}" if low < 0 else f"up to {high}"
        raise DataError(f"{name}: expected one channel of classes 0..{most} (0 void), found {found}{hint}")
    if classes == "nyu13":
        return labels.astype(np.uint8), []
    table, said = _table(labels, classes)
    lookup = np.zeros(256, dtype=np.uint8)
    lookup[: len(table)] = table
    return lookup[labels], [f"label map: {said}, mapped to NYU's 13 classes"]


def ade20k_to_nyu13() -> tuple[int, ...]:
    """[151] class of NYU's 13 for 0 (void) and each of the 150."""
    by_name = {name: NYU13_NAMES.index(kind) for kind, names in _ADE20K_BY_CLASS.items() for name in names}
    return (0, *(by_name.get(name, NYU13_NAMES.index("objects")) for name in ADE20K_NAMES))


def _table(labels: NDArray[np.int64], classes: LabelMapClasses) -> tuple[tuple[int, ...], str]:
    """Class of every number, and a note on the numbering."""
    names, table = (NYU40_NAMES, NYU40_TO_NYU13) if classes == "nyu40" else (ADE20K_NAMES, ade20k_to_nyu13())
    title = "NYU's 40 classes" if classes == "nyu40" else "ADE20K's 150 classes"
    if _starts_at_zero(labels, names, is_ade20k=classes == "ade20k"):
        return table[1:], f"{title} numbered from 0 (wall 0)"
    return table, f"{title} numbered from 1 (wall 1)"


def _starts_at_zero(labels: NDArray[np.int64], names: tuple[str, ...], *, is_ade20k: bool) -> bool:
    """Whether the first class is 0: decided by the largest number, by which reading is a room (ADE20K), or by 255."""
    counts = np.bincount(labels[labels != _IGNORED].reshape(-1), minlength=len(names) + 2)
    if counts[len(names)]:
        return False
    has_ignored = bool((labels == _IGNORED).any())
    if not is_ade20k:
        return has_ignored
    indoors, outdoors = ([names.index(name) for name in group] for group in (_INDOORS, _OUTDOORS))

    def likeness(first: int) -> int:
        return int(sum(counts[i + first] for i in indoors) - sum(counts[i + first] for i in outdoors))

    return likeness(0) > likeness(1) or (has_ignored and likeness(0) == likeness(1))
