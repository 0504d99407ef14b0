"""Images: formats by content, size before decoding, upright as EXIF says."""

from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from ammnet_sparse.files.errors import DataError
from ammnet_sparse.files.images import COLOR_FORMATS, read_image

PIXELS = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "tif"])  # Pillow itself turns the latter
def test_pictures_are_turned_as_exif_says(tmp_path: Path, orientation: int, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PIXELS).save(path, exif=exif)
    upright = read_image(path, formats=("PNG", "TIFF"))
    expected = {
        1: PIXELS,
        2: PIXELS[:, ::-1],
        3: PIXELS[::-1, ::-1],
        4: PIXELS[::-1],
        5: PIXELS.transpose(1, 0, 2),
        6: PIXELS[::-1].transpose(1, 0, 2),
        7: PIXELS[::-1, ::-1].transpose(1, 0, 2),
        8: PIXELS[:, ::-1].transpose(1, 0, 2),
    }[orientation]
    np.testing.assert_array_equal(upright.pixels, expected)
    assert upright.orientation == orientation and upright.mode == "RGB"
    stored = read_image(path, formats=("PNG", "TIFF"), upright=False)
    np.testing.assert_array_equal(stored.pixels, PIXELS)
    assert stored.orientation == orientation
    sized = read_image(path, formats=("PNG", "TIFF"), size=expected.shape[:2])
    assert sized.pixels.shape == expected.shape


@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.int32])
def test_depth_of_a_turned_tiff_is_as_it_is_stored(tmp_path: Path, dtype: type[np.generic]) -> None:
    depth = np.arange(12, dtype=dtype).reshape(3, 4)
    Image.fromarray(depth).save(tmp_path / "a.tif", tiffinfo={0x0112: 6})
    found = read_image(tmp_path / "a.tif", formats=("PNG", "TIFF"), upright=False)
    np.testing.assert_array_equal(found.pixels, depth)
    assert found.orientation == 6 and found.pixels.dtype == dtype


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.eps"])
def test_postscript_never_runs(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", never)
    path = tmp_path / name
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 640 480\n%%EndComments\nshowpage\n%%EOF\n")
    for formats in (COLOR_FORMATS, ("PNG", "TIFF")):
        with pytest.raises(DataError, match=f"{name}: .*PostScript"):
            read_image(path, formats=formats)


@pytest.mark.parametrize(("kind", "found"), [("GIF", "gif"), ("TIFF", "tiff"), ("BMP", "bmp"), ("WEBP", "webp")])
def test_other_formats_are_named(tmp_path: Path, kind: str, found: str) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS).save(path, kind)
    with pytest.raises(DataError, match=found):
        read_image(path)


def test_sizes_are_judged_before_anything_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    Image.new("L", (9000, 9000)).save(path)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("was decoded"))
    with pytest.raises(DataError, match="67,108,864 pixels"):
        read_image(path)
    with pytest.raises(DataError, match="480 rows and 640 columns"):
        read_image(path, size=(480, 640))
