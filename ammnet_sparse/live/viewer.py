"""The newest scene in a browser: a page that stays open while scenes are replaced."""

import errno
import http.server
import json
import re
import socket
import socketserver
import sys
import threading
from typing import Any

from ammnet_sparse.data.set_info import NYU, SetInfo
from ammnet_sparse.files.errors import DataError, reason
from ammnet_sparse.pictures.outputs import CompletedScene
from ammnet_sparse.pictures.page import live_page, scene_data

LOCAL_HOST = "127.0.0.1"
LAST_PORT = 65535
_LOCAL_NAMES = ("127.0.0.1", "localhost", "::1")
_MOST_WAITING = 20.0
"""Seconds until a browser that waits for a scene is told that there is none, and asks again."""


class LiveViewer:
    """Serves the offline page, with one scene at a time: the newest.

    Args:
        host: address to listen at; 127.0.0.1 can only be reached from this machine.
        port: of the page; if it is in use, the next free one.
        info: the set that the network was trained on, which names the classes.

    Raises:
        DataError: nothing can listen at that address.
    """

    def __init__(self, *, host: str = LOCAL_HOST, port: int = 8080, info: SetInfo = NYU) -> None:
        self.host = host
        self.page = live_page(info, title="ammnet live").encode()
        self._newest = threading.Condition()
        self._encoding = threading.Lock()
        self._number = 0
        self._scene: CompletedScene | None = None
        self._note = ""
        self._encoded: tuple[int, bytes] = (0, b"")
        self._server = _listening(host, port, self)
        threading.Thread(target=self._server.serve_forever, name="viewer", daemon=True).start()

    @property
    def address(self) -> str:
        """The address of the page."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self._server.server_address[1]}"

    def show(self, scene: CompletedScene, *, rate: float | None) -> None:
        """Replaces the scene.

        Args:
            scene: of a camera.
            rate: recent frames per second, or None for the first frame.
        """
        stages = ", ".join(f"{name} {1000 * seconds:.0f} ms" for name, seconds in scene.seconds.items())
        speed = "" if rate is None else f", {rate:.1f} frames per second"
        note = f"{scene.name}{speed}\n{stages}\nvertical: {scene.own.placement.up_confidence}"
        with self._newest:
            self._scene, self._note = scene, note
            self._number += 1
            self._newest.notify_all()

    def answer(self, after: int) -> bytes | None:
        """The newest scene for the page's script, once it is another than number ``after``; None if it takes long."""
        with self._newest:
            self._newest.wait_for(lambda: self._number not in (0, after), timeout=_MOST_WAITING)
            number, scene, note = self._number, self._scene, self._note
        if scene is None or number == after:
            return None
        with self._encoding:
            if self._encoded[0] < number:  # by the first browser that asks, for all
                data = {"number": number, "scene": scene_data(scene.to_scene(note=note))}
                self._encoded = (number, json.dumps(data, separators=(",", ":")).encode())
            return self._encoded[1]

    def stop(self) -> None:
        """Closes the page's server."""
        self._server.shutdown()
        self._server.server_close()


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def __init__(self, host: str, port: int, viewer: LiveViewer) -> None:
        self.address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        self.viewer = viewer
        super().__init__((host, port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # a browser that has gone
            super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    timeout = 2 * _MOST_WAITING
    server: _Server

    def do_GET(self) -> None:
        # A site whose name resolves to this machine could read the scenes from its visitor's browser (DNS rebinding).
        name = re.sub(r":\d*$", "", self.headers.get("Host", "")).strip("[]")
        if self.server.viewer.host in _LOCAL_NAMES and name not in _LOCAL_NAMES:
            self._send(403, "text/plain", b"ask for localhost")
            return
        after = re.fullmatch(r"/newest\?after=([0-9]{1,9})", self.path)
        if after:
            body = self.server.viewer.answer(int(after[1]))
            self._send(204 if body is None else 200, "application/json", body or b"")
        elif self.path == "/":
            self._send(200, "text/html; charset=utf-8", self.server.viewer.page)
        else:
            self._send(404, "text/plain", b"not found")

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Requests are not listed."""


def _listening(host: str, port: int, viewer: LiveViewer) -> _Server:
    """A server at the first free port. Raises DataError where nothing can listen."""
    try:
        while True:
            try:
                return _Server(host, port, viewer)
            except OSError as error:
                if error.errno != errno.EADDRINUSE or port == LAST_PORT:
                    raise
                port += 1
    except (OSError, OverflowError, UnicodeError) as error:
        raise DataError(
            f"`host={host}`, `port={port}`: expected an address of this machine and a port that is allowed, found: "
            f"{reason(error)}"
        ) from error
