"""The newest scene in a browser: a viser page that stays open while scenes are replaced."""

import errno
import socket
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ammnet_sparse.data.grid import EMPTY_LABEL
from ammnet_sparse.data.set_info import NYU, SetInfo
from ammnet_sparse.files.errors import DataError, reason
from ammnet_sparse.pictures.outputs import CompletedScene
from ammnet_sparse.pictures.ply import voxel_surface

LOCAL_HOST = "127.0.0.1"
_IMAGE_ROWS = 240
"""Approximate number of rows of the color image shown."""


class LiveViewer:
    """Shows one scene at a time: a mesh per class, the color image and the time by stage.

    Args:
        host: address to listen at; 127.0.0.1 can only be reached from this machine.
        port: of the page; if it is in use, the next free one.
        info: the set that the network was trained on, which names the classes.

    Raises:
        DataError: viser is not installed, or nothing can listen at that address.
    """

    def __init__(self, *, host: str = LOCAL_HOST, port: int = 8080, info: SetInfo = NYU) -> None:
        self.info = info
        viser = _viser()
        _check_address(host, port)
        self.server: Any = viser.ViserServer(host=host, port=port, label="AMMNet-sparse", verbose=False)
        self.server.scene.set_up_direction("+z")
        self.host = host
        self.status = self.server.gui.add_markdown("waiting for a frame")
        self.image = self.server.gui.add_image(np.zeros((3, 4, 3), dtype=np.uint8), label="Color", format="jpeg")
        self.meshes: dict[int, Any] = {}
        self.boxes: dict[int, Any] = {}
        with self.server.gui.add_folder("Classes"):
            for label, name in enumerate(info.class_names):
                if label != EMPTY_LABEL:
                    self.boxes[label] = self.server.gui.add_checkbox(name, initial_value=label != info.ceiling)
                    self.boxes[label].on_update(lambda _, label=label: self._toggle(label))
            self.everything = self.server.gui.add_checkbox("doubtful voxels too", initial_value=False)
        self.everything.on_update(lambda _: self._draw())
        self._shown: CompletedScene | None = None

    @property
    def address(self) -> str:
        """The address of the page."""
        return f"http://{self.host}:{self.server.get_port()}"

    def show(self, scene: CompletedScene, color: NDArray[np.uint8] | None, *, rate: float | None) -> None:
        """Replaces the scene.

        Args:
            color: [rows, columns, 3] uint8, upright, or None.
            rate: recent frames per second, or None for the first frame.
        """
        self._shown = scene
        stages = ", ".join(f"{name} {1000 * seconds:.0f} ms" for name, seconds in scene.seconds.items())
        placement = scene.own.placement
        self.status.content = "\n\n".join(
            [
                f"**{scene.name}**" + ("" if rate is None else f", {rate:.1f} frames per second"),
                stages,
                f"up: {placement.up_confidence}; floor: {placement.floor.confidence}, camera "
                f"{placement.floor.below:.2f} m above it",
            ]
        )
        if color is not None:
            step = max(color.shape[0] // _IMAGE_ROWS, 1)
            self.image.image = np.ascontiguousarray(color[::step, ::step])
        self._draw()

    def stop(self) -> None:
        """Closes the page's server."""
        self.server.stop()

    def _toggle(self, label: int) -> None:
        if label in self.meshes:
            self.meshes[label].visible = self.boxes[label].value

    def _draw(self) -> None:
        if self._shown is None:
            return
        scene = self._shown
        drawn = scene.labels != EMPTY_LABEL
        if not self.everything.value:
            drawn &= scene.reliable_mask
        corners, classes, faces = voxel_surface(scene.labels, drawn)
        vertices = scene.origin + self.info.voxel_size * corners[:, [0, 2, 1]]
        triangles = np.concatenate([faces[:, [0, 1, 2]], faces[:, [0, 2, 3]]])
        of_class = classes[triangles[:, 0]] if len(triangles) else np.zeros(0, dtype=np.uint8)
        with self.server.atomic():
            for label in [label for label in self.meshes if not (of_class == label).any()]:
                self.meshes.pop(label).remove()
            for label in np.unique(of_class).tolist():
                used, index = np.unique(triangles[of_class == label], return_inverse=True)
                name = self.info.class_names[label]
                self.meshes[label] = self.server.scene.add_mesh_simple(
                    f"/scene/{name}",
                    vertices[used].astype(np.float32),
                    index.reshape(-1, 3).astype(np.uint32),
                    color=self.info.classes[name],
                    flat_shading=True,
                    visible=self.boxes[label].value,
                )


def _check_address(host: str, port: int) -> None:
    """Raises DataError for what viser would wait for without an end, in a thread of its own."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as trial:
            trial.bind(address)
    except (OSError, OverflowError, UnicodeError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            return  # the next free port is taken
        raise DataError(
            f"--host {host} --port {port}: expected an address of this machine and a port that is allowed, found: "
            f"{reason(error)}"
        ) from error


def _viser() -> Any:
    try:
        import viser
    except ImportError as error:
        raise DataError(
            "the viewer: expected the package viser, found none; pip install ammnet-sparse[live], or give --no-viewer"
        ) from error
    return viser
