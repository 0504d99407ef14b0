"""Furniture as compound shapes. Each ``make`` function draws the sizes and returns a piece that can be placed."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from ammnet_sparse.data.synthetic import materials, objects
from ammnet_sparse.data.synthetic.scene import Item, Material, Place, SceneBuilder, SceneLabel

Rng = np.random.Generator


@dataclasses.dataclass(frozen=True)
class Piece:
    """Furniture of known size, meters, that ``build`` puts at a place; its back is at +depth / 2."""

    width: float
    depth: float
    height: float
    build: Callable[[SceneBuilder, Place], None]

    def carrying(self, build: Callable[[SceneBuilder, Place], None]) -> "Piece":
        """The same piece with something on it, built after it at its place."""

        def both(builder: SceneBuilder, place: Place) -> None:
            self.build(builder, place)
            build(builder, place)

        return dataclasses.replace(self, build=both)


def _legs(item: Item, size: tuple[float, float, float], *, thickness: float, material: Material) -> None:
    """Four legs at the corners of a width x depth, height high."""
    width, depth, height = size
    dx, dy = (width - thickness) / 2, (depth - thickness) / 2
    for x, y in ((-dx, -dy), (dx, -dy), (-dx, dy), (dx, dy)):
        item.box((x, y, height / 2), (thickness, thickness, height), material=material)


def chair(rng: Rng) -> Piece:
    """A wooden chair, or one with upholstered seat and back."""
    width, depth, seat = rng.uniform(0.42, 0.5), rng.uniform(0.42, 0.5), rng.uniform(0.43, 0.48)
    height = seat + rng.uniform(0.4, 0.55)
    frame = materials.wood(rng)
    cover = materials.fabric(rng) if rng.random() < 0.5 else frame

    def build(builder: SceneBuilder, place: Place) -> None:
        item = builder.item(place, SceneLabel.CHAIR)
        _legs(item, (width, depth, seat), thickness=0.045, material=frame)
        item.box((0, 0, seat), (width, depth, 0.06), material=cover)
        item.box((0, depth / 2 - 0.025, (seat + height) / 2 + 0.05), (width, 0.05, height - seat - 0.1), material=cover)
        for x in (-width / 2 + 0.025, width / 2 - 0.025):
            item.box((x, depth / 2 - 0.025, (seat + height) / 2), (0.05, 0.05, height - seat), material=frame)

    return Piece(width, depth, height, build)


def office_chair(rng: Rng) -> Piece:
    """An upholstered swivel chair on a foot of metal."""
    seat, back = rng.uniform(0.45, 0.52), rng.uniform(0.5, 0.65)
    cover, frame = materials.fabric(rng), materials.metal(rng)

    def build(builder: SceneBuilder, place: Place) -> None:
        item = builder.item(place, SceneLabel.CHAIR)
        item.cylinder((0, 0, 0.05), (0.56, 0.56, 0.06), material=frame)
        item.cylinder((0, 0, seat / 2), (0.07, 0.07, seat), material=frame)
        item.box((0, 0, seat), (0.5, 0.5, 0.09), material=cover)
        item.box((0, 0.24, seat + 0.08 + back / 2), (0.46, 0.07, back), material=cover)
        for x in (-0.27, 0.27):
            item.box((x, 0, seat + 0.22), (0.05, 0.32, 0.04), material=frame)
            item.box((x, 0.05, seat + 0.11), (0.04, 0.04, 0.2), material=frame)

    return Piece(0.6, 0.6, seat + 0.08 + back, build)


def bed(rng: Rng) -> Piece:
    """Headboard at the back, pillows (objects) before it, sometimes a folded blanket."""
    width, length = rng.choice([1.0, 1.4, 1.6]) + rng.uniform(-0.05, 0.1), rng.uniform(2.0, 2.15)
    base, mattress, head = rng.uniform(0.25, 0.35), rng.uniform(0.18, 0.25), rng.uniform(0.85, 1.15)
    frame, sheet, cover = materials.wood(rng), materials.bedding(rng), materials.bedding(rng)

    def build(builder: SceneBuilder, place: Place) -> None:
        item, top = builder.item(place, SceneLabel.BED), base + mattress
        item.box((0, 0, base / 2), (width, length, base), material=frame)
        item.box((0, 0, base + mattress / 2), (width - 0.04, length - 0.06, mattress), material=sheet)
        item.box((0, -length * 0.14, top - 0.1), (width + 0.03, length * 0.7, 0.26), material=cover)
        item.box((0, length / 2 - 0.03, head / 2), (width, 0.06, head), material=frame)
        for x in (0.0,) if width < 1.2 else (-width / 4, width / 4):
            objects.pillow(builder, place.at(x, length / 2 - 0.3, top), rng)
        if rng.random() < 0.3:
            objects.bag(builder, place.at(rng.uniform(-0.3, 0.3), -length * 0.2, top), rng)

    return Piece(width + 0.04, length, head, build)


def sofa(rng: Rng, *, seats: int | None = None) -> Piece:
    """One (an armchair) to three seats, with arms, a back and cushions (objects)."""
    seats = int(rng.integers(2, 4)) if seats is None else seats
    seat_width, depth = rng.uniform(0.58, 0.7), rng.uniform(0.82, 0.98)
    seat, back, arm = rng.uniform(0.4, 0.46), rng.uniform(0.78, 0.92), rng.uniform(0.14, 0.22)
    cover = materials.fabric(rng)
    width = seats * seat_width + 2 * arm

    def build(builder: SceneBuilder, place: Place) -> None:
        item = builder.item(place, SceneLabel.SOFA)
        item.box((0, 0, 0.16), (width, depth, 0.28), material=cover)
        item.box((0, depth / 2 - 0.11, back / 2 + 0.05), (width, 0.22, back - 0.1), material=cover)
        for side in (-1, 1):
            item.box((side * (width - arm) / 2, 0, 0.33), (arm, depth, 0.58), material=cover)
        for index in range(seats):
            x = (index - (seats - 1) / 2) * seat_width
            item.box((x, -0.08, seat - 0.08), (seat_width - 0.02, depth - 0.24, 0.16), material=cover)
            item.box((x, depth / 2 - 0.27, seat + 0.2), (seat_width - 0.02, 0.14, 0.42), material=cover)
            if rng.random() < 0.45:
                objects.cushion(builder, place.at(x, depth / 2 - 0.42, seat), rng)

    return Piece(width, depth, back, build)


def table(rng: Rng, *, width: float, depth: float, height: float, things: int) -> Piece:
    """A rectangular or round table with things on it."""
    is_round = abs(width - depth) < 0.15 and rng.random() < 0.5
    top, frame = materials.furniture_front(rng), materials.wood(rng)

    def build(builder: SceneBuilder, place: Place) -> None:
        item = builder.item(place, SceneLabel.TABLE)
        if is_round:
            item.cylinder((0, 0, height - 0.02), (width, width, 0.04), material=top)
            item.cylinder((0, 0, height / 2), (0.1, 0.1, height - 0.02), material=frame)
            item.cylinder((0, 0, 0.025), (width * 0.5, width * 0.5, 0.05), material=frame)
        else:
            item.box((0, 0, height - 0.02), (width, depth, 0.04), material=top)
            item.box((0, 0, height - 0.07), (width - 0.16, depth - 0.16, 0.06), material=frame)
            _legs(item, (width - 0.06, depth - 0.06, height - 0.02), thickness=0.06, material=frame)
        margin = 0.7 if is_round else 0.95
        objects.scatter(builder, place.at(0, 0, height), rng, width=width * margin, depth=depth * margin, count=things)

    return Piece(width, depth, height, build)


def dining_group(rng: Rng) -> Piece:
    """A table with chairs around it, some pulled out or turned a little."""
    width, depth = rng.uniform(1.0, 1.7), rng.uniform(0.8, 0.95)
    core = table(rng, width=width, depth=depth, height=rng.uniform(0.72, 0.76), things=int(rng.integers(2, 7)))
    seat = chair(rng)

    def build(builder: SceneBuilder, place: Place) -> None:
        core.build(builder, place)
        columns = (0.0,) if width < 1.2 else (-width / 4, width / 4)
        spots = [(x, side * (depth / 2 + 0.1), side) for x in columns for side in (-1, 1)]
        for x, y, side in spots:
            if rng.random() < 0.85:
                # The back of a chair points away from the table.
                yaw = (0.0 if side > 0 else math.pi) + rng.normal(0, 0.15)
                seat.build(builder, place.at(x + rng.normal(0, 0.04), y + side * rng.uniform(0, 0.15), yaw=yaw))
        for side in (-1, 1):
            if rng.random() < 0.45:
                seat.build(builder, place.at(side * (width / 2 + 0.12), 0, yaw=-side * math.pi / 2))

    return Piece(width + 0.7, depth + 0.8, 1.0, build)


def desk(rng: Rng) -> Piece:
    """A desk against a wall with drawers, a monitor (tvs), and an office chair before it."""
    width, depth, height = rng.uniform(1.1, 1.6), rng.uniform(0.6, 0.75), rng.uniform(0.72, 0.76)
    core = table(rng, width=width, depth=depth, height=height, things=0)
    drawers, seat, has_monitor = materials.furniture_front(rng), office_chair(rng), rng.random() < 0.75

    def build(builder: SceneBuilder, place: Place) -> None:
        own = place.at(0, 0.4)
        core.build(builder, own)
        side = 1 if rng.random() < 0.5 else -1
        unit = builder.item(own.at(side * (width / 2 - 0.24), 0.02), SceneLabel.FURNITURE)
        unit.box((0, 0, 0.3), (0.4, depth - 0.1, 0.58), material=drawers)
        x = -side * width * 0.12
        if has_monitor:
            television(rng, width=rng.uniform(0.45, 0.6)).build(builder, own.at(x, 0.12, height))
        objects.scatter(builder, own.at(0, -0.05, height), rng, width=width * 0.9, depth=depth * 0.6, count=4)
        seat.build(builder, own.at(x, -depth / 2 - rng.uniform(0.05, 0.3), yaw=math.pi + rng.normal(0, 0.4)))

    return Piece(width, depth + 0.8, height + 0.4, build)


def television(rng: Rng, *, width: float) -> Piece:
    """A flat screen on a foot."""
    height, frame, glass = width * 0.6, materials.screen(rng), materials.screen(rng)

    def build(builder: SceneBuilder, place: Place) -> None:
        item = builder.item(place, SceneLabel.TVS)
        item.box((0, 0, 0.015), (width * 0.4, 0.2, 0.03), material=frame)
        item.box((0, 0.02, 0.06), (0.08, 0.05, 0.1), material=frame)
        item.box((0, 0, 0.09 + height / 2), (width, 0.07, height), material=frame)
        item.box((0, -0.036, 0.09 + height / 2), (width * 0.93, 0.004, height * 0.9), material=glass)

    return Piece(width, 0.2, height + 0.09, build)


def wall_television(rng: Rng) -> Piece:
    """Hangs on a wall; its place is on the wall's face at the center of the screen."""
    width, frame, glass = rng.uniform(0.9, 1.25), materials.screen(rng), materials.screen(rng)

    def build(builder: SceneBuilder, place: Place) -> None:
        item = builder.item(place, SceneLabel.TVS)
        item.box((0, -0.05, 0), (width, 0.1, width * 0.58), material=frame)
        item.box((0, -0.102, 0), (width * 0.95, 0.004, width * 0.53), material=glass)

    return Piece(width, 0.1, width * 0.58, build)


