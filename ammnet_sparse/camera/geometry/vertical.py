"""Which way is up, from the observed surface alone, searched over the whole sphere.

Floors, ceilings, table tops and walls make most of an indoor surface: their normals are parallel or perpendicular to
the vertical. So every direction is scored by the share of such normals (a vote), and the best ones are refined with the
normals that agree with them, as in Gupta, Arbelaez and Malik (CVPR 2013).

Normals give the axes of a room, but not which axis is vertical, nor which way it points: turned by 90 degrees, a wall
looks like a floor. So every axis, both ways, is a candidate. It is judged by its votes, by how people and robots hold
cameras (the prior), and by the room that it implies: the height of the camera, the upward reach of everything seen, and
whether level surfaces above the floor face up, like those of things on a floor.

All directions are in camera coordinates: x to the right, y down, z forward.
"""

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.camera.geometry.room import Floor, find_floor
from ammnet_sparse.camera.geometry.surface import CAMERA_UP, Confidence, Surface, Vector, angle_between

_MAX_TILT = 60.0
"""Degrees between the camera's own upright and the vertical that are searched."""
_TILT_PRIOR = 40.0
"""Degrees of tilt at which a direction's vote counts 1/e. Looking into a corner, the three axes of a room get equal
votes: then the one nearest to the camera's upright is the vertical."""
_SAMPLES_VOTING = 3000
_DIRECTION_STEP = 3.0
_ALONG, _ACROSS = 12.0, 8.0
"""Degrees from the vertical, and from the horizontal, within which a normal votes."""
_ACROSS_SHARE = 0.5
"""A perpendicular normal says less about a direction than a parallel one."""
_REFINING = (15.0, 10.0, 6.0, 4.0)
_RIVAL_DISTANCE = 25.0
_MIN_SAMPLES = 200
_LEAST_VOTE, _MAX_AXES = 0.4, 3
"""Least vote of a further axis, relative to the largest, and the number of axes examined."""
_LOOKING_DOWN, _ON_ITS_SIDE, _UPSIDE_DOWN = 0.28, 0.1, 0.05
"""Priors of a camera that looks steeply down, lies on its side or hangs, relative to 1 for one held upright."""
_UNTOLD_PRIOR = 3.0
"""Lower bound of the priors that confidence is judged by if the images are not known to be upright: even if one camera
in three lay on its side, no error may be called sure."""
_TOLD_PRIOR = 0.1
"""The same if they are known to be upright."""
_MAX_RIVAL, _LIKELY_RIVAL = 0.3, 1.2
"""Largest score of the next best candidate with bounded priors, relative to the best, at which the best is sure, and at
which it is likely."""
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
_ASIDE = 60.0
"""Degrees of tilt from which on the images themselves should be turned."""


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
class Vertical:
    """The vertical, seen from the camera, and its alternatives.

    Attributes:
        up: [3] float64 of length 1.
        agreement: share of the samples whose normal lies within 10 degrees of the vertical or of the horizontal.
        confidence: sure, likely or guess.
        candidates: all directions that may be up, best first; empty where too little surface is seen.
    """

    up: Vector
    agreement: float
    confidence: Confidence
    candidates: tuple[Candidate, ...] = ()

    @property
    def alternative(self) -> Candidate | None:
        """The best candidate of another direction."""
        others = [c for c in self.candidates[1:] if angle_between(c.up, self.up) > _RIVAL_DISTANCE]
        return others[0] if others else None

    @property
    def reason(self) -> str:
        """The evidence of the depth for the vertical, for people."""
        other = self.alternative
        if self.agreement == 0:
            return "too little smooth surface is seen, so the camera is assumed to be level"
        reason = f"found in the depth: {self.agreement:.0%} of the surface lies along it or across it"
        if other is None:
            return f"{reason}, and no other direction comes near"
        share = f"{other.score:.0%}" if other.score >= 0.01 else "less than 1%"
        where = describe_direction(other.up)
        return f"{reason}, and the next best of all directions ({where}) has {share} of its score"


