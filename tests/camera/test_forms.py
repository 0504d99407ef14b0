"""A generated frame brought into the forms that cameras give: each makes the same volumes as the plain one."""

import dataclasses
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from ammnet_sparse.camera.files.depth import meters_from_values
from ammnet_sparse.camera.files.frame_files import FrameFiles
from ammnet_sparse.camera.files.intrinsics import Intrinsics
from ammnet_sparse.camera.files.stored import StoredImages, as_array, read_color
from ammnet_sparse.camera.frames import CameraFrame, read_frame
from ammnet_sparse.camera.images import camera_images, turned_camera, turned_image, turned_pose
from ammnet_sparse.camera.settings import CameraSettings
from ammnet_sparse.data.grid import IMAGE_SHAPE, UNMAPPED
from ammnet_sparse.data.synthetic.raycast import cast_depth
from ammnet_sparse.data.volumes.camera import NYU_CAMERA, Camera
from ammnet_sparse.files.errors import DataError
from tests.camera.own_views import RoomView, angle, room_view, scaled_camera, settings_of


@pytest.fixture(scope="module")
def view() -> RoomView:
    return room_view(3, "floor")


@pytest.fixture(scope="module")
def native(view: RoomView) -> NDArray[np.float32]:
    """Depth of the room without noise."""
    return cast_depth(view.scene, view.pose, camera=NYU_CAMERA)[0]


@pytest.fixture(scope="module")
def plain(native: NDArray[np.float32], view: RoomView, tmp_path_factory: pytest.TempPathFactory) -> CameraFrame:
    folder = tmp_path_factory.mktemp("plain")
    return read_frame(write(folder, ramp(IMAGE_SHAPE), native, view.pose), settings_of(NYU_CAMERA))


def turned(camera: Camera, degrees: int, shape: tuple[int, ...]) -> Camera:
    """The intrinsics after the images of this shape are rotated clockwise."""
    return turned_camera(camera, degrees, shape, shape)[0]


def ramp(shape: tuple[int, int]) -> NDArray[np.uint8]:
    """A color image in which every place has its own color, smoothly."""
    across, down = np.linspace(0, 255, shape[1])[None], np.linspace(0, 255, shape[0])[:, None]
    return np.stack(np.broadcast_arrays(across, down, 128.0), axis=2).astype(np.uint8)


def write(
    folder: Path,
    color: NDArray[np.uint8],
    depth: NDArray[np.float32],
    pose: NDArray[np.float64] | None = None,
    *,
    orientation: int = 1,
) -> FrameFiles:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(color).save(folder / "color.png", exif=exif)
    Image.fromarray(np.round(depth * 1000).astype(np.uint16)).save(folder / "depth.png")
    if pose is not None:
        np.savetxt(folder / "pose.txt", pose)
    return FrameFiles(
        "x", folder / "color.png", folder / "depth.png", folder / "pose.txt" if pose is not None else None
    )


def assert_alike(found: CameraFrame, plain: CameraFrame, *, overlap: float = 0.93) -> None:
    """The same voxels, but for those at the edges of things, and the same colors where both have an image."""
    hits, wanted = found.mapping != UNMAPPED, plain.mapping != UNMAPPED
    assert (hits & wanted).sum() / (hits | wanted).sum() > overlap
    assert np.abs(found.tsdf - plain.tsdf).mean() < 0.012
    both = np.flatnonzero((hits & wanted).reshape(-1))
    colors = [frame.images.image.reshape(-1, 3)[frame.mapping.reshape(-1)[both]] for frame in (found, plain)]
    assert np.median(np.abs(colors[0].astype(int) - colors[1]).max(axis=1)) <= 4
    assert angle(found.placement.up, plain.placement.up) < 1e-6 or found.images.camera != plain.images.camera


@pytest.mark.parametrize("owner", ["color", "depth", "other size"])
def test_depth_smaller_than_color(tmp_path: Path, view: RoomView, plain: CameraFrame, owner: str) -> None:
    """A phone's: 256x192 beside 1920x1440, with the intrinsics of either, or of a third size that their file names."""
    camera = scaled_camera(0.4)
    depth, _ = cast_depth(view.scene, view.pose, camera=camera, image_shape=(192, 256))
    paths = write(tmp_path, ramp((1440, 1920)), depth, view.pose)
    settings = {
        "color": settings_of(scaled_camera(3.0)),
        "depth": settings_of(camera),
        "other size": CameraSettings(intrinsics=Intrinsics(scaled_camera(2.0), size=(960, 1280))),
    }[owner]
    assert_alike(read_frame(paths, settings), plain, overlap=0.75)


