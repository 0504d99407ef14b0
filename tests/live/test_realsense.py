"""A RealSense camera that is not there."""

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ammnet_sparse.files.errors import DataError
from ammnet_sparse.live.realsense import RealSenseSource


class FakeRealSense(types.ModuleType):
    """As much of pyrealsense2 as the source uses: two frames, then the end."""

    def __init__(self, color_format: str, *, error: str = "") -> None:
        super().__init__("pyrealsense2")
        self.stream = types.SimpleNamespace(depth="depth", color="color")
        self.format = types.SimpleNamespace(z16="z16", rgb8="rgb8", bgr8="bgr8", rgba8="rgba8", bgra8="bgra8")
        self.color_format, self.error = color_format, error
        self.calls: list[Any] = []
        self.left = 2

    def config(self) -> Any:
        record = lambda *arguments, **options: self.calls.append((arguments, options))  # noqa: E731
        return types.SimpleNamespace(enable_stream=record, enable_device_from_file=record)

    def pipeline(self) -> Any:
        return types.SimpleNamespace(
            start=self._start, wait_for_frames=self._wait, stop=lambda: self.calls.append("stop")
        )

    def align(self, stream: str) -> Any:
        assert stream == "color"
        return types.SimpleNamespace(process=lambda frames: frames)

    def _start(self, config: Any) -> Any:
        if self.error:
            raise RuntimeError(self.error)
        intrinsics = types.SimpleNamespace(fx=600.0, fy=601.0, ppx=320.0, ppy=240.0, width=640, height=480)
        video = types.SimpleNamespace(get_intrinsics=lambda: intrinsics)
        stream = types.SimpleNamespace(as_video_stream_profile=lambda: video)
        sensor = types.SimpleNamespace(get_depth_scale=lambda: 0.00025)
        device = types.SimpleNamespace(first_depth_sensor=lambda: sensor)
        return types.SimpleNamespace(get_stream=lambda kind: stream, get_device=lambda: device)

    def _wait(self) -> Any:
        if self.left == 0:
            raise RuntimeError("Frame didn't arrive within 5000")
        self.left -= 1
        profile = types.SimpleNamespace(format=lambda: self.color_format)
        color = np.zeros((4, 6, 3), np.uint8)
        color[..., 0] = 9
        number = 2 - self.left
        return types.SimpleNamespace(
            get_color_frame=lambda: types.SimpleNamespace(
                get_data=lambda: color, get_profile=lambda: profile, get_frame_number=lambda: number
            ),
            get_depth_frame=lambda: types.SimpleNamespace(get_data=lambda: np.full((4, 6), 4000, np.uint16)),
        )


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "recording.bag"
    path.write_bytes(b"#ROSBAG")
    return path


@pytest.mark.parametrize(("kind", "channel"), [("rgb8", 0), ("bgr8", 2)])
def test_a_recording_is_read_to_its_end(
    recording: Path, kind: str, channel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeRealSense(kind)
    monkeypatch.setitem(sys.modules, "pyrealsense2", fake)
    source = RealSenseSource(recording)
    assert source.intrinsics.camera.fx == 600 and source.intrinsics.size == (480, 640)
    assert source.depth_scale == pytest.approx(4000)
    found = list(source.frames())
    assert [frame.name for frame in found] == ["000001", "000002"] and "stop" in fake.calls
    assert found[0].color is not None and found[0].color[0, 0, channel] == 9 and found[0].depth[0, 0] == 4000
    assert fake.calls[0] == ((str(recording),), {"repeat_playback": False})


def test_a_camera_that_fails_is_said(recording: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyrealsense2", FakeRealSense("rgb8", error="No device connected"))
    with pytest.raises(DataError, match=r"a RealSense camera cannot be opened \(No device connected\)"):
        RealSenseSource()
    monkeypatch.setitem(sys.modules, "pyrealsense2", FakeRealSense("y16"))
    with pytest.raises(DataError, match="expected rgb8, bgr8, rgba8 or bgra8, found y16"):
        list(RealSenseSource(recording).frames())
    monkeypatch.setitem(sys.modules, "pyrealsense2", FakeRealSense("rgb8"))
    live = RealSenseSource()
    with pytest.raises(DataError, match="stopped delivering frames"):
        list(live.frames())
    with pytest.raises(DataError, match="expected a recording"):
        RealSenseSource(recording.with_name("absent.bag"))
    monkeypatch.setitem(sys.modules, "pyrealsense2", None)
    with pytest.raises(DataError, match=r"pip install ammnet-sparse\[realsense\]"):
        RealSenseSource()
