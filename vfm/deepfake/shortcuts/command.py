"""Deepfake sections of `vfm doctor`: what gives the labels away, and what a model says of known reals."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import vfm_runtime
from vfm_runtime.bundle.predictor import Predictor
from vfm_runtime.deepfake.task import DeepfakeType
from vfm_runtime.media.video import find_media, is_video

from vfm.data.layouts import Reading
from vfm.data.records import Record
from vfm.deepfake.data.base import CROP_FILE
from vfm.deepfake.data.layouts import Format, import_layout
from vfm.deepfake.data.record import FAKE, LABELS, REAL, DeepfakeDataError, Item, sort_items
from vfm.deepfake.data.splits import name_components
from vfm.deepfake.results import SHORTCUTS
from vfm.deepfake.shortcuts.known_reals import KnownReals, judge_known_reals
from vfm.deepfake.shortcuts.page import (
    add_shortcuts,
    explain_names,
    explain_shortcuts,
    format_table,
    list_features,
    list_sources,
)
from vfm.deepfake.shortcuts.search import find_shortcuts
from vfm.report import Page
from vfm.tasks import BaseTask
from vfm.tasks.predictor import TorchPredictor

KNOWN_REALS = "known_reals.json"
_REALS = "reals"

_CROP_NOTE = (
    "These are crops, all saved alike. What tells the videos apart that they were cut from (compression, length, size) "
    "is still in their pixels: run vfm doctor --shortcuts on the videos, too."
)
_NEXT = "Next: --shortcuts looks for what gives the labels away; --model CHECKPOINT asks a model of the reals."


class DeepfakeDoctor:
    """Sections of `vfm doctor` for real and fake images and videos: shortcuts in the files, and known reals."""

    formats: Sequence[str] = tuple(name for name in (*get_args(Format), _REALS) if name != "auto")

    def read(self, data: Path, format: str) -> Reading[Record] | None:
        """Return the images by split, with the video and the persons of each as its key; None where they are others.

        Raises:
            DeepfakeDataError: They cannot be read in the format that was named.
        """
        if format == "auto" and not data.exists():
            return None
        try:
            items, notes = _read_items(data, format)
        except DeepfakeDataError:
            if format != "auto":
                raise
            return None  # of another kind: what reads it says what is wrong with it
        splits: dict[str, list[Record]] = {}
        for item, key in zip(items, name_components(items), strict=True):
            if not is_video(item.path):
                record = Record(item.path, LABELS.index(item.label), item.path, key=key)
                splits.setdefault(item.split, []).append(record)
        num_videos = sum(is_video(item.path) for item in items)
        if num_videos:
            notes = [
                *notes,
                f"{num_videos} videos were not opened: cut them into frames, and look at those too.",
            ]
        return Reading(splits, LABELS, notes)

    def add_sections(
        self,
        page: Page,
        data: Path,
        *,
        shortcuts: bool,
        model: Path | None,
        format: str,
        out: Path | None,
        max_files: int,
        seed: int,
        trust: Sequence[str],
    ) -> dict[str, Any]:
        """Count videos, look for shortcuts in the files, and ask a model of the known reals.

        Args:
            page: Page that the sections are added to.
            data: Folder of a data set, or a manifest.
            shortcuts: Try to tell real from fake by the files alone (size, format, compression, length, name), without
                a look at the pictures. Writes shortcuts.json, by default beside the data.
            model: A checkpoint, or the folder of a bundle: what it says of everything that is real in the data. Writes
                known_reals.json.
            format: Layout of the data as for `vfm faces`; `reals` for a folder in which everything is known to be real.
            out: Folder for what is written; by default that of the data.
            max_files: Most files to look at, half of them of each label.
            seed: Seed of the choice of files, folds and intervals.
            trust: Packages besides vfm whose code the checkpoint may name.

        Raises:
            DeepfakeDataError: The data are too few for what was asked.
        """
        items, _ = _read_items(data, format)
        counts = count_files(items)
        print(f"{data}\n\n{format_table(counts)}\n")
        page.add_heading("Videos and stills")
        page.add_table(counts)
        crop_file = (data if data.is_dir() else data.parent) / CROP_FILE
        cropped = crop_file.is_file() and (
            json.loads(crop_file.read_text(encoding="utf-8")).get("source") == "faces"
        )
        if cropped:
            print(f"Note: {_CROP_NOTE}")
            page.add_text(_CROP_NOTE)
        content: dict[str, Any] = {"files": counts}
        if shortcuts:
            result = find_shortcuts(items, max_files=max_files, seed=seed)
            folder = _make_folder(data, out)
            content["shortcuts"] = {"data": str(data), **result.to_dict()}
            _write_json(folder / SHORTCUTS, content["shortcuts"])
            add_shortcuts(page, result)
            tables = [format_table(rows) for rows in (list_features(result), list_sources(result))]
            notes = [f"Note: {note}" for note in result.notes]
            texts = [explain_shortcuts(result), explain_names(result), *notes]
            print("\n\n".join([*filter(None, tables), "\n".join(filter(None, texts))]))
            print(f"\nWritten: {folder / SHORTCUTS}")
        if model is not None:
            answers = _ask_of_reals(data, items, model, cropped, max_files, trust)
            content["known_reals"] = answers.to_dict()
            _write_json(_make_folder(data, out) / KNOWN_REALS, content["known_reals"])
            print(f"\nKnown reals, asked of {model}\n{answers}")
            page.add_heading("Known reals")
            page.add_code(str(answers))
        if not shortcuts and model is None:
            print(_NEXT)
        return content


def _read_items(data: Path, format: str) -> tuple[Sequence[Item], Sequence[str]]:
    if format == _REALS:
        files = find_media(data, videos=True)
        named = [(file, file.relative_to(data).as_posix()) for file in files]
        return [Item(path=str(file), label="real", video=name) for file, name in named], ()
    reading = import_layout(data, format)  # type: ignore[arg-type]  # another is refused there
    return sort_items(reading.entries), reading.notes


def _ask_of_reals(
    data: Path,
    items: Sequence[Item],
    model: Path,
    cropped: bool,
    max_files: int,
    trust: Sequence[str],
) -> KnownReals:
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
    return judge_known_reals(asked, reals[::step], promised)


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
