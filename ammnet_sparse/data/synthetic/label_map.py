"""Errors of sensors and of a segmentation network: depth like a Kinect's, colors like a camera's, 2D label maps.

The label maps replace the published DeepLabv3 predictions.

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

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.data.grid import NUM_LABEL_MAP_CLASSES
from ammnet_sparse.data.synthetic.scene import MapLabel

Rng = np.random.Generator

DISPARITY_AT_ONE_METER = 43.5
"""Pixels: focal length 580 times the baseline of 0.075 m."""
DISPARITY_STEPS = 8
"""Steps per pixel in which a Kinect reports disparity: 3 mm apart at 1 m, 26 mm at 3 m."""
DISPARITY_NOISE = 0.02
"""Standard deviation in pixels of the disparity before it is rounded."""
SHADOW_SHARE = 0.4
"""Share of the projector's shadow that stays missing; of the published depth the rest is filled in."""
KINECT_RANGE = (0.5, 8.0)
"""Meters that a Kinect measures."""


def smooth_noise(rng: Rng, shape: tuple[int, int], *, cell: int) -> NDArray[np.float32]:
    """[rows, columns] float32: bilinear interpolation of uniform numbers in 0..1, ``cell`` pixels apart."""
    knots = rng.random([(size - 1) // cell + 2 for size in shape], dtype=np.float32)
    # Elementwise on purpose: a matrix product may round differently with other threads.
    low, share = _position(shape[0], cell)
    rows: NDArray[np.float32] = knots[low] * (1 - share)[:, None] + knots[low + 1] * share[:, None]
    low, share = _position(shape[1], cell)
    noise: NDArray[np.float32] = rows[:, low] * (1 - share) + rows[:, low + 1] * share
    return noise


def _position(size: int, cell: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Index of the knot before each pixel, and the share of the way to the next one."""
    low, rest = np.divmod(np.arange(size, dtype=np.int64), cell)
    return low, (rest / cell).astype(np.float32)


def kinect_depth(
    depth: NDArray[np.float32], rng: Rng, *, incidence: NDArray[np.float32], absorbing: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Depth as a Kinect would measure it: the same shape and unit, 0 where missing.

    Rounded disparity with noise, ragged edges, the projector's shadow beside near objects, holes at grazing
    angles and on glass and screens, nothing beyond 8 m or within 0.5 m, a missing rim, whole millimeters.

    Args:
        depth: [rows, columns] float32 in meters, 0 where missing.
        incidence: cosine between ray and surface normal.
        absorbing: True on glass and screens.
    """
    shape = depth.shape
    jittered = _lateral_jitter(depth, rng)
    with np.errstate(divide="ignore"):
        disparity = DISPARITY_AT_ONE_METER / jittered
        disparity += rng.normal(0, DISPARITY_NOISE, shape).astype(np.float32)
        measured = DISPARITY_AT_ONE_METER / (np.round(disparity * DISPARITY_STEPS) / DISPARITY_STEPS)
    patches = smooth_noise(rng, shape, cell=6)
    missing = (depth <= 0) | _shadow(depth, DISPARITY_AT_ONE_METER * SHADOW_SHARE)
    missing |= incidence < 0.22 * patches
    missing |= absorbing & (smooth_noise(rng, shape, cell=25) < rng.uniform(0.2, 0.6))
    missing |= ~((measured >= KINECT_RANGE[0]) & (measured <= KINECT_RANGE[1]))
    missing |= _rim(rng, shape)
    return np.where(missing, np.float32(0), np.round(measured * 1000) / 1000).astype(np.float32)


def _lateral_jitter(depth: NDArray[np.float32], rng: Rng) -> NDArray[np.float32]:
    """Every pixel takes the depth of one up to two pixels away: edges become ragged, planes keep their slope."""
    rows, columns = depth.shape
    shifts = np.clip(np.round(rng.normal(0, 0.6, (2, rows, columns))), -2, 2).astype(np.int64)
    v = np.clip(np.arange(rows)[:, None] + shifts[0], 0, rows - 1)
    u = np.clip(np.arange(columns)[None] + shifts[1], 0, columns - 1)
    other = depth[v, u]
    return np.where(np.abs(other - depth) > 0.05 * depth, other, depth)


def _rim(rng: Rng, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """The rim that is missing where depth was warped to the color camera; wider at the top."""
    rows, columns = shape
    top, bottom, left, right = rng.integers(2, [24, 10, 8, 8])
    bend = np.round(6 * (2 * np.arange(columns) / columns - 1) ** 2)
    row = np.arange(rows)[:, None]
    rim = (row < top - bend) | (row >= rows - bottom + bend)
    rim[:, :left] = True
    rim[:, columns - right :] = True
    return rim


def _shadow(depth: NDArray[np.float32], disparity_at_one_meter: float) -> NDArray[np.bool_]:
    """Pixels that a projector to the right of the camera cannot see: those of one further right are as far left."""
    is_known = depth > 0
    disparity = disparity_at_one_meter / np.where(is_known, depth, np.float32(1)).astype(np.float64)
    column = np.where(is_known, np.arange(depth.shape[1]) - disparity, np.inf)
    leftmost = np.minimum.accumulate(column[:, ::-1], axis=1)[:, ::-1]
    return is_known & (column > leftmost + 0.5)


def camera_image(color: NDArray[np.float32], rng: Rng) -> NDArray[np.uint8]:
    """[rows, columns, 3] uint8 RGB of a noise-free color image in 0..1: exposure, white balance, blur, grain."""
    gain = rng.uniform(0.85, 1.2) * rng.normal(1.0, 0.04, 3).astype(np.float32)
    grain = rng.normal(0, 0.02, color.shape[:2]).astype(np.float32)
    exposed = _blurred(color * gain.astype(np.float32)) + grain[..., None]
    return (np.clip(exposed, 0, 1) ** np.float32(0.8) * 255 + 0.5).astype(np.uint8)


def _blurred(color: NDArray[np.float32]) -> NDArray[np.float32]:
    """Weights 1 2 1 along rows and columns; this also smooths the steps of edges."""
    padded = np.pad(color, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    return (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / np.float32(16)


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


def _vote(map_label: NDArray[np.uint8], radius: int) -> NDArray[np.uint8]:
    """The most frequent class of the square around each pixel, ties to the smallest."""
    is_class = map_label == np.arange(NUM_LABEL_MAP_CLASSES, dtype=np.uint8)[:, None, None]
    padded = np.pad(is_class, ((0, 0), (radius + 1, radius), (radius + 1, radius)))
    sums = padded.cumsum(axis=1, dtype=np.int32).cumsum(axis=2, dtype=np.int32)
    size = 2 * radius + 1
    strips = sums[:, size:] - sums[:, :-size]
    return (strips[:, :, size:] - strips[:, :, :-size]).argmax(axis=0).astype(np.uint8)
