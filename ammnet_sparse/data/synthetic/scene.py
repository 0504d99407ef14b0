"""What a synthetic room is made of: boxes, cylinders and ellipsoids with a class and a material.

World axes are X lateral, Y forward, Z up, meters. A piece of furniture is built in its own axes: origin on the
floor under its center, back towards +Y, front towards -Y; a ``Place`` puts it into the world.
"""

import colorsys
import dataclasses
import math
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.data.grid import CLASS_NAMES

Vector = tuple[float, float, float]


class Kind(IntEnum):
    """Form of a shape; half sizes are half edges, or radii."""

    BOX = 0
    CYLINDER = 1
    """Elliptical, upright."""
    ELLIPSOID = 2


class Texture(IntEnum):
    """How the two colors of a material mix over a surface."""

    PLAIN = 0
    STRIPES = 1
    CHECKS = 2
    GRAIN = 3
    SPECKLE = 4
    TILES = 5


class SceneLabel(IntEnum):
    """Classes of the scene by name; the order is that of ``grid.CLASSES``."""

    EMPTY = CLASS_NAMES.index("empty")
    CEILING = CLASS_NAMES.index("ceiling")
    FLOOR = CLASS_NAMES.index("floor")
    WALL = CLASS_NAMES.index("wall")
    WINDOW = CLASS_NAMES.index("window")
    CHAIR = CLASS_NAMES.index("chair")
    BED = CLASS_NAMES.index("bed")
    SOFA = CLASS_NAMES.index("sofa")
    TABLE = CLASS_NAMES.index("table")
    TVS = CLASS_NAMES.index("tvs")
    FURNITURE = CLASS_NAMES.index("furniture")
    OBJECTS = CLASS_NAMES.index("objects")
    IGNORE = 255


class MapLabel(IntEnum):
    """The 13 classes of NYU as the 2D label maps number them, found by comparing maps with voxel labels."""

    VOID = 0
    BED = 1
    BOOKS = 2
    CEILING = 3
    CHAIR = 4
    FLOOR = 5
    FURNITURE = 6
    OBJECTS = 7
    PICTURE = 8
    SOFA = 9
    TABLE = 10
    TV = 11
    WALL = 12
    WINDOW = 13


MAP_LABEL_OF = {label: MapLabel.__members__.get(label.name, MapLabel.VOID) for label in SceneLabel}
MAP_LABEL_OF[SceneLabel.TVS] = MapLabel.TV
"""The label-map class of a scene class; books and pictures are objects with a map class of their own."""


@dataclasses.dataclass(frozen=True)
class Material:
    """Two RGB colors in 0..1, mixed by a texture whose period is ``scale`` meters; ``glow`` is light of its own."""

    color: Vector
    accent: Vector | None = None
    texture: Texture = Texture.PLAIN
    scale: float = 0.1
    glow: float = 0.0


@dataclasses.dataclass(frozen=True)
class Place:
    """Position in meters and heading in radians (counterclockwise seen from above) of a piece in the world."""

    x: float = 0.0
    y: float = 0.0
    z: float = 0.0
    yaw: float = 0.0

    def at(self, x: float, y: float, z: float = 0.0, *, yaw: float = 0.0) -> "Place":
        """The place at (x, y, z) of this one's own axes, turned by ``yaw`` more."""
        cos, sin = math.cos(self.yaw), math.sin(self.yaw)
        return Place(self.x + cos * x - sin * y, self.y + sin * x + cos * y, self.z + z, self.yaw + yaw)


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """N shapes. Of shapes that overlap in the voxels the later one counts; shapes of EMPTY or IGNORE are not seen.

    Attributes:
        kind: [N] int64, ``Kind``.
        center: [N, 3] float64, world (X, Y, Z).
        half: [N, 3] float64, half sizes along the shape's own axes.
        yaw: [N] float64.
        label: [N] uint8, ``SceneLabel``.
        map_label: [N] uint8, ``MapLabel``.
        instance: [N] int64, the object that the shape is a part of.
        colors: [N, 2, 3] float64, color and accent.
        texture: [N] int64, ``Texture``.
        surface: [N, 2] float64, texture scale in meters and glow.
        light: world position of the lamp.
    """

    kind: NDArray[np.int64]
    center: NDArray[np.float64]
    half: NDArray[np.float64]
    yaw: NDArray[np.float64]
    label: NDArray[np.uint8]
    map_label: NDArray[np.uint8]
    instance: NDArray[np.int64]
    colors: NDArray[np.float64]
    texture: NDArray[np.int64]
    surface: NDArray[np.float64]
    light: NDArray[np.float64]

    def select(self, mask: NDArray[np.bool_]) -> "Scene":
        """The scene of the shapes where ``mask`` [N] is True, in the same order."""
        arrays = {
            field.name: getattr(self, field.name)[mask] for field in dataclasses.fields(self) if field.name != "light"
        }
        return dataclasses.replace(self, **arrays)