def test_color_of_other_proportions(
    tmp_path: Path, view: RoomView, native: NDArray[np.float32], plain: CameraFrame
) -> None:
    """Color 1280x720 of a wider lens beside depth 640x480, each with its own intrinsics."""
    color_camera = Camera(700.0, 700.0, 650.0, 355.0)
    full = ramp(IMAGE_SHAPE).astype(np.float32)
    v, u = np.mgrid[:720, :1280]
    # Every color pixel shows what the depth image's pixel of the same ray would have.
    x = (u - color_camera.cx) / color_camera.fx * NYU_CAMERA.fx + NYU_CAMERA.cx
    y = (v - color_camera.cy) / color_camera.fy * NYU_CAMERA.fy + NYU_CAMERA.cy
    color = np.stack([x / 639 * 255, y / 479 * 255, np.full(x.shape, 128.0)], axis=2).clip(0, 255).astype(np.uint8)
    assert full.shape[:2] == IMAGE_SHAPE
    paths = write(tmp_path, color, native, view.pose)
    found = read_frame(paths, settings_of(NYU_CAMERA, color_intrinsics=Intrinsics(color_camera)))
    np.testing.assert_array_equal(found.mapping, plain.mapping)
    assert_alike(found, plain)
    with pytest.raises(DataError, match="`color_intrinsics`"):
        read_frame(paths, settings_of(NYU_CAMERA))


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_images_that_lie_on_their_side(
    tmp_path: Path, view: RoomView, native: NDArray[np.float32], plain: CameraFrame, degrees: int
) -> None:
    """``--rotate`` turns color, depth, label map, intrinsics and pose together."""
    back = 360 - degrees
    label_map = (ramp(IMAGE_SHAPE)[..., 0] // 20).astype(np.uint8)
    color, depth = turned_image(ramp(IMAGE_SHAPE), back), turned_image(native, back)
    files = write(tmp_path, color, depth, turned_pose(view.pose, back))
    Image.fromarray(turned_image(label_map, back)).save(tmp_path / "label_map.png")
    settings = settings_of(turned(NYU_CAMERA, back, IMAGE_SHAPE), rotate=degrees)
    found = read_frame(dataclasses.replace(files, label_map=tmp_path / "label_map.png"), settings)
    np.testing.assert_array_equal(found.images.image, plain.images.image)
    np.testing.assert_allclose(dataclasses.astuple(found.images.camera), dataclasses.astuple(NYU_CAMERA), atol=1e-9)
    np.testing.assert_allclose(found.placement.pose, plain.placement.pose, atol=1e-6)
    assert (found.mapping == plain.mapping).mean() > 0.9999
    np.testing.assert_array_equal(found.images.label_map, label_map)


@pytest.mark.parametrize(
    ("orientation", "degrees", "depth_lies", "intrinsics"),
    [
        (6, 90, True, "stored"),
        (6, 90, True, "upright"),
        (6, 90, False, "upright"),
        (8, 270, True, "stored"),
        (8, 270, False, "upright"),
        # Nothing tells depth upside down from upright depth: it is taken to lie as the color image does.
        (3, 180, True, "stored"),
    ],
)
def test_images_that_exif_turns(
    tmp_path: Path,
    view: RoomView,
    native: NDArray[np.float32],
    plain: CameraFrame,
    orientation: int,
    degrees: int,
    depth_lies: bool,
    intrinsics: str,
) -> None:
    """Depth lies as the color image does or is upright already; intrinsics and pose are of either."""
    back = 360 - degrees
    is_stored = intrinsics == "stored"
    files = write(
        tmp_path,
        turned_image(ramp(IMAGE_SHAPE), back),
        turned_image(native, back) if depth_lies else native,
        turned_pose(view.pose, back) if is_stored else view.pose,
        orientation=orientation,
    )
    found = read_frame(files, settings_of(turned(NYU_CAMERA, back, IMAGE_SHAPE) if is_stored else NYU_CAMERA))
    np.testing.assert_array_equal(found.images.image, plain.images.image)
    np.testing.assert_array_equal(found.mapping, plain.mapping)
    assert any("EXIF" in note for note in found.notes)


def test_color_intrinsics_belong_to_label_maps_too(native: NDArray[np.float32]) -> None:
    """And to nothing where only depth is there."""
    color_camera = Camera(1038.0, 1038.0, 959.5, 539.5)
    label_map = np.full((1080, 1920), 12, dtype=np.uint8)
    label_map[:, :300] = 5  # beside the depth image's narrower view
    settings = settings_of(NYU_CAMERA, color_intrinsics=Intrinsics(color_camera))
    found = camera_images(StoredImages("x", None, native, label_map), settings)
    assert found.camera == NYU_CAMERA and found.label_map is not None and set(np.unique(found.label_map)) == {12}
    alone = camera_images(StoredImages("x", None, native), settings)
    assert alone.camera == NYU_CAMERA and alone.label_map is None
    np.testing.assert_array_equal(alone.depth, found.depth)


def test_intrinsics_of_the_turned_images_are_named(tmp_path: Path, native: NDArray[np.float32]) -> None:
    """Landscape images with a portrait's principal point: refused, not placed wrongly."""
    paths = write(tmp_path, ramp(IMAGE_SHAPE), native)
    with pytest.raises(DataError, match="they lie on their side, or the intrinsics do"):
        read_frame(paths, CameraSettings(intrinsics="520,520,239.5,319.5"))
    with pytest.raises(DataError, match="found those of 480x640 by what their file says"):
        read_frame(paths, CameraSettings(intrinsics=Intrinsics(Camera(520, 520, 239.5, 319.5), size=(640, 480))))


@pytest.mark.parametrize(("bits", "alpha"), [(8, False), (10, False), (12, True), (16, False)])
def test_color_of_16_bits_that_uses_few(tmp_path: Path, bits: int, alpha: bool) -> None:
    """Shown as if it were of 8 bits: Pillow alone would leave the upper ones, and make it black."""
    rows, columns = 12, 16
    colors = np.random.default_rng(0).integers(0, 2**bits, (rows, columns, 4 if alpha else 3)).astype(">u2")
    colors[0, 0] = 2**bits - 1
    lines = b"".join(b"\0" + line.tobytes() for line in colors)
    parts = [b"IHDR" + struct.pack(">IIBBBBB", columns, rows, 16, 6 if alpha else 2, 0, 0, 0)]
    parts += [b"IDAT" + zlib.compress(lines), b"IEND"]
    png = b"".join(struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts)
    (tmp_path / "color.png").write_bytes(b"\x89PNG\r\n\x1a\n" + png)
    found, _ = read_color(tmp_path / "color.png")
    expected = colors[..., :3].astype(np.float64) * 255 / (2**bits - 1)
    assert found.dtype == np.uint8 and np.abs(found - expected).max() <= 1


def test_what_is_masked_is_no_depth() -> None:
    depth = np.ma.masked_less(np.array([[1.0, 2.0]]), 1.5)
    np.testing.assert_array_equal(as_array(depth, "depth", "an image"), [[0.0, 2.0]])
    whole = np.ma.masked_array(np.array([[1, 2]], np.uint16))
    np.testing.assert_array_equal(as_array(whole, "depth", "an image"), [[1, 2]])


def test_numbers_of_numpy_and_tensors_in_settings() -> None:
    given = {"fx": torch.tensor(500.0), "fy": np.float32(500), "cx": torch.tensor(320), "cy": np.int64(240)}
    settings = CameraSettings(intrinsics=given, rotate=np.int64(90))  # type: ignore[arg-type]
    assert settings.rotate == 90 and type(settings.rotate) is int
    assert settings.intrinsics.camera == Camera(500, 500, 320, 240)


@pytest.mark.parametrize(("median", "fitting"), [(12.0, "5000"), (0.4, "100 for centimeters")])
def test_an_unusual_depth_scale_is_questioned(median: float, fitting: str) -> None:
    values = np.linspace(500 * median, 1500 * median, 48 * 64).reshape(48, 64).astype(np.uint16)
    told: dict[str, Any]
    for told in ({}, {"scale": 1000.0}, {"usual_scale": 1000.0}):
        _, notes = meters_from_values(values, **told)
        assert any(fitting.split(" ")[0] in note for note in notes), notes
    assert not meters_from_values(np.full((48, 64), 2001, np.uint16))[1]
