"""SceneCompleter: frames of one camera from arrays."""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ammnet_sparse import SceneCompleter
from ammnet_sparse.camera.files.intrinsics import intrinsics_of
from ammnet_sparse.camera.files.stored import as_array
from ammnet_sparse.camera.geometry import placement
from ammnet_sparse.data.volumes.camera import Camera
from ammnet_sparse.files.errors import DataError
from ammnet_sparse.models.weights.checks import WeightsError
from tests.completion import INTRINSICS, room_depth

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def completer(weights: Path) -> SceneCompleter:
    return SceneCompleter(weights, intrinsics=INTRINSICS)


def test_a_scene_lies_where_the_camera_saw_it(completer: SceneCompleter, tmp_path: Path) -> None:
    completer.forget()
    scene = completer(None, room_depth(), name="room")
    assert scene.labels.shape == (60, 36, 60) and scene.labels.dtype == np.uint8
    assert scene.probabilities.shape == (12, 60, 36, 60)
    np.testing.assert_allclose(scene.probabilities.sum(0), 1, atol=1e-5)
    np.testing.assert_array_equal(scene.probabilities.argmax(0), scene.labels)
    assert scene.world_from_camera[2, 3] == pytest.approx(1.4, abs=0.02)
    np.testing.assert_allclose(scene.camera_from_world @ scene.world_from_camera, np.eye(4), atol=1e-9)
    assert scene.world_from_given is None and scene.own.placement.floor.is_seen
    points, classes = scene.points(only_reliable=False)
    assert len(points) == len(classes) == int((scene.labels != 0).sum())
    x, height, y = np.argwhere(scene.labels != 0)[0]
    np.testing.assert_allclose(points[0], scene.origin + 0.08 * (np.array([x, y, height]) + 0.5))
    assert len(scene.points()[0]) <= len(points)
    assert {"images", "frame", "network", "all"} == scene.seconds.keys() and scene.seconds["all"] > 0
    out = tmp_path / "out"
    written = [*scene.write_ply(out), scene.write_volume(out), scene.write_picture(out)]
    written.append(scene.write_page(out / "page.html"))
    names = {path.name for path in out.iterdir()}
    assert {path.name for path in written} == names and {path.parent for path in written} == {out}
    assert names == {"room_points.ply", "room_cubes.ply", "room.npz", "room.png", "page.html"}


def test_depth_in_any_unit_is_the_same_scene(weights: Path) -> None:
    depth = room_depth()
    forms = [
        (depth, None),
        (np.round(5000 * depth).astype(np.uint16), 5000.0),
        (torch.from_numpy(depth).requires_grad_(), None),
    ]
    scenes = []
    for values, scale in forms:
        completer = SceneCompleter(weights, intrinsics=INTRINSICS, depth_scale=scale)
        scenes.append(completer(None, values))
    for scene in scenes:
        assert scene.world_from_camera[2, 3] == pytest.approx(1.4, abs=0.02)
    assert (scenes[0].labels == scenes[1].labels).mean() > 0.99
    assert (scenes[0].labels == scenes[2].labels).all()


def test_the_camera_is_kept_and_found_again(completer: SceneCompleter) -> None:
    completer.forget()
    rng = np.random.default_rng(0)
    noisy = [room_depth() + rng.normal(0, 0.004, (480, 640)).astype(np.float32) for _ in range(3)]
    kept = [completer(None, depth) for depth in noisy]
    assert [scene.own.placement.is_continued for scene in kept] == [False, True, True]
    moved = completer(None, room_depth(height=1.4, pitch=55.0))  # the depth contradicts what was kept
    assert not moved.own.placement.is_continued
    assert moved.world_from_camera[2, 3] == pytest.approx(1.4, abs=0.05)
    completer.forget()
    assert not completer(None, noisy[0]).own.placement.is_continued
    alone = SceneCompleter.__new__(SceneCompleter)
    alone.__dict__.update(completer.__dict__, keeps_camera=False, _previous=None)
    assert not any(alone(None, depth).own.placement.is_continued for depth in noisy[:2])


