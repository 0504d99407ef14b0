"""Layouts of furnished rooms: a shell with windows, and furniture placed by the habits of four kinds of room."""

from collections.abc import Callable

import numpy as np

from ammnet_sparse.data.synthetic import furniture, materials, objects
from ammnet_sparse.data.synthetic.furniture import Piece
from ammnet_sparse.data.synthetic.room import Opening, Room, shuffled_walls
from ammnet_sparse.data.synthetic.scene import Place, Scene, SceneBuilder, SceneLabel

Rng = np.random.Generator
WALL_THICKNESS = 0.01
"""Meters. Thin, as in the published labels: mostly one voxel."""


def make_room(rng: Rng) -> Scene:
    """A furnished room around a camera at X = Y = 0 that looks roughly along +Y; floor at Z = 0, meters."""
    width, depth, height = rng.uniform(3.2, 6.2), rng.uniform(3.2, 5.6), rng.uniform(2.4, 3.1)
    left, behind = rng.uniform(0.3, 0.7) * width, rng.uniform(0.35, 1.2)
    room = Room((-left, width - left, -behind, depth - behind), height, SceneBuilder())
    room.taken.append((-0.45, 0.45, -0.6, 0.9))
    _shell(room, rng)
    _openings(room, rng)
    _middle(room, rng, count=int(rng.integers(1, 3)))
    furnish = FURNISH[rng.integers(len(FURNISH))]
    furnish(room, rng)
    _fill(room, rng)
    _hang(room, rng)
    x0, x1, y0, y1 = room.bounds
    return room.builder.build(((x0 + x1) / 2, (y0 + y1) / 2, height - 0.15))


def _shell(room: Room, rng: Rng) -> None:
    """Interior, floor, ceiling, walls, and sometimes a corner that belongs to the next room."""
    (x0, x1, y0, y1), t, height = room.bounds, WALL_THICKNESS, room.height
    width, depth, center = x1 - x0, y1 - y0, ((x0 + x1) / 2, (y0 + y1) / 2)
    paint, origin = materials.wall_paint(rng), Place()
    inside = room.builder.item(origin, SceneLabel.EMPTY)
    inside.box((*center, height / 2), (width, depth, height), material=paint)
    floor = room.builder.item(origin, SceneLabel.FLOOR)
    floor.box((*center, -0.03), (width, depth, 0.06), material=materials.flooring(rng))
    ceiling = room.builder.item(origin, SceneLabel.CEILING)
    ceiling.box((*center, height + t / 2), (width, depth, t), material=materials.ceiling_paint(rng))
    for x in (x0 - t / 2, x1 + t / 2):
        wall = room.builder.item(origin, SceneLabel.WALL)
        wall.box((x, center[1], height / 2), (t, depth + 2 * t, height), material=paint)
    for y in (y0 - t / 2, y1 + t / 2):
        wall = room.builder.item(origin, SceneLabel.WALL)
        wall.box((center[0], y, height / 2), (width, t, height), material=paint)
    if rng.random() < 0.3:
        size_x, size_y = rng.uniform(0.5, 1.4), rng.uniform(0.5, 1.5)
        x = x0 + size_x / 2 if rng.random() < 0.5 else x1 - size_x / 2
        y = y1 - size_y / 2
        corner = room.builder.item(origin, SceneLabel.WALL)
        corner.box((x, y, height / 2), (size_x, size_y, height), material=paint)
        beyond = room.builder.item(origin, SceneLabel.IGNORE)
        beyond.box((x, y, height / 2), (size_x - 0.12, size_y - 0.12, height + 0.2), material=paint)
        room.taken.append((x - size_x / 2 - 0.03, x + size_x / 2 + 0.03, y - size_y / 2 - 0.03, y1 + 0.1))
        # The corner hides part of two walls; nothing may hang there.
        middle = (x0 + x1) / 2
        room.openings.append(Opening("far", x - size_x / 2 - middle, x + size_x / 2 - middle, 0.0))
        side = "left" if x < middle else "right"
        along = (y - center[1]) if side == "left" else -(y - center[1])
        room.openings.append(Opening(side, along - size_y / 2, along + size_y / 2, 0.0))


