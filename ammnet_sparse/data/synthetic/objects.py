"""Small things: what lies on tables and shelves, stands on the floor, or hangs on walls."""

import math

import numpy as np

from ammnet_sparse.data.synthetic import materials
from ammnet_sparse.data.synthetic.scene import MapLabel, Material, Place, SceneBuilder, SceneLabel, Texture

Rng = np.random.Generator
OBJECTS = SceneLabel.OBJECTS


def books(builder: SceneBuilder, place: Place, rng: Rng) -> None:
    """A stack of lying books."""
    item = builder.item(place, OBJECTS, map_label=MapLabel.BOOKS)
    z = 0.0
    for _ in range(rng.integers(1, 6)):
        thickness = rng.uniform(0.02, 0.045)
        size = (rng.uniform(0.15, 0.22), rng.uniform(0.2, 0.28), thickness)
        item.box((0, 0, z + thickness / 2), size, material=materials.colorful(rng), yaw=rng.normal(0, 0.15))
        z += thickness


def standing_books(builder: SceneBuilder, place: Place, rng: Rng, *, width: float, height: float) -> None:
    """A row of upright books that fills a width of a shelf."""
    item = builder.item(place, OBJECTS, map_label=MapLabel.BOOKS)
    x = -width / 2
    while x < width / 2 - 0.03:
        thickness = min(rng.uniform(0.03, 0.08), width / 2 - x)
        tall = height * rng.uniform(0.65, 0.95)
        item.box((x + thickness / 2, 0, tall / 2), (thickness, 0.18, tall), material=materials.colorful(rng))
        x += thickness


def cup(builder: SceneBuilder, place: Place, rng: Rng) -> None:
    """A cup."""
    height = rng.uniform(0.08, 0.14)
    size = (rng.uniform(0.07, 0.11),) * 2 + (height,)
    builder.item(place, OBJECTS).cylinder((0, 0, height / 2), size, material=materials.colorful(rng))


def bottle(builder: SceneBuilder, place: Place, rng: Rng) -> None:
    """A bottle with a neck."""
    item, material = builder.item(place, OBJECTS), materials.colorful(rng)
    item.cylinder((0, 0, 0.1), (0.08, 0.08, 0.2), material=material)
    item.cylinder((0, 0, 0.24), (0.03, 0.03, 0.09), material=material)


def box(builder: SceneBuilder, place: Place, rng: Rng) -> None:
    """A small box."""
    size = (rng.uniform(0.1, 0.3), rng.uniform(0.08, 0.22), rng.uniform(0.06, 0.22))
    builder.item(place, OBJECTS).box((0, 0, size[2] / 2), size, material=materials.colorful(rng))


def bowl(builder: SceneBuilder, place: Place, rng: Rng) -> None:
    """A bowl with fruit."""
    item = builder.item(place, OBJECTS)
    item.cylinder((0, 0, 0.035), (0.24, 0.24, 0.07), material=materials.painted(rng))
    for angle in np.linspace(0, 2 * math.pi, 5)[:-1]:
        center = (0.06 * math.cos(angle), 0.06 * math.sin(angle), 0.09)
        item.ellipsoid(center, (0.08, 0.08, 0.08), material=materials.colorful(rng))


def laptop(builder: SceneBuilder, place: Place, rng: Rng) -> None:
    """An open laptop."""
    item, shell = builder.item(place, OBJECTS), materials.metal(rng)
    item.box((0, -0.08, 0.012), (0.34, 0.23, 0.024), material=shell)
    item.box((0, 0.05, 0.13), (0.34, 0.02, 0.22), material=materials.screen(rng))


def vase(builder: SceneBuilder, place: Place, rng: Rng) -> None:
    """A vase with leaves."""
    item, green = builder.item(place, OBJECTS), materials.leaves(rng)
    item.ellipsoid((0, 0, 0.1), (0.13, 0.13, 0.2), material=materials.colorful(rng))
    for _ in range(4):
        dx, dy = rng.uniform(-0.06, 0.06, 2)
        item.ellipsoid((dx, dy, rng.uniform(0.22, 0.36)), (0.11, 0.11, 0.14), material=green)


def table_lamp(builder: SceneBuilder, place: Place, rng: Rng) -> None:
    """A lamp on a foot."""
    item, foot = builder.item(place, OBJECTS), materials.metal(rng)
    item.cylinder((0, 0, 0.015), (0.16, 0.16, 0.03), material=foot)
    item.cylinder((0, 0, 0.15), (0.04, 0.04, 0.27), material=foot)
    item.cylinder((0, 0, 0.38), (0.3, 0.3, 0.22), material=materials.lampshade(rng))


def photo(builder: SceneBuilder, place: Place, rng: Rng) -> None:
    """A framed photo that stands."""
    item = builder.item(place, OBJECTS, map_label=MapLabel.PICTURE)
    item.box((0, 0, 0.1), (0.16, 0.03, 0.2), material=materials.wood(rng))
    item.box((0, -0.016, 0.1), (0.12, 0.004, 0.15), material=materials.colorful(rng))


SMALL = (books, books, cup, bottle, box, box, bowl, laptop, vase, photo)


