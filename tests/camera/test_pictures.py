"""Color images and label maps in the forms that people have."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ammnet_sparse.camera.files.label_maps import (
    ADE20K_NAMES,
    NYU13_NAMES,
    NYU40_NAMES,
    NYU40_TO_NYU13,
    ade20k_to_nyu13,
    label_map_from_values,
)
from ammnet_sparse.camera.files.stored import image_array, read_color
from ammnet_sparse.files.errors import DataError
from tests.camera.own_views import gray_image


def read_label_map(path: Path, **options: Any) -> tuple[NDArray[np.uint8], list[str]]:
    return label_map_from_values(image_array(path, "a label map"), name=str(path), **options)


def test_color_files(tmp_path: Path) -> None:
    picture = Image.fromarray(gray_image((4, 6)))
    picture.save(tmp_path / "c.png")
    assert read_color(tmp_path / "c.png")[0].shape == (4, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    stored, turn = read_color(tmp_path / "turned.jpg")
    assert stored.shape == (4, 6, 3) and turn == 90
    exif[0x0112] = 2
    picture.save(tmp_path / "mirrored.jpg", exif=exif)
    with pytest.raises(DataError, match=r"mirrored\.jpg"):
        read_color(tmp_path / "mirrored.jpg")
    with pytest.raises(DataError, match=r"none\.jpg"):
        read_color(tmp_path / "none.jpg")
    Image.fromarray(np.full((4, 6), 14, dtype=np.uint8)).save(tmp_path / "labels.png")
    with pytest.raises(DataError, match=r"labels\.png"):
        read_label_map(tmp_path / "labels.png")


@pytest.mark.parametrize(
    "form", ["16 bits", "12 bits", "32 bits", "floats to 1", "floats to 255", "palette", "RGBA", "gray"]
)
def test_colors_of_other_types(tmp_path: Path, form: str) -> None:
    """A ramp of gray comes out as that ramp, neither white nor black."""
    gray: NDArray[np.uint8] = np.linspace(0, 255, 60 * 80).reshape(60, 80).astype(np.uint8)
    rgb = Image.fromarray(np.repeat(gray[..., None], 3, axis=2))
    path = tmp_path / ("c.tiff" if form.startswith(("32", "floats")) else "c.png")
    picture = {
        "16 bits": lambda: Image.fromarray(gray.astype(np.uint16) * np.uint16(257)),
        "12 bits": lambda: Image.fromarray(gray.astype(np.uint16)),
        "32 bits": lambda: Image.fromarray(gray.astype(np.int32) * 257),
        "floats to 1": lambda: Image.fromarray(gray.astype(np.float32) / 255),
        "floats to 255": lambda: Image.fromarray(gray.astype(np.float32)),
        "palette": lambda: rgb.quantize(256),
        "RGBA": lambda: rgb.convert("RGBA"),
        "gray": lambda: Image.fromarray(gray),
    }[form]()
    picture.save(path)
    found, turn = read_color(path)
    assert found.shape == (60, 80, 3) and found.dtype == np.uint8 and turn == 0
    assert np.abs(found.astype(int) - gray[..., None]).max() <= (4 if form == "palette" else 1)


@pytest.mark.parametrize("value", [-3.0, np.nan, 1e6, 4000.0])
def test_floats_that_are_no_colors(tmp_path: Path, value: float) -> None:
    gray = np.full((4, 6), 0.5, dtype=np.float32)
    gray[1, 2] = value
    Image.fromarray(gray).save(tmp_path / "c.tiff")
    with pytest.raises(DataError, match=r"c\.tiff"):
        read_color(tmp_path / "c.tiff")


def test_lists_of_classes() -> None:
    """Every class of the published lists has one of the 13, and those that mean the same stay what they are."""
    assert (len(NYU13_NAMES), len(NYU40_NAMES), len(set(ADE20K_NAMES))) == (14, 40, 150)
    nyu40 = np.array(NYU40_TO_NYU13)
    ade20k = np.array(ade20k_to_nyu13())
    assert nyu40[0] == ade20k[0] == 0 and nyu40.max() == ade20k.max() == 13 and (nyu40[1:] > 0).all()
    names = {"television": "tv", "bookshelf": "furniture", "desk": "table", "door": "wall", "pillow": "objects"}
    for name in ("bed", "books", "ceiling", "chair", "floor", "picture", "sofa", "table", "wall", "window", *names):
        assert NYU13_NAMES[nyu40[1 + NYU40_NAMES.index(name)]] == names.get(name, name)
    names = {"book": "books", "painting": "picture", "television receiver": "tv", "windowpane": "window"}
    names |= {"armchair": "chair", "rug": "floor", "lamp": "objects", "curtain": "window", "sea": "void"}
    for name in ("bed", "ceiling", "chair", "floor", "sofa", "table", "wall", *names):
        assert NYU13_NAMES[ade20k[1 + ADE20K_NAMES.index(name)]] == names.get(name, name)


def room_of(names: tuple[str, ...], first: int, void: int) -> NDArray[np.uint8]:
    """A label map of an ordinary room in a list's own numbering."""
    picture = "picture" if "picture" in names else "painting"
    window = "window" if "window" in names else "windowpane"
    labels = np.full((30, 40), names.index("wall") + first, dtype=np.uint8)
    labels[20:] = names.index("floor") + first
    labels[:4] = names.index("ceiling") + first
    labels[10:25, 5:12] = names.index("chair") + first
    labels[6:10, 20:25] = names.index(picture) + first
    labels[6:14, 30:38] = names.index(window) + first
    labels[0, 0] = void
    return labels