def tv_stand(rng: Rng) -> Piece:
    """A low cabinet with a television on it."""
    width, depth, height = rng.uniform(1.1, 1.6), rng.uniform(0.4, 0.5), rng.uniform(0.42, 0.6)
    core = cabinet(rng, width=width, depth=depth, height=height, things=0)
    tv = television(rng, width=rng.uniform(0.8, 1.1))
    loaded = core.carrying(lambda builder, place: tv.build(builder, place.at(rng.normal(0, 0.05), 0.05, height)))
    return dataclasses.replace(loaded, depth=depth)


def cabinet(rng: Rng, *, width: float, depth: float, height: float, things: int) -> Piece:
    """Wardrobe, dresser, nightstand, counter: a body with drawer or door fronts and handles, things on top."""
    body, handle = materials.furniture_front(rng), materials.metal(rng)
    front = Material(body.color, body.accent, body.texture, body.scale * 0.9)
    columns = max(1, round(width / 0.55))
    rows = 1 if height > 1.3 else max(1, round(height / 0.25))

    def build(builder: SceneBuilder, place: Place) -> None:
        item = builder.item(place, SceneLabel.FURNITURE)
        item.box((0, 0, height / 2), (width, depth, height), material=body)
        cell_width, cell_height = width / columns, (height - 0.06) / rows
        for column in range(columns):
            for row in range(rows):
                x, z = (column - (columns - 1) / 2) * cell_width, 0.05 + (row + 0.5) * cell_height
                size = (cell_width - 0.03, 0.02, cell_height - 0.03)
                item.box((x, -depth / 2 - 0.008, z), size, material=front)
                item.box((x, -depth / 2 - 0.028, z), (0.12, 0.02, 0.02), material=handle)
        objects.scatter(builder, place.at(0, 0, height), rng, width=width * 0.95, depth=depth * 0.9, count=things)

    return Piece(width, depth + 0.04, height, build)


