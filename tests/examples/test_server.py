"""The example server under load: every request is answered, bad ones with 4xx, slow ones in time."""

from __future__ import annotations

import http.client
import io
import json
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from common import ROOT
from PIL import Image

for package in ("starlette", "uvicorn", "onnx", "onnxruntime"):
    pytest.importorskip(package)

import uvicorn  # noqa: E402
from artifacts.made import about, write  # noqa: E402

import resnext_det  # noqa: E402

sys.path.insert(0, str(ROOT / "examples"))
from server import create_app  # noqa: E402


@contextmanager
def serving(tmp_path: Path, seconds: float) -> Iterator[int]:
    """The port of a server in a thread."""
    detector = resnext_det.load_detector(write(tmp_path / "export", about(min_size=0)))
    detector.max_megapixels = 0.1
    with socket.create_server(("127.0.0.1", 0)) as listening:
        app = create_app(detector, most_bytes=100_000, seconds=seconds, threads=2)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


def ask(port: int, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def encoded(height: int, width: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), 7, dtype=np.uint8)).save(file, "png")
    return file.getvalue()


def test_a_thousand_requests_eight_at_a_time(tmp_path: Path) -> None:
    good = encoded(40, 50)
    bad = {"empty": b"", "text": b"no image", "cut": good[:60], "large": encoded(400, 400), "long": b"x" * 100_001}
    bodies = [good if i % 5 else list(bad.values())[i // 5 % len(bad)] for i in range(1000)]
    with serving(tmp_path, 300) as port, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda body: ask(port, "POST", "/detect", body), bodies))
        _, metrics = ask(port, "GET", "/metrics")
        assert json.loads(ask(port, "GET", "/health")[1])["classes"] == ["cat", "dog"]
        assert ask(port, "GET", "/detect")[0] == 405
    for body, (code, text) in zip(bodies, answers, strict=True):
        values = json.loads(text)
        if body is good:
            assert code == 200 and values["detections"] == [{"name": "dog", "score": 0.75, "box": [2, 3, 12, 23]}]
        else:
            assert code == (413 if len(body) > 100_000 else 422) and "\n" not in values["error"], values
            assert "/tmp" not in values["error"], "nobody learns of the server's files"
    for number, times in Counter(code for code, _ in answers).items():
        assert f'detect_requests_total{{code="{number}"}} {times}\n' in metrics.decode()
    assert "detect_requests_inside 0\n" in metrics.decode()


def test_a_sender_that_stops_is_left(tmp_path: Path) -> None:
    with serving(tmp_path, 0.3) as port, socket.create_connection(("127.0.0.1", port), timeout=60) as slow:
        slow.sendall(b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
        assert slow.recv(100).startswith(b"HTTP/1.1 503")
        assert ask(port, "GET", "/health")[0] == 200
