"""The page in a real browser: what a person sees of it, and what clicks, keys, mouse and fingers do."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ammnet_sparse.data.grid import CLASS_NAMES, CLASSES, IMAGE_SHAPE
from ammnet_sparse.data.set_info import NYU
from ammnet_sparse.pictures.comparison import ERROR_COLORS, Rgb
from ammnet_sparse.pictures.page import PART_COLORS, Scene, write_page
from ammnet_sparse.pictures.palettes import painted
from ammnet_sparse.pictures.room_files import room_scene
from tests.pictures.browser import Browser, Page, find_chromium
from tests.pictures.rooms import FLOOR, TABLE, WALL, box_labels, map_volume
from tests.pictures.test_page import FAR, HIGH, LEFT, LOW, NEAR, RIGHT, SHAPE, lopsided

PATH_COLOR: Rgb = (199, 0, 120)
CHAIR_COLOR = CLASSES[CLASS_NAMES.index("chair")].color
WINDOW = (860, 580)


def color_of(label: int) -> Rgb:
    return CLASSES[label].color


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_chromium()
    if program is None:
        pytest.skip("needs Chromium to click in (Debian: apt-get install chromium), and there is none")
    with Browser(program, tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two scenes: one with truth, mask and input, where each kind of error has its place, and one without."""
    truth, prediction = lopsided(), lopsided()
    prediction[1:4, 0:8, 8:12] = CLASS_NAMES.index("chair")  # wrong
    prediction[20:23, 0:8, 8:12] = 0  # missed
    truth[10:14, 9:12, 8:12] = 0  # invented
    mask = np.ones(SHAPE, dtype=np.bool_)
    mask[11:13, 0:2, 20:23] = False
    hit = np.full(SHAPE, -1, dtype=np.int32)
    hit[1:4, 0:8, 8] = 0
    hit[20:23, 0:8, 8] = IMAGE_SHAPE[1] - 1
    image = np.zeros((*IMAGE_SHAPE, 3), dtype=np.uint8)
    image[:, :320], image[:, 320:] = (200, 0, 200), (0, 200, 0)
    plain = Scene("plain", lopsided(), camera_position=(18.0, -2.0))
    scenes = [plain, Scene("compared", prediction, truth, mask, hit, image, note="a note")]
    path = tmp_path_factory.mktemp("page") / "page.html"
    write_page(path, scenes, title="Two scenes")
    return path.as_uri()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """The page as it opens; afterwards it must have asked for nothing and have complained of nothing."""
    opened = browser.open(address, size=WINDOW)
    yield opened
    assert opened.complaints() == []
    assert opened.requests() == [address]
    opened.close()


@pytest.fixture
def compared(page: Page) -> Page:
    """The page with its second scene, prediction only."""
    page.click("#next")
    page.wait_for("document.querySelector('#note').textContent === 'a note'")
    page.click("#view-prediction")
    return page


def pixels_of(picture: NDArray[np.uint8], color: Rgb) -> NDArray[np.bool_]:
    """[rows, columns]: pixels of this hue; light and shade make the faces of cubes darker copies of their color."""
    light = picture.astype(float)
    scale = light.max(-1, keepdims=True) / max(color)
    return (np.abs(light - scale * np.array(color)).max(-1) < 4) & (light.max(-1) > 70)


def place_of(page: Page, *colors: Rgb) -> tuple[tuple[float, float], ...]:
    """Mean (row, column) of the pixels of each of these hues in the 3D view, all of which must be there."""
    picture = page.screenshot("#canvas")
    places = []
    for color in colors:
        rows, columns = np.nonzero(pixels_of(picture, color))
        assert len(rows) > 30, f"nothing of {color} to be seen"
        places.append((float(rows.mean()), float(columns.mean())))
    return tuple(places)


def shown(page: Page, *colors: Rgb) -> list[bool]:
    """Whether each of these hues is to be seen in the 3D view."""
    picture = page.screenshot("#canvas")
    return [int(pixels_of(picture, color).sum()) > 30 for color in colors]


def test_left_is_left_up_is_up_and_far_is_far(page: Page) -> None:
    sides, heights, depths = ([color_of(label) for label in pair] for pair in ((LEFT, RIGHT), (HIGH, LOW), (NEAR, FAR)))
    left, right, high, low, near, far = place_of(page, *sides, *heights, *depths)
    _, _, width, _ = page.box_of("#canvas")
    assert left[1] < width / 2 < right[1]
    assert left[1] + right[1] == pytest.approx(width, abs=0.02 * width)
    assert high[0] < low[0] - 20
    page.click("#eye-level")
    left, right, high, low = place_of(page, *sides, *heights)
    assert left[1] < right[1]
    assert high[0] < low[0] - 20
    page.click("#from-above")
    left, right, near, high, far = place_of(page, *sides, color_of(NEAR), color_of(HIGH), color_of(FAR))
    assert left[1] < right[1]
    assert far[0] < high[0] < near[0]


