"""Colors and textures by class: varied, but distinctive, so that an image network can learn from them."""

import numpy as np

from ammnet_sparse.data.synthetic.scene import Material, Texture, Vector, hsv

Rng = np.random.Generator


def wood(rng: Rng) -> Material:
    """Brown with a grain, from pine to walnut."""
    hue, value = rng.uniform(0.05, 0.10), rng.uniform(0.3, 0.75)
    color = hsv(hue, rng.uniform(0.45, 0.7), value)
    return Material(color, _shade(color, 0.75), Texture.GRAIN, rng.uniform(0.04, 0.12))


def painted(rng: Rng) -> Material:
    """White, gray or black lacquer."""
    value = rng.choice([0.92, 0.85, 0.55, 0.2])
    return Material(hsv(rng.uniform(0, 1), 0.04, value + rng.uniform(-0.05, 0.05)))


def furniture_front(rng: Rng) -> Material:
    """Fronts of furniture: mostly wood, else lacquer."""
    return wood(rng) if rng.random() < 0.7 else painted(rng)


def metal(rng: Rng) -> Material:
    """Gray metal, from dark to light."""
    return Material(hsv(0.6, 0.05, rng.uniform(0.25, 0.7)))


def fabric(rng: Rng) -> Material:
    """Upholstery: a muted color, speckled like weave."""
    color = hsv(rng.uniform(0, 1), rng.uniform(0.15, 0.6), rng.uniform(0.25, 0.75))
    return Material(color, _shade(color, 0.85), Texture.SPECKLE, 0.015)


def bedding(rng: Rng) -> Material:
    """Light or colorful cloth, often striped or checked."""
    color = hsv(rng.uniform(0, 1), rng.uniform(0.05, 0.5), rng.uniform(0.7, 0.95))
    accent = hsv(rng.uniform(0, 1), rng.uniform(0.2, 0.6), rng.uniform(0.5, 0.9))
    texture = rng.choice([Texture.STRIPES, Texture.CHECKS, Texture.PLAIN])
    return Material(color, accent, Texture(int(texture)), rng.uniform(0.12, 0.4))


def colorful(rng: Rng) -> Material:
    """Saturated: books, toys, boxes, cups."""
    color = hsv(rng.uniform(0, 1), rng.uniform(0.4, 0.95), rng.uniform(0.35, 0.95))
    texture = Texture.STRIPES if rng.random() < 0.25 else Texture.PLAIN
    return Material(color, hsv(rng.uniform(0, 1), 0.3, 0.9), texture, rng.uniform(0.03, 0.1))


def cardboard(rng: Rng) -> Material:
    """Brown cardboard."""
    color = hsv(rng.uniform(0.07, 0.1), rng.uniform(0.35, 0.5), rng.uniform(0.55, 0.75))
    return Material(color, _shade(color, 0.9), Texture.SPECKLE, 0.03)


def leaves(rng: Rng) -> Material:
    """The green of plants."""
    color = hsv(rng.uniform(0.25, 0.38), rng.uniform(0.5, 0.8), rng.uniform(0.25, 0.55))
    return Material(color, _shade(color, 0.55), Texture.SPECKLE, 0.04)


def wall_paint(rng: Rng) -> Material:
    """A light wall, of a faint color."""
    color = hsv(rng.choice([0.1, 0.13, 0.55, 0.3, 0.95]), rng.uniform(0.02, 0.22), rng.uniform(0.72, 0.93))
    return Material(color, _shade(color, 0.97), Texture.SPECKLE, 0.25)


def ceiling_paint(rng: Rng) -> Material:
    """A nearly white ceiling."""
    return Material(hsv(0.12, 0.03, rng.uniform(0.88, 0.97)))


def flooring(rng: Rng) -> Material:
    """Planks, carpet or tiles."""
    choice = rng.integers(3)
    if choice == 0:
        color = hsv(rng.uniform(0.06, 0.1), rng.uniform(0.4, 0.6), rng.uniform(0.35, 0.65))
        return Material(color, _shade(color, 0.8), Texture.GRAIN, rng.uniform(0.1, 0.18))
    if choice == 1:
        color = hsv(rng.uniform(0.05, 0.15), rng.uniform(0.1, 0.35), rng.uniform(0.4, 0.7))
        return Material(color, _shade(color, 0.85), Texture.SPECKLE, 0.02)
    color = hsv(rng.uniform(0.05, 0.6), rng.uniform(0.03, 0.15), rng.uniform(0.6, 0.85))
    return Material(color, _shade(color, 0.65), Texture.TILES, rng.uniform(0.25, 0.45))


def daylight(rng: Rng) -> Material:
    """A window pane: bright, with blinds or a gradient of sky."""
    color = hsv(rng.uniform(0.52, 0.6), rng.uniform(0.05, 0.25), 1.0)
    texture = Texture.STRIPES if rng.random() < 0.4 else Texture.SPECKLE
    return Material(color, _shade(color, 0.8), texture, rng.uniform(0.04, 0.08), rng.uniform(0.6, 1.0))


def screen(rng: Rng) -> Material:
    """A dark screen, or the frame of one."""
    return Material(hsv(0.62, 0.15, rng.uniform(0.03, 0.1)))


def lampshade(rng: Rng) -> Material:
    """A pale shade that glows."""
    return Material(hsv(0.12, rng.uniform(0.1, 0.35), 0.95), glow=rng.uniform(0.2, 0.7))


def _shade(color: Vector, factor: float) -> Vector:
    return color[0] * factor, color[1] * factor, color[2] * factor
