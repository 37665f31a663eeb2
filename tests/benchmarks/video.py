"""From ten seconds of video at 720p to a verdict: a face that moves over a photo, ViT-S, 32 frames, by ONNX Runtime.

    python tests/benchmarks/video.py [--threads 2] [--runs 3] [--backbone NAME] [--quick]

The weights are random: time does not depend on them. A JSON line gives the whole time of `Model.predict` and its parts:
decoding, finding and cutting out faces, the model. The goal is under 6 s on two cores. `cpu_seconds` are of all cores
together, and tell a busy machine from slow code: half of them is what two free cores would need at least.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import av
import numpy as np
from PIL import Image
from skimage import data

GOAL = 6.0
SIZE = (1280, 720)
RATE = 25
FACE = 360
"""Side of the moving portrait; the face is about half as wide."""


def clip(path: Path, seconds: float) -> None:
    """Write a portrait that drifts over a photo of a room, H.264 at CRF 23."""
    ground = np.array(Image.fromarray(data.coffee()).resize(SIZE, Image.Resampling.BICUBIC))
    portrait = Image.fromarray(data.astronaut()[:220, 110:330])
    portrait = np.array(portrait.resize((FACE, FACE), Image.Resampling.BICUBIC))
    noise = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "23"})
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for number in range(round(seconds * RATE)):
            frame = ground.copy()
            left = 300 + round(200 * np.sin(number / 40))
            top = 150 + round(60 * np.cos(number / 25))
            frame[top : top + FACE, left : left + FACE] = portrait
            # A camera's noise: without it a video is easier to decode than any real one.
            grain = noise.normal(0, 2.0, (*frame.shape[:2], 1))
            pixels = np.clip(frame + grain, 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def bundle(folder: Path, backbone: str) -> Path:
    """A bundle of an untrained task."""
    import torch
    from vfm_runtime.deepfake.faces.crop import CropSpec

    from vfm.bundle import ExportOptions
    from vfm.bundle.export import write_bundle
    from vfm.deepfake.task import DeepfakeTask
    from vfm.tasks.checkpoint import Checkpoint

    torch.manual_seed(0)
    task = DeepfakeTask(backbone, pretrained=False)
    task.head.prepare(task.backbone.info, ("real", "fake"))
    task.crop = CropSpec()
    portrait = folder / "portrait.png"
    Image.fromarray(data.astronaut()[:300, 80:380]).save(portrait)
    origin: dict[str, Any] = {"versions": {}, "seed": 0, "data": None, "weights": None}
    out = folder / "bundle"
    write_bundle({"": Checkpoint(task, origin)}, ExportOptions(images=folder, out=out), [portrait])
    return out


@contextmanager
def timed(clock: Counter[str]) -> Iterator[None]:
    """Add up the seconds of the parts of a verdict while it is made."""
    from vfm_runtime.bundle.model import Model
    from vfm_runtime.deepfake import pipeline

    def watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start, cpu = time.perf_counter(), time.process_time()
            found = function(*args, **kwargs)
            clock[name] += time.perf_counter() - start
            clock[f"{name}_cpu"] += time.process_time() - cpu
            return found

        return run

    with (
        patch.object(pipeline, "read_video", watched("decode", pipeline.read_video)),
        patch.object(pipeline, "cut", watched("faces", pipeline.cut)),
        patch.object(Model, "run", watched("model", Model.run)),
    ):
        yield


def measure(model: Any, video: Path, runs: int) -> dict[str, Any]:
    """Median seconds of a verdict and of its parts, after one that warms up."""
    verdict = model.predict(video)
    rows: list[Counter[str]] = []
    for _ in range(runs):
        clock: Counter[str] = Counter()
        with timed(clock):
            start, cpu = time.perf_counter(), time.process_time()
            model.predict(video)
            clock["whole"] = time.perf_counter() - start
            clock["whole_cpu"] = time.process_time() - cpu
        clock["rest"] = clock["whole"] - sum(clock[name] for name in ("decode", "faces", "model"))
        rows.append(clock)
    names = ("whole", "decode", "faces", "model", "rest")
    seconds = {name: statistics.median(row[name] for row in rows) for name in names}
    cpu = {name: statistics.median(row[f"{name}_cpu"] for row in rows) for name in names[:-1]}
    return {
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "share": {name: round(seconds[name] / seconds["whole"], 2) for name in names[1:]},
        "cpu_seconds": {name: round(value, 2) for name, value in cpu.items()},
        "frames_with_a_face": len(verdict.frames),
        "num_asked": verdict.num_asked,
        "goal": GOAL,
        "met": seconds["whole"] < GOAL,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="vit_small_patch16_224")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--quick", action="store_true", help="two seconds, one run")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.runs = 2.0, 1
    # Before any thread is started: the decoder takes as many as there are cores.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    import vfm_runtime

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        video = folder / "clip.mp4"
        clip(video, options.seconds)
        model = vfm_runtime.load(
            bundle(folder, options.backbone), device="cpu", num_threads=options.threads
        )
        found = measure(model, video, options.runs)
        about = {
            "backbone": options.backbone,
            "threads": options.threads,
            "clip_s": options.seconds,
        }
        print(json.dumps(about | {"bytes": video.stat().st_size} | found))


if __name__ == "__main__":
    main()
