"""The page of the viewer, and the command that fills it."""

import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest

from ammnet_sparse import SceneCompleter
from ammnet_sparse.cli.main import main
from tests.completion import INTRINSICS, room_depth, small_weights

pytest.importorskip("viser", reason="needs the extra live")

from ammnet_sparse.files.errors import DataError
from ammnet_sparse.live.viewer import LiveViewer

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def viewer() -> Iterator[LiveViewer]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    viewer = LiveViewer(port=port)
    yield viewer
    viewer.stop()


@pytest.mark.parametrize("host", ["192.0.2.7", "300.1.1.1"])  # of no machine, and no address
def test_an_address_that_nothing_can_listen_at_is_refused(host: str) -> None:
    with pytest.raises(DataError, match=f"--host {host} --port 8080: expected an address of this machine"):
        LiveViewer(host=host)


def write_room(folder: Path, name: str) -> None:
    folder.mkdir(exist_ok=True)
    iio.imwrite(folder / f"{name}.color.png", np.full((480, 640, 3), 90, np.uint8))
    iio.imwrite(folder / f"{name}.depth.png", np.round(1000 * room_depth()).astype(np.uint16))


def test_the_newest_scene_is_shown_by_class(viewer: LiveViewer, weights: Path) -> None:
    with urllib.request.urlopen(viewer.address, timeout=10) as page:
        assert page.status == 200 and b"<html" in page.read().lower()
    assert viewer.address.startswith("http://127.0.0.1:")
    scene = SceneCompleter(weights, intrinsics=INTRINSICS)(None, room_depth(), name="one")
    viewer.show(scene, np.full((480, 640, 3), 7, np.uint8), rate=None)
    shown = np.unique(scene.labels[scene.reliable_mask & (scene.labels != 0)]).tolist()
    assert sorted(viewer.meshes) == shown
    assert "one" in viewer.status.content and "network" in viewer.status.content
    assert viewer.image.image.shape == (240, 320, 3)
    label = shown[-1]
    viewer.boxes[label].value = False
    viewer._toggle(label)
    assert not viewer.meshes[label].visible
    viewer.show(scene, None, rate=2.0)
    assert not viewer.meshes[label].visible and "2.0 frames per second" in viewer.status.content
    low, high = viewer.meshes[shown[0]].vertices.min(0), viewer.meshes[shown[0]].vertices.max(0)
    assert (low >= scene.origin - 1e-3).all() and (high <= scene.origin + [4.81, 4.81, 2.89]).all()


def test_the_command_completes_what_arrives(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_room(tmp_path / "in", "0001")
    intrinsics = ",".join(map(str, INTRINSICS))
    arguments = ["live", "--source", str(tmp_path / "in"), "--intrinsics", intrinsics, "--checkpoint", str(weights)]
    code = main(
        [*arguments, "--out", str(tmp_path / "out"), "--ply", "--frames", "1", "--device", "cpu", "--port", "9871"]
    )
    output = capsys.readouterr()
    assert code == 0, output
    assert "Open http://127.0.0.1:" in output.out and "1 frame completed" in output.out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"0001.npz", "0001_points.ply", "0001_cubes.ply"}
    with np.load(tmp_path / "out" / "0001.npz", allow_pickle=False) as file:
        assert file["labels"].shape == (60, 36, 60)


def test_the_command_names_what_it_cannot_use(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    arguments = ["live", "--source", str(source), "--checkpoint", str(weights), "--no-viewer", "--device", "cpu"]
    assert main(arguments) == 2 and "expected --intrinsics of the camera" in capsys.readouterr().err
    arguments += ["--intrinsics", ",".join(map(str, INTRINSICS)), "--idle", "0.2"]
    assert main(arguments) == 1 and "no frame was completed" in capsys.readouterr().err
    iio.imwrite(source / "1.color.png", np.zeros((480, 640, 3), np.uint8))
    iio.imwrite(source / "1.depth.png", np.zeros((480, 640), np.uint16))  # nothing measured
    assert main(arguments) == 1
    output = capsys.readouterr()
    assert "skipped: frame 1:" in output.err and "no frame was completed" in output.err
    assert main(["live", "--source", "realsense", "--checkpoint", str(weights)]) in (1, 2)


def test_interruption_ends_with_its_code(weights: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-u", "-m", "ammnet_sparse", "live", "--source", str(tmp_path), "--no-viewer"]
    command += ["--checkpoint", str(weights), "--intrinsics", ",".join(map(str, INTRINSICS)), "--device", "cpu"]
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert any("Ready in" in line for line in process.stdout)
        process.send_signal(2)
        assert process.wait(timeout=20) == 130
