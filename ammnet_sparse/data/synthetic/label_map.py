"""2D label maps with the errors of a segmentation network, in place of the published DeepLabv3 predictions.

The numbering (``scene.MapLabel``) was read off the published maps: at the mapped pixels of every fourth frame of
the training split, these voxel classes are the most frequent occupied ones under each map class.

======  =========  ======================================
number  map class  voxel class (share of occupied voxels)
======  =========  ======================================
0       void       any: bands along the borders of objects
1       bed        bed (88 %)
2       books      objects (68 %)
3       ceiling    ceiling (95 %)
4       chair      chair (57 %), floor, furniture
5       floor      floor (95 %)
6       furniture  furniture (83 %)
7       objects    objects (69 %), furniture
8       picture    objects (79 %), wall
9       sofa       sofa (87 %)
10      table      table (71 %)
11      tv         tvs (71 %)
12      wall       wall (82 %)
13      window     window (65 %), wall
======  =========  ======================================
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"
import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.compiled import compiled
from ammnet_sparse.data.grid import NUM_LABEL_MAP_CLASSES
from ammnet_sparse.data.synthetic.noise import smooth_noise
from ammnet_sparse.data.synthetic.scene import MapLabel

Rng = np.random.Generator

CONFUSIONS: dict[MapLabel, tuple[MapLabel, ...]] = {
    MapLabel.VOID: (MapLabel.VOID,),
    MapLabel.BED: (MapLabel.SOFA, MapLabel.FURNITURE, MapLabel.OBJECTS),
    MapLabel.BOOKS: (MapLabel.OBJECTS, MapLabel.FURNITURE),
    MapLabel.CEILING: (MapLabel.WALL,),
    MapLabel.CHAIR: (MapLabel.OBJECTS, MapLabel.SOFA, MapLabel.FURNITURE),
    MapLabel.FLOOR: (MapLabel.FURNITURE, MapLabel.OBJECTS),
    MapLabel.FURNITURE: (MapLabel.OBJECTS, MapLabel.WALL, MapLabel.TABLE),
    MapLabel.OBJECTS: (MapLabel.FURNITURE, MapLabel.WALL, MapLabel.FURNITURE, MapLabel.TABLE),
    MapLabel.PICTURE: (MapLabel.WALL, MapLabel.OBJECTS, MapLabel.WINDOW),
    MapLabel.SOFA: (MapLabel.CHAIR, MapLabel.BED, MapLabel.FURNITURE),
    MapLabel.TABLE: (MapLabel.FURNITURE, MapLabel.OBJECTS),
    MapLabel.TV: (MapLabel.OBJECTS, MapLabel.FURNITURE, MapLabel.WINDOW),
    MapLabel.WALL: (MapLabel.FURNITURE, MapLabel.OBJECTS, MapLabel.WINDOW),
    MapLabel.WINDOW: (MapLabel.WALL, MapLabel.OBJECTS),
}
"""Classes that a map class is confused with, as in the published maps."""
SHELL = (MapLabel.WALL, MapLabel.FLOOR, MapLabel.CEILING)
INSTANCE_ERROR = 0.2
"""Probability that a whole object is misclassified (never walls, floor and ceiling)."""
PATCH_ERROR = 0.24
"""Threshold on smooth noise below which a patch is misclassified."""
WARP_PIXELS = 7.0
"""Largest displacement of a border."""
VOTE_RADIUS = 4
"""Pixels over which labels are voted on: corners become round, thin things vanish."""
VOID_PIXELS = (2, 4)
"""Range of half widths of the void band along borders."""


def predicted_label_map(map_label: NDArray[np.uint8], instance: NDArray[np.int64], rng: Rng) -> NDArray[np.uint8]:
    """A label map as a network would predict it.

    Args:
        map_label: [rows, columns] uint8, true ``MapLabel``, 0 where nothing is seen.
        instance: [rows, columns] integer, number of the object seen, 0 for none.
        rng: the source of all its errors.

    Returns:
        [rows, columns] uint8, 0..13.
    """
    mistaken = _mistake_instances(map_label, instance, rng)
    mistaken = _mistake_patches(mistaken, rng)
    voted = _vote(_warp(mistaken, rng), VOTE_RADIUS)
    return _with_void(voted, rng)


def _mistake_instances(map_label: NDArray[np.uint8], instance: NDArray[np.int64], rng: Rng) -> NDArray[np.uint8]:
    numbers, first = np.unique(instance, return_index=True)
    table = np.zeros(int(numbers.max()) + 1, dtype=np.uint8)
    for number, pixel in zip(numbers, first, strict=True):
        label = MapLabel(int(map_label.flat[pixel]))
        # Both numbers are drawn for every object, so that objects are independent.
        draw, choice = rng.random(2)
        if label not in SHELL and draw < INSTANCE_ERROR:
            label = CONFUSIONS[label][int(choice * len(CONFUSIONS[label]))]
        table[number] = label
    return table[instance]


def _mistake_patches(map_label: NDArray[np.uint8], rng: Rng) -> NDArray[np.uint8]:
    table = np.array([CONFUSIONS[label][int(rng.integers(len(CONFUSIONS[label])))] for label in MapLabel])
    patches = smooth_noise(rng, map_label.shape, cell=70) * 0.8 + smooth_noise(rng, map_label.shape, cell=20) * 0.2
    return np.where(patches < PATCH_ERROR, table[map_label], map_label).astype(np.uint8)


def _warp(map_label: NDArray[np.uint8], rng: Rng) -> NDArray[np.uint8]:
    rows, columns = map_label.shape
    shift_v = (smooth_noise(rng, map_label.shape, cell=24) * 2 - 1) * WARP_PIXELS
    shift_u = (smooth_noise(rng, map_label.shape, cell=24) * 2 - 1) * WARP_PIXELS
    v = np.clip(np.arange(rows)[:, None] + np.round(shift_v), 0, rows - 1).astype(np.int64)
    u = np.clip(np.arange(columns)[None] + np.round(shift_u), 0, columns - 1).astype(np.int64)
    return map_label[v, u]


def _with_void(map_label: NDArray[np.uint8], rng: Rng) -> NDArray[np.uint8]:
    """Void along borders between classes, wider in some places, and along the image's rim."""
    low, high = VOID_PIXELS
    is_wide = smooth_noise(rng, map_label.shape, cell=30) < 0.5
    void = np.where(is_wide, _near_border(map_label, high), _near_border(map_label, low))
    rim = int(rng.integers(3, 9))
    void[:rim], void[-rim:], void[:, :rim], void[:, -rim:] = True, True, True, True
    return np.where(void, np.uint8(MapLabel.VOID), map_label)


