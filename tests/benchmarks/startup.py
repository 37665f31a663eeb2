"""Time to start: `vfm --help` against importing torch, `import vfm_runtime` against importing ONNX Runtime.

    python tests/benchmarks/startup.py [--quick]

Prints one JSON line a case; a ratio above 1 means that vfm is faster. Sides are interleaved, medians of the repeats.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

CASES = {
    "vfm --help": ("from vfm.cli import main; main(['--help'])", "import torch"),
    "import vfm_runtime": ("import vfm_runtime", "import onnxruntime"),
    "from vfm_runtime import load": ("from vfm_runtime import load", "import onnxruntime"),
}


def seconds(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 repeats instead of 15")
    repeats = 3 if parser.parse_args().quick else 15
    for name, sides in CASES.items():
        pairs = [[seconds(code) for code in sides] for _ in range(repeats + 1)][1:]
        ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
        row = {"name": name, "ours": ours, "theirs": theirs, "unit": "s", "ratio": theirs / ours}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
