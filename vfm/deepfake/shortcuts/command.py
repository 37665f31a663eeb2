"""`vfm doctor`: what is in the data, what gives the labels away, and what a model says of known reals."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import vfm_runtime
from vfm_runtime.bundle.predictor import Predictor
from vfm_runtime.deepfake.task import DeepfakeType
from vfm_runtime.media.video import find_media

from vfm.deepfake.data.base import CROP_FILE
from vfm.deepfake.data.layouts import Format, import_layout
from vfm.deepfake.data.record import FAKE, LABELS, REAL, DeepfakeDataError, Item, sort_items
from vfm.deepfake.results import SHORTCUTS
from vfm.deepfake.shortcuts.known_reals import judge_known_reals
from vfm.deepfake.shortcuts.page import (
    build_shortcuts_page,
    explain_names,
    explain_shortcuts,
    format_table,
    list_features,
    list_sources,
)
from vfm.deepfake.shortcuts.search import find_shortcuts
from vfm.tasks import BaseTask
from vfm.tasks.predictor import TorchPredictor

PAGE = "shortcuts.html"
KNOWN_REALS = "known_reals.json"

_CROP_NOTE = (
    "These are crops, all saved alike. What tells the videos apart that they were cut from (compression, length, size) "
    "is still in their pixels: run vfm doctor --shortcuts on the videos, too."
)
_NEXT = "Next: --shortcuts looks for what gives the labels away; --model CHECKPOINT asks a model of the reals."


def doctor(
    data: Path,
    *,
    shortcuts: bool = False,
    model: Path | None = None,
    format: Format | Literal["reals"] = "auto",
    out: Path | None = None,
    max_files: int = 2000,
    seed: int = 0,
    trust: Sequence[str] = (),
) -> None:
    """Look over data of deepfakes before training on it, or trusting a model with it; for these data alone.

    Args:
        data: Folder of a data set, or a manifest.
        shortcuts: Try to tell real from fake by the files alone (size, format, compression, length, name), without a
            look at the pictures. Writes shortcuts.json and shortcuts.html.
        model: A checkpoint, or the folder of a bundle: what it says of everything that is real in the data. Writes
            known_reals.json.
        format: Layout of the data as for `vfm faces`; `reals` for a folder in which everything is known to be real.
        out: Folder for what is written; by default that of the data. -o for short.
        max_files: Most files to look at, half of them of each label.
        seed: Seed of the choice of files, folds and intervals.
        trust: Packages besides vfm whose code the checkpoint may name.

    Raises:
        DeepfakeDataError: The data cannot be read, or are too few for what was asked.
    """
    data = Path(data)
    if format == "reals":
        files = find_media(data, videos=True)
        named = [(file, file.relative_to(data).as_posix()) for file in files]
        items = [Item(path=str(file), label="real", video=name) for file, name in named]
        notes: Sequence[str] = ()
    else:
        reading = import_layout(data, format)
        items, notes = sort_items(reading.entries), reading.notes
    print(f"{data}\n\n{format_table(count_files(items))}\n")
    crop_file = (data if data.is_dir() else data.parent) / CROP_FILE
    cropped = crop_file.is_file() and (
        json.loads(crop_file.read_text(encoding="utf-8")).get("source") == "faces"
    )
    for note in [*notes, *[_CROP_NOTE] * cropped]:
        print(f"Note: {note}")
    if shortcuts:
        result = find_shortcuts(items, max_files=max_files, seed=seed)
        folder = _make_folder(data, out)
        _write_json(folder / SHORTCUTS, {"data": str(data), **result.to_dict()})
        build_shortcuts_page(result, str(data)).write(folder / PAGE)
        tables = [format_table(rows) for rows in (list_features(result), list_sources(result))]
        notes = [f"Note: {note}" for note in result.notes]
        texts = [explain_shortcuts(result), explain_names(result), *notes]
        print("\n\n".join([*filter(None, tables), "\n".join(filter(None, texts))]))
        print(f"\nWritten: {folder / SHORTCUTS} and {folder / PAGE}")
    if model is not None:
        if cropped:
            raise DeepfakeDataError(
                f"{data} holds crops of faces. A model is asked of whole images and videos, as it will be in use: give "
                "the folder that they were cut from, or any other with --format reals."
            )
        asked = load_model(model, trust)
        reals = list(dict.fromkeys(Path(item.path) for item in items if item.label == REAL))
        # Evenly through the list: neighbors are alike.
        step = max(1, -(-len(reals) // max(1, max_files // 2)))
        kind = asked.task_type
        promised = kind.pipeline.decision.fpr if isinstance(kind, DeepfakeType) else None
        answers = judge_known_reals(asked, reals[::step], promised)
        _write_json(_make_folder(data, out) / KNOWN_REALS, answers.to_dict())
        print(f"\nKnown reals, asked of {model}\n{answers}")
    if not shortcuts and model is None:
        print(_NEXT)


def count_files(items: Sequence[Item]) -> list[dict[str, Any]]:
    """A row for each data set, split and method: how many videos and files."""
    rows = Counter((item.dataset, item.split, item.label, item.method) for item in items)
    videos = Counter(
        (key[0], split, label, key[1])
        for key, split, label in {(item.key, item.split, item.label) for item in items}
    )
    return [
        {
            "data set": dataset,
            "split": split or "not given",
            "label": label,
            "method": method,
            "videos or stills": videos[dataset, split, label, method],
            "files": rows[dataset, split, label, method],
        }
        for dataset, split, label, method in sorted(rows)
    ]


def load_model(path: Path, trust: Sequence[str] = ()) -> Predictor:
    """Load a model that answers with verdicts: a checkpoint, with code of trusted packages, or the folder of a bundle.

    Raises:
        DeepfakeDataError: It answers something else.
    """
    bundled = path.is_dir()
    model: Predictor = (
        vfm_runtime.load(path)
        if bundled
        else TorchPredictor(BaseTask.load(path, trust=trust).eval())
    )
    if model.labels != LABELS:
        raise DeepfakeDataError(
            f"{path} tells {', '.join(model.labels[:4])} apart, not {REAL} and {FAKE}. Give a checkpoint or bundle "
            "of a DeepfakeTask."
        )
    return model


def _make_folder(data: Path, out: Path | None) -> Path:
    folder = Path(out) if out is not None else data if data.is_dir() else data.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _explain_unwritable(folder, error) from error
    return folder


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    try:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise _explain_unwritable(path, error) from error


def _explain_unwritable(path: Path, error: OSError) -> DeepfakeDataError:
    return DeepfakeDataError(
        f"{path} cannot be written ({error.strerror}). Name another folder with --out."
    )
