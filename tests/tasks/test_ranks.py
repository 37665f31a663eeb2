"""Two processes on the CPU: gathered answers are those of one process."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

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
    from tests.image_folders import write_image_folder

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
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        results.append(json.loads((checkpoint.parent / "results.json").read_text())["test"])
    one, two = results
    assert one["num_samples"] == two["num_samples"] == 20
    assert one["num_skipped"] == two["num_skipped"] == 1
    assert one["skipped"] == two["skipped"]
    assert one["confusion_matrix"] == two["confusion_matrix"]
    assert one["auroc"] == two["auroc"]


EQUAL = """
import json, sys
from pathlib import Path
from typing import Any
import lightning as L
import torch
from lightning.pytorch import Callback
from tests.tasks.tiny import shapes, trainer, vit
from vfm.models.heads import MLPHead
from vfm.tasks import Optim

# AdamW makes a whole step of a gradient that is nothing but rounding, whatever its scale; SGD hides neither.
torch.optim.AdamW = lambda groups, lr, **_: torch.optim.SGD(groups, lr=lr)
settings = {"optim": Optim(lr=0.3)}
how, out, accumulate = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
L.seed_everything(0)
ranks = 1 if how == "one" else 2
strategy = {"one": "auto", "ddp": "ddp"}.get(how) or "fsdp2"

class Losses(Callback):
    kept = []

    def on_train_batch_end(self, run, task, outputs, batch, batch_idx):
        loss = outputs["loss"].detach() * 16 / ranks * accumulate  # summed over this rank's images
        if ranks > 1:
            torch.distributed.all_reduce(loss)
        self.kept.append(loss.item() / 16)

task = vit(**settings)
if accumulate == 3:
    task = vit(adapt="linear", head=MLPHead(hidden=8, dropout=0.0), **settings)
elif accumulate == 5:
    task = vit(adapt="linear", **settings)  # the first rank solves it for all