def test_the_camera_stands_where_it_is_known_to(page: Page) -> None:
    """Else its side is named, in the middle."""

    def place() -> tuple[str, float]:
        text = page.evaluate("document.querySelector('.caption i').textContent")
        return text, page.middle_of(".caption i")[0] - page.middle_of(".caption")[0]

    page.click("#from-above")
    text, off = place()
    right = page.middle_of("#canvas")[0] + off
    columns = np.nonzero(pixels_of(page.screenshot("#canvas"), color_of(RIGHT)))[1] + page.box_of("#canvas")[0]
    assert text == "camera" and page.middle_of("#canvas")[0] + 20 < right < columns.min()
    page.click("#next")
    page.wait_for("document.querySelector('#note').textContent === 'a note'")
    page.click("#view-prediction")
    page.settle()
    assert place() == ("camera's side", pytest.approx(0, abs=2))


def test_a_click_on_a_class_hides_and_shows_it(page: Page) -> None:
    box, pair = f"#classes-{LEFT}", (color_of(LEFT), color_of(RIGHT))
    assert shown(page, *pair) == [True, True]
    page.click(box)
    assert shown(page, *pair) == [False, True]
    page.evaluate(f"document.querySelector('{box}').focus()")
    page.press("Space")
    assert shown(page, *pair) == [True, True]
    page.click("#classes .pair button:last-of-type")
    assert not any(shown(page, *map(color_of, (LEFT, RIGHT, HIGH, LOW))))


def test_a_click_on_errors_shows_each_kind_in_its_place(compared: Page) -> None:
    kinds = [ERROR_COLORS[kind] for kind in ("wrong class", "missed", "invented")]
    assert shown(compared, CHAIR_COLOR, color_of(RIGHT), *kinds) == [True, False, False, False, False]
    compared.click("#view-errors")
    assert shown(compared, CHAIR_COLOR, color_of(LEFT)) == [False, False]
    wrong, missed, invented = place_of(compared, *kinds)
    assert wrong[1] < invented[1] < missed[1]
    assert invented[0] < missed[0]
    compared.click("#errors-3")
    assert shown(compared, *kinds) == [True, True, False]


def test_voxels_outside_the_mask_are_hidden_until_asked_for(compared: Page) -> None:
    assert shown(compared, color_of(FAR)) == [False]
    compared.click("#outside")
    ((row, column),) = place_of(compared, color_of(FAR))
    left, top, _, _ = compared.box_of("#canvas")
    compared.call("Input.dispatchMouseEvent", type="mouseMoved", x=left + column, y=top + row)
    assert compared.evaluate("document.querySelector('#readout').textContent").endswith(", unscored")


def test_distinct_colors_are_a_click_away(page: Page) -> None:
    usual, distinct = color_of(LOW), painted(NYU, "distinct").classes[CLASS_NAMES[LOW]]
    page.click("#distinct")
    assert shown(page, usual, distinct) == [False, True]
    page.click("#distinct")
    assert shown(page, usual, distinct) == [True, False]


def test_a_picture_is_saved_as_it_is_seen(browser: Browser, page: Page, tmp_path: Path) -> None:
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    seen = page.screenshot("#canvas")
    page.click("#save")
    deadline = time.monotonic() + 20
    while not (tmp_path / "plain.png").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    saved = np.asarray(Image.open(tmp_path / "plain.png").convert("RGB"))
    assert abs(saved.shape[0] - seen.shape[0]) <= 1 and abs(saved.shape[1] - seen.shape[1]) <= 1
    for label in (LEFT, RIGHT, HIGH, LOW):
        assert pixels_of(saved, color_of(label)).sum() == pytest.approx(pixels_of(seen, color_of(label)).sum(), rel=0.1)


