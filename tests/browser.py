"""A headless Chromium for tests of pages, spoken to over a pipe by its DevTools protocol: no further package needed."""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class Browser:
    """One page of a browser without network.

    Raises:
        pytest.skip: there is no Chromium here.
    """

    def __init__(self, width: int = 1280, height: int = 900) -> None:
        program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
        if program is None:
            pytest.skip("no Chromium: apt-get install chromium, or name one by the variable CHROMIUM")
        self._folder = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        reading, given = os.pipe()
        taken, writing = os.pipe()
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (reading, writing)]  # 3 and 4 are Chromium's

        def wire() -> None:
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        flags = [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe",
            "--host-resolver-rules=MAP * ~NOTFOUND", "--force-color-profile=srgb", "--no-first-run",
            f"--user-data-dir={self._folder.name}", f"--window-size={width},{height}", "about:blank",
        ]  # fmt: skip
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen([program, *flags], close_fds=False, preexec_fn=wire, **quiet)
        for end in (reading, writing, *ends):
            os.close(end)
        self._out, self._in = os.fdopen(given, "wb"), os.fdopen(taken, "rb")
        self._numbers, self._rest = itertools.count(1), b""
        self._session = None
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.messages: list[str] = []
        self("Runtime.enable")
        self("Page.enable")
        self.size(width, height)

    def __call__(self, method: str, **params: Any) -> dict:
        """Send a command, return its result."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._out.write(json.dumps(message).encode() + b"\0")
        self._out.flush()
        while True:
            while b"\0" not in self._rest:
                block = os.read(self._in.fileno(), 1 << 20)
                if not block:
                    raise RuntimeError(f"Chromium has ended, code {self._process.wait()}")
                self._rest += block
            line, self._rest = self._rest.split(b"\0", 1)
            answer = json.loads(line)
            if answer.get("method") in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
                self.messages.append(json.dumps(answer["params"])[:2000])
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def open(self, path: Path) -> None:
        """Open a file and wait until its script is ready."""
        self("Page.navigate", url=path.resolve().as_uri())
        self.run("new Promise(done => { const look = () => document.readyState === 'complete' ? done() : "
                 "setTimeout(look, 20); look(); })")  # fmt: skip
        self.run("ready")

    def run(self, script: str) -> Any:
        """The value of an expression, awaited."""
        found = self("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True)
        if "exceptionDetails" in found:
            raise RuntimeError(json.dumps(found["exceptionDetails"])[:2000])
        return found["result"].get("value")

    def press(self, key: str, code: int, text: str = "") -> None:
        """Press and release a key."""
        for kind in ("keyDown", "keyUp"):
            more = {"text": text} if text and kind == "keyDown" else {}
            self("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more)

    def size(self, width: int, height: int, dark: bool = False) -> None:
        """Of the window, and the colors that the system prefers."""
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500)
        value = "dark" if dark else "light"
        self("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": value}])

    def shot(self, path: Path, whole: bool = True) -> None:
        """A PNG of the page."""
        data = self("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def close(self) -> None:
        """End the browser."""
        self._out.close()
        self._process.terminate()
        self._process.wait(timeout=30)
        self._in.close()
        self._folder.cleanup()