@dataclasses.dataclass(frozen=True)
class _Shape:
    kind: Kind
    center: Vector
    half: Vector
    yaw: float
    label: SceneLabel
    map_label: MapLabel
    instance: int
    material: Material


class Item:
    """One object under construction: its shapes share place, class and instance."""

    def __init__(self, builder: "SceneBuilder", place: Place, label: SceneLabel, map_label: MapLabel, instance: int):
        self._builder, self._place = builder, place
        self._label, self._map_label, self._instance = label, map_label, instance

    def add(self, kind: Kind, center: Vector, size: Vector, *, material: Material, yaw: float = 0.0) -> None:
        """A shape by the center and the full size of its bounding box, in meters along the item's own axes."""
        world, half = self._place.at(*center, yaw=yaw), (size[0] / 2, size[1] / 2, size[2] / 2)
        position = (world.x, world.y, world.z)
        own = (self._label, self._map_label, self._instance)
        self._builder.shapes.append(_Shape(kind, position, half, world.yaw, *own, material))

    def box(self, center: Vector, size: Vector, *, material: Material, yaw: float = 0.0) -> None:
        self.add(Kind.BOX, center, size, material=material, yaw=yaw)

    def cylinder(self, center: Vector, size: Vector, *, material: Material) -> None:
        self.add(Kind.CYLINDER, center, size, material=material)

    def ellipsoid(self, center: Vector, size: Vector, *, material: Material) -> None:
        self.add(Kind.ELLIPSOID, center, size, material=material)


class SceneBuilder:
    """Collects the shapes of a scene, object by object."""

    def __init__(self) -> None:
        self.shapes: list[_Shape] = []
        self._instances = 0

    def item(self, place: Place, label: SceneLabel, *, map_label: MapLabel | None = None) -> Item:
        """Starts a new object of a class at a place."""
        self._instances += 1
        chosen = MAP_LABEL_OF[label] if map_label is None else map_label
        return Item(self, place, label, chosen, self._instances)

    def build(self, light: Vector) -> Scene:
        """The scene of all shapes so far, with its lamp at ``light``."""
        shapes = self.shapes
        materials = [shape.material for shape in shapes]
        return Scene(
            kind=np.array([shape.kind for shape in shapes], dtype=np.int64),
            center=np.array([shape.center for shape in shapes], dtype=np.float64).reshape(-1, 3),
            half=np.array([shape.half for shape in shapes], dtype=np.float64).reshape(-1, 3),
            yaw=np.array([shape.yaw for shape in shapes], dtype=np.float64),
            label=np.array([shape.label for shape in shapes], dtype=np.uint8),
            map_label=np.array([shape.map_label for shape in shapes], dtype=np.uint8),
            instance=np.array([shape.instance for shape in shapes], dtype=np.int64),
            colors=np.array([(m.color, m.accent or m.color) for m in materials], dtype=np.float64).reshape(-1, 2, 3),
            texture=np.array([m.texture for m in materials], dtype=np.int64),
            surface=np.array([(m.scale, m.glow) for m in materials], dtype=np.float64).reshape(-1, 2),
            light=np.array(light, dtype=np.float64),
        )


def hsv(hue: float, saturation: float, value: float) -> Vector:
    """RGB of hue, saturation and value, each in 0..1 (hue wraps, the others are clipped)."""
    return colorsys.hsv_to_rgb(hue % 1.0, min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0))
