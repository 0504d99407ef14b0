"""Which axis of a room is up, searched over the whole sphere and not only near the image's upright.

Normals name the axes of a room, but not which of them is vertical, nor which way it points: turned by 90 degrees, a
wall looks like a floor. So every axis, both ways, is a candidate, judged by its votes, by how people and robots hold
cameras (the prior), and by what it would imply about the room: how high the camera would stand, how far everything
seen would reach upwards, and whether level surfaces above the floor face up, as those of things on a floor do.
"""

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.camera.geometry.floor import Floor, find_floor
from ammnet_sparse.camera.geometry.gravity import (
    CAMERA_UP,
    Confidence,
    Gravity,
    Vector,
    angle_between,
    find_gravity,
    room_axes,
)
from ammnet_sparse.camera.geometry.surface import Surface

_TILT_PRIOR = 40.0
_LOOKING_DOWN, _ON_ITS_SIDE, _UPSIDE_DOWN = 0.28, 0.1, 0.05
"""Priors of a camera that looks steeply down, lies on its side or hangs, relative to 1 for one held upright."""
_UNTOLD_PRIOR = 3.0
"""The least prior when judging the confidence if the images are not known to be upright: one
camera in three lying on its side must not make an error that is called sure."""
_TOLD_PRIOR = 0.1
"""The same if they are known to be upright."""
_MAX_RIVAL, _LIKELY_RIVAL = 0.3, 1.2
"""Score of the next best candidate by the raised priors, as a share of the best one's, up to which that is sure, and
likely."""
_LARGEST_SAMPLE = 0.02
_LEVEL = math.cos(math.radians(15.0))
_ABOVE = 0.15
"""Meters above the floor, or below the ceiling, beyond which a level surface belongs to something else."""
_HIGH_CAMERA, _TALL, _VERY_TALL = 2.4, 3.3, 4.2
"""Meters: a camera higher above its floor, and a view that reaches farther upwards, are unlikely."""
_USUAL_SHARE = 0.01
"""Share of the surface that may face down in any room, and that faces up in nearly all."""
_STEEP = -0.8
"""z of an up direction in camera coordinates below which the camera looks down by more than 53 degrees."""
_MAX_ONE_WAY, _PLANE_THICKNESS = 0.95, 0.1
"""Share of the surface with one normal above which a wall cannot be told from a floor, and meters on either side of a
plane that belong to it."""
_MAX_ONE_PLANE, _ONE_PLANE_FACTOR = 0.98, 0.3
"""Share of the surface on one plane above which nothing else is seen, and the factor then against looking straight
at the floor or the ceiling."""
_MIN_STANDING = 0.005
"""Share of the surface that must face up above the floor for the floor to be told from a ceiling."""


@dataclasses.dataclass(frozen=True, eq=False)
class Candidate:
    """A direction that may be up.

    Attributes:
        up: [3] float64 of length 1.
        score: votes times prior times evidence; the best candidate's is 1.
        floor: the floor if this direction is up.
        has_standing: level surfaces face up above that floor, and hardly any face down.
    """

    up: Vector
    score: float
    floor: Floor
    has_standing: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Upright:
    """The vertical and its alternatives.

    Attributes:
        gravity: the chosen vertical, with a confidence that accounts for the alternatives.
        candidates: all candidate directions, best first.
    """

    gravity: Gravity
    candidates: tuple[Candidate, ...]

    @property
    def alternative(self) -> Candidate | None:
        """The best candidate of another direction."""
        others = [c for c in self.candidates[1:] if angle_between(c.up, self.gravity.up) > 25.0]
        return others[0] if others else None


def find_upright(surface: Surface, *, is_told: bool = False) -> Upright:
    """The vertical, from all directions of the sphere.

    Args:
        surface: what the camera sees.
        is_told: the images are known to be upright, which makes a camera on its side or upside down very unlikely.
    """
    near = find_gravity(surface)
    if near.agreement == 0:
        return Upright(near, ())
    # The vertical near the image's upright comes first.
    axes = [(near.up, near.vote), *((axis, vote) for axis, vote in room_axes(surface, apart_from=near.up))]
    judged = [(*_evidence(surface, direction), direction, vote) for axis, vote in axes for direction in (axis, -axis)]
    candidates = _ranked(judged, raised=_TOLD_PRIOR if is_told else 1.0)
    best = candidates[0]
    rivals = _ranked(judged, raised=_TOLD_PRIOR if is_told else _UNTOLD_PRIOR)
    own = next(c.score for c in rivals if c.up is best.up)
    others = [c.score for c in rivals if angle_between(c.up, best.up) > 25.0]
    rival = max(others, default=0.0) / own
    gravity = near if best.up is near.up else _gravity_of(surface, best.up)
    confidence = _confidence(gravity, best, rival, is_told=is_told)
    if _share_of_one_way(surface, on_one_plane=False) > _MAX_ONE_WAY:
        confidence = "guess"
    return Upright(dataclasses.replace(gravity, confidence=confidence, rival=rival), tuple(candidates))


