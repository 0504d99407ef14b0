"""Colors that can be told apart, with normal vision and without one kind of cones."""

import itertools

import numpy as np
import pytest
from numpy.typing import ArrayLike

from ammnet_sparse.data.set_info import MOST_CLASSES, NYU, Color, SetInfo
from ammnet_sparse.pictures.comparison import ERROR_COLORS
from ammnet_sparse.pictures.page import PART_COLORS
from ammnet_sparse.pictures.palettes import painted

# Of linear RGB: Machado, Oliveira and Fernandes, "A physiologically-based model for simulation of color vision
# deficiency", IEEE TVCG 2009, severity 1.
VISION: dict[str, ArrayLike] = {
    "normal": np.eye(3),
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
# sRGB to XYZ over the white point D65 (IEC 61966-2-1).
XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
WHITE = np.array([0.95047, 1.0, 1.08883])


def least_distance(colors: list[Color], vision: str) -> float:
    """Between any two of the colors in CIELAB (CIE 1976), as seen with this vision."""
    values = np.array(colors) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(VISION[vision]).T, 0, 1) @ XYZ.T / WHITE
    roots = np.where(seen > (6 / 29) ** 3, np.cbrt(seen), seen / (3 * (6 / 29) ** 2) + 4 / 29)
    lab = roots @ [[0, 500, 0], [116, -500, 200], [0, 0, -200]]
    return min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(lab, 2))


@pytest.mark.parametrize(
    ("vision", "least"), [("normal", 30), ("deuteranopia", 23), ("protanopia", 23), ("tritanopia", 17)]
)
@pytest.mark.parametrize(
    "names", [NYU.class_names, ["empty", "wall", "lamp", "sofa", *map(str, range(MOST_CLASSES - 4))]]
)
def test_distinct_colors_are(names: list[str], vision: str, least: float) -> None:
    info = painted(SetInfo(classes=dict.fromkeys(names, (0, 0, 0))), "distinct")
    assert list(info.classes) == list(names) and info.classes["wall"] == painted(NYU, "distinct").classes["wall"]
    assert least_distance(list(info.classes.values())[1:], vision) >= least


@pytest.mark.parametrize("colors", [ERROR_COLORS, PART_COLORS], ids=["errors", "parts"])
def test_errors_and_parts_are_told_apart(colors: dict[str, Color]) -> None:
    assert min(least_distance(list(colors.values()), vision) for vision in VISION) >= 12


def test_other_palettes_are_refused() -> None:
    with pytest.raises(ValueError, match="palette"):
        painted(NYU, "rainbow")  # type: ignore[arg-type]