def test_poses_are_brought_to_the_scene(completer: SceneCompleter) -> None:
    completer.forget()
    depth = room_depth()
    angle = np.radians(20.0)
    pose = np.eye(4)
    # Camera x right, y down, z forward, in a world with Z up.
    pose[:3, :3] = [[1, 0, 0], [0, -np.sin(angle), np.cos(angle)], [0, -np.cos(angle), -np.sin(angle)]]
    pose[:3, 3] = [5.0, -2.0, 1.4]
    scene = completer(None, depth, pose)
    assert scene.world_from_given is not None
    np.testing.assert_allclose(scene.world_from_given @ pose, scene.world_from_camera, atol=1e-6)
    for wrong in (np.eye(3), np.full((4, 4), np.nan), 2 * np.eye(4)):
        with pytest.raises(DataError, match="pose"):
            completer(None, depth, wrong)


def test_intrinsics_in_every_form(weights: Path, tmp_path: Path) -> None:
    fx, fy, cx, cy = INTRINSICS
    matrix = [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]
    (tmp_path / "k.txt").write_text(f"{fx} {fy} {cx} {cy}\n")
    by_name = dict(zip(("fx", "fy", "cx", "cy"), INTRINSICS, strict=True))
    numbers = (by_name, INTRINSICS, list(INTRINSICS), f"{fx},{fy},{cx},{cy}", tmp_path / "k.txt")
    for form in (*numbers, np.array(matrix), {"K": np.array(matrix)}):
        assert SceneCompleter(weights, intrinsics=form).settings.intrinsics.camera == Camera(*INTRINSICS)
    of_numpy = {name: np.float32(number) for name, number in by_name.items()}  # no Python float
    camera = SceneCompleter(weights, intrinsics=of_numpy).settings.intrinsics.camera
    assert camera == Camera(*(float(number) for number in of_numpy.values()))
    with pytest.raises(DataError, match="intrinsics"):
        SceneCompleter(weights, intrinsics=[1.0, 2.0])
    with pytest.raises(DataError, match="intrinsics given: expected .* found no cy"):
        SceneCompleter(weights, intrinsics={"fx": fx, "fy": fy, "cx": cx})


def test_a_frame_surer_of_the_vertical_than_those_before_makes_it_sure(
    completer: SceneCompleter, monkeypatch: pytest.MonkeyPatch
) -> None:
    completer.forget()
    unsure = completer(None, room_depth()).own.placement
    assert unsure.up_confidence == unsure.floor.confidence == "likely"
    kept = completer(None, room_depth()).own.placement
    assert kept.is_continued and kept.up_confidence == "likely"
    assert kept.floor.confidence == "likely"  # no more certain than the vertical

    find_vertical = placement.find_vertical

    def surely(*arguments: Any, **options: Any) -> Any:
        found = find_vertical(*arguments, **options)
        return dataclasses.replace(found, confidence="sure")

    monkeypatch.setattr(placement, "find_vertical", surely)
    surer = completer(None, room_depth()).own.placement
    assert surer.is_continued and surer.up_confidence == surer.floor.confidence == "sure"
    assert "kept from the frame before" in surer.up_reason and "found in the depth" in surer.up_reason
    # A sure vertical takes the place of an unsure one that is far off.
    monkeypatch.setattr(placement, "_SAME_VERTICAL", -1.0)
    completer._previous = unsure
    again = completer(None, room_depth()).own.placement
    assert not again.is_continued and again.up_confidence == "sure"
    np.testing.assert_allclose(again.up, unsure.up, atol=0.02)


def test_a_frame_without_pose_keeps_nothing_of_the_pose_before(completer: SceneCompleter) -> None:
    completer.forget()
    with_pose = completer(None, room_depth(), np.eye(4)[:3])
    assert with_pose.world_from_given is not None
    without = completer(None, room_depth())
    assert without.own.placement.is_continued and without.world_from_given is None