def wardrobe(rng: Rng) -> Piece:
    """A tall cabinet for clothes."""
    size = rng.uniform(0.9, 1.9), rng.uniform(0.5, 0.62), rng.uniform(1.8, 2.2)
    return cabinet(rng, width=size[0], depth=size[1], height=size[2], things=0)


def dresser(rng: Rng) -> Piece:
    """A chest of drawers, with things or a television on it."""
    size = rng.uniform(0.8, 1.5), rng.uniform(0.42, 0.55), rng.uniform(0.75, 1.15)
    core = cabinet(rng, width=size[0], depth=size[1], height=size[2], things=int(rng.integers(2, 6)))
    if rng.random() < 0.75:
        return core
    core = cabinet(rng, width=size[0], depth=size[1], height=size[2], things=0)
    tv = television(rng, width=0.75)
    return core.carrying(lambda builder, place: tv.build(builder, place.at(0, 0.02, size[2])))


def nightstand(rng: Rng) -> Piece:
    """A small cabinet beside a bed, with a lamp or books on it."""
    height = rng.uniform(0.5, 0.65)
    core = cabinet(rng, width=0.48, depth=0.42, height=height, things=0)

    def thing(builder: SceneBuilder, place: Place) -> None:
        make = objects.table_lamp if rng.random() < 0.7 else objects.books
        make(builder, place.at(0, 0.03, height), rng)

    return core.carrying(thing)


