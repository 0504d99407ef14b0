"""A room under construction: where furniture may stand and what may hang on its walls."""

import dataclasses
import math

import numpy as np

from ammnet_sparse.data.synthetic.furniture import Piece
from ammnet_sparse.data.synthetic.scene import Place, SceneBuilder, SceneLabel

Rng = np.random.Generator
Rectangle = tuple[float, float, float, float]
"""On the floor, meters: (lowest X, highest X, lowest Y, highest Y)."""


@dataclasses.dataclass(frozen=True)
class Opening:
    """A part of a wall that nothing tall may cover: meters along the wall, and the height of its lower edge."""

    wall: str
    start: float
    end: float
    sill: float


@dataclasses.dataclass
class Room:
    """A room under construction; the camera stands at X = Y = 0."""

    bounds: Rectangle
    height: float
    builder: SceneBuilder
    taken: list[Rectangle] = dataclasses.field(default_factory=list)
    openings: list[Opening] = dataclasses.field(default_factory=list)

    def wall_length(self, wall: str) -> float:
        x0, x1, y0, y1 = self.bounds
        return y1 - y0 if wall in ("left", "right") else x1 - x0

    def wall_place(self, wall: str, along: float, *, out: float = 0.0, z: float = 0.0) -> Place:
        """A place whose back is to the wall, ``along`` meters from its middle and ``out`` meters off its face."""
        x0, x1, y0, y1 = self.bounds
        x, y = (x0 + x1) / 2, (y0 + y1) / 2
        middle = {
            "far": Place(x, y1, z, 0.0),
            "near": Place(x, y0, z, math.pi),
            "left": Place(x0, y, z, math.pi / 2),
            "right": Place(x1, y, z, -math.pi / 2),
        }[wall]
        return middle.at(along, -out)

    def is_free(self, rectangle: Rectangle) -> bool:
        x0, x1, y0, y1 = self.bounds
        inside = rectangle[0] >= x0 and rectangle[1] <= x1 and rectangle[2] >= y0 and rectangle[3] <= y1
        return inside and not any(
            rectangle[0] < other[1] and other[0] < rectangle[1] and rectangle[2] < other[3] and other[2] < rectangle[3]
            for other in self.taken
        )

    def stand(self, piece: Piece, place: Place, *, margin: float = 0.03) -> bool:
        """Builds a piece where its footprint is free, and takes that footprint."""
        rectangle = _footprint(piece, place, margin)
        if not self.is_free(rectangle):
            return False
        piece.build(self.builder, place)
        self.taken.append(rectangle)
        return True

    def stand_at_wall(self, piece: Piece, rng: Rng) -> Place | None:
        """Tries places along the walls in view, in random order; returns the one taken."""
        for wall in shuffled_walls(rng):
            slack = self.wall_length(wall) / 2 - piece.width / 2
            for _ in range(8):
                along = rng.uniform(-slack, slack) if slack > 0 else 0.0
                place = self.wall_place(wall, along, out=piece.depth / 2 + 0.04)
                covers = self._meets_opening(wall, along, piece.width, height=piece.height)
                if not covers and self.stand(piece, place):
                    return place
        return None

    def stand_free(self, piece: Piece, rng: Rng, *, tries: int = 12) -> Place | None:
        """Tries places anywhere on the floor."""
        x0, x1, y0, y1 = self.bounds
        for _ in range(tries):
            heading = rng.integers(4) * math.pi / 2 + rng.normal(0, 0.1)
            place = Place(rng.uniform(x0, x1), rng.uniform(max(y0, 1.2), y1) if y1 > 1.2 else y1, 0.0, float(heading))
            if self.stand(piece, place):
                return place
        return None

    def wall_gap(self, wall: str, width: float, rng: Rng) -> float | None:
        """A position along a wall where a panel of this width meets no opening, or None."""
        slack = self.wall_length(wall) / 2 - width / 2 - 0.15
        if slack <= 0:
            return None
        for _ in range(8):
            along = rng.uniform(-slack, slack)
            if not self._meets_opening(wall, along, width, margin=0.1):
                return float(along)
        return None

    def _meets_opening(
        self, wall: str, along: float, width: float, *, height: float = math.inf, margin: float = 0.0
    ) -> bool:
        """Whether something of this width and height, ``along`` meters from a wall's middle, covers an opening."""
        return any(
            opening.wall == wall
            and opening.sill < height
            and along - width / 2 < opening.end + margin
            and opening.start - margin < along + width / 2
            for opening in self.openings
        )

    def is_bare(self, wall: str, along: float, width: float, height: float) -> bool:
        """True where no shape higher than ``height`` stands before this part of a wall."""
        place = self.wall_place(wall, along, out=0.2)
        cos, sin = abs(math.cos(place.yaw)), abs(math.sin(place.yaw))
        reach_x, reach_y = width / 2 * cos + 0.15 * sin, width / 2 * sin + 0.15 * cos
        for shape in self.builder.shapes:
            if shape.label in (
                SceneLabel.EMPTY,
                SceneLabel.IGNORE,
                SceneLabel.WALL,
                SceneLabel.CEILING,
                SceneLabel.FLOOR,
            ):
                continue
            radius = math.hypot(shape.half[0], shape.half[1])
            near = (
                abs(shape.center[0] - place.x) < reach_x + radius and abs(shape.center[1] - place.y) < reach_y + radius
            )
            if near and shape.center[2] + shape.half[2] > height:
                return False
        return True


def shuffled_walls(rng: Rng) -> tuple[str, ...]:
    """The walls in view in random order, the far one likely first."""
    walls = ["far", "left", "right"]
    return tuple(str(wall) for wall in rng.choice(walls, size=3, replace=False, p=[0.5, 0.25, 0.25]))


def _footprint(piece: Piece, place: Place, margin: float) -> Rectangle:
    cos, sin = abs(math.cos(place.yaw)), abs(math.sin(place.yaw))
    # The margin keeps neighbors apart; a piece may touch the wall, so it is not part of the test of bounds there.
    dx = (piece.width * cos + piece.depth * sin) / 2 + margin
    dy = (piece.width * sin + piece.depth * cos) / 2 + margin
    return place.x - dx, place.x + dx, place.y - dy, place.y + dy
