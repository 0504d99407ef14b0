"""Depth files: what is no depth, whatever the type; rotated bits; units; file types; what is advised."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ammnet_sparse.camera.files.depth import meters_from_values
from ammnet_sparse.camera.files.stored import image_array
from ammnet_sparse.data.volumes.camera import depth_in_meters
from ammnet_sparse.files.errors import DataError


def read_with_notes(path: Path, **options: Any) -> tuple[NDArray[np.float32], list[str]]:
    return meters_from_values(image_array(path, "a depth image"), name=str(path), **options)


def read_depth(path: Path, **options: Any) -> NDArray[np.float32]:
    return read_with_notes(path, **options)[0]


def test_depth_files(tmp_path: Path) -> None:
    values = np.array([[0, 65535, 1000], [2500, 3000, 1500]], dtype=np.uint16)
    meters = [[0, 0, 1.0], [2.5, 3.0, 1.5]]
    Image.fromarray(values).save(tmp_path / "d.png")
    np.testing.assert_allclose(read_depth(tmp_path / "d.png"), meters, atol=1e-6)
    np.testing.assert_allclose(read_depth(tmp_path / "d.png", scale=500.0), 2 * np.array(meters), atol=1e-6)
    np.save(tmp_path / "d.npy", np.array([[0, np.nan, 1.0], [2.5, np.inf, -1]]))
    np.testing.assert_allclose(read_depth(tmp_path / "d.npy", scale=1.0), [[0, 0, 1], [2.5, 0, 0]])
    Image.fromarray(values.astype(np.uint8)).save(tmp_path / "eight.png")
    Image.fromarray(np.zeros((2, 3), dtype=np.uint16)).save(tmp_path / "nothing.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n123")
    for name, scale, message in (
        ("d.png", 1.0, r"d\.png: .*median of 2e\+03 m at 1 units per meter; correct the depth scale"),
        ("eight.png", 1000.0, r"eight\.png: expected a depth image with one channel of 16 bits, found uint8"),
        ("nothing.png", 1000.0, r"nothing\.png: expected depth, found no valid pixel"),
        ("broken.png", 1000.0, r"broken\.png: expected a readable png .* with a depth image"),
        ("none.png", 1000.0, r"none\.png: expected a depth image, found no such file"),
    ):
        with pytest.raises(DataError, match=message):
            read_depth(tmp_path / name, scale=scale)


def ramp(shape: tuple[int, int] = (60, 80), low: float = 1.2, high: float = 4.5) -> NDArray[np.float64]:
    """Meters of a slanted surface, to the millimeter."""
    values = np.linspace(low, high, shape[0] * shape[1]).reshape(shape)
    return np.round(values + 0.2 * np.sin(np.arange(shape[1]) / 5.0), 3)


_CODES: list[tuple[type[Any], float]] = [
    *((dtype, code) for dtype in (np.uint16, np.int32) for code in (0, 65535, 8191)),
    (np.int32, -1),
    *(
        (dtype, code)
        for dtype in (np.float32, np.float64)
        for code in (0, 65535, 8191, -1, np.nan, np.inf, -np.inf, 1e10)
    ),
]


@pytest.mark.parametrize(("dtype", "code"), _CODES)
def test_codes_that_are_no_depth(dtype: type[Any], code: float) -> None:
    """One rule for every type, in millimeters and in meters."""
    meters = ramp()
    mask = np.zeros(meters.shape, dtype=np.bool_)
    mask[20:30, 10:40] = True
    expected = np.where(mask, 0, meters)
    values = meters * 1000
    values[mask] = code
    info = np.iinfo(dtype) if np.issubdtype(dtype, np.integer) else None
    stored = np.round(values).astype(dtype) if info is not None else values.astype(dtype)
    np.testing.assert_allclose(depth_in_meters(stored, scale=1000.0), expected, atol=1e-3)
    if info is None:
        np.testing.assert_allclose(depth_in_meters((stored / dtype(1000)), scale=1.0), expected, atol=1e-3)


@pytest.mark.parametrize("code", [2047, 4095])
def test_codes_within_the_range_of_rooms(code: int) -> None:
    """Where many pixels have exactly the largest number of 11 or 12 bits, and next to none one just below."""
    meters = ramp(high=code / 1000 - 0.5)
    mask = np.zeros(meters.shape, dtype=np.bool_)
    mask[:10] = True
    values = np.where(mask, code, meters * 1000).astype(np.uint16)
    assert not depth_in_meters(values, scale=1000.0)[mask].any()
    # A wall that is seen up to that distance has neighbors: it stays.
    wall = ramp(low=1.0, high=code / 1000)
    kept = depth_in_meters(np.minimum(np.round(wall * 1000), code).astype(np.uint16), scale=1000.0)
    assert (kept > 0).all()


def test_far_depth_that_is_none_of_these_stays() -> None:
    hall = ramp(low=2.0, high=14.0)
    np.testing.assert_allclose(depth_in_meters(hall * 1000, scale=1000.0), hall, atol=1e-6)
    flat = np.full((50, 60), 3.0)
    np.testing.assert_allclose(depth_in_meters(flat, scale=1.0), flat)


def rotated(millimeters: NDArray[Any]) -> NDArray[np.uint16]:
    bits = millimeters.astype(np.uint16)
    return (bits << np.uint16(3)) | (bits >> np.uint16(13))


@pytest.mark.parametrize("high", [3.0, 6.0, 8.6])
def test_rotated_bits_are_noticed(tmp_path: Path, high: float) -> None:
    """As SUN RGB-D and SSCNet store them, also where a part lies beyond 8.192 m; and said."""
    millimeters = np.round(ramp(high=high) * 1000).astype(np.uint16)
    millimeters[:3] = 0
    Image.fromarray(rotated(millimeters)).save(tmp_path / "sun.png")
    Image.fromarray(millimeters).save(tmp_path / "plain.png")
    expected, no_notes = read_with_notes(tmp_path / "plain.png")
    assert no_notes == []
    found, notes = read_with_notes(tmp_path / "sun.png")
    np.testing.assert_array_equal(found, expected)
    assert len(notes) == 1 and "rotated by 3" in notes[0] and "multiples of 8" in notes[0]
    told, _ = read_with_notes(tmp_path / "sun.png", encoding="rotated")
    np.testing.assert_array_equal(told, expected)
    for scale in (10000.0, 5000.0, 8000.0):
        with pytest.raises(DataError, match="bits are rotated by 3.*Omit `depth_scale`"):
            read_depth(tmp_path / "sun.png", scale=scale)
    plain = read_depth(tmp_path / "sun.png", scale=8000.0, encoding="plain")
    assert np.median(plain) == pytest.approx(float(np.median(expected)), rel=0.1)


@pytest.mark.parametrize("step", [8, 16, 40])
def test_coarse_depth_is_not_rotated(step: int) -> None:
    """A camera that rounds to 8, 16 or 40 mm has multiples of 8, too; the room says that they are not rotated."""
    low, high = (0.6, 3.0) if step == 8 else (1.2, 4.5)
    values = (np.round(ramp(low=low, high=high) * 1000 / step) * step).astype(np.uint16)
    meters, notes = meters_from_values(values)
    np.testing.assert_allclose(meters, values / 1000.0, atol=1e-6)
    assert len(notes) == 1 and "depth_encoding='rotated'" in notes[0]
    np.testing.assert_allclose(meters_from_values(values, encoding="millimeters")[0], values / 1000.0, atol=1e-6)


def test_units_that_are_found_out(tmp_path: Path) -> None:
    meters = ramp()
    np.testing.assert_allclose(meters_from_values(meters)[0], meters, atol=1e-6)
    assert "meters" in meters_from_values(meters)[1][0]
    np.testing.assert_allclose(meters_from_values(meters * 1000)[0], meters, atol=1e-6)
    tum = np.round(meters * 1000).astype(np.uint16) * np.uint16(5)
    assert "5000" in meters_from_values(tum)[1][0]
    found, notes = meters_from_values(tum, usual_scale=5000.0)
    np.testing.assert_allclose(found, meters, atol=1e-3)
    assert "intrinsics file" in notes[0]
    with pytest.raises(DataError, match="has 1 units per meter, but `depth_scale` says 1000"):
        meters_from_values(meters, scale=1000.0, encoding="meters")


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_centimeters_are_noticed(dtype: type[Any]) -> None:
    meters = ramp()
    centimeters = np.round(meters * 100).astype(dtype)
    assert any("`depth_scale=100`" in note for note in meters_from_values(centimeters)[1])
    np.testing.assert_allclose(meters_from_values(centimeters, scale=100.0)[0], meters, atol=0.006)
    assert not meters_from_values(centimeters, scale=100.0)[1]
    assert not meters_from_values((meters * 1000 + 1).astype(dtype))[1]


def write_exr(path: Path, **channels: NDArray[Any]) -> None:
    exr = pytest.importorskip("OpenEXR")
    header = {"compression": exr.ZIP_COMPRESSION, "type": exr.scanlineimage}
    with exr.File(header, {name: np.ascontiguousarray(values) for name, values in channels.items()}) as file:
        file.write(str(path))


@pytest.mark.parametrize("form", ["png", "tiff", "float tiff", "npy", "float npy", "1xHxW", "HxWx1", "npz", "exr"])
def test_file_types(tmp_path: Path, form: str) -> None:
    meters = ramp().astype(np.float32)
    millimeters = np.round(meters * 1000).astype(np.uint16)
    path = tmp_path / {"float tiff": "d.tiff", "float npy": "d.npy", "1xHxW": "d.npy", "HxWx1": "d.npy"}.get(
        form, f"d.{form}"
    )
    if form in ("png", "tiff"):
        Image.fromarray(millimeters).save(path)
    elif form == "float tiff":
        Image.fromarray(meters).save(path)
    elif form == "npz":
        np.savez_compressed(path, depth=meters, other=np.zeros(3))
    elif form == "exr":
        write_exr(path, Z=meters, A=np.ones_like(meters))
    else:
        array = {"npy": millimeters, "float npy": meters, "1xHxW": millimeters[None], "HxWx1": meters[..., None]}[form]
        np.save(path, array)
    np.testing.assert_allclose(read_depth(path), meters, atol=1.1e-3)


def test_exr_of_several_channels(tmp_path: Path) -> None:
    meters = ramp().astype(np.float32)
    write_exr(tmp_path / "gray.exr", R=meters, G=meters, B=meters)
    np.testing.assert_allclose(read_depth(tmp_path / "gray.exr"), meters, atol=1e-6)
    write_exr(tmp_path / "color.exr", R=meters, G=meters, B=2 * meters)
    with pytest.raises(DataError, match=r"color\.exr"):
        read_depth(tmp_path / "color.exr")
    write_exr(tmp_path / "many.exr", Z=meters, **{f"a{number}": 2 * meters for number in range(60)})
    np.testing.assert_allclose(read_depth(tmp_path / "many.exr"), meters, atol=1e-6)
    (tmp_path / "broken.exr").write_bytes((tmp_path / "gray.exr").read_bytes()[:300])
    with pytest.raises(DataError, match=r"broken\.exr"):
        read_depth(tmp_path / "broken.exr")
