"""From the start of the server's process to its first answer for a JPEG, ViT-S/16 in fp32; and what a bare se

    python tests/benchmarks/cold_start.py [--quick]

`theirs` is a Python process that imports ONNX Runtime and Pillow, opens the two graphs, and answers once: the floor.
"""

from __future__ import annotations

import argparse
import http.client
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bundles import MODELS, make_bundle, new_task
from preprocess import jpeg
from sides import in_turns, report, seconds

BARE = """
import sys, io, numpy, onnxruntime
from PIL import Image
folder = sys.argv[1]
def opened(name):
    return onnxruntime.InferenceSession(f"{folder}/{name}.onnx", providers=["CPUExecutionProvider"])
first, second = opened("preprocess"), opened("model")
with open(f"{folder}/../photo.jpg", "rb") as file:
    image = numpy.array(Image.open(io.BytesIO(file.read())).convert("RGB"))
print(second.run(None, {"pixels": first.run(None, {"image": image})[0]})[0].argmax())
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def first_answer(bundle: Path, photo: bytes) -> float:
    """Seconds from starting the process to the answer."""
    port = free_port()
    start = time.perf_counter()
    server = subprocess.Popen(
        [sys.executable, "-m", "vfm_runtime.cli", "serve", str(bundle), "--port", str(port)],
        stderr=subprocess.DEVNULL,
    )
    try:
        while not asked(port, photo):
            if server.poll() is not None or time.perf_counter() - start > 60:
                raise SystemExit("The server did not answer.")
            time.sleep(0.01)
        return time.perf_counter() - start
    finally:
        server.terminate()
        server.wait()


def asked(port: int, photo: bytes) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", "/predict", photo, {"Content-Type": "image/jpeg"})
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two starts")
    rounds = 2 if parser.parse_args().quick else 9
    photo = jpeg(480, 640)
    with tempfile.TemporaryDirectory() as folder:
        bundle = make_bundle(new_task(MODELS["ViT-S/16"]), Path(folder))
        (Path(folder) / "photo.jpg").write_bytes(photo)
        bare = [sys.executable, "-c", BARE, str(bundle)]
        ours, theirs, quotient = in_turns(
            lambda: first_answer(bundle, photo),
            lambda: seconds(lambda: subprocess.run(bare, check=True, capture_output=True)),
            rounds,
        )
    report("start to first answer, ViT-S/16", ours, theirs, "s", 1 / quotient)


if __name__ == "__main__":
    main()
