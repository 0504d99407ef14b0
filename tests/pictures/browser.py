"""A headless Chromium for tests of pages: it clicks, types and takes screenshots, without a driver or a network.

It speaks the DevTools protocol over two pipes (``--remote-debugging-pipe``), messages ended by a zero byte.
"""

import base64
import fcntl
import io
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_OPTIONS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",  # it refuses to run as root otherwise, as in CI
    "--disable-gpu",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-device-scale-factor=1",
)
_TIMEOUT_SECONDS = 60


def find_chromium() -> str | None:
    """The program, or None if there is none."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


class Browser:
    """A running Chromium with an empty profile; a context manager."""

    def __init__(self, program: str, profile: Path) -> None:
        # The program reads from descriptor 3 and writes to 4, so ours must lie above.
        to_browser, from_browser = ([fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in os.pipe()] for _ in "ab")

        def place_pipes() -> None:
            os.dup2(to_browser[0], 3)
            os.dup2(from_browser[1], 4)

        self._process = subprocess.Popen(
            [program, *_OPTIONS, f"--user-data-dir={profile}", "about:blank"],
            preexec_fn=place_pipes,
            pass_fds=(3, 4),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser[0])
        os.close(from_browser[1])
        self._write, self._read = to_browser[1], from_browser[0]
        self._numbers = itertools.count(1)
        self._received = b""
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *exception: object) -> None:
        self.call("Browser.close")
        os.close(self._write)
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)

    def call(self, method: str, session: str | None = None, /, **parameters: Any) -> dict[str, Any]:
        """The result of a command; events that arrive meanwhile are kept in ``events``."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._write, data) :]
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while True:
            answer = self._receive(deadline, method)
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self.events.append(answer)

    def open(
        self, address: str, *, size: tuple[int, int] = (1280, 800), touch: bool = False, script: str = ""
    ) -> "Page":
        """A new page in a window of (width, height) pixels; ``script`` runs before its own."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session, target)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        width, height = size
        page.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=touch)
        if touch:
            page.call("Emulation.setTouchEmulationEnabled", enabled=True)
        if script:
            page.call("Page.addScriptToEvaluateOnNewDocument", source=script)
        page.call("Page.navigate", url=address)
        page.wait_for("document.body && document.body.dataset.state === 'ready'")
        return page

    def _receive(self, deadline: float, method: str) -> dict[str, Any]:
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._read], [], [], max(deadline - time.monotonic(), 0))
            part = os.read(self._read, 1 << 20) if ready else b""
            if not part:
                raise RuntimeError(f"{method}: Chromium did not answer (exit code {self._process.poll()})")
            self._received += part
        message, _, self._received = self._received.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer


class Page:
    """A page of the browser, used as a person does."""

    def __init__(self, browser: Browser, session: str, target: str) -> None:
        self._browser, self._session, self._target = browser, session, target

    def call(self, method: str, /, **parameters: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **parameters)

    def close(self) -> None:
        self._browser.call("Target.closeTarget", targetId=self._target)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, promises awaited."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait_for(self, expression: str) -> None:
        """Waits until a JavaScript expression is true."""
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while not self.evaluate(f"Boolean({expression})"):
            if time.monotonic() > deadline:
                raise RuntimeError(f"waited in vain for {expression}")
            time.sleep(0.02)

    def click(self, selector: str) -> None:
        """A press of the left button in the middle of the element, which is scrolled into view first."""
        x, y = self.middle_of(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        self.settle()

    def drag(self, start: tuple[float, float], end: tuple[float, float], *, button: str = "left") -> None:
        """Moves the mouse with a pressed button."""
        buttons = {"left": 1, "right": 2}[button]
        middle = tuple((a + b) / 2 for a, b in zip(start, end, strict=True))
        steps = [("mousePressed", start), ("mouseMoved", middle), ("mouseMoved", end), ("mouseReleased", end)]
        for kind, (x, y) in steps:
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, buttons=buttons, clickCount=1)
        self.settle()

    def touch(self, *steps: list[tuple[float, float]]) -> None:
        """Fingers at the points of each step in turn, then lifted."""
        for index, points in enumerate(steps):
            kind = "touchMove" if index else "touchStart"
            self.call("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x, "y": y} for x, y in points])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        self.settle()

    def press(self, key: str) -> None:
        """A key for the element in focus, by its name in KeyboardEvent.key; ``Space`` for the space bar."""
        codes = {"Tab": 9, "Space": 32, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Home": 36}
        text = {"text": " ", "key": " "} if key == "Space" else {"key": key}
        for kind in ("keyDown", "keyUp"):
            extra = text if kind == "keyDown" else {"key": text["key"]}
            self.call("Input.dispatchKeyEvent", type=kind, code=key, windowsVirtualKeyCode=codes[key], **extra)
        self.settle()

    def settle(self) -> None:
        """Waits until what was changed has been drawn."""
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def middle_of(self, selector: str) -> tuple[float, float]:
        """Where the element's middle is in the window, in pixels from the top left corner."""
        left, top, width, height = self.box_of(selector)
        return left + width / 2, top + height / 2

    def box_of(self, selector: str) -> tuple[float, float, float, float]:
        """Left, top, width and height of the element in the window, scrolled into view."""
        box = self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); "
            "e.scrollIntoView({block: 'nearest'}); const b = e.getBoundingClientRect(); "
            "return [b.left, b.top, b.width, b.height]; })()"
        )
        left, top, width, height = box
        return left, top, width, height

    def screenshot(self, selector: str | None = None) -> NDArray[np.uint8]:
        """[rows, columns, 3] uint8 RGB of the window, or of the part of it that an element covers."""
        box = self.box_of(selector) if selector else None
        self.settle()
        data = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        if box is None:
            return pixels
        left, top, width, height = map(round, box)
        return pixels[top : top + height, left : left + width]

    def complaints(self) -> list[str]:
        """Errors, warnings and uncaught exceptions that the console showed."""
        found = []
        for event in self._events("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
            entry = event.get("entry", event)
            if entry.get("source") == "rendering":  # advice on the speed of the software that draws
                continue
            if event.get("exceptionDetails") or entry.get("level", entry.get("type")) in ("error", "warning", "assert"):
                found.append(json.dumps(event))
        return found

    def requests(self) -> list[str]:
        """Addresses that were asked for, data within the page left out."""
        addresses = [event["request"]["url"] for event in self._events("Network.requestWillBeSent")]
        return [address for address in addresses if not address.startswith(("data:", "blob:"))]

    def _events(self, *methods: str) -> list[dict[str, Any]]:
        self.evaluate("1")  # what came before has been received when this is answered
        events = self._browser.events
        return [
            each["params"] for each in events if each.get("sessionId") == self._session and each["method"] in methods
        ]