def _confidence(gravity: Gravity, best: Candidate, rival: float, *, is_told: bool) -> Confidence:
    """Sure only if the alternatives lose and a floor with something on it is seen, or the orientation is known."""
    has_floor = best.floor.is_seen and best.has_standing
    is_clear = rival <= 2 * _MAX_RIVAL if is_told else rival <= _MAX_RIVAL and has_floor
    if gravity.confidence == "sure" and not is_clear:
        return "likely" if rival <= _LIKELY_RIVAL else "guess"
    if gravity.confidence == "likely" and rival > _LIKELY_RIVAL:
        return "guess"
    return gravity.confidence


def _gravity_of(surface: Surface, up: Vector) -> Gravity:
    """A vertical far from the image's upright, with the confidence that its agreement allows."""
    along = np.abs(surface.normals @ up)
    tolerance = math.radians(10.0)
    agreement = float(((along > math.cos(tolerance)) | (along < math.sin(tolerance))).mean())
    confidence: Confidence = "sure" if agreement >= 0.6 else "likely" if agreement >= 0.4 else "guess"
    return Gravity(up, agreement, 1.0, angle_between(up, CAMERA_UP), confidence, 1.0)


def _ranked(judged: list[tuple[float, Floor, bool, Vector, float]], *, raised: float) -> list[Candidate]:
    """The candidates by score, best first, with the priors bounded from below."""
    scores = [vote * _prior(up, raised) * evidence for evidence, _, _, up, vote in judged]
    highest = max(scores)
    candidates = [
        Candidate(up, score / highest, floor, has_standing)
        for score, (_, floor, has_standing, up, _) in zip(scores, judged, strict=True)
    ]
    return sorted(candidates, key=lambda candidate: -candidate.score)


def _share_of_one_way(surface: Surface, *, on_one_plane: bool) -> float:
    """Share of the samples with the most frequent normal, or of those that also lie on its plane."""
    middle = np.median(surface.normals, axis=0)
    length = float(np.linalg.norm(middle))
    if length < 0.5:
        return 0.0
    middle /= length
    alike = surface.normals @ middle > _LEVEL
    if on_one_plane:
        heights = surface.points @ middle
        alike &= np.abs(heights - np.median(heights)) < _PLANE_THICKNESS
    return float(alike.mean())


def _prior(up: Vector, raised: float) -> float:
    """How usual a camera with this vertical is."""
    tilt = angle_between(up, CAMERA_UP)
    roll = abs(math.degrees(math.atan2(up[0], -up[1])))
    if up[2] < -0.85 or (up[2] < -0.3 and roll < 30.0):
        least = _LOOKING_DOWN * max(1.0, raised)
    else:
        is_on_its_side = tilt < 120.0 and up[2] < 0.85  # otherwise it hangs, or looks straight up
        least = (_ON_ITS_SIDE if is_on_its_side else _UPSIDE_DOWN) * raised
    return max(math.exp(-((tilt / _TILT_PRIOR) ** 2)), min(1.0, least))


def _evidence(surface: Surface, up: Vector) -> tuple[float, Floor, bool]:
    """The evidence for a direction being up: a factor, the floor it would have, and whether things stand on it."""
    heights, facing = surface.points @ up, surface.normals @ up
    areas: NDArray[np.float64] = np.minimum(surface.areas, _LARGEST_SAMPLE)
    low, high = np.percentile(heights, [1, 99])
    floor = find_floor(surface, up)
    base = -floor.camera_height if floor.is_seen else low
    total = areas.sum()
    standing = float(areas[(facing > _LEVEL) & (heights > base + _ABOVE)].sum() / total)
    hanging = float(areas[(facing < -_LEVEL) & (heights < high - 2 * _ABOVE)].sum() / total)
    factor = math.sqrt(_USUAL_SHARE / max(hanging, _USUAL_SHARE))
    is_steep = up[2] < _STEEP
    if not is_steep:  # where the camera looks straight down, everything faces it
        factor *= math.sqrt(min(8.0, max(standing, _USUAL_SHARE) / _USUAL_SHARE))
    if floor.is_seen:
        factor *= 3.0 if floor.confidence == "sure" else 1.5 if floor.camera_height <= _HIGH_CAMERA else 0.2
    elif -low > _HIGH_CAMERA:
        factor *= 0.3
    span = float(high - low)
    factor *= 0.25 if span > _VERY_TALL else 0.5 if span > _TALL else 1.0
    if is_steep or up[2] > -_STEEP:
        # One plane across the view is a wall more often than the floor seen from straight above it.
        is_plane = _share_of_one_way(surface, on_one_plane=True) > _MAX_ONE_PLANE
        factor *= _ONE_PLANE_FACTOR if is_plane else 1.0
    return factor, floor, not is_steep and standing >= max(_MIN_STANDING, 2 * hanging)
