"""The page of the viewer, and the command that fills it."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest

from ammnet_sparse import SceneCompleter
from ammnet_sparse.cli.main import main
from ammnet_sparse.files.errors import DataError
from ammnet_sparse.live import viewer as module
from ammnet_sparse.live.viewer import LiveViewer
from ammnet_sparse.pictures.page import Scene
from ammnet_sparse.pictures.room_files import room_scene
from ammnet_sparse.scene_map.volume import UNKNOWN_LABEL
from tests.completion import INTRINSICS, room_depth
from tests.pictures.browser import Browser, find_chromium
from tests.pictures.rooms import ORIGIN, TABLE, box_labels, map_volume
from tests.pictures.test_page import volumes_of
from tests.pictures.test_page_in_browser import PATH_COLOR, pixels_of

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def completer(weights: Path) -> SceneCompleter:
    return SceneCompleter(weights, intrinsics=INTRINSICS, keeps_camera=False)


@pytest.fixture
def viewer() -> Iterator[LiveViewer]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        viewer = LiveViewer(port=port)
        assert viewer.address.startswith("http://127.0.0.1:") and not viewer.address.endswith(f":{port}")
        yield viewer
    viewer.stop()


@pytest.mark.parametrize("host", ["192.0.2.7", "300.1.1.1"])  # of no machine, and no address
def test_an_address_that_nothing_can_listen_at_is_refused(host: str) -> None:
    with pytest.raises(DataError, match=f"`host={host}`, `port=8080`"):
        LiveViewer(host=host)


def write_room(folder: Path, name: str) -> None:
    folder.mkdir(exist_ok=True)
    iio.imwrite(folder / f"{name}.color.png", np.full((480, 640, 3), 90, np.uint8))
    iio.imwrite(folder / f"{name}.depth.png", np.round(1000 * room_depth()).astype(np.uint16))


def get(address: str) -> tuple[int, bytes]:
    with urllib.request.urlopen(address, timeout=10) as answer:
        return answer.status, answer.read()


def test_the_newest_scene_is_served(
    viewer: LiveViewer, completer: SceneCompleter, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, page = get(viewer.address)
    assert status == 200 and b"connect-src 'self'" in page and b'"live":true' in page
    monkeypatch.setattr(module, "_MOST_WAITING", 0.05)
    assert get(f"{viewer.address}/newest?after=0") == (204, b"")
    for path in ("newest", "newest?after=-1", "newest?after=0&x", "../etc/passwd"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(f"{viewer.address}/{path}")
    scene = completer(None, room_depth(), name="one")
    viewer.show(scene, rate=None)
    newest = json.loads(get(f"{viewer.address}/newest?after=0")[1])
    assert newest["number"] == 1 and newest["scene"]["name"] == "one"
    assert volumes_of(newest["scene"])[: scene.labels.size] == scene.labels.tobytes()
    assert get(f"{viewer.address}/newest?after=1")[0] == 204
    viewer.show(scene, rate=2.0)
    newest = json.loads(get(f"{viewer.address}/newest?after=1")[1])
    assert newest["number"] == 2 and "2.0 frames per second" in newest["scene"]["note"]
    assert all(word in newest["scene"]["note"] for word in ("network", "vertical: likely", "(likely)"))


def test_scenes_are_not_told_to_sites_whose_name_points_here(viewer: LiveViewer) -> None:
    port = viewer.address.rpartition(":")[2]
    for name, status in (("localhost", 200), ("[::1]", 200), ("site.example", 403), ("[", 403)):
        request = urllib.request.Request(viewer.address, headers={"Host": f"{name}:{port}"})
        try:
            found = urllib.request.urlopen(request, timeout=10).status
        except urllib.error.HTTPError as error:
            found = error.code
        assert found == status


def test_a_browser_shows_frames_as_they_come(viewer: LiveViewer, completer: SceneCompleter, tmp_path: Path) -> None:
    """Names are text, whatever is in them."""
    program = find_chromium()
    if program is None:
        pytest.skip("needs Chromium to look with (Debian: apt-get install chromium), and there is none")
    with Browser(program, tmp_path / "profile") as browser:
        page = browser.open(viewer.address)
        assert page.evaluate("document.querySelector('#state').textContent") == "Waiting for the first frame."
        names = [
            os.fsdecode(b"\xff.\xfe"),
            "<iframe srcdoc='<script>parent.document.body.remove()<\\/script>'>",
            "<img src=x onerror=stop()>",
        ]
        scene = completer(None, room_depth(), name="0")
        for name in names:
            frame = dataclasses.replace(scene.own, frame_id=name)
            viewer.show(dataclasses.replace(scene, frame=frame), rate=1.0)
            page.wait_for(f"document.querySelector('#note').textContent.startsWith({json.dumps(name)})")
        assert page.evaluate("document.querySelectorAll('iframe, #note img').length") == 0
        assert len(np.unique(page.screenshot("#canvas").reshape(-1, 3), axis=0)) > 20  # a scene is drawn
        page.click("#follow")
        viewer.show(scene, rate=1.0)
        viewer.stop()
        page.click("#follow")
        page.wait_for("document.querySelector('#state').textContent.startsWith('No answer')")
        assert page.evaluate("document.querySelector('#state').hidden") is False
        assert page.evaluate("document.querySelector('#note').textContent").startswith(names[-1])  # what was held


def test_the_room_is_encoded_once_a_pause(completer: SceneCompleter, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not at all while nobody asks."""
    monkeypatch.setattr(module, "_ROOM_SECONDS", 0.2)
    viewer = LiveViewer(port=9700, has_room=True)
    scene = completer(None, room_depth(), name="one")
    made = []

    def room() -> Scene:
        made.append(time.monotonic())
        return room_scene(map_volume(box_labels((20, 12, 24)), num_frames=len(made)))

    try:
        for _ in range(3):
            viewer.show(scene, rate=1.0, room=room)
        assert made == []
        number = 0
        for _ in range(3):
            answer = json.loads(get(f"{viewer.address}/room?after={number}")[1])
            number = answer["number"]
            assert len(answer["scene"]["path"]) == len(made)
            viewer.show(scene, rate=1.0, room=room)
        assert len(made) == 3 and min(np.diff(made)) >= 0.19
    finally:
        viewer.stop()