# The last batch is a small one.
data = shapes(num_workers=0, batch_size=16 // ranks, num_images=84 if accumulate < 5 else 144)
if accumulate == 4:
    # Three scenes of four are empty: most batches of a rank hold no box, some of both ranks.
    from dataclasses import replace

    from tests.tasks.test_detection import PLAIN, scenes
    from tests.tasks.test_detection import task as detector

    class Sparse(type(scenes())):
        def read(self):
            splits = super().read()
            for records in splits.values():
                for i in range(len(records)):
                    if i % 4:
                        empty = records[i].objects._replace(
                            corners=records[i].objects.corners[:0], ignored=records[i].objects.ignored[:0]
                        )
                        records[i] = replace(records[i], label=(), objects=empty)
            return splits

    task = detector(optim=Optim(lr=1e-2, max_grad_norm=None))
    data = Sparse(num_images=32, image_size=64, batch_size=2 // ranks, augment=PLAIN)
accumulate = 1 if accumulate > 3 else accumulate
compute_metrics = task.compute_metrics

def judge(*arguments):
    assert run.is_global_zero  # the first rank alone judges
    return compute_metrics(*arguments)

task.compute_metrics = judge
run = trainer(out, devices=ranks, strategy=strategy, max_epochs=2, callbacks=[Losses()],
              accumulate_grad_batches=accumulate)
run.fit(task, datamodule=data)
if run.is_global_zero:
    metrics = {k: float(v) for k, v in run.callback_metrics.items() if k.startswith("val/")}
    (out / "found.json").write_text(json.dumps({"losses": Losses.kept, "metrics": metrics}))
"""


def _run_script(out: Path, text: str, how: str, *more: str) -> None:
    done = _end_script(out, text, how, *more)
    assert done.returncode == 0, done.stderr[-3000:]


def _end_script(out: Path, text: str, how: str, *more: str) -> subprocess.CompletedProcess[str]:
    out.mkdir()
    script = out / "script.py"
    script.write_text(text)
    root = Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, str(script), how, str(out), *more],
        cwd=root,
        env={
            "PYTHONPATH": str(root),
            "OMP_NUM_THREADS": "1",
            "PATH": "/usr/bin:/bin",
            "VFM_CACHE": str(out.parent / f"cache-{how}"),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def _run_equal(tmp_path: Path, how: str, accumulate: int = 1) -> dict[str, Any]:
    out = tmp_path / f"{how}{accumulate}"
    _run_script(out, EQUAL, how, str(accumulate))
    found: dict[str, Any] = json.loads((out / "found.json").read_text())
    found["state"] = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return found


@pytest.fixture(scope="module")
def trained_as_one(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, Any]]:
    return functools.cache(lambda number: _run_equal(tmp_path_factory.mktemp("one"), "one", number))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "accumulate"),
    [
        ("ddp", 1),
        ("ddp", 2),
        ("fsdp", 1),
        ("fsdp", 2),
        pytest.param("ddp", 3, id="stored features"),
        pytest.param("ddp", 4, id="boxes on one rank"),
        pytest.param("ddp", 5, id="a solved head"),
    ],
)
def test_two_ranks_train_as_one(
    tmp_path: Path, trained_as_one: Callable[[int], dict[str, Any]], how: str, accumulate: int
) -> None:
    one = trained_as_one(accumulate)
    two = _run_equal(tmp_path, how, accumulate)
    assert len(one["losses"]) == len(two["losses"]) > 4
    # Those of boxes are tens: the last digits of a float32 there are 4e-6.
    assert one["losses"] == pytest.approx(two["losses"], rel=1e-6, abs=1e-6)
    assert one["metrics"] == pytest.approx(two["metrics"], abs=1e-6)
    assert one["state"].keys() == two["state"].keys()
    for name, value in one["state"].items():
        assert torch.allclose(value, two["state"][name], atol=1e-6), name


SOLVED = """
import json, sys
from pathlib import Path
import lightning as L
import torch
from tests.tasks.test_detection import scenes, task
from tests.tasks.tiny import trainer
from vfm import DenseHead
from vfm.training import lp_ft

solve = lp_ft.solve_head

def compare(one, data):
    before = one.head.classes.weight.detach().clone()
    solve(one, data)
    # Before the strategy wraps the model, which would make the ranks equal in any case.
    rows = [torch.empty_like(before).flatten() for _ in range(2)]
    torch.distributed.all_gather(rows, one.head.classes.weight.detach().flatten())
    (out / f"{one.global_rank}.json").write_text(json.dumps([
        torch.equal(*rows), torch.equal(before, one.head.classes.weight), one.training
    ]))

lp_ft.solve_head, out = compare, Path(sys.argv[2])
L.seed_everything(0)
data = scenes(num_images=16, num_workers=0)
run = trainer(out, devices=2, strategy="ddp", max_steps=1, limit_val_batches=0)
run.fit(task(head=DenseHead(width=32, depth=1), lp_ft=True), datamodule=data)
"""


@pytest.mark.slow
def test_all_ranks_begin_with_the_class_layer_that_one_solved(tmp_path: Path) -> None:
    _run_script(tmp_path / "run", SOLVED, "ddp")
    for rank in range(2):
        are_equal, is_as_drawn, is_training = json.loads(
            (tmp_path / "run" / f"{rank}.json").read_text()
        )
        assert are_equal
        assert not is_as_drawn
        assert is_training


PRETRAIN = """
import json, sys
from pathlib import Path
import lightning as L
import torch
import vfm
from tests.tasks.tiny import VIT, shapes, trainer
from vfm.models.text import SmallTextTower
from vfm.tasks import Optim

torch.optim.AdamW = lambda groups, lr, **_: torch.optim.SGD(groups, lr=lr)
how, out, teacher = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
ranks = 1 if how == "one" else 2

class Gradients(L.Callback):
    def __init__(self):
        self.kept = []

    def on_before_optimizer_step(self, run, task, optimizer):
        self.kept.append({n: p.grad.clone() for n, p in task.named_parameters() if p.grad is not None})

settings = {"image_size": 32, "backbone_args": VIT, "optim": Optim(lr=0.1)}
name = "vit_tiny_patch16_224"
for kind in sys.argv[4:]:
    L.seed_everything(0)
    if kind == "views":
        task = vfm.SelfSupervisedTask(name, method=vfm.MAE(decoder_width=16, decoder_depth=1), **settings)
    elif kind == "distillation":
        loss = vfm.FeatureDistillation(tokens=0.5, standardize=False)
        task = vfm.DistillationTask(name, teacher=teacher, loss=loss, **settings)
    else:
        loss = {"unicl": vfm.UniCLLoss, "siglip": vfm.SigLIPLoss}[kind]()
        text = SmallTextTower(16, 1, 2, context=8, vocab_size=300)
        task = vfm.ContrastiveTask(name, text, loss=loss, dim=8, **settings)
    # The last batch is a small one.
    data = shapes(num_workers=0, batch_size=16 // ranks, num_images=84, augment="light")
    gradients = Gradients()
    run = trainer(out / kind, devices=ranks, strategy="auto" if ranks == 1 else "ddp", max_epochs=2,
                  callbacks=[gradients], limit_val_batches=0)
    run.fit(task, datamodule=data)
    if run.is_global_zero:
        torch.save({"gradients": gradients.kept, "state": task.state_dict()}, out / f"{kind}.pt")
"""
KINDS = ("unicl", "siglip", "views", "distillation")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory, best: Path) -> dict[str, Path]:
    """What one process and two keep of each kind."""
    root = tmp_path_factory.mktemp("pretrained")
    for how in ("one", "ddp"):
        _run_script(root / how, PRETRAIN, how, str(best), *KINDS)
    return {how: root / how for how in ("one", "ddp")}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_pretrain_as_one(pretrained: dict[str, Path], kind: str) -> None:
    one, two = (torch.load(pretrained[how] / f"{kind}.pt") for how in ("one", "ddp"))
    assert len(one["gradients"]) == len(two["gradients"]) == 6
    for step, (first, second) in enumerate(zip(one["gradients"], two["gradients"], strict=True), 1):
        largest = max(float(value.abs().max()) for value in first.values())
        for name, value in first.items():
            assert torch.allclose(value, second[name], atol=1e-6 * largest + 2e-5), (step, name)
    for name, value in one["state"].items():
        assert torch.allclose(value, two["state"][name], atol=2e-6), name


NOT_FINITE = """
import sys
from pathlib import Path
import lightning as L
import vfm
from tests.tasks.tiny import shapes, trainer

class Spoil(L.Callback):
    def on_train_batch_start(self, run, task, *_):
        if run.global_rank == 1 and run.global_step == 1:
            method = task.training_parts["method"]
            compute = method.compute
            method.compute = lambda *views: {k: v * float("nan") for k, v in compute(*views).items()}

L.seed_everything(0)
method = vfm.DINO(output_width=32, hidden_width=16)
task = vfm.SelfSupervisedTask("test_efficientnet", method=method, image_size=32)
run = trainer(Path(sys.argv[2]), devices=2, strategy="ddp", max_epochs=2, callbacks=[Spoil()], limit_val_batches=0)
run.fit(task, datamodule=shapes(num_workers=0, batch_size=8, augment="light"))
"""


@pytest.mark.slow
def test_a_loss_that_is_not_finite_on_one_rank_ends_both_with_its_images(tmp_path: Path) -> None:
    ended = _end_script(tmp_path / "run", NOT_FINITE, "ddp")
    assert ended.returncode != 0
    # The rank whose loss it is tries its images one by one, while the other is gone.
    assert "The loss of another rank is not finite" in ended.stderr
    assert "It is not finite for " in ended.stderr
    assert list((tmp_path / "run").rglob("nonfinite/batch_rank1.safetensors"))
