"""Frames of an Intel RealSense camera or of its recording."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.camera.files.intrinsics import Intrinsics
from ammnet_sparse.camera.files.stored import StoredImages
from ammnet_sparse.data.volumes.camera import Camera
from ammnet_sparse.files.errors import DataError


class RealSenseSource:
    """Color and depth of an Intel RealSense camera, depth aligned to color; needs the extra ``realsense``.

    Args:
        recording: a ``.bag`` file instead of a camera; it ends with the file.
        size: (rows, columns) of both images.
        rate: frames per second.

    Raises:
        DataError: pyrealsense2 is not installed, no camera is connected, or the recording cannot be opened.
    """

    def __init__(self, recording: Path | None = None, *, size: tuple[int, int] = (480, 640), rate: int = 30) -> None:
        self._rs = _pyrealsense()
        self._is_recording = recording is not None
        self.skipped = self.passed_over = 0
        self._stopped = threading.Event()
        config = self._rs.config()
        rows, columns = size
        if recording is None:
            config.enable_stream(self._rs.stream.depth, columns, rows, self._rs.format.z16, rate)
            config.enable_stream(self._rs.stream.color, columns, rows, self._rs.format.rgb8, rate)
        else:
            if not recording.is_file():
                raise DataError(f"`recording={recording}`: expected a recording (.bag), found nothing")
            config.enable_device_from_file(str(recording), repeat_playback=False)
        self._pipeline = self._rs.pipeline()
        try:
            profile = self._pipeline.start(config)
        except RuntimeError as error:
            what = f"the recording {recording}" if recording else "a RealSense camera"
            raise DataError(f"{what} cannot be opened ({error})") from error
        self._align = self._rs.align(self._rs.stream.color)
        stream = profile.get_stream(self._rs.stream.color).as_video_stream_profile()
        found = stream.get_intrinsics()
        self.intrinsics = Intrinsics(Camera(found.fx, found.fy, found.ppx, found.ppy), size=(found.height, found.width))
        self._units = float(profile.get_device().first_depth_sensor().get_depth_scale())
        self.depth_scale: float | None = 1 / self._units

    def stop(self) -> None:
        """Ends ``frames``."""
        self._stopped.set()

    def frames(self) -> Iterator[StoredImages]:
        """Frames by their number in the stream."""
        try:
            while not self._stopped.is_set():
                try:
                    taken = self._align.process(self._pipeline.wait_for_frames())
                except RuntimeError as error:
                    if self._is_recording:
                        return  # the end of the file
                    raise DataError(f"the RealSense camera stopped delivering frames ({error})") from error
                depth, color = taken.get_depth_frame(), taken.get_color_frame()
                if not depth or not color:
                    continue
                name = f"{int(color.get_frame_number()):06d}"
                yield StoredImages(name, self._rgb(color), np.array(depth.get_data(), copy=True))
        finally:
            self._pipeline.stop()

    def _rgb(self, frame: Any) -> NDArray[np.uint8]:
        pixels = np.array(frame.get_data(), copy=True)
        kind, formats = frame.get_profile().format(), self._rs.format
        if kind in (formats.rgb8, formats.rgba8):
            return np.ascontiguousarray(pixels[..., :3])
        if kind in (formats.bgr8, formats.bgra8):
            return np.ascontiguousarray(pixels[..., 2::-1])
        raise DataError(f"the color stream: expected rgb8, bgr8, rgba8 or bgra8, found {kind}; record it as rgb8")


def _pyrealsense() -> Any:
    try:
        import pyrealsense2
    except ImportError as error:
        raise DataError(
            "RealSense cameras: expected the package pyrealsense2, found none; pip install ammnet-sparse[realsense]"
        ) from error
    return pyrealsense2