def _openings(room: Room, rng: Rng) -> None:
    """Up to two windows, with curtains at times, and a door."""
    for wall in shuffled_walls(rng)[: rng.integers(0, 3)]:
        width, sill, top = rng.uniform(0.9, 1.9), rng.uniform(0.8, 1.05), rng.uniform(1.95, 2.2)
        along = room.wall_gap(wall, width, rng)
        if along is not None:
            _window(room, wall, along, (width, sill, top), rng)
    wall = str(rng.choice(["far", "left", "right", "near"]))
    along = room.wall_gap(wall, 0.95, rng)
    if along is not None:
        item = room.builder.item(room.wall_place(wall, along), SceneLabel.WALL)
        leaf = materials.furniture_front(rng)
        item.box((0, 0, 1.02), (0.95, 0.04, 2.04), material=leaf)
        item.box((0.36, -0.04, 1.0), (0.12, 0.05, 0.03), material=materials.metal(rng))
        room.openings.append(Opening(wall, along - 0.5, along + 0.5, 0.0))


def _window(room: Room, wall: str, along: float, size: tuple[float, float, float], rng: Rng) -> None:
    width, sill, top = size
    place, height = room.wall_place(wall, along), top - sill
    item = room.builder.item(place, SceneLabel.WINDOW)
    frame = materials.painted(rng)
    item.box((0, 0, (sill + top) / 2), (width, 0.04 + WALL_THICKNESS, height), material=frame)
    panes = max(1, round(width / 0.7))
    for pane in range(panes):
        x = (pane + 0.5) * width / panes - width / 2
        pane_size = (width / panes - 0.07, 0.052 + WALL_THICKNESS, height - 0.1)
        item.box((x, 0, (sill + top) / 2), pane_size, material=materials.daylight(rng))
    item.box((0, -0.05, sill - 0.02), (width + 0.1, 0.12, 0.04), material=frame)
    if rng.random() < 0.4:
        # Curtains count as windows, as in the label maps of the published set.
        cloth = materials.bedding(rng)
        for side in (-1, 1):
            x = side * (width / 2 + 0.05)
            item.box((x, -0.07, (top + 0.25) / 2), (rng.uniform(0.2, 0.4), 0.08, top - 0.05), material=cloth)
    room.openings.append(Opening(wall, along - width / 2 - 0.1, along + width / 2 + 0.1, sill))


def _bedroom(room: Room, rng: Rng) -> None:
    bed = furniture.bed(rng)
    place = room.stand_at_wall(bed, rng)
    if place is not None:
        for side in (-1, 1):
            stand = furniture.nightstand(rng)
            room.stand(stand, place.at(side * (bed.width / 2 + 0.3), bed.depth / 2 - stand.depth / 2), margin=0.0)
    room.stand_at_wall(furniture.wardrobe(rng), rng)
    room.stand_at_wall(furniture.dresser(rng), rng)
    if rng.random() < 0.5:
        room.stand_at_wall(furniture.desk(rng), rng)
    if rng.random() < 0.4:
        room.stand_free(furniture.chair(rng), rng)


def _living_room(room: Room, rng: Rng) -> None:
    sofa = furniture.sofa(rng)
    place = room.stand_at_wall(sofa, rng)
    if place is not None:
        low = furniture.table(rng, width=rng.uniform(0.8, 1.2), depth=rng.uniform(0.5, 0.7), height=0.42, things=4)
        room.stand(low, place.at(rng.normal(0, 0.1), -sofa.depth / 2 - rng.uniform(0.35, 0.5) - low.depth / 2))
    room.stand_at_wall(furniture.tv_stand(rng), rng)
    room.stand_at_wall(furniture.bookshelf(rng), rng)
    if rng.random() < 0.6:
        room.stand_at_wall(furniture.sofa(rng, seats=1), rng)
    if rng.random() < 0.5:
        room.stand_free(furniture.dining_group(rng), rng)


