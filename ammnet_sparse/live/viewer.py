"""The newest scene, and the map of a room, in a browser: a page that stays open while scenes are replaced."""

import errno
import http.server
import json
import re
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from ammnet_sparse.data.set_info import NYU, SetInfo
from ammnet_sparse.files.errors import DataError, reason
from ammnet_sparse.pictures.outputs import CompletedScene
from ammnet_sparse.pictures.page import Scene, live_page, scene_data

LOCAL_HOST = "127.0.0.1"
LAST_PORT = 65535
_LOCAL_NAMES = ("127.0.0.1", "localhost", "::1")
_MOST_WAITING = 20.0
"""Seconds until a browser that waits for a scene is told that there is none, and asks again."""
_ROOM_SECONDS = 1.0
"""Least time between two encodings of the room."""


class LiveViewer:
    """Serves the offline page, with one scene at a time: the newest; and with a room, which grows, as ``room``.

    Args:
        host: address to listen at; 127.0.0.1 can only be reached from this machine.
        port: of the page; if it is in use, the next free one.
        info: the set that the network was trained on, which names the classes.
        has_room: scenes come with a room.

    Raises:
        DataError: nothing can listen at that address.
    """

    def __init__(
        self, *, host: str = LOCAL_HOST, port: int = 8080, info: SetInfo = NYU, has_room: bool = False
    ) -> None:
        self.host = host
        self.page = live_page(info, title="ammnet live", has_room=has_room).encode()
        self.feeds = {"newest": _Feed()} | ({"room": _Feed(pause=_ROOM_SECONDS)} if has_room else {})
        self._server = _listening(host, port, self)
        threading.Thread(target=self._server.serve_forever, name="viewer", daemon=True).start()

    @property
    def address(self) -> str:
        """The address of the page."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self._server.server_address[1]}"

    def show(self, scene: CompletedScene, *, rate: float | None, room: Callable[[], Scene] | None = None) -> None:
        """Replaces the scene.

        Args:
            scene: of a camera.
            rate: recent frames per second, or None for the first frame.
            room: makes the scene of the room as it is then; called in another thread, when a browser asks for it, at
                most once a second.
        """
        stages = ", ".join(f"{name} {1000 * seconds:.0f} ms" for name, seconds in scene.seconds.items())
        speed = "" if rate is None else f", {rate:.1f} frames per second"
        note = f"{scene.name}{speed}\n{stages}\nvertical: {scene.own.placement.up_confidence}"
        self.feeds["newest"].post(lambda: scene.to_scene(note=note))
        if room is not None:
            self.feeds["room"].post(room)

    def stop(self) -> None:
        """Closes the page's server."""
        self._server.shutdown()
        self._server.server_close()


class _Feed:
    """The newest of the scenes that the page asks for by one name.

    Args:
        pause: least seconds between two encodings.
    """

    def __init__(self, *, pause: float = 0.0) -> None:
        self._pause = pause
        self._newest = threading.Condition()
        self._encoding = threading.Lock()
        self._number = 0
        self._make: Callable[[], Scene] | None = None
        self._encoded: tuple[int, bytes] = (0, b"")
        self._encoded_at = -pause

    def post(self, make: Callable[[], Scene]) -> None:
        """Replaces the scene, which is made when a browser asks for it."""
        with self._newest:
            self._make = make
            self._number += 1
            self._newest.notify_all()

    def answer(self, after: int) -> bytes | None:
        """The newest scene for the page's script, once it is another than number ``after``; None if it takes long."""
        with self._newest:
            if not self._newest.wait_for(lambda: self._number not in (0, after), timeout=_MOST_WAITING):
                return None
        with self._encoding:
            if self._encoded[0] < self._number:  # by the first browser that asks, for all
                time.sleep(max(self._encoded_at + self._pause - time.monotonic(), 0))
                self._encode()
            return self._encoded[1]

    def _encode(self) -> None:
        self._encoded_at = time.monotonic()
        with self._newest:
            number, make = self._number, self._make
        assert make is not None
        data = {"number": number, "scene": scene_data(make(), compression=3)}
        self._encoded = (number, json.dumps(data, separators=(",", ":")).encode())


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
        asked = re.fullmatch(r"/([a-z]+)\?after=([0-9]{1,9})", self.path)
        feed = self.server.viewer.feeds.get(asked[1]) if asked else None
        if asked and feed:
            body = feed.answer(int(asked[2]))
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