def scatter(builder: SceneBuilder, place: Place, rng: Rng, *, width: float, depth: float, count: int) -> None:
    """Puts up to ``count`` small things on a surface of ``width`` x ``depth`` meters centered at ``place``."""
    taken: list[tuple[float, float]] = []
    if width < 0.2 or depth < 0.2:
        return
    for _ in range(3 * count):
        x = rng.uniform(-1, 1) * (width / 2 - 0.1)
        y = rng.uniform(-1, 1) * (depth / 2 - 0.1)
        if len(taken) < count and all((x - a) ** 2 + (y - b) ** 2 > 0.28**2 for a, b in taken):
            taken.append((x, y))
            SMALL[rng.integers(len(SMALL))](builder, place.at(x, y, yaw=rng.normal(0, 0.4)), rng)


def plant(builder: SceneBuilder, place: Place, rng: Rng) -> None:
    """A potted plant on the floor, 0.7 to 1.6 m high."""
    item, green, height = builder.item(place, OBJECTS), materials.leaves(rng), rng.uniform(0.7, 1.6)
    item.cylinder((0, 0, 0.16), (0.3, 0.3, 0.32), material=materials.colorful(rng))
    item.cylinder((0, 0, height * 0.4), (0.04, 0.04, height * 0.6), material=materials.wood(rng))
    for _ in range(7):
        dx, dy = rng.uniform(-0.13, 0.13, 2)
        size = rng.uniform(0.2, 0.36)
        z = rng.uniform(0.5, 1.0) * (height - size) + size / 2
        item.ellipsoid((dx, dy, z), (size, size, size), material=green)


def floor_lamp(builder: SceneBuilder, place: Place, rng: Rng) -> None:
    """A standing lamp, 1.4 to 1.75 m high."""
    item, pole, height = builder.item(place, OBJECTS), materials.metal(rng), rng.uniform(1.4, 1.75)
    item.cylinder((0, 0, 0.02), (0.3, 0.3, 0.04), material=pole)
    item.cylinder((0, 0, height / 2), (0.04, 0.04, height), material=pole)
    item.cylinder((0, 0, height - 0.12), (0.38, 0.38, 0.28), material=materials.lampshade(rng))


def boxes(builder: SceneBuilder, place: Place, rng: Rng) -> None:
    """A stack of one to three cardboard boxes."""
    item, z = builder.item(place, OBJECTS), 0.0
    for _ in range(rng.integers(1, 4)):
        size = (rng.uniform(0.3, 0.55), rng.uniform(0.3, 0.5), rng.uniform(0.25, 0.45))
        material = materials.cardboard(rng) if rng.random() < 0.6 else materials.colorful(rng)
        item.box((0, 0, z + size[2] / 2), size, material=material, yaw=rng.normal(0, 0.12))
        z += size[2]


def bag(builder: SceneBuilder, place: Place, rng: Rng) -> None:
    """A bag that stands on the floor."""
    item, material = builder.item(place, OBJECTS), materials.fabric(rng)
    item.ellipsoid((0, 0, 0.2), (0.42, 0.3, 0.42), material=material)
    item.box((0, 0, 0.08), (0.36, 0.24, 0.16), material=material)


def basket(builder: SceneBuilder, place: Place, rng: Rng) -> None:
    """A laundry basket with clothes in it."""
    item, height = builder.item(place, OBJECTS), rng.uniform(0.35, 0.6)
    item.cylinder((0, 0, height / 2), (0.44, 0.44, height), material=materials.painted(rng))
    item.ellipsoid((0, 0, height), (0.38, 0.38, 0.2), material=materials.bedding(rng))


def bin_(builder: SceneBuilder, place: Place, rng: Rng) -> None:
    """A waste-paper bin."""
    builder.item(place, OBJECTS).cylinder((0, 0, 0.17), (0.27, 0.27, 0.34), material=materials.painted(rng))


FLOOR = (plant, floor_lamp, boxes, boxes, bag, basket, bin_)


def pillow(builder: SceneBuilder, place: Place, rng: Rng) -> None:
    """A pillow that lies flat."""
    material = materials.bedding(rng)
    builder.item(place, OBJECTS).ellipsoid((0, 0, 0.07), (0.6, 0.38, 0.17), material=material)


def cushion(builder: SceneBuilder, place: Place, rng: Rng) -> None:
    """Leans upright against the back of a sofa."""
    builder.item(place, OBJECTS).ellipsoid((0, 0, 0.2), (0.42, 0.18, 0.4), material=materials.fabric(rng))


def picture(builder: SceneBuilder, place: Place, rng: Rng) -> None:
    """Hangs on a wall: ``place`` is on the wall's face, at the center of the picture, with its back to the wall."""
    item = builder.item(place, OBJECTS, map_label=MapLabel.PICTURE)
    width, height = rng.uniform(0.3, 0.9), rng.uniform(0.3, 0.7)
    item.box((0, -0.015, 0), (width, 0.03, height), material=materials.wood(rng))
    item.box((0, -0.032, 0), (width - 0.08, 0.006, height - 0.08), material=_painting(rng))


def _painting(rng: Rng) -> Material:
    first, second = materials.colorful(rng), materials.colorful(rng)
    return Material(first.color, second.color, Texture.SPECKLE, rng.uniform(0.08, 0.2))
