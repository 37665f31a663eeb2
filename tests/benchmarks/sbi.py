"""One core makes training pairs: a real face and its self-blended forgery, at 256 x 256 pixels.

    python tests/benchmarks/sbi.py [--quick]

`blend`: the blend alone. `pair`: what a data worker does for a pair, with the same edits for both (flips, turns,
colours, JPEG), a share of 0.1 of harmless edits, and both resized to 224 x 224, but without opening the file. `files`:
the same from PNG files of 256 x 256 pixels. Generated faces. Prints one JSON line with pairs per second of time on the
core; the goal is 60 for `pair`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

import vfm
from tests.deepfake.data.faces import write_faces
from vfm import Preprocess
from vfm.deepfake.data.blend import self_blend
from vfm.deepfake.data.data import DeepfakeData
from vfm.deepfake.data.synthetic import SyntheticDeepfakes

SIDE, GOAL = 256, 60
PREPROCESS = Preprocess(size=(224, 224))


def per_second(make: Callable[[int], object], count: int) -> tuple[float, float]:
    """Pairs a second of the clock, and of time on the core, which other programs do not change."""
    make(0)
    start, busy = time.perf_counter(), time.process_time()
    for number in range(count):
        make(number)
    return count / (time.perf_counter() - start), count / (time.process_time() - busy)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the pairs")
    count = 40 if parser.parse_args().quick else 400
    # One core: as in a data worker.
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    drawn = SyntheticDeepfakes(num_identities=8, num_frames=2, image_size=SIDE, mode="sbi")
    drawn.preprocess = PREPROCESS
    drawn.setup("fit")
    pairs = drawn._build_training_dataset()
    crops = [record.source for record in drawn.records["train"]]
    sides: dict[str, Callable[[int], object]] = {
        "blend": lambda n: self_blend(crops[n % len(crops)], np.random.default_rng(n)),
        "pair": lambda n: pairs[n // len(pairs), n % len(pairs)],
    }
    with tempfile.TemporaryDirectory() as folder:
        write_faces(Path(folder), num_identities=8, num_frames=2, size=SIDE)
        stored = DeepfakeData(folder, mode="sbi", val_fraction=0.25, test_fraction=0.25)
        stored.preprocess = PREPROCESS
        stored.setup("fit")
        files = stored._build_training_dataset()
        sides["files"] = lambda n: files[n // len(files), n % len(files)]
        found = {name: per_second(make, count) for name, make in sides.items()}
    row = {
        "name": "self-blended pairs on one core",
        "pairs_per_core_second": {name: round(busy, 1) for name, (_, busy) in found.items()},
        "pairs_per_second": {name: round(clock, 1) for name, (clock, _) in found.items()},
        "goal": GOAL,
        "reached": found["pair"][1] >= GOAL,
        "version": vfm.__version__,
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main()
