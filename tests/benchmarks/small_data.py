"""Few images: vfm's solved linear head, fine-tuning recipes and `tune` beside scikit-learn and a plain loop.

    python tests/fetch_assets.py
    python tests/benchmarks/small_data.py [--table NAME ...] [--only TEXT ...] [--results FILE]
    python tests/benchmarks/small_data.py --summary
    python tests/benchmarks/small_data.py --quick

Needs Debian's packages dataset-fashion-mnist and fonts-noto-color-emoji. Each side learns from the same images, drawn
by seed, and is judged on the same others. A cell is written to the file of results as it ends; what is written is not
measured again. Tables:

- linear: the solved linear head and scikit-learn's heads, on the same frozen features of EfficientNet-Lite0.
- linear_time: their seconds for the same number of fits, 500 images of 10 classes.
- finetune: recipes as they are and a plain loop of PyTorch, at 128 pixels.
- tune: `vfm tune`, 10 minutes on 2 cores, beside scikit-learn's heads. Leave the cores to it.
- coverage: how often tune's interval of the frozen heads covers their accuracy on all images that were not drawn.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from small_results import Results
from small_sets import CACHE
from small_tables import TABLES, measure_quick


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--table", action="append", choices=list(TABLES), help="default: all")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        help="cells that hold this text, such as textile/50",
    )
    parser.add_argument("--results", type=Path, default=CACHE / "small_sets" / "results.jsonl")
    parser.add_argument(
        "--summary", action="store_true", help="print the tables of what was measured"
    )
    parser.add_argument("--quick", action="store_true", help="tiny cases, nothing kept")
    options = parser.parse_args()
    if options.quick:
        measure_quick()
        return
    results = Results(options.results)
    for name in options.table or TABLES:
        table = TABLES[name]
        if not options.summary:
            for cell, work in table.list_cells():
                if all(text in "/".join(map(str, cell)) for text in options.only):
                    print("/".join(map(str, cell)), dict(results.measure(cell, work)), flush=True)
        print(f"\n{table.title}\n", *table.summarize(results), sep="\n", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
