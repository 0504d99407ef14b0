"""Where a direction of camera coordinates points in the image."""

import math

from ammnet_sparse.camera.geometry.gravity import Vector

ASIDE = 60.0
"""Degrees of tilt from which on the images themselves should be turned."""


def upright_turn(up: Vector) -> int:
    """Degrees clockwise by which an image must be turned so that ``up`` points to its upper edge; 0 where it does."""
    across = math.hypot(up[0], up[1])
    if across < math.sin(math.radians(90.0 - ASIDE)):
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