def test_input_surface_has_the_colors_of_the_image(compared: Page) -> None:
    compared.click("#view-input")
    left, right = place_of(compared, (200, 0, 200), (0, 200, 0))
    assert left[1] < right[1]
    image = compared.screenshot("#image")
    assert np.abs(image[image.shape[0] // 2, image.shape[1] // 4].astype(int) - (200, 0, 200)).max() < 12


def test_cutting_off_takes_what_is_high(page: Page) -> None:
    page.evaluate("Object.assign(document.querySelector('#cut'), {value: 8}).dispatchEvent(new Event('input'))")
    assert shown(page, color_of(HIGH), color_of(LEFT)) == [False, True]
    assert page.evaluate("document.querySelector('#cut-height').textContent") == "0.64 m"


def test_mouse_moves_turns_and_zooms(page: Page) -> None:
    x, y = page.middle_of("#canvas")
    low, near, far = color_of(LOW), color_of(NEAR), color_of(FAR)
    (before,) = place_of(page, low)
    area = pixels_of(page.screenshot("#canvas"), low).sum()
    page.drag((x, y), (x + 60, y), button="right")
    (moved,) = place_of(page, low)
    assert moved == pytest.approx((before[0], before[1] + 60), abs=6)
    page.click("#camera-side")
    _, _, _, height = page.box_of("#canvas")
    page.drag((x, y), (x + height * np.pi / 8, y))  # a drag over the height turns by 4 radians, this one by a quarter
    at_near, at_far = place_of(page, near, far)
    assert at_near[1] > at_far[1] + 100
    page.click("#camera-side")
    page.call("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=-240)
    page.settle()
    assert pixels_of(page.screenshot("#canvas"), low).sum() > 1.1 * area


def test_keys_turn_and_reset(page: Page) -> None:
    near, far = color_of(NEAR), color_of(FAR)
    at_near, at_far = place_of(page, near, far)
    page.evaluate("document.querySelector('#canvas').focus()")
    for _ in range(5):
        page.press("ArrowRight")
    turned_near, turned_far = place_of(page, near, far)
    assert turned_near[1] - turned_far[1] > at_near[1] - at_far[1] + 50
    page.press("Home")
    assert place_of(page, near)[0] == pytest.approx(at_near, abs=0.5)


def test_pointing_at_a_voxel_says_what_it_is(compared: Page) -> None:
    left, top, _, _ = compared.box_of("#canvas")
    ((row, column),) = place_of(compared, CHAIR_COLOR)
    compared.call("Input.dispatchMouseEvent", type="mouseMoved", x=left + column, y=top + row)
    words = compared.evaluate("document.querySelector('#readout').textContent")
    assert re.fullmatch(r"Voxel [123], [0-7], (8|9|10|11): predicted chair, truly furniture, wrong class, .*", words)


def test_on_a_phone_fingers_turn_the_view_and_nothing_overflows(browser: Browser, address: str) -> None:
    page = browser.open(address, size=(390, 800), touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.box_of("#canvas")[2] > 340
    x, y = page.middle_of("#canvas")
    page.touch([(x, y)], [(x + 40, y)], [(x + 90, y)])
    near, far = place_of(page, color_of(NEAR), color_of(FAR))
    assert near[1] > far[1] + 20
    page.click("#camera-side")
    area = pixels_of(page.screenshot("#canvas"), color_of(LOW)).sum()
    page.touch([(x - 30, y), (x + 30, y)], [(x - 60, y), (x + 60, y)])
    assert pixels_of(page.screenshot("#canvas"), color_of(LOW)).sum() > 2 * area
    assert page.complaints() == []
    page.close()


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("HTMLCanvasElement.prototype.getContext = () => null", "needs WebGL2"),
        ("delete window.DecompressionStream", "too old"),
    ],
    ids=["no WebGL2", "no DecompressionStream"],
)
def test_a_browser_that_lacks_something_is_told_so(browser: Browser, address: str, script: str, words: str) -> None:
    page = browser.open(address, size=WINDOW, script=script)
    assert words in page.evaluate("document.querySelector('#message').innerText")
    assert page.complaints() == []
    page.close()


def test_truth_stands_to_the_right_of_the_prediction(compared: Page) -> None:
    compared.click("#view-beside")
    _, _, width, _ = compared.box_of("#canvas")
    predicted, true = place_of(compared, CHAIR_COLOR, color_of(LEFT))
    assert predicted[1] < width / 2 < true[1]
    compared.click("#view-truth")
    assert shown(compared, color_of(RIGHT), color_of(HIGH)) == [True, False]


def test_completion_is_told_from_the_observed_surface(compared: Page) -> None:
    compared.click("#color-by-part")
    observed, completed = place_of(compared, *PART_COLORS.values())
    assert observed[1] < completed[1]
    compared.click("#parts-1")
    assert shown(compared, *PART_COLORS.values()) == [True, False]


def test_one_looks_into_a_room_through_its_walls(browser: Browser, tmp_path: Path) -> None:
    """And sees the path of the camera. A wall with known voxels on its outer side hides what is behind it."""
    labels = box_labels((60, 30, 300))
    path = write_page(tmp_path / "page.html", [room_scene(map_volume(labels))], title="T")
    page = browser.open(path.as_uri(), size=WINDOW)
    inside = (color_of(FLOOR), color_of(TABLE), PATH_COLOR)
    for button in ("camera-side", "from-above"):
        page.click(f"#{button}")
        assert shown(page, *inside) == [True, True, True]
    page.click("#path")
    assert shown(page, *inside) == [True, True, False]
    page.click("#eye-level")
    ((row, column),) = place_of(page, color_of(TABLE))
    left, top, _, _ = page.box_of("#canvas")
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=left + column, y=top + row)
    words = page.evaluate("document.querySelector('#readout').textContent")
    assert re.fullmatch(r"Voxel \d+, [1-9], (1[5-9]|2\d)\d: predicted table", words)
    assert page.complaints() == []
    page.close()
    labels[:, :, 0] = 0  # now the near wall has an outer side
    path = write_page(tmp_path / "page.html", [room_scene(map_volume(labels))], title="T")
    page = browser.open(path.as_uri(), size=WINDOW)
    page.click("#eye-level")
    assert shown(page, color_of(WALL), *inside) == [True, False, False, False]
    page.close()
