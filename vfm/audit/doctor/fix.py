"""Cleaned table of `vfm doctor --fix`: the rows that may stay, for training to read in place of the data."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

from vfm_runtime.errors import OptionError

from vfm.audit.doctor.diagnosis import Diagnosis
from vfm.audit.doctor.source import DoctorSource
from vfm.data.detection.csv import COLUMNS
from vfm.data.records import list_labels
from vfm.data.tables import write_rows
from vfm.search.image_duplicates import number_groups

FILE = "cleaned.csv"
DOUBT = "doubt"
"""Column of the class that a doubtful label may be meant as; training does not read it."""

_ORDER = ("test", "val", "train", "")
"""Of copies in two splits the one is kept that is tested on: metrics stay comparable."""


def require_files(source: DoctorSource) -> None:
    """Refuse data whose images a table cannot name.

    Raises:
        OptionError: They are in memory or in archives.
    """
    if any(not isinstance(record.source, str) for record in source.records):
        raise OptionError(
            f"--fix writes a table of files, but the images of {source.path} are not files of their own. Leave it out; "
            "doctor.json lists what to leave out by name."
        )


def write_cleaned(result: Diagnosis, path: Path) -> dict[str, int]:
    """Write a table without what should not be trained on, and return how many images were left out, by the reason.

    Left out are unreadable files; equal files within a split, but one; of images in two splits all but those that are
    tested on; all of equal files whose labels contradict each other. No label is changed: doubts stand in a column.
    """
    source = result.source
    reasons = _choose_reasons(result)
    rows_kept = [i for i in range(result.num_images) if i not in reasons]
    has_splits = any(source.splits)
    rows = []
    if source.has_boxes:
        columns = [*COLUMNS, *["split"] * has_splits]
        for index in rows_kept:
            record = source.records[index]
            head = {
                "image_path": str(Path(str(record.source)).absolute()),
                "split": source.splits[index],
            }
            corners = [] if record.objects is None else record.objects.corners.tolist()
            for box, label in zip(corners, list_labels(record), strict=True):
                numbers = [f"{value:.2f}" for value in box]
                rows.append(
                    head | dict(zip(COLUMNS[1:], [*numbers, source.labels[label]], strict=True))
                )
            if not corners:
                rows.append(head | dict.fromkeys(COLUMNS[1:], ""))
    else:
        doubts: dict[int, str] = {}
        for one in result.flagged:
            # Of several labels a - is before one that does not apply, as what is to be taken away.
            text = (
                source.labels[one.suggested]
                if one.suggested >= 0
                else f"-{source.labels[one.stated]}"
            )
            index = result.samples[one.position][0]
            doubts[index] = f"{doubts[index]}|{text}" if index in doubts else text
        columns = ["path", *["label"] * bool(source.labels), *["split"] * has_splits]
        columns += [*["key"] * bool(source.keys), *[DOUBT] * (result.labels is not None)]
        for index in rows_kept:
            record = source.records[index]
            cells = {
                "path": str(Path(str(record.source)).absolute()),
                "label": "|".join(source.labels[k] for k in list_labels(record)),
                "split": source.splits[index],
                DOUBT: doubts.get(index, ""),
            }
            rows.append(cells | ({"key": source.keys[index]} if source.keys else {}))
    write_rows(path, columns, rows)
    return dict(Counter(reasons.values()))


def _choose_reasons(result: Diagnosis) -> dict[int, str]:
    """Return why an image is left out, by its index."""
    source = result.source
    reasons = {
        odd.position: "unreadable" for odd in result.odd if odd.problem.startswith("unreadable")
    }
    equal = number_groups([p for p in result.pairs if p.how == "same file"], result.num_images)
    alike = number_groups(result.pairs, result.num_images)
    members: defaultdict[int, list[int]] = defaultdict(list)
    for index in sorted({end for pair in result.pairs for end in pair[:2]}):
        members[int(alike[index])].append(index)
    for group in members.values():
        files: defaultdict[int, list[int]] = defaultdict(list)
        for index in group:
            files[int(equal[index])].append(index)
        for copies in files.values():
            labels = {source.records[index].label for index in copies}
            if len(labels) > 1 and not source.has_boxes:
                reasons |= dict.fromkeys(copies, "equal files with other labels")
        left = [index for index in group if index not in reasons]
        best = min((_ORDER.index(source.splits[index]) for index in left), default=0)
        seen: set[tuple[int, str]] = set()
        for index in left:
            if _ORDER.index(source.splits[index]) > best:
                reasons[index] = "in two splits"
            elif (key := (int(equal[index]), source.splits[index])) in seen:
                reasons[index] = "equal files"
            else:
                seen.add(key)
    return reasons
