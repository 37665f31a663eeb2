"""What bringing an image to the model's size costs: `preprocess.onnx` beside ViT-S/16 in fp32, on two threads.

    python tests/benchmarks/preprocess.py [--quick]

Prints for each size of image the milliseconds of `preprocess.onnx` (ours) and of the model (theirs), in turns; the
ratio is how many times the model takes. JPEG decoding is a line of its own.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from pathlib import Path

import numpy as np
from bundles import MODELS, make_bundle, new_task, pixels_of
from PIL import Image
from sides import in_turns, report, seconds
from vfm_runtime import load, open_image

THREADS = 2
SIZES = {"640x480": (480, 640), "1920x1440": (1440, 1920), "300x200": (200, 300)}


def jpeg(height: int, width: int) -> bytes:
    # Noise that is blurred: as large a file as a photo's.
    random = np.random.default_rng(0)
    small = random.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize((width, height)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the first size, few rounds")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory() as folder:
        bundle = make_bundle(new_task(MODELS["ViT-S/16"]), Path(folder))
        model = load(bundle, device="cpu", num_threads=THREADS)
    pixels = pixels_of(1)
    rounds = 5 if quick else 31
    for name, size in list(SIZES.items())[: 1 if quick else None]:
        image = pixels_of(1, size)[0]
        data = jpeg(*size)

        def of_model() -> float:
            return 1000 * seconds(lambda: model.scores(pixels))

        for what, work in {
            "preprocess.onnx": lambda image=image: model.prepare(image),
            "JPEG decoding": lambda data=data: open_image(data),
        }.items():
            ours, theirs, quotient = in_turns(
                lambda work=work: 1000 * seconds(work), of_model, rounds
            )
            report(f"{what}, {name}, beside ViT-S/16", ours, theirs, "ms", 1 / quotient)


if __name__ == "__main__":
    main()