def _near_border(map_label: NDArray[np.uint8], radius: int) -> NDArray[np.bool_]:
    """Pixels with another class ``radius`` pixels away along their row or column."""
    near = np.zeros(map_label.shape, dtype=np.bool_)
    for axis in (0, 1):
        labels, target = (map_label, near) if axis == 0 else (map_label.T, near.T)
        differs = labels[radius:] != labels[:-radius]
        target[radius:] |= differs
        target[:-radius] |= differs
    return near


@compiled()
def _vote(map_label, radius):
    """The most frequent class of the square around each pixel, ties to the smallest."""
    rows, columns = map_label.shape
    voted = np.empty_like(map_label)
    counts = np.zeros(NUM_LABEL_MAP_CLASSES, dtype=np.int64)
    for v in range(rows):
        low, high = max(0, v - radius), min(rows, v + radius + 1)
        counts[:] = 0
        for u in range(min(radius, columns)):
            for row in range(low, high):
                counts[map_label[row, u]] += 1
        for u in range(columns):
            if u + radius < columns:
                for row in range(low, high):
                    counts[map_label[row, u + radius]] += 1
            if u - radius - 1 >= 0:
                for row in range(low, high):
                    counts[map_label[row, u - radius - 1]] -= 1
            voted[v, u] = np.argmax(counts)
    return voted
