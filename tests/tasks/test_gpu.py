"""Training on a GPU: what no test on the CPU can show. Run with `pytest -m gpu`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import vfm_runtime
from PIL import Image
from vfm_runtime import Verdict

import vfm
from tests.deepfake.data.faces import write_faces
from tests.image_folders import write_image_folder
from tests.tasks.tiny import fit, shapes, stored, vit
from vfm.cli import main
from vfm.tasks import Optim
from vfm.training.oom import LargestBatch, read_peak_memory, reset_peak_memory

pytestmark = pytest.mark.gpu

RECIPES = Path(__file__).parents[2] / "recipes" / "debug"
GPU = ["--trainer.accelerator", "gpu", "--trainer.devices", "1"]
QUIET = shlex.split("--trainer.enable_progress_bar false --trainer.enable_model_summary false")
BEST = Path("runs/0/checkpoints/best.ckpt")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VFM_CACHE", str(tmp_path / "cache"))
    return tmp_path


def images(name: str, root: Path) -> list[Path]:
    if name == "deepfake":
        write_faces(root, num_identities=10, num_frames=2, size=64)
    else:
        write_image_folder(root, images_per_class=12, size=[(40, 30), (33, 50)])
    return sorted([*root.rglob("*.png"), *root.rglob("*.jpg")])


def scores(answer: Any) -> np.ndarray[Any, Any]:
    return np.asarray(answer.score if isinstance(answer, Verdict) else answer.scores)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "32-true"])
@pytest.mark.parametrize("name", ["digits", "synthetic", "detection", "deepfake"])
def test_trained_tested_and_exported(name: str, precision: str, place: Path) -> None:
    words = ["--config", str(RECIPES / f"{name}.yaml"), "--trainer.precision", precision]
    assert main(["fit", *words, *GPU, *QUIET]) == 0
    weights = stored(BEST)["state_dict"]
    assert all(torch.isfinite(value).all() for value in weights.values())
    assert main(["test", "--ckpt_path", str(BEST), *GPU, *QUIET]) == 0
    figures = json.loads((BEST.parent / "results.json").read_text())["test"]
    if name == "digits":
        assert figures["accuracy"]["value"] > 0.5
    found = images(name, place / "images")
    # The gate of the export compares the bundle with torch on these images.
    assert main(["export", str(BEST), "--images", str(place / "images"), "-o", "bundle"]) == 0
    if name == "detection":
        return  # an untrained detector's boxes are ranked by noise
    on_gpu = vfm.load(BEST, device="cuda").predict(found)
    on_cpu = vfm_runtime.load("bundle", device="cpu").predict(found)
    for one, other in zip(on_gpu, on_cpu, strict=True):
        assert np.abs(scores(one) - scores(other)).max() < 5e-3


@pytest.mark.parametrize("adapt", ["full", "linear", "ln", "lora", "effort"])
def test_every_way_to_adapt(adapt: str, tmp_path: Path) -> None:
    run = fit(tmp_path, vit(adapt=adapt), accelerator="gpu", precision="bf16-mixed", max_epochs=4)
    assert run.global_step == 4 * 3
    assert torch.isfinite(run.callback_metrics["train/loss"])


def test_a_compiled_model_learns_what_a_plain_one_does(tmp_path: Path) -> None:
    losses = []
    for compiled in (False, True):
        torch.manual_seed(0)
        task = vit(compile=compiled, optim=Optim(lr=1e-3, ema=None))
        folder = tmp_path / str(compiled)
        run = fit(folder, task, accelerator="gpu", precision="bf16-mixed", max_epochs=3)
        losses.append(float(run.callback_metrics["train/loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=0.1)


def test_checkpointed_activations_need_less_memory(tmp_path: Path) -> None:
    peaks = []
    for checkpointing in (False, True):
        reset_peak_memory()
        task = vit(
            image_size=224,
            backbone_args={"depth": 12},
            grad_checkpointing=checkpointing,
        )
        data = shapes(image_size=224, num_images=64, batch_size=32)
        fit(tmp_path / str(checkpointing), task, data, accelerator="gpu", precision="bf16-mixed")
        peaks.append(read_peak_memory())
    assert peaks[1] < 0.6 * peaks[0]


class TestFullMemory:
    """A share of the card stands for a small one."""

    @pytest.fixture(autouse=True)
    def little_memory(self) -> Any:
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(2**30 / total)
        yield
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()

    def test_the_largest_batch_fits(self, tmp_path: Path) -> None:
        data = shapes(image_size=224, num_images=1200, batch_size=8, num_workers=4)
        task = vit(image_size=224, backbone_args={"depth": 12})
        run = fit(
            tmp_path,
            task,
            data,
            accelerator="gpu",
            precision="bf16-mixed",
            callbacks=[LargestBatch()],
        )
        assert 8 < data.batch_size < 600
        assert run.global_step > 0

    def test_the_error_says_what_needs_less(self, tmp_path: Path) -> None:
        data = shapes(image_size=224, num_images=2000, batch_size=1000, num_workers=4)
        task = vit(image_size=224, backbone_args={"depth": 12})
        with pytest.raises(torch.OutOfMemoryError) as caught:
            fit(tmp_path, task, data, accelerator="gpu")
        notes = "\n".join(caught.value.__notes__)
        assert "Out of memory. What needs less, the cheapest first:" in notes
        assert "--trainer.precision bf16-mixed (now 32-true)" in notes
        assert "--data.batch_size 500 --trainer.accumulate_grad_batches 2 (now 1000)" in notes


def test_a_picture_is_answered_on_the_gpu_as_on_the_cpu(place: Path) -> None:
    fit(place, vit(), accelerator="gpu")
    found = sorted(place.rglob("best.ckpt"))[0]
    picture = Image.new("RGB", (50, 40), (200, 30, 90))
    (one,) = vfm.load(found, device="cuda").predict([picture])
    (other,) = vfm.load(found, device="cpu").predict([picture])
    assert np.abs(scores(one) - scores(other)).max() < 1e-3
