"""Pictures: up is up, left is left, near hides far, colors and errors are what they say, bad input is refused."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ammnet_sparse.data.grid import CLASS_NAMES, CLASSES, IGNORE_LABEL, IMAGE_SHAPE
from ammnet_sparse.pictures.comparison import ERROR_COLORS, render_comparison
from ammnet_sparse.pictures.rendering import camera_side_view, render_voxels, top_view

SHAPE = (24, 12, 24)
SIZE = 96
CEILING, FLOOR, WALL, BED, SOFA = (CLASS_NAMES.index(name) for name in ("ceiling", "floor", "wall", "bed", "sofa"))
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)

Block = tuple[slice, slice, slice]


def render(blocks: dict[tuple[int, int, int], Block], *, from_above: bool = False) -> NDArray[np.uint8]:
    """Blocks of pure colors in an otherwise empty grid."""
    colors, occupied = np.zeros((*SHAPE, 3), dtype=np.uint8), np.zeros(SHAPE, dtype=np.bool_)
    for color, block in blocks.items():
        colors[block], occupied[block] = color, True
    view = top_view(SHAPE) if from_above else camera_side_view(SHAPE)
    return render_voxels(colors, occupied, view=view, size=SIZE)


def center_of(picture: NDArray[np.uint8], color: tuple[int, int, int]) -> tuple[float, float]:
    """Mean (row, column) of the pixels that show only this channel."""
    channel = color.index(255)
    others = [other for other in range(3) if other != channel]
    shown = (picture[..., channel] > 90) & (picture[..., others] < 20).all(-1)
    assert shown.any(), f"nothing of {color} in the picture"
    rows, columns = np.nonzero(shown)
    return float(rows.mean()), float(columns.mean())


@pytest.mark.parametrize("from_above", [False, True], ids=["camera side", "above"])
def test_x_grows_to_the_right(from_above: bool) -> None:
    left, right = np.s_[1:5, 0:4, 10:14], np.s_[18:22, 0:4, 10:14]
    picture = render({RED: left, GREEN: right}, from_above=from_above)
    (red_row, red_column), (green_row, green_column) = center_of(picture, RED), center_of(picture, GREEN)
    assert red_column < SIZE / 2 < green_column
    assert abs(red_column + green_column - SIZE + 1) < SIZE * 0.12
    assert abs(red_row - green_row) < 3


def test_height_points_up_from_the_camera_side() -> None:
    picture = render({RED: np.s_[4:8, 8:12, 10:14], GREEN: np.s_[4:8, 0:4, 10:14]})
    assert center_of(picture, RED)[0] < center_of(picture, GREEN)[0] - 5


@pytest.mark.parametrize("from_above", [False, True], ids=["camera side", "above"])
def test_far_is_above_near(from_above: bool) -> None:
    picture = render({RED: np.s_[10:14, 0:2, 18:22], GREEN: np.s_[10:14, 0:2, 2:6]}, from_above=from_above)
    assert center_of(picture, RED)[0] < center_of(picture, GREEN)[0] - 5


def test_near_hides_far_and_high_hides_low() -> None:
    wall_in_front = render({RED: np.s_[10:14, 0:2, 12:14], GREEN: np.s_[0:24, 0:12, 2:4]})
    with pytest.raises(AssertionError, match="nothing of"):
        center_of(wall_in_front, RED)
    lid = render({RED: np.s_[10:14, 0:2, 12:14], BLUE: np.s_[8:16, 10:12, 10:16]}, from_above=True)
    with pytest.raises(AssertionError, match="nothing of"):
        center_of(lid, RED)


def room() -> NDArray[np.uint8]:
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[:, 0], labels[:, 1:, 23], labels[2:9, 1:4, 6:16], labels[:, 11] = FLOOR, WALL, BED, CEILING
    return labels


def panel(picture: NDArray[np.uint8], column: int, row: int, *, size: int = SIZE) -> NDArray[np.uint8]:
    """View ``row`` (0 camera side, 1 above) of a column of a comparison without a title; 12 px gaps, 24 px heading."""
    top, left = 12 + 24 + row * (size + 12), 12 + column * (size + 12)
    return picture[top : top + size, left : left + size]


def compare(prediction: NDArray[np.uint8], truth: NDArray[np.uint8] | None = None, **options: object) -> NDArray:
    return render_comparison(prediction, truth, panel_size=SIZE, **options)  # type: ignore[arg-type]


def shows(picture: NDArray[np.uint8], color: tuple[int, int, int]) -> bool:
    """Whether some pixel has this hue: faces of cubes are darkened copies of their color."""
    light = picture.reshape(-1, 3).astype(float)
    scale = light.max(1, keepdims=True) / max(color)
    close = np.abs(light - scale * np.array(color)).max(1) < 3
    return bool((close & (light.max(1) > 60)).any())


def test_comparison_places_prediction_truth_and_errors() -> None:
    truth = room()
    prediction = truth.copy()
    prediction[prediction == BED] = SOFA
    picture = compare(prediction, truth)
    assert picture.dtype == np.uint8
    assert picture.shape[1] == 3 * SIZE + 4 * 12
    bed, sofa = CLASSES[BED].color, CLASSES[SOFA].color
    for row in (0, 1):
        assert shows(panel(picture, 0, row), sofa)
        assert not shows(panel(picture, 0, row), bed)
        assert shows(panel(picture, 1, row), bed)
        assert not shows(panel(picture, 1, row), sofa)
        assert shows(panel(picture, 2, row), ERROR_COLORS["wrong class"])
        assert not shows(panel(picture, 2, row), ERROR_COLORS["missed"])
        assert not shows(panel(picture, 2, row), ERROR_COLORS["invented"])


@pytest.mark.parametrize("kind", ["missed", "invented"])
def test_errors_tell_missed_from_invented(kind: str) -> None:
    whole, without_bed = room(), room()
    without_bed[without_bed == BED] = 0
    truth, prediction = (whole, without_bed) if kind == "missed" else (without_bed, whole)
    errors = panel(compare(prediction, truth), 2, 1)
    other = "invented" if kind == "missed" else "missed"
    assert shows(errors, ERROR_COLORS[kind])
    assert not shows(errors, ERROR_COLORS[other])


def test_ignored_and_masked_voxels_are_not_drawn() -> None:
    truth, prediction = room(), room()
    bed = truth == BED
    truth[bed] = IGNORE_LABEL
    picture = compare(prediction, truth)
    assert shows(panel(picture, 0, 1), CLASSES[BED].color)
    assert not shows(panel(picture, 2, 1), ERROR_COLORS["invented"])
    masked = compare(prediction, truth, visible_mask=~bed)
    assert not shows(panel(masked, 0, 1), CLASSES[BED].color)


def test_ceiling_is_left_out_on_request() -> None:
    assert not shows(panel(compare(room()), 0, 1), CLASSES[CEILING].color)
    assert shows(panel(compare(room(), hide_ceiling=False), 0, 1), CLASSES[CEILING].color)


def test_input_stands_on_the_left() -> None:
    image = np.full((*IMAGE_SHAPE, 3), (250, 10, 10), dtype=np.uint8)
    label_map = np.full(IMAGE_SHAPE, 5, dtype=np.uint8)
    picture = compare(room(), image=image, label_map=label_map)
    middle = SIZE // 2
    assert panel(picture, 0, 0)[middle, middle].tolist() == [250, 10, 10]
    assert tuple(panel(picture, 0, 1)[middle, middle]) == CLASSES[FLOOR].color
    assert panel(picture, 0, 0)[2, middle].tolist() == [255, 255, 255]
    assert shows(panel(picture, 1, 1), CLASSES[BED].color)


GRID = np.zeros((4, 4, 4), dtype=np.uint8)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("prediction", np.zeros((4, 4), dtype=np.uint8)),
        ("prediction", GRID + 12),
        ("prediction", GRID.astype(np.int64)),
        ("truth", np.zeros((4, 4, 5), dtype=np.uint8)),
        ("visible_mask", np.ones(64, dtype=np.bool_)),
        ("image", np.zeros((8, 8), dtype=np.uint8)),
        ("label_map", np.full((8, 8), 14, dtype=np.uint8)),
    ],
)
def test_bad_input_is_refused(name: str, values: NDArray) -> None:
    arguments: dict[str, Any] = {"prediction": GRID, name: values}
    with pytest.raises(ValueError, match=name):
        render_comparison(panel_size=16, **arguments)