def counter(rng: Rng) -> Piece:
    """A kitchen counter with cabinets hanging above it."""
    width, body = rng.uniform(1.5, 2.6), materials.furniture_front(rng)
    core = cabinet(rng, width=width, depth=0.6, height=0.9, things=int(rng.integers(4, 9)))

    def build(builder: SceneBuilder, place: Place) -> None:
        core.build(builder, place)
        hanging = builder.item(place, SceneLabel.FURNITURE)
        for index in range(round(width / 0.5)):
            x = (index + 0.5) * width / round(width / 0.5) - width / 2
            hanging.box((x, 0.13, 1.8), (width / round(width / 0.5) - 0.015, 0.34, 0.7), material=body)

    return Piece(width, 0.64, 2.15, build)


def bookshelf(rng: Rng) -> Piece:
    """Sides, back and shelves, filled with books and small things."""
    width, depth, height = rng.uniform(0.7, 1.3), 0.32, rng.uniform(1.3, 2.0)
    material, levels = materials.wood(rng), int(rng.integers(4, 6))

    def build(builder: SceneBuilder, place: Place) -> None:
        item, pitch = builder.item(place, SceneLabel.FURNITURE), height / levels
        item.box((0, depth / 2 - 0.01, height / 2), (width, 0.02, height), material=material)
        for x in (-width / 2 + 0.015, width / 2 - 0.015):
            item.box((x, 0, height / 2), (0.03, depth, height), material=material)
        for level in range(levels + 1):
            item.box((0, 0, max(0.015, level * pitch - 0.015)), (width, depth, 0.03), material=material)
        for level in range(levels):
            shelf = place.at(0, 0, level * pitch + (0.03 if level == 0 else 0.0))
            if rng.random() < 0.75:
                part = (width - 0.08) * rng.uniform(0.5, 1.0)
                objects.standing_books(builder, shelf, rng, width=part, height=pitch - 0.06)
            else:
                objects.scatter(builder, shelf, rng, width=width - 0.1, depth=depth, count=3)

    return Piece(width, depth, height, build)
