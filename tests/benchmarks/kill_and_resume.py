"""Fashion-MNIST, killed by SIGKILL in the middle of an epoch and resumed, against the same training unbroken.

    python tests/benchmarks/kill_and_resume.py [--quick] [--processes N]

recipes/classification/fashion_mnist.yaml with fewer batches an epoch, by the command line alone: the broken run is
started twice with the same words, `--ckpt_path last` among them. With --processes 2 the unbroken run is of two
processes (DDP) and a plain ViT, the broken one of one: rounding is then another, and grows with every step. Prints a
JSON line: both test accuracies, the largest difference of a weight.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
# By its path: Lightning starts further processes with the words of the first.
VFM = [str(Path(sys.executable).with_name("vfm"))]
# Without batch norm, whose statistics are of a process's own images.
VIT = [
    *("--model.backbone", "vit_tiny_patch16_224", "--model.channels_last", "false"),
    *("--model.backbone_args", "{patch_size: 4, embed_dim: 96, depth: 4, num_heads: 3}"),
]
RECIPE = str(ROOT / "recipes/classification/fashion_mnist.yaml")


def words(root: Path, epochs: int, batches: int) -> list[str]:
    return [
        *("fit", "--config", RECIPE, "--ckpt_path", "last"),
        *("--trainer.default_root_dir", str(root), "--trainer.max_epochs", str(epochs)),
        *("--trainer.limit_train_batches", str(batches), "--trainer.limit_val_batches", "10"),
        *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
    ]


def run(command: list[str]) -> None:
    done = subprocess.run([*VFM, *command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"vfm {command[0]} failed:\n{done.stderr[-2000:]}")


def killed(command: list[str], root: Path, wait: float) -> None:
    """Start a training, and kill it some seconds after its first checkpoint."""
    process = subprocess.Popen(
        [*VFM, *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    last = root / "0" / "checkpoints" / "last.ckpt"
    while not last.is_file():
        time.sleep(0.05)
    time.sleep(wait)
    if process.poll() is not None:
        raise SystemExit("The training ended before it could be killed.")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def accuracy(checkpoint: Path, limit: list[str]) -> float:
    quiet = ["--trainer.enable_progress_bar", "false"]
    run(["test", "--ckpt_path", str(checkpoint), *quiet, *limit])
    results = json.loads((checkpoint.parent / "results.json").read_text(encoding="utf-8"))
    return float(results["test"]["accuracy"]["value"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two short epochs, 1,000 test images")
    parser.add_argument("--processes", type=int, default=1, help="of the unbroken run")
    options = parser.parse_args()
    epochs, batches = (2, 16) if options.quick else (4, 120)
    limit = ["--trainer.limit_test_batches", "8"] if options.quick else []
    with tempfile.TemporaryDirectory() as folder:
        whole, broken = Path(folder) / "whole", Path(folder) / "broken"
        ranks = ["--trainer.devices", str(options.processes), "--trainer.strategy", "ddp"]
        shares = ["--data.batch_size", str(128 // options.processes)]
        model, more = [], []
        if options.processes > 1:
            model, more = VIT, [*ranks, *shares]
        run([*words(whole, epochs, batches), *model, *more])
        # About a third into the next epoch, on two cores.
        killed([*words(broken, epochs, batches), *model], broken, 0.03 * batches)
        before = torch.load(broken / "0/checkpoints/last.ckpt", weights_only=True)["global_step"]
        run([*words(broken, epochs, batches), *model])
        ends = [whole / "0/checkpoints/last.ckpt", broken / "1/checkpoints/last.ckpt"]
        states = [torch.load(end, weights_only=True) for end in ends]
        row = {
            "name": "SIGKILL in mid-epoch and resume",
            "unbroken_processes": options.processes,
            "resumed_from_step": before,
            "steps": [state["global_step"] for state in states],
            "test_accuracy": [accuracy(end, limit) for end in ends],
            "largest_difference_of_a_weight": max(
                float((value.double() - states[1]["state_dict"][name].double()).abs().max())
                for name, value in states[0]["state_dict"].items()
            ),
        }
        print(json.dumps(row))


if __name__ == "__main__":
    main()
