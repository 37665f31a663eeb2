"""Two processes on the CPU: gathered answers are those of one process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
import lightning as L
from tests.tasks.tiny import vit
from vfm.data import FolderData

images, out, devices = sys.argv[1], sys.argv[2], int(sys.argv[3])
L.seed_everything(0)
task = vit()
data = FolderData(images, batch_size=8, num_workers=0, augment="none")
trainer = L.Trainer(
    accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", max_epochs=1,
    default_root_dir=out, logger=False, enable_progress_bar=False, enable_model_summary=False,
    num_sanity_val_steps=0,
)
trainer.fit(task, data)
trainer.test(task, data, ckpt_path=sys.argv[4], verbose=False)
"""


@pytest.mark.slow
def test_two_ranks_answer_as_one(tmp_path: Path) -> None:
    from vfm.data.synthetic import write_image_folder

    images = write_image_folder(tmp_path / "images", images_per_class=37)
    for split in ("val", "test"):
        # An odd number, so that a rank repeats an image; and a file that only one rank meets.
        write_image_folder(images, images_per_class=7, splits=[split], seed=3)
    for name in ("class_0", "class_1", "class_2"):
        (images / "train").mkdir(exist_ok=True)
        (images / name).rename(images / "train" / name)
    (images / "test" / "class_1" / "0003.png").write_bytes(b"broken")
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    results = []
    checkpoint = tmp_path / "1" / "checkpoints" / "last.ckpt"
    for devices in (1, 2):
        command = [
            sys.executable,
            str(script),
            str(images),
            str(tmp_path / str(devices)),
            str(devices),
            str(checkpoint),
        ]
        root = Path(__file__).parents[2]
        done = subprocess.run(
            command,
            cwd=root,
            env={"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        results.append(json.loads((checkpoint.parent / "results.json").read_text())["test"])
    one, two = results
    assert one["num_samples"] == two["num_samples"] == 20
    assert one["num_skipped"] == two["num_skipped"] == 1
    assert one["skipped"] == two["skipped"]
    assert one["confusion_matrix"] == two["confusion_matrix"]
    assert one["auroc"] == two["auroc"]
