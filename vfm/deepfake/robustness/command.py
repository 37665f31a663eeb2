"""`vfm audit --robustness`: what is left of a deepfake model when pictures are compressed, blurred or shrunk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vfm.data.corruptions import CORRUPTIONS, list_levels
from vfm.deepfake.data.base import DeepfakeImages
from vfm.deepfake.data.layouts import Format
from vfm.deepfake.data.record import DeepfakeDataError
from vfm.deepfake.export import Split, open_plain_data
from vfm.deepfake.robustness.page import build_robustness_page, format_robustness
from vfm.deepfake.robustness.results import draw_examples, measure_robustness
from vfm.deepfake.task import DeepfakeTask
from vfm.spec import build
from vfm.tasks.checkpoint import Checkpoint

RESULTS = "robustness.json"
PAGE = "robustness.html"


def audit(
    checkpoint: Path,
    data: Path | None = None,
    *,
    robustness: bool = False,
    kinds: str = ",".join(CORRUPTIONS),
    split: Split = "test",
    num_frames: int = 8,
    format: Format = "auto",
    cropped: bool = False,
    native: bool = False,
    batch_size: int = 32,
    num_workers: int = 0,
    device: str = "auto",
    seed: int = 0,
    out: Path | None = None,
    trust: Sequence[str] = (),
) -> None:
    """Put a deepfake model to the test on pictures that are worse than those it was trained on; for these models alone.

    Args:
        checkpoint: A checkpoint of a DeepfakeTask.
        data: Folder of images as for DeepfakeData, or a manifest; by default, and where it is the folder that the model
            was trained on, the data and the split of the training.
        robustness: Measure the AUC at several levels of compression, blur, shrinking and noise. Writes
            robustness.json and robustness.html.
        kinds: Corruptions, separated by commas.
        split: Split to score, val or test.
        num_frames: Most frames of a video, spread evenly.
        format: Layout of the data, where there is no manifest.
        cropped: Says that images without crop.json show one face each, cut out already.
        native: Says that images are not about faces.
        batch_size: Images in a batch.
        num_workers: Processes that open images.
        device: cpu, cuda, or auto for a GPU where there is one.
        seed: Seed of noise and filters; the same for every model makes figures comparable.
        out: Folder for what is written; by default that of the checkpoint. -o for short.
        trust: Packages besides vfm whose code the checkpoint may name.

    Raises:
        DeepfakeDataError: The checkpoint is of another task, or the data hold one label only.
    """
    if not robustness:
        raise DeepfakeDataError("Nothing to audit was named. Choices: --robustness.")
    levels = list_levels([kind.strip() for kind in kinds.split(",")])
    opened, task = open_detector(checkpoint, trust)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    task.to(torch.device(device))
    module = open_audited_data(
        opened, data, format=format, cropped=cropped, native=native, trust=trust
    )
    result = measure_robustness(
        task,
        module,
        levels,
        split=split,
        num_frames=num_frames,
        batch_size=batch_size,
        num_workers=num_workers,
        seed=seed,
    )
    folder = Path(out) if out is not None else Path(checkpoint).parent
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULTS).write_text(json.dumps(result.to_dict(), indent=2) + "\n", encoding="utf-8")
    examples = draw_examples(task, module, levels, split, seed)
    build_robustness_page(result, examples).write(folder / PAGE)
    print(f"{format_robustness(result)}\n\nWritten: {folder / RESULTS} and {folder / PAGE}")


def open_detector(checkpoint: Path, trust: Sequence[str] = ()) -> tuple[Checkpoint, DeepfakeTask]:
    """A checkpoint, and its task, with code of the packages that are trusted besides vfm.

    Raises:
        DeepfakeDataError: It is of another task.
    """
    opened = Checkpoint.open(checkpoint, trust=trust)
    if not isinstance(opened.task, DeepfakeTask):
        raise DeepfakeDataError(
            f"{checkpoint} is a {type(opened.task).__name__}, which does not tell real from fake. Give a checkpoint of "
            "a DeepfakeTask."
        )
    return opened, opened.task


def is_training_data(checkpoint: Checkpoint, data: Path | None) -> bool:
    """Whether data are those of the training: none are named, or the folder of the training."""
    root = (checkpoint.data_spec or {"init_args": {}})["init_args"].get("root")
    return data is None or (root is not None and Path(root).resolve() == data.resolve())


def open_audited_data(
    checkpoint: Checkpoint, data: Path | None, *, trust: Sequence[str] = (), **options: Any
) -> DeepfakeImages:
    """The data to audit a model on, without what would change its images.

    Args:
        checkpoint: Checkpoint of the model.
        data: Folder or manifest; None, or the folder of its training, for the data and the splits of the training.
        trust: Packages besides vfm whose code the checkpoint may name.
        **options: `format`, `cropped` and `native` of other data than those of the training.

    Raises:
        DeepfakeDataError: Nothing says which data to take.
    """
    trained = checkpoint.data_spec
    if trained is not None and is_training_data(checkpoint, data):
        # The mode stays: by it a split without fakes has the blends that it was validated on.
        plain = trained["init_args"] | {"edits": False, "benign_share": 0.0}
        module: DeepfakeImages = build(
            {**trained, "init_args": plain}, base=DeepfakeImages, trust=trust
        )
        return module
    if data is None:
        raise DeepfakeDataError(
            f"{checkpoint.path} does not say what it was trained on. Name the data: vfm audit {checkpoint.path} DATA."
        )
    return open_plain_data(data, **options)