@pytest.mark.parametrize(("classes", "names"), [("nyu40", NYU40_NAMES), ("ade20k", ADE20K_NAMES)])
@pytest.mark.parametrize("numbering", ["from 1", "from 0", "from 0 without void"])
def test_label_maps_of_other_classes(tmp_path: Path, classes: str, names: tuple[str, ...], numbering: str) -> None:
    if (classes, numbering) == ("nyu40", "from 0 without void"):
        numbering = "from 1"  # nothing tells: the published numbering is taken
    first = 1 if numbering == "from 1" else 0
    void = {"from 1": 0, "from 0": 255}.get(numbering, names.index("wall"))
    Image.fromarray(room_of(names, first, void)).save(tmp_path / "l.png")
    found, notes = read_label_map(tmp_path / "l.png", classes=classes)
    rows = {
        (15, 2): "wall",
        (28, 35): "floor",
        (2, 9): "ceiling",
        (22, 8): "chair",
        (8, 22): "picture",
        (9, 33): "window",
    }
    assert {place: NYU13_NAMES[found[place]] for place in rows} == rows
    assert NYU13_NAMES[found[0, 0]] == ("wall" if "without" in numbering else "void")
    assert numbering[:6] in notes[0]


def test_label_maps_as_other_types(tmp_path: Path) -> None:
    labels = room_of(NYU13_NAMES, 0, 0)
    Image.fromarray(labels.astype(np.float32)).save(tmp_path / "float.tiff")
    np.save(tmp_path / "l.npy", labels[None].astype(np.int64))
    for name in ("float.tiff", "l.npy"):
        np.testing.assert_array_equal(read_label_map(tmp_path / name)[0], labels)
    Image.fromarray(labels.astype(np.float32) + 0.5).save(tmp_path / "half.tiff")
    with pytest.raises(DataError, match=r"half\.tiff"):
        read_label_map(tmp_path / "half.tiff")
    Image.fromarray(np.repeat(labels[..., None], 3, axis=2)).save(tmp_path / "rgb.png")
    with pytest.raises(DataError, match=r"rgb\.png"):
        read_label_map(tmp_path / "rgb.png")
    Image.fromarray(np.full((4, 6), 41, dtype=np.uint8)).save(tmp_path / "more.png")
    with pytest.raises(DataError, match=r"more\.png"):
        read_label_map(tmp_path / "more.png", classes="nyu40")
    with pytest.raises(DataError, match="`label_map_classes='nyu40'` or ade20k"):
        read_label_map(tmp_path / "more.png")
