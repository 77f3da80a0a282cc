"""Chromium without a window, driven over a pipe by the DevTools protocol."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)

REQUIRED = sys.platform == "linux" and bool(os.environ.get("CI"))
"""Whether tests of pages fail without Chromium. Otherwise, they are skipped."""

needs_browser = pytest.mark.skipif(
    not CHROMIUM and not REQUIRED, reason="Chromium is not installed"
)

OPTIONS = ("--headless=new", "--no-sandbox", "--remote-debugging-pipe")
GPU = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader")
"""Options of WebGPU, which is computed on the processor."""
NO_GPU = "No available adapters."
"""What Chromium logs if a page asks for WebGPU and there is none."""


class Browser:
    """A browser with one page. Use it as a context.

    Attributes:
        errors: what pages wrote to the console, and exceptions that nothing caught.
    """

    def __init__(
        self, profile: Path, width: int = 1440, *, dark: bool = False, gpu: bool = False
    ) -> None:
        assert CHROMIUM, "Chromium is not installed: apt-get install chromium"
        options = GPU if gpu else ("--disable-gpu",)
        (read, self.out), (self.back, write) = os.pipe(), os.pipe()

        def connect() -> None:
            os.dup2(os.dup(read), 3)
            os.dup2(os.dup(write), 4)

        self.process = subprocess.Popen(
            [CHROMIUM, *OPTIONS, *options, f"--user-data-dir={profile}", "about:blank"],
            preexec_fn=connect, pass_fds=(3, 4), stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(read)
        os.close(write)
        self.errors: list[str] = []
        self.count, self.rest, self.session = 0, b"", ""
        (page,) = [t for t in self.send("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        attach = {"targetId": page["targetId"], "flatten": True}
        self.session = self.send("Target.attachToTarget", **attach)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.send("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.out)
        os.close(self.back)

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command, and return its result."""
        self.count += 1
        own = {"sessionId": self.session} if self.session else {}
        text = json.dumps({"id": self.count, "method": method, "params": params, **own})
        os.write(self.out, text.encode() + b"\0")
        while True:
            message = self._read()
            if message.get("id") == self.count:
                assert "error" not in message, message
                found: dict[str, Any] = message["result"]
                return found
            self._note(message)

    def _read(self, seconds: float = 60) -> dict[str, Any]:
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.back], [], [], seconds)
            part = os.read(self.back, 1 << 20) if ready else b""
            assert part, "the browser does not answer"
            self.rest += part
        text, _, self.rest = self.rest.partition(b"\0")
        found: dict[str, Any] = json.loads(text)
        return found

    def _note(self, message: dict[str, Any]) -> None:
        kind, params = message.get("method"), message.get("params", {})
        if kind == "Runtime.exceptionThrown":
            self.errors.append(params["exceptionDetails"]["exception"].get("description", "?"))
        elif kind == "Runtime.consoleAPICalled":
            self.errors.append(str([each.get("value") for each in params["args"]]))
        elif kind == "Log.entryAdded" and params["entry"]["text"] != NO_GPU:
            self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")

    def open(self, url: str) -> None:
        """Load a page."""
        assert "errorText" not in self.send("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def evaluate(self, code: str) -> Any:
        """Return the value of JavaScript in the page, awaited."""
        options = {"expression": code, "awaitPromise": True, "returnByValue": True}
        found = self.send("Runtime.evaluate", **options)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, code: str, seconds: float = 60) -> None:
        """Wait until JavaScript in the page is true."""
        end = time.monotonic() + seconds
        while not self.evaluate(code):
            assert time.monotonic() < end, code
            time.sleep(0.05)

    def click(self, selector: str, right: float = 0.5, down: float = 0.5) -> None:
        """Press the mouse on an element, at fractions of its width and height."""
        left, top, width, height = self.evaluate(
            "(({left, top, width, height}) => [left, top, width, height])"
            f"(document.querySelector({json.dumps(selector)}).getBoundingClientRect())"
        )
        point = {"x": left + right * width, "y": top + down * height}
        for kind in ("mousePressed", "mouseReleased"):
            press = {"type": kind, "button": "left", "buttons": 1, "clickCount": 1}
            self.send("Input.dispatchMouseEvent", **press, **point)

    def screenshot(self, path: Path) -> None:
        """Write a picture of the whole page."""
        found = self.send("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    @property
    def scrolls_sideways(self) -> bool:
        """Whether the page is wider than the window."""
        return bool(self.evaluate("document.documentElement.scrollWidth > innerWidth"))