def find_vertical(surface: Surface, *, is_told: bool = False) -> Vertical:
    """The vertical, from all directions of the sphere. Without enough surface it is the camera's own upright, a guess.

    Args:
        surface: what the camera sees.
        is_told: the images are known to be upright, which makes a camera on its side or upside down very unlikely.
    """
    if len(surface) < _MIN_SAMPLES:
        return Vertical(CAMERA_UP.copy(), 0.0, "guess")
    # The vertical near the image's upright comes first.
    # Every k-th sample: they come row by row, so these are spread over the image.
    normals = surface.normals[:: max(1, len(surface) // _SAMPLES_VOTING)]
    directions = _half_sphere(CAMERA_UP, step=_DIRECTION_STEP)
    votes = _votes(directions, normals)
    near = _nearest_vertical(surface, directions, votes)
    if near.agreement == 0:
        return near
    axes = [
        (near.up, float(_votes(near.up[None], normals)[0])),
        *_room_axes(surface, directions, votes, apart_from=near.up),
    ]
    judged = [(*_evidence(surface, direction), direction, vote) for axis, vote in axes for direction in (axis, -axis)]
    candidates = _ranked(judged, raised=_TOLD_PRIOR if is_told else 1.0)
    best = candidates[0]
    rivals = _ranked(judged, raised=_TOLD_PRIOR if is_told else _UNTOLD_PRIOR)
    own = next(c.score for c in rivals if c.up is best.up)
    others = [c.score for c in rivals if angle_between(c.up, best.up) > _RIVAL_DISTANCE]
    found = near if best.up is near.up else _distant_vertical(surface, best.up)
    confidence = _confidence(found.confidence, best, max(others, default=0.0) / own, is_told=is_told)
    if _share_of_one_way(surface, on_one_plane=False) > _MAX_ONE_WAY:
        confidence = "guess"
    return dataclasses.replace(found, confidence=confidence, candidates=tuple(candidates))


def agreement_with(up: Vector, normals: NDArray[np.float64]) -> float:
    """Share of the normals [N, 3] within 10 degrees of the vertical or of the horizontal."""
    along = np.abs(normals @ up)
    tolerance = math.radians(10.0)
    return float(((along > math.cos(tolerance)) | (along < math.sin(tolerance))).mean())


def refined(up: Vector, normals: NDArray[np.float64]) -> Vector:
    """The direction near ``up`` that the normals almost parallel and almost perpendicular to it fit best."""
    for tolerance in _REFINING:
        along = normals @ up
        is_along = np.abs(along) > math.cos(math.radians(tolerance))
        is_across = np.abs(along) < math.sin(math.radians(tolerance))
        vertical, horizontal = normals[is_along], normals[is_across]
        axes = np.linalg.eigh(horizontal.T @ horizontal - vertical.T @ vertical)[1]
        if abs(axes[:, 0] @ up) < math.cos(math.radians(2 * tolerance)):
            break  # too few normals to hold it
        up = axes[:, 0] * np.sign(axes[:, 0] @ up)
    return up


def upright_turn(up: Vector) -> int:
    """Degrees clockwise by which an image must be turned so that ``up`` points to its upper edge; 0 where it does."""
    across = math.hypot(up[0], up[1])
    if across < math.sin(math.radians(90.0 - _ASIDE)):
        return 0  # the camera looks up or down: no edge of the image is the upper one
    clockwise = math.degrees(math.atan2(up[0], -up[1]))
    return round(-clockwise / 90.0) % 4 * 90


def describe_direction(up: Vector) -> str:
    """Where a direction points, in the image."""
    if up[2] < -0.8:
        return "towards the camera, which would look straight down"
    if up[2] > 0.8:
        return "away from the camera, which would look straight up"
    edge = {0: "upper", 90: "left", 180: "lower", 270: "right"}[upright_turn(up)]
    return f"towards the {edge} edge of the image"


def _nearest_vertical(surface: Surface, directions: NDArray[np.float64], votes: NDArray[np.float64]) -> Vertical:
    """The direction [3] of some [D, 3] with the largest vote [D] of those near the image's upright."""
    tilt = np.degrees(np.arccos(np.clip(directions @ CAMERA_UP, -1, 1)))
    is_near = tilt < _MAX_TILT
    directions, votes = directions[is_near], (votes * np.exp(-((tilt / _TILT_PRIOR) ** 2)))[is_near]
    up = refined(directions[votes.argmax()], surface.normals)
    is_far = directions @ up < math.cos(math.radians(_RIVAL_DISTANCE))
    best = float(votes.max())
    rival = float(votes[is_far].max() / best) if best > 0 and is_far.any() else 1.0
    agreement = agreement_with(up, surface.normals)
    is_likely = agreement >= 0.4 and rival <= 0.95
    confidence: Confidence = "sure" if agreement >= 0.6 and rival <= 0.8 else "likely" if is_likely else "guess"
    return Vertical(up, agreement, confidence)


def _distant_vertical(surface: Surface, up: Vector) -> Vertical:
    """A vertical far from the image's upright, with the confidence that its agreement allows."""
    agreement = agreement_with(up, surface.normals)
    return Vertical(up, agreement, "sure" if agreement >= 0.6 else "likely" if agreement >= 0.4 else "guess")


def _room_axes(
    surface: Surface, directions: NDArray[np.float64], votes: NDArray[np.float64], *, apart_from: Vector
) -> list[tuple[Vector, float]]:
    """Axes of the whole sphere with many parallel or perpendicular normals, and their votes; each stands for both ways.

    Args:
        surface: with enough samples.
        directions: [D, 3] over half a sphere.
        votes: [D] of the surface for each.
        apart_from: [3] an axis that is known: others are 25 degrees and more away from it and from each other.
    """
    least = _LEAST_VOTE * float(votes.max())
    is_left = np.abs(directions @ apart_from) < math.cos(math.radians(_RIVAL_DISTANCE))
    axes: list[tuple[Vector, float]] = []
    while is_left.any() and len(axes) < _MAX_AXES:
        best = int(np.where(is_left, votes, -1.0).argmax())
        if votes[best] < least:
            break
        axis = refined(directions[best], surface.normals)
        axes.append((axis, float(votes[best])))
        for found in (axis, directions[best]):
            is_left &= np.abs(directions @ found) < math.cos(math.radians(_RIVAL_DISTANCE))
    return axes


def _half_sphere(center: Vector, *, step: float) -> NDArray[np.float64]:
    """[N, 3] evenly spread directions, about ``step`` degrees apart, at most 90 degrees from ``center``."""
    count = int(4 * math.pi / math.radians(step) ** 2)
    index = np.arange(count) + 0.5
    z, turn = 1 - 2 * index / count, math.pi * (1 + math.sqrt(5)) * index  # a Fibonacci spiral
    radius = np.sqrt(1 - z * z)
    directions = np.stack([radius * np.cos(turn), radius * np.sin(turn), z], axis=1)
    near: NDArray[np.float64] = directions[directions @ center > 0]
    return near


def _votes(directions: NDArray[np.float64], normals: NDArray[np.float64]) -> NDArray[np.float64]:
    """[D] mean vote of the normals [N, 3] for each direction [D, 3], 0..1."""
    along, across = (math.sin(math.radians(angle)) ** 2 for angle in (_ALONG, _ACROSS))
    samples = normals.T.astype(np.float32)
    votes = []
    for some in np.array_split(directions.astype(np.float32), 1 + len(directions) // 32):  # fit a core's cache
        squared = (some @ samples) ** 2
        parallel = np.maximum(squared - (1 - along), 0).mean(axis=1) / along
        perpendicular = np.maximum(across - squared, 0).mean(axis=1) / across
        votes.append(parallel + _ACROSS_SHARE * perpendicular)
    return np.concatenate(votes, dtype=np.float64)


def _confidence(found: Confidence, best: Candidate, rival: float, *, is_told: bool) -> Confidence:
    """Sure only if the alternatives lose and a floor with something on it is seen, or the orientation is known."""
    has_floor = best.floor.is_seen and best.has_standing
    is_clear = rival <= 2 * _MAX_RIVAL if is_told else rival <= _MAX_RIVAL and has_floor
    if found == "sure" and not is_clear:
        return "likely" if rival <= _LIKELY_RIVAL else "guess"
    if found == "likely" and rival > _LIKELY_RIVAL:
        return "guess"
    return found


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
    base = -floor.below if floor.is_seen else low
    total = areas.sum()
    standing = float(areas[(facing > _LEVEL) & (heights > base + _ABOVE)].sum() / total)
    hanging = float(areas[(facing < -_LEVEL) & (heights < high - 2 * _ABOVE)].sum() / total)
    factor = math.sqrt(_USUAL_SHARE / max(hanging, _USUAL_SHARE))
    is_steep = up[2] < _STEEP
    if not is_steep:  # where the camera looks straight down, everything faces it
        factor *= math.sqrt(min(8.0, max(standing, _USUAL_SHARE) / _USUAL_SHARE))
    if floor.is_seen:
        factor *= 3.0 if floor.confidence == "sure" else 1.5 if floor.below <= _HIGH_CAMERA else 0.2
    elif -low > _HIGH_CAMERA:
        factor *= 0.3
    span = float(high - low)
    factor *= 0.25 if span > _VERY_TALL else 0.5 if span > _TALL else 1.0
    if is_steep or up[2] > -_STEEP:
        # One plane across the view is a wall more often than the floor seen from straight above it.
        is_plane = _share_of_one_way(surface, on_one_plane=True) > _MAX_ONE_PLANE
        factor *= _ONE_PLANE_FACTOR if is_plane else 1.0
    return factor, floor, not is_steep and standing >= max(_MIN_STANDING, 2 * hanging)