def _dining_room(room: Room, rng: Rng) -> None:
    room.stand_free(furniture.dining_group(rng), rng, tries=40)
    room.stand_at_wall(furniture.counter(rng), rng)
    room.stand_at_wall(furniture.dresser(rng), rng)
    if rng.random() < 0.5:
        room.stand_at_wall(furniture.wardrobe(rng), rng)


def _office(room: Room, rng: Rng) -> None:
    for _ in range(rng.integers(1, 3)):
        room.stand_at_wall(furniture.desk(rng), rng)
    for _ in range(rng.integers(1, 3)):
        room.stand_at_wall(furniture.bookshelf(rng), rng)
    if rng.random() < 0.5:
        room.stand_at_wall(furniture.sofa(rng, seats=2), rng)
    room.stand_at_wall(furniture.wardrobe(rng), rng)


FURNISH: tuple[Callable[[Room, Rng], None], ...] = (_bedroom, _bedroom, _living_room, _dining_room, _office)


def _low_table(rng: Rng) -> Piece:
    size = rng.uniform(0.7, 1.2), rng.uniform(0.5, 0.8), rng.uniform(0.42, 0.75)
    return furniture.table(rng, width=size[0], depth=size[1], height=size[2], things=int(rng.integers(2, 6)))


def _armchair(rng: Rng) -> Piece:
    return furniture.sofa(rng, seats=1)


def _island(rng: Rng) -> Piece:
    size = rng.uniform(0.9, 1.6), rng.uniform(0.5, 0.7), rng.uniform(0.85, 1.2)
    return furniture.cabinet(rng, width=size[0], depth=size[1], height=size[2], things=int(rng.integers(2, 6)))


MIDDLE: tuple[Callable[[Rng], Piece], ...] = (
    furniture.chair,
    furniture.office_chair,
    furniture.dining_group,
    furniture.bookshelf,
    furniture.sofa,
    _island,
    _island,
    _low_table,
    _low_table,
    _armchair,
)
"""What may stand in the middle of a room. It hides a part of what is behind: there the scene is to be completed."""


def _middle(room: Room, rng: Rng, *, count: int) -> None:
    for _ in range(count):
        make = MIDDLE[rng.integers(len(MIDDLE))]
        room.stand_free(make(rng), rng)


def _fill(room: Room, rng: Rng) -> None:
    """Something in the middle, more cabinets where walls are bare, and things on the floor."""
    _middle(room, rng, count=int(rng.integers(2, 6)))
    for make in (furniture.dresser, furniture.bookshelf, furniture.chair)[: rng.integers(1, 4)]:
        room.stand_at_wall(make(rng), rng)
    for _ in range(rng.integers(5, 11)):
        thing = objects.FLOOR[rng.integers(len(objects.FLOOR))]
        piece = Piece(0.5, 0.5, 0.5, _with(thing, rng))
        if rng.random() < 0.6:
            room.stand_at_wall(piece, rng)
        else:
            room.stand_free(piece, rng)


def _with(thing: Callable[[SceneBuilder, Place, Rng], None], rng: Rng) -> Callable[[SceneBuilder, Place], None]:
    return lambda builder, place: thing(builder, place, rng)


def _hang(room: Room, rng: Rng) -> None:
    """A television or pictures on the walls, above the furniture."""
    if rng.random() < 0.3:
        tv = furniture.wall_television(rng)
        wall = str(rng.choice(["far", "left", "right"]))
        along = room.wall_gap(wall, tv.width, rng)
        if along is not None and room.is_bare(wall, along, tv.width, 1.0):
            tv.build(room.builder, room.wall_place(wall, along, z=1.45))
            room.openings.append(Opening(wall, along - tv.width / 2, along + tv.width / 2, 0.0))
    for wall in ("far", *shuffled_walls(rng))[: rng.integers(1, 4)]:
        along = room.wall_gap(wall, 0.9, rng)
        if along is not None and room.is_bare(wall, along, 0.9, 1.0):
            objects.picture(room.builder, room.wall_place(wall, along, z=rng.uniform(1.5, 1.75)), rng)
            room.openings.append(Opening(wall, along - 0.45, along + 0.45, 0.0))