@pytest.mark.parametrize(
    ("label_map", "message"),
    [
        (np.full((480, 640), 1.5), "label map: expected whole numbers"),
        (np.full((480, 640), 300), r"label map: expected one channel of classes 0\.\.13 .* found up to 300"),
        (np.full((480, 640), -1), r"classes 0\.\.13 \(0 void\), found -1$"),
        (np.zeros((480, 640, 3), np.uint8), r"found uint8 of shape \[480, 640, 3\]"),
        (np.zeros((480, 480), np.uint8), "label map: expected the proportions"),
        ([[1, 2], [3]], "label map: expected .* of numbers, found"),
        ("map.png", "label map: expected .* of numbers, found str"),
    ],
)
def test_label_maps_that_are_none_are_refused(completer: SceneCompleter, label_map: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        completer(np.zeros((480, 640, 3), np.uint8), room_depth(), label_map=label_map)


def test_inputs_that_the_weights_do_not_read_are_said(completer: SceneCompleter) -> None:
    color, label_map = np.zeros((480, 640, 3), np.uint8), np.zeros((480, 640), np.uint8)
    said = completer(color, room_depth(), label_map=label_map).describe()
    assert any("label map: these weights do not read it; the shipped nyu_seg2d_w64 does" in line for line in said)
    assert any("color image: these weights do not read it (they read depth alone)" in line for line in said)
    assert not any("do not read" in line for line in completer(None, room_depth()).describe())


def test_invalid_arguments_are_refused(completer: SceneCompleter, weights: Path) -> None:
    for wrong, message in (
        ({"depth_scale": 0}, "`depth_scale`: expected units per meter above 0, found 0"),
        ({"depth_scale": float("nan")}, "depth_scale"),
        ({"depth_scale": "1000"}, "`depth_scale`: expected units per meter above 0, found '1000'"),
        ({"pose_up": "up"}, "`pose_up`: expected one of x, y, z, -x, -y, -z, found 'up'"),
        ({"label_map_classes": "coco"}, "`label_map_classes`: expected one of nyu13, .* found 'coco'"),
        ({"camera_height": -1}, "`camera_height`: expected meters above 0 and below 100, found -1"),
        ({"camera_height": 150}, "`camera_height`: expected meters above 0 and below 100, found 150"),
        ({"depth_encoding": "inches"}, "`depth_encoding`: expected one of auto, .* found 'inches'"),
    ):
        with pytest.raises(ValueError, match=message):
            SceneCompleter(weights, intrinsics=INTRINSICS, **wrong)  # type: ignore[arg-type]
    for name in ("", " ", "a/b", "..", "a\0b", 7):
        with pytest.raises(DataError, match="name"):
            completer(None, room_depth(), name=name)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="exif_turn"):
        completer(None, room_depth(), exif_turn=45)
    for depth in (None, "depth.png", [[1, 2], [3]]):
        with pytest.raises(DataError, match="depth"):
            completer(None, depth)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="pose"):
        completer(None, room_depth(), "pose.txt")


@pytest.mark.filterwarnings("error")
def test_noise_after_a_room_is_no_reason_for_warnings(completer: SceneCompleter) -> None:
    completer.forget()
    completer(None, room_depth())
    noise = np.random.default_rng(0).integers(500, 5000, (480, 640)).astype(np.uint16)
    completer(None, noise)
    again = completer(None, room_depth())
    assert again.world_from_camera[2, 3] == pytest.approx(1.4, abs=0.05)


def test_a_field_of_view_that_no_camera_has_is_said(completer: SceneCompleter, weights: Path) -> None:
    fx, fy, cx, cy = INTRINSICS
    slipped = SceneCompleter(weights, intrinsics={"fx": 10 * fx, "fy": 10 * fy, "cx": cx, "cy": cy})
    said = slipped(None, room_depth()).describe()
    assert any("sees 7.1 degrees from left to right, less than any RGB-D camera" in line for line in said)
    assert not any("degrees from left to right" in line for line in completer(None, room_depth()).describe())


