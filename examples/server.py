"""A detector behind HTTP, on a page of Python: one process, one artifact, limits on size, pixels, time and waiting.

    pip install -e '.[export,server]'
    python server.py output/export --port 8000
    curl --data-binary @photo.jpg http://127.0.0.1:8000/detect

It listens on this machine alone; put a proxy with TLS and accounts in front before others can reach it.
"""

import argparse
import tempfile
import time
from collections import Counter

import anyio
import uvicorn
from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

import resnext_det
from resnext_det import UserError


def create_app(detector, *, most_bytes: int = 20 << 20, seconds: float = 30, threads: int = 1, waiting: int = 64):
    """The application: POST an image's bytes to /detect; GET /health and /metrics.

    Args:
        detector: of ``resnext_det.load_detector``; its ``max_megapixels`` limits what a small file may unfold to.
        most_bytes: of a request; more is answered with 413.
        seconds: from a request's first byte to its answer; then 503, so a slow sender holds nothing for long.
        threads: detections at a time.
        waiting: requests that may be inside at a time; more are answered with 503 at once.
    """
    limiter, counts, inside = anyio.CapacityLimiter(threads), Counter(), set()
    seconds_spent = 0.0

    def look(data: bytes) -> list[dict]:
        with tempfile.NamedTemporaryFile() as file:  # a file is checked as predict checks it
            file.write(data)
            file.flush()
            try:
                result = detector(file.name)
            except UserError as error:
                raise UserError(str(error).replace(file.name, "image").replace(", or use --broken skip", "")) from None
        rows = zip(result.names, result.scores.tolist(), result.boxes.tolist(), strict=True)
        return [{"name": name, "score": score, "box": box} for name, score, box in rows]

    async def body(request: Request) -> bytes | None:
        data = bytearray()
        async for piece in request.stream():
            data += piece
            if len(data) > most_bytes:
                return None
        return bytes(data)

    async def answer(request: Request) -> JSONResponse:
        with anyio.move_on_after(seconds):
            data = await body(request)
            if data is None:
                return JSONResponse({"error": f"more than {most_bytes} bytes"}, 413)
            try:
                found = await run_sync(look, data, limiter=limiter, abandon_on_cancel=True)
            except UserError as error:
                return JSONResponse({"error": str(error)}, 422)
            return JSONResponse({"detections": found})
        return JSONResponse({"error": f"no answer within {seconds:g} s"}, 503)

    async def detect(request: Request) -> JSONResponse:
        nonlocal seconds_spent
        begin = time.perf_counter()
        if len(inside) >= waiting:
            response = JSONResponse({"error": "busy"}, 503, {"Retry-After": "1"})
        else:
            inside.add(request)
            try:
                response = await answer(request)
            finally:
                inside.discard(request)
        counts[response.status_code] += 1
        seconds_spent += time.perf_counter() - begin
        return response

    async def health(request: Request) -> JSONResponse:
        return JSONResponse({"classes": detector.class_names, "version": resnext_det.__version__})

    async def metrics(request: Request) -> PlainTextResponse:
        lines = [f'detect_requests_total{{code="{code}"}} {number}' for code, number in sorted(counts.items())]
        lines += [f"detect_seconds_total {seconds_spent:.6f}", f"detect_requests_inside {len(inside)}"]
        return PlainTextResponse("\n".join(lines) + "\n")

    return Starlette(routes=[Route("/detect", detect, methods=["POST"]), Route("/health", health),
                             Route("/metrics", metrics)])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("detector", help="an export, or the weights of a training")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--max-megapixels", type=float, default=50)
    args = parser.parse_args()
    detector = resnext_det.load_detector(args.detector)
    detector.max_megapixels = args.max_megapixels
    uvicorn.run(create_app(detector), host=args.host, port=args.port)


if __name__ == "__main__":
    main()
