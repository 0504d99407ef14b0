"""Intrinsics in the forms that cameras and other projects write them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ammnet_sparse.camera.files.intrinsics import read_intrinsics
from ammnet_sparse.data.volumes.camera import Camera
from ammnet_sparse.files.errors import DataError

EXPECTED = Camera(520.0, 521.0, 319.5, 239.5)
_K = [520.0, 0.0, 319.5, 0.0, 521.0, 239.5, 0.0, 0.0, 1.0]
_BY_COLUMN = [520.0, 0.0, 0.0, 0.0, 521.0, 0.0, 319.5, 239.5, 1.0]
_NAMED = {"fx": 520.0, "fy": 521.0, "cx": 319.5, "cy": 239.5}
_ROS = """image_width: 640
image_height: 480
camera_name: rgb
camera_matrix:
  rows: 3
  cols: 3
  data: {k}
distortion_model: plumb_bob
distortion_coefficients:
  rows: 1
  cols: 5
  data: [{d}, 0, 0, 0, 0]
projection_matrix:
  rows: 3
  cols: 4
  data: {p}
"""
_P = [520.0, 0, 319.5, 0, 0, 521.0, 239.5, 0, 0, 0, 1, 0]

_TEXTS = {
    "comments": "# fx fy cx cy\n520.0 521.0 319.5 239.5 // of the color camera\n",
    "BOM": "\ufeff520.0 521.0 319.5 239.5\n",
    "3x4": "520 0 319.5 0\n0 521 239.5 0\n0 0 1 0\n",
    "4x4": "520 0 319.5 0\n0 521 239.5 0\n0 0 1 0\n0 0 0 1\n",
    "3x3 by column": "520 0 0\n0 521 0\n319.5 239.5 1\n",
    "4x4 by column": "520 0 0 0\n0 521 0 0\n319.5 239.5 1 0\n0 0 0 1\n",
    "TUM": "520.0 521.0 319.5 239.5 0.2624 -0.9531 -0.0054 0.0026 1.1633",
    "with size": "640 480 520 521 319.5 239.5",
    "DSO": "520 521 319.5 239.5\n640 480\n",
    "COLMAP OpenCV": "1 OPENCV 640 480 520 521 320 240 0 0 0 0\n",
    "COLMAP": "# Camera list\n1 PINHOLE 640 480 520 521 320 240\n",
    "key and value": "fx = 520\nfy = 521\ncx = 319.5\ncy = 239.5\n",
    "ScanNet": "appVersionId = 0.9\nfx_depth = 520\nfy_depth = 521\nmx_depth = 319.5\nmy_depth = 239.5\n",
    "section.ini": "; a camera\n[rgb]\nfx = 520\nfy = 521 # px\ncx = 319.5\ncy = 239.5\n",
    "TOML.toml": f'name = "kinect"\n[camera]\nK = {[_K[:3], _K[3:6], _K[6:]]}\n',
    "OpenCV.xml": '<?xml version="1.0"?><opencv_storage><camera_matrix type_id="opencv-matrix"><rows>3</rows>'
    f"<cols>3</cols><dt>d</dt><data>{' '.join(map(str, _K))}</data></camera_matrix></opencv_storage>",
    "ORB-SLAM.yaml": "%YAML:1.0\nCamera.fx: 520.0\nCamera.fy: 521\nCamera.cx: 319.5\nCamera.cy: 239.5\nCamera.k1: 0\n",
    "ORB-SLAM3.yaml": "%YAML:1.0\n---\nCamera1.fx: 520.0\nCamera1.fy: 521.0\nCamera1.cx: 319.5\nCamera1.cy: 239.5\n",
    "OpenCV.yml": f"%YAML:1.0\n---\ncamera_matrix: !!opencv-matrix\n   rows: 3\n   cols: 3\n   dt: d\n   data: {_K}\n",
    "ROS.yaml": _ROS.format(k=_K, d=0, p=_P),
    "ROS rectified.yaml": _ROS.format(k=[500.0, *_K[1:]], d=0.1, p=_P),
    "ROS message.yaml": f"header:\n  seq: 1\nheight: 480\nwidth: 640\nD: [0.0, 0.0]\nK: {_K}\nP: {_P}\n---\n",
}
_DOCUMENTS: dict[str, Any] = {
    "Open3D": {"width": 640, "height": 480, "intrinsic_matrix": _BY_COLUMN},
    "Open3D parameters": {"extrinsic": [1.0] * 16, "intrinsic": {"intrinsic_matrix": _BY_COLUMN, "width": 640}},
    "RealSense": {"width": 640, "height": 480, "ppx": 319.5, "ppy": 239.5, "fx": 520.0, "fy": 521.0, "coeffs": [0.0]},
    "Azure Kinect": {
        "CalibrationInformation": {
            "Cameras": [
                {
                    "Location": "CALIBRATION_CameraLocationD0",
                    "SensorWidth": 1024,
                    "SensorHeight": 1024,
                    "Intrinsics": {"ModelParameters": [0.5, 0.5, 0.49, 0.49]},
                },
                {
                    "Location": "CALIBRATION_CameraLocationPV0",
                    "SensorWidth": 640,
                    "SensorHeight": 480,
                    "Intrinsics": {"ModelParameters": [0.5, 0.5, 520 / 640, 521 / 480]},
                },
            ]
        }
    },
    "ARKit": {"intrinsics": _BY_COLUMN},
    "nested rows": {"rgb": {"K": [_K[:3], _K[3:6], _K[6:]]}},
    "named": {"intrinsics": {"parameters": _NAMED}},
}


def test_intrinsics(tmp_path: Path) -> None:
    expected = Camera(585.0, 586.0, 320.0, 240.0)
    for text in ("585,586, 320,240", "585 586 320 240", "585,0,320,0,586,240,0,0,1"):
        assert read_intrinsics(text).camera == expected
    for text in ("585 0 320\n0 586 240\n0 0 1\n", "[[585, 0, 320], [0, 586, 240], [0, 0, 1]]", "585 586 320 240"):
        (tmp_path / "k.txt").write_text(text, encoding="utf-8")
        assert read_intrinsics(str(tmp_path / "k.txt")).camera == expected
    for text, message in (
        ("585,586,320", "expected 4 or 9 numbers, found 3"),
        ("-1,586,320,240", "positive focal lengths"),
        ("no_such.txt", r"no_such.txt: expected fx,fy,cx,cy or a 3x3 matrix, .* found no such file"),
        ("585,0,320,0,586,240,1,0,1", "expected 0 below the diagonal"),
        ("585,9,320,0,586,240,0,0,1", "expected no skew"),
    ):
        with pytest.raises(DataError, match=message):
            read_intrinsics(text)


@pytest.mark.parametrize("form", _TEXTS)
def test_text_forms(tmp_path: Path, form: str) -> None:
    path = tmp_path / (form if "." in form else f"{form}.txt")
    path.write_text(_TEXTS[form], encoding="utf-8")
    found = read_intrinsics(str(path))
    np.testing.assert_allclose(
        [found.camera.fx, found.camera.fy, found.camera.cx, found.camera.cy], [520, 521, 319.5, 239.5]
    )
    if form in ("with size", "DSO", "COLMAP", "ROS.yaml", "ROS message.yaml"):
        assert found.size == (480, 640)
    assert any("distortion" in note for note in found.notes) == (form == "TUM")


@pytest.mark.parametrize("form", _DOCUMENTS)
def test_json_forms(tmp_path: Path, form: str) -> None:
    path = tmp_path / "camera.json"
    path.write_text(json.dumps(_DOCUMENTS[form]), encoding="utf-8")
    camera = read_intrinsics(str(path)).camera
    np.testing.assert_allclose([camera.fx, camera.fy, camera.cx, camera.cy], [520, 521, 319.5, 239.5])


def test_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "k.npy", np.array(_K).reshape(3, 3))
    assert read_intrinsics(str(tmp_path / "k.npy")).camera == EXPECTED


def test_several_cameras_are_told_apart_by_size(tmp_path: Path) -> None:
    depth = {"width": 848, "height": 480, "ppx": 424.0, "ppy": 240.0, "fx": 430.0, "fy": 430.0}
    color = {"width": 640, "height": 480, "ppx": 319.5, "ppy": 239.5, "fx": 520.0, "fy": 521.0}
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({"depth": depth, "color": color, "depth_scale": 0.001}), encoding="utf-8")
    found = read_intrinsics(str(path))
    assert found.camera == EXPECTED and found.depth_scale == pytest.approx(1000.0)
    assert "'color' is used" in " ".join(found.notes)
    assert found.fitting([(480, 848), (480, 640)]).camera == Camera(430.0, 430.0, 424.0, 240.0)
    assert found.fitting([(240, 320)]).camera == EXPECTED


_ZED = "[{side}_CAM_{mode}]\nfx={f}\nfy={f}\ncx={cx}\ncy={cy}\nk1=0\n"
_STEREO = "".join(
    _ZED.format(side=side, mode=mode, f=f + offset, cx=cx + offset, cy=cy + offset)
    for mode, f, cx, cy in (("HD", 1040, 650, 370), ("VGA", 545, 341, 192))
    for side, offset in (("RIGHT", -5), ("LEFT", 0))
)
_COLMAP = "1 PINHOLE 640 480 520 521 320 240\n2 SIMPLE_RADIAL 1280 720 1040 640 360 0.1\n"


@pytest.mark.parametrize(
    ("content", "shape", "focal_length"),
    [
        (_STEREO, (720, 1280), 1040),
        (_STEREO, (376, 672), 545),
        (_COLMAP, (480, 640), 520),
        (_COLMAP, (720, 1280), 1040),
        ("[depth]\nwidth=848\nheight=480\nfx=425\nfy=425\ncx=424\ncy=240\n[color]\n" + "fx=520\nfy=521\ncx=319\ncy=239",
         (480, 640), 520),
    ],
)  # fmt: skip
def test_the_camera_of_an_image_is_chosen(
    tmp_path: Path, content: str, shape: tuple[int, int], focal_length: float
) -> None:
    (tmp_path / "cameras.txt").write_text(content, encoding="utf-8")
    assert read_intrinsics(str(tmp_path / "cameras.txt")).fitting([shape]).camera.fx == focal_length


@pytest.mark.parametrize(("content", "shape"), [(_COLMAP, (300, 400)), (_STEREO.replace("LEFT", "B"), (720, 1280))])
def test_cameras_of_which_none_or_several_fit_are_named(tmp_path: Path, content: str, shape: tuple[int, int]) -> None:
    (tmp_path / "cameras.txt").write_text(content, encoding="utf-8")
    found = read_intrinsics(str(tmp_path / "cameras.txt"))
    with pytest.raises(DataError, match=f"{shape[1]} x {shape[0]}.*{found.others[0].name}"):
        found.fitting([shape])


@pytest.mark.parametrize("name", ["scale", "png_depth_scale", "integer_depth_scale", "depth_scale", "DepthMapFactor"])
@pytest.mark.parametrize("value", [6553.5, 1 / 6553.5])
def test_names_of_the_depth_scale(tmp_path: Path, name: str, value: float) -> None:
    (tmp_path / "camera.json").write_text(json.dumps({"camera": {**_NAMED, name: value}}), encoding="utf-8")
    assert read_intrinsics(str(tmp_path / "camera.json")).depth_scale == pytest.approx(6553.5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("hello", "expected 4 or 9 numbers, or fx, fy, cx and cy by name, found none"),
        ("", "expected 4 or 9 numbers, or fx"),
        ("<?xml version='1.0'?><!DOCTYPE a><a>1</a>", "found XML with a document type"),
        ("<?xml version='1.0'?><a>", "found no element found"),
        ("fx = 520\nfx = 530\n", "found 'fx' twice"),
        ("fx = 520 px\nfx = 520\n[fx]\n", "found both"),
        ("{" * 2000, "expected numbers, JSON"),
        ("0.8, 1.0, 0.5, 0.5", "look like shares of the image's width"),
        ("nan 500 320 240", "expected finite numbers"),
        ("fx: 520\nfy: 520\ncx: 320\n", "by name, found no cy;"),
        ("fx: 520\nfy: '520'\ncx: .nan\ncy: 240", "by name, found fy = '520', cx = nan;"),
        ('{"color": {"fx": 520, "fy": 520, "ppx": 320}}', "by name, found no ppy;"),
        ('{"K": [1, 2, 3, 4, 5, 6, 7, 8]}', "by name, found k with 8 numbers;"),
        ('{"K": [0, 0, 320, 0, 520, 240, 0, 0, 1]}', "by name, found k = .*, which is no camera matrix;"),
        ('{"camera_matrix": {"data": [520, 0, "x", 0, 520, 240, 0, 0, 1]}}', "by name, found camera_matrix = .*'x'"),
        (
            '{"fx": 520, "fy": 520, "cx": 320, "cy": 240, "depth_scale": -1000}',
            "expected depth_scale above 0, found -1000",
        ),
    ],
)
def test_files_without_intrinsics(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "k.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_intrinsics(str(tmp_path / "k.yaml"))