def test_what_cannot_be_completed_is_said(completer: SceneCompleter, weights: Path) -> None:
    with pytest.raises(WeightsError, match="expected a file with weights"):
        SceneCompleter("no_such_weights", intrinsics=INTRINSICS)
    with pytest.raises(ValueError, match="rotate"):
        SceneCompleter(weights, intrinsics=INTRINSICS, rotate=45)
    with pytest.raises(ValueError, match="rotate"):
        SceneCompleter(weights, intrinsics=INTRINSICS, rotate=90.0)  # type: ignore[arg-type]
    for depth in (np.zeros((480, 640), np.float32), np.zeros((480, 640, 3), np.uint8), np.zeros((0, 4), np.uint16)):
        with pytest.raises(DataError):
            completer(None, depth)
    with pytest.raises(DataError, match="color"):
        completer(np.zeros((480, 640), np.uint8), room_depth())
    seg2d = SceneCompleter.__new__(SceneCompleter)
    seg2d.__dict__.update(completer.__dict__)
    seg2d.model = SceneCompleter("nyu_seg2d_w64", intrinsics=INTRINSICS).model
    with pytest.raises(
        ValueError,
        match=r"label map: expected one[\s\S]*weights='nyu_rgb_w64'` reads the color image, `weights='nyu_depth_w64'",
    ):
        seg2d(None, room_depth())


def test_no_heavy_package_is_imported_for_what_reads_no_image(weights: Path) -> None:
    program = (
        "import sys\n"
        "from ammnet_sparse import SceneCompleter\n"
        f"SceneCompleter({str(weights)!r}, intrinsics={INTRINSICS!r})\n"
        "heavy = ['timm', 'torchvision', 'torch._dynamo', 'tensorboard', 'torchmetrics', 'triton', 'spconv']\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout


_TENSOR_FORMS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "half": torch.Tensor.half,
    "bfloat16": torch.Tensor.bfloat16,
    "sparse": torch.Tensor.to_sparse,
    "csr": torch.Tensor.to_sparse_csr,
    "float8": lambda tensor: tensor.to(torch.float8_e4m3fn),
    "gradient": lambda tensor: tensor.clone().requires_grad_(),
    "turned": lambda tensor: tensor.t().contiguous().t(),
    "meta": lambda tensor: tensor.to("meta"),
    "complex": lambda tensor: tensor.to(torch.complex64),
    "nested": lambda tensor: torch.nested.nested_tensor([tensor, tensor]),
}


@pytest.mark.filterwarnings("ignore:.*(sparse|nested|quantiz)")
@pytest.mark.parametrize("form", _TENSOR_FORMS)
def test_tensors_of_any_kind_are_numbers_or_refused(form: str) -> None:
    values = torch.from_numpy(np.random.default_rng(0).choice([0.0, 0.5, 1.0, 1.5, 2.0, 4.0], (6, 6)))
    tensor = _TENSOR_FORMS[form](values)
    if form in ("meta", "complex", "nested"):
        for read in (as_array, lambda value, *names: intrinsics_of({"K": value})):
            with pytest.raises(DataError, match="depth|intrinsics"):
                read(tensor, "depth", "[rows, columns]")
    else:
        np.testing.assert_array_equal(as_array(tensor, "depth", "[rows, columns]").astype(np.float64), values.numpy())


def test_numbers_that_no_float_holds_and_devices_without_values_are_refused(weights: Path) -> None:
    for name in ("depth_scale", "camera_height"):
        with pytest.raises(DataError, match=name):
            SceneCompleter(weights, intrinsics=INTRINSICS, **{name: 10**400})
    for device in ("meta", torch.device("meta")):
        with pytest.raises(ValueError, match="device: .*meta"):
            SceneCompleter(weights, intrinsics=INTRINSICS, device=device)


def test_a_forked_process_completes_frames(weights: Path) -> None:
    """Threads of PyTorch are not forked; the child must not wait for them."""
    script = (
        "import os, signal, sys\n"
        "from ammnet_sparse import SceneCompleter\n"
        "from tests.completion import room_depth\n"
        f"completer = SceneCompleter({str(weights)!r}, intrinsics={INTRINSICS!r})\n"
        "before = completer(None, room_depth()).labels\n"
        "if os.fork():\n"
        "    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))\n"
        "signal.alarm(100)\n"
        "completer.forget()\n"
        "os._exit(not (completer(None, room_depth()).labels == before).all())\n"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "2", "PYTHONPATH": str(Path(__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", script], env=environment, check=False).returncode == 0
