"""Frames a second from a 720p video to aligned face crops on disk, on two cores: decode, find, align, write.

    python tests/benchmarks/faces.py [--quick]

The videos are made here: a photo of a person that moves over another photo, 32 frames of each. `theirs` is the goal of
15 frames a second, as there is no other program to compare with. Starting the processes, which takes as long for one
video as for ten thousand, is left out. The second line says what each step takes, decoding of the whole video included.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import av
import numpy as np
from PIL import Image
from sides import report
from skimage import data
from vfm_runtime.deepfake.faces import CropSpec, Mtcnn
from vfm_runtime.deepfake.faces.crop import crop_face, find_faces
from vfm_runtime.media.video import read_video

from vfm.deepfake.data.crops import plan_videos
from vfm.deepfake.data.extract import _cut_all
from vfm.deepfake.data.record import Item

WORKERS = 2
GOAL = 15.0
FRAMES = 32
WIDTH, HEIGHT = 1280, 720


def write_video(path: Path, seconds: float, start: int) -> None:
    """A photo of 720 pixels that moves over another photo, 25 frames a second, H.264."""
    head = Image.fromarray(data.astronaut()).resize((HEIGHT, HEIGHT), Image.Resampling.BICUBIC)
    ground = Image.fromarray(data.coffee()).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(int(25 * seconds)):
            picture = ground.copy()
            picture.paste(head, ((start + 3 * number) % (WIDTH - HEIGHT), 0))
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())


def shares(path: Path, spec: CropSpec, out: Path) -> dict[str, float]:
    """Milliseconds of one core for each frame that is looked at, by step."""
    detector = Mtcnn()
    start = time.process_time()
    clip = read_video(path, num_threads=1)
    decoded = time.process_time()
    found = [find_faces(frame.pixels, spec, detector) for frame in clip.frames]
    detected = time.process_time()
    crops = [
        crop_face(frame.pixels, face.landmarks, spec)
        for frame, faces in zip(clip.frames, found, strict=True)
        for face in faces
    ]
    aligned = time.process_time()
    for number, crop in enumerate(crops):
        Image.fromarray(crop.pixels).save(out / f"{number}.png", compress_level=1)
    written = time.process_time()
    times = np.diff([start, decoded, detected, aligned, written]) * 1000 / len(clip.frames)
    return dict(zip(("decode", "detect", "align", "write"), times.round(1).tolist(), strict=True))


def frames_a_second(items: list[Item], spec: CropSpec, out: Path) -> float:
    """From when every process has done its first video to the end."""
    out.mkdir()
    done = []
    for cut in _cut_all(plan_videos(items), out, spec, FRAMES, WORKERS):
        done.append((time.perf_counter(), cut.num_frames))
    frames = sum(number for _, number in done[WORKERS:])
    return frames / (done[-1][0] - done[WORKERS - 1][0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two short videos")
    quick = parser.parse_args().quick
    spec = CropSpec()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        items = []
        for number in range(6 if quick else 16):
            path = root / f"{number}.mp4"
            write_video(path, 2 if quick else 5, 40 * number)
            items.append(Item(path.as_posix(), "real", str(number)))
        steps = shares(Path(items[0].path), spec, root)
        rate = frames_a_second(items, spec, root / "out")
    report(f"faces of 720p videos, {WORKERS} processes", rate, GOAL, "frames/s", rate / GOAL)
    print(json.dumps({"name": "a frame's milliseconds of one core", **steps}))


if __name__ == "__main__":
    main()
