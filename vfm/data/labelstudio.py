"""Label Studio's JSON: tasks with an image each, and choices of whole images, by a person or a model, as a table."""

import json
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from vfm_runtime.errors import DataError
from vfm_runtime.media.image import IMAGE_SUFFIXES

TASKS_FILE = "tasks.json"
CHOICE_SEPARATOR = "|"
"""Stands between the choices of one image in the table that is made of them."""
_START = 65_536
# Tasks as they are imported, or exported as JSON; JSON-MIN has no `data`.
_TASKS = re.compile(rb'^\s*\[\s*\{(?s:.*)"data"\s*:\s*\{')
_CHOICES = re.compile(rb'"choices"\s*:\s*\[')


def find_tasks(root: Path, kind: re.Pattern[bytes]) -> Path | None:
    """Find the file of tasks in whose beginning there is something of a kind; None where there is none.

    Args:
        root: Folder of the file, or the file.
        kind: Pattern of the results that are looked for.
    """
    for path in [root] if root.is_file() else sorted(root.glob("*.json")):
        if path.suffix == ".json":
            with path.open("rb") as file:
                start = file.read(_START)
            if _TASKS.search(start) and kind.search(start):
                return path
    return None


def find_choices(root: Path) -> Path | None:
    """Find the file of tasks with choices of whole images, in a folder or itself; None where there is none."""
    return find_tasks(root, _CHOICES)


def find_image_name(data: Mapping[str, Any]) -> str | None:
    """Return the name of the image file of a task: below the root of local files, or the end of an address."""
    for value in [data.get("image"), *data.values()]:
        if not isinstance(value, str):
            continue
        address = urlsplit(value)
        local = parse_qs(address.query).get("d")
        name = local[0] if local else unquote(address.path if address.scheme else value)
        if name.lower().endswith(IMAGE_SUFFIXES):
            return name.lstrip("/")
    return None


def choose_results(task: Mapping[str, Any], events: Counter[str]) -> list[Mapping[str, Any]] | None:
    """Return the results of a task: what a person made last, else what a model predicted; None where there are none.

    Args:
        task: Task of the file.
        events: Counts what a person should know of, by sentences with {} for the file.
    """
    done = [one for one in task.get("annotations") or [] if not one.get("was_cancelled")]
    if done:
        return list(done[-1].get("result") or [])
    predicted = task.get("predictions") or []
    if not predicted:
        return None
    events["images of {} were looked at by no person: what a model predicted is taken."] += 1
    return list(predicted[-1].get("result") or [])


def read_choices(path: Path) -> list[dict[str, str]]:
    """Read the choices of each task as rows of a table, with `path` and `label`, several joined by a bar.

    A task that neither a person nor a model has answered is left out, with a warning.

    Raises:
        DataError: The file is damaged, a task names no image, or a choice holds a bar.
    """
    try:
        tasks = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} cannot be read as JSON: {error}. Export it again.") from error
    if not isinstance(tasks, list):
        raise DataError(f"{path} is no list of tasks. Export it from Label Studio as JSON.")
    events: Counter[str] = Counter()
    rows = []
    for number, task in enumerate(tasks, start=1):
        data = task.get("data") if isinstance(task, dict) else None
        name = find_image_name(data) if isinstance(data, dict) else None
        if name is None:
            names = ", ".join(data or {}) or "nothing"
            raise DataError(
                f"{path}, task {number} names no image file. Its data: {names}. Give each task an address of an image."
            )
        results = choose_results(task, events)
        if results is None:
            events["images of {} have no answer yet, and are left out."] += 1
            continue
        labels: list[str] = []
        for result in results:
            if result.get("type") != "choices":
                events["results of {} are no choices, and are left out."] += 1
                continue
            labels += map(str, (result.get("value") or {}).get("choices") or [])
        if barred := [label for label in labels if CHOICE_SEPARATOR in label]:
            raise DataError(
                f"{path}, task {number}: the choice '{barred[0]}' holds '{CHOICE_SEPARATOR}', which stands between "
                "choices here. Rename it."
            )
        rows.append({"path": name, "label": CHOICE_SEPARATOR.join(dict.fromkeys(labels))})
    for event, count in events.items():
        warnings.warn(f"{count} {event.format(path)}", stacklevel=2)
    return rows