def test_a_browser_shows_the_room_as_it_grows(completer: SceneCompleter, tmp_path: Path) -> None:
    """A view that somebody has turned to stays where it is in the room; the frame alone is a click away."""
    program = find_chromium()
    if program is None:
        pytest.skip("needs Chromium to look with (Debian: apt-get install chromium), and there is none")
    viewer = LiveViewer(port=9710, has_room=True)
    scene = completer(None, room_depth(), name="frame")
    small = map_volume(box_labels((40, 20, 40)))
    labels = np.full((60, 20, 50), UNKNOWN_LABEL, dtype=np.uint8)
    labels[20:, :, 10:] = small.labels
    labels[2:20, 0, 2:20] = TABLE
    grown = dataclasses.replace(
        map_volume(labels), poses=small.poses[[0, *range(len(small.poses))]], origin=np.array(ORIGIN) - [1.6, 0.8, 0]
    )
    with Browser(program, tmp_path / "profile") as browser:
        page = browser.open(viewer.address)
        viewer.show(scene, rate=1.0, room=lambda: room_scene(small))
        page.wait_for("/^frame, 1.0 frames[^]*3 frames in/.test(document.querySelector('#note').textContent)")
        assert page.evaluate("document.querySelector('.caption span').textContent") == "Room"
        x, y = page.middle_of("#canvas")
        page.drag((x, y), (x + 30, y))
        before = pixels_of(page.screenshot("#canvas"), PATH_COLOR)
        viewer.show(scene, rate=1.0, room=lambda: room_scene(grown))
        page.wait_for("/^frame, 1.0 frames[^]*4 frames in/.test(document.querySelector('#note').textContent)")
        page.settle()
        after = pixels_of(page.screenshot("#canvas"), PATH_COLOR)
        assert before.sum() > 100 and (before & after).sum() > 0.9 * before.sum()
        page.click("#frame-only")
        page.settle()
        assert page.evaluate("document.querySelector('.caption span').textContent") != "Room"
        assert "4 frames in" not in page.evaluate("document.querySelector('#note').textContent")
        page.click("#frame-only")
        page.settle()
        assert (pixels_of(page.screenshot("#canvas"), PATH_COLOR) & after).sum() > 0.9 * after.sum()
        assert page.complaints() == []
    viewer.stop()


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_ends_with_its_code_and_a_summary(weights: Path, tmp_path: Path, number: int) -> None:
    command = [sys.executable, "-u", "-m", "ammnet_sparse", "live", "--source", str(tmp_path), "--no-viewer"]
    command += ["--checkpoint", str(weights), "--intrinsics", ",".join(map(str, INTRINSICS)), "--device", "cpu"]
    with subprocess.Popen(
        command,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    ) as process:
        assert process.stdout is not None
        assert any("Ready in" in line for line in process.stdout)
        process.send_signal(number)
        printed, _ = process.communicate(timeout=20)
        assert process.returncode == 130 and "0 frames completed" in printed
