"""The server under 16 clients beside the bare session: images/s, delays, errors, memory. ViT-S/16 in fp32, all cores.

    python tests/benchmarks/server_load.py [--quick] [--seconds 600] [--model ViT-B/16] [--load "JPEG files"]

`theirs` is a session of ONNX Runtime in this process that runs `model.onnx` on batches of 8, without a server, before
and after. Two loads, each of 16 connections that ask again as soon as they are answered: pixels as binary tensors
(`/v2/.../infer`), the same work as the bare session's; and JPEG files (`/predict`), which the server also decodes and
resizes. The clients run on the same cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from bundles import MODELS, make_bundle, new_task, pixels_of
from cold_start import free_port
from preprocess import jpeg
from sides import report
from vfm_runtime import load

CLIENTS, BATCH = 16, 8


class Answered(NamedTuple):
    at: float
    seconds: float
    status: int


async def client(port: int, request: bytes, until: float, answers: list[Answered]) -> None:
    """Ask again and again over one connection, with as little work as can be."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.perf_counter() < until:
        start = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        length = next(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
        await reader.readexactly(length)
        end = time.perf_counter()
        answers.append(Answered(end, end - start, int(head.split()[1])))
    writer.close()


async def run_load(port: int, request: bytes, seconds: float) -> list[Answered]:
    answers: list[Answered] = []
    until = time.perf_counter() + seconds
    await asyncio.gather(*(client(port, request, until, answers) for _ in range(CLIENTS)))
    return answers


def infer_request(name: str) -> bytes:
    pixels = pixels_of(1)
    tensor = {"name": "pixels", "shape": list(pixels.shape), "datatype": "UINT8"}
    tensor["parameters"] = {"binary_data_size": pixels.nbytes}
    wanted = {"binary_data_output": True}
    head = json.dumps({"inputs": [tensor], "parameters": wanted}).encode()
    more = f"Inference-Header-Content-Length: {len(head)}\r\n"
    return post(
        f"/v2/models/{name}/infer", head + pixels.tobytes(), "application/octet-stream", more
    )


def post(path: str, body: bytes, kind: str, more: str = "") -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n{more}"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def bare(bundle: Path, seconds: float) -> float:
    """Images/s of the model alone, in batches."""
    model = load(bundle, device="cpu")
    pixels = pixels_of(BATCH)
    model.scores(pixels)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        model.scores(pixels)
        count += BATCH
    return count / (time.perf_counter() - start)


def memory_mb(process: int) -> float:
    """Of a process and its children, without what they share."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    rolled = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    own = next(int(line.split()[1]) for line in rolled if line.startswith("Pss:")) / 1024
    return own + sum(memory_mb(int(child)) for child in children)


async def watched(
    port: int, request: bytes, seconds: float, process: int
) -> tuple[list[Answered], list[float]]:
    """The load, and the server's memory every second."""
    sizes: list[float] = []

    async def watch() -> None:
        while True:
            sizes.append(memory_mb(process))
            await asyncio.sleep(1)

    watching = asyncio.create_task(watch())
    answers = await run_load(port, request, seconds)
    watching.cancel()
    return answers, sizes


def wait_ready(port: int) -> None:
    for _ in range(600):
        try:
            asyncio.run(
                run_load(port, b"GET /v2/health/ready HTTP/1.1\r\nHost: localhost\r\n\r\n", 0.01)
            )
            return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("The server did not start.")


def case(name: str, bundle: Path, port: int, request: bytes, seconds: float, process: int) -> None:
    before = bare(bundle, min(10, seconds / 3))
    asyncio.run(run_load(port, request, min(5, seconds / 3)))
    start = time.perf_counter()
    answers, sizes = asyncio.run(watched(port, request, seconds, process))
    took = time.perf_counter() - start
    after = bare(bundle, min(10, seconds / 3))
    good = [one for one in answers if one.status == 200]
    theirs = (before + after) / 2
    ours = len(good) / took
    report(f"{name}, {CLIENTS} clients", ours, theirs, "images/s", ours / theirs)
    delays = sorted(1000 * one.seconds for one in good)
    p50, p99 = statistics.median(delays), delays[int(0.99 * (len(delays) - 1))]
    report(f"{name}, p50 against p99", p50, p99, "ms", p99 / p50)
    minute = max(1, min(60, len(sizes) // 3))
    first, last = statistics.median(sizes[:minute]), statistics.median(sizes[-minute:])
    report(f"{name}, memory in the last minute against the first", last, first, "MB", first / last)
    errors = len(answers) - len(good)
    print(
        json.dumps(
            {
                "name": f"{name}, errors",
                "answers": len(answers),
                "errors": errors,
                "seconds": round(took),
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few seconds")
    parser.add_argument("--seconds", type=float, default=600, help="of each load")
    parser.add_argument("--model", choices=list(MODELS), default="ViT-S/16")
    parser.add_argument("--load", choices=["binary tensors", "JPEG files"], help="one of the two")
    options = parser.parse_args()
    seconds = 6.0 if options.quick else options.seconds
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        bundle = make_bundle(new_task(MODELS[options.model]), Path(folder))
        words = [
            sys.executable,
            "-m",
            "vfm_runtime.cli",
            "serve",
            f"model={bundle}",
            "--port",
            str(port),
        ]
        with (
            (Path(folder) / "log").open("wb") as log,
            subprocess.Popen(words, stderr=log, stdout=log, env=os.environ) as server,
        ):
            try:
                wait_ready(port)
                loads = {
                    "binary tensors": infer_request("model"),
                    "JPEG files": post("/predict", jpeg(480, 640), "image/jpeg"),
                }
                for name in [options.load] if options.load else loads:
                    request = loads[name]
                    case(f"{options.model}, {name}", bundle, port, request, seconds, server.pid)
            finally:
                server.terminate()


if __name__ == "__main__":
    main()
