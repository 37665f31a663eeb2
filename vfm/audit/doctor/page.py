"""Doctor page: files, leaks and duplicates, labels, classes, boxes, null score and outliers, most urgent first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.media.image import open_image

from vfm.audit.doctor.box_errors import MISSING, PROBLEMS, BoxSuspect
from vfm.audit.doctor.diagnosis import Diagnosis, open_check_picture, place_cut
from vfm.audit.doctor.facts import count_classes, count_formats
from vfm.audit.null_score import NULL_FEATURES
from vfm.data.records import Record, read_source
from vfm.report import Page, draw_contact_sheet
from vfm.report.drawing import Marked, draw_marked_boxes
from vfm.report.plots import plot_bars
from vfm.search.image_duplicates import DuplicatePair

_SHOWN_PAIRS, _SHOWN_CHECKS, _SHOWN_ROWS = 12, 24, 20
_MOST_BARS = 25
_SIDE = 160

_PARTS = {
    "metadata": "size, format and compression",
    "border": "the colors of the border",
    "look": "brightness, contrast, saturation, sharpness",
    "all": "all of these",
}
assert set(_PARTS) == {*NULL_FEATURES, "all"}


def build_page(result: Diagnosis) -> Page:
    """Lay out everything that was seen, and what was not looked at."""
    source, values = result.source, result.compute_values()
    page = Page("What is wrong with the data", str(source.path))
    labels = result.labels
    expected = sum(check.probability for check in result.checks)
    flagged = "not judged" if labels is None else f"{labels.num_errors:,}"
    leaks: tuple[Any, str] = ("none stated", "splits, so nothing can leak")
    if any(source.splits):
        keys = f", {len(result.key_leaks)} keys in two splits" if source.keys else ""
        count = len({pair.second for pair in result.leaks})
        leaks = (count, f"images that another split has too{keys}")
    page.add_facts(
        {
            "Images": (result.num_images, f"read as {source.format}"),
            "Leaks": leaks,
            "Copies": (len({pair.second for pair in result.pairs}), "images beyond the first"),
            "Likely label errors": (flagged, "" if labels is None else "estimated"),
            "Check first": (len(result.checks), f"images, about {expected:.0f} of them wrong"),
            "Unreadable": int(values["unreadable"] or 0),
        }
    )
    _add_duplicates(page, result)
    _add_checks(page, result)
    _add_files(page, result)
    _add_classes(page, result)
    _add_boxes(page, result)
    _add_box_errors(page, result)
    _add_null_scores(page, result)
    _add_outliers(page, result)
    page.add_heading("What was not looked at")
    for text in list_gaps(result):
        page.add_text(text)
    if result.notes:
        page.add_heading("Notes")
        for note in result.notes:
            page.add_text(note)
    return page


def list_gaps(result: Diagnosis) -> list[str]:
    """Say what was not looked at, and how to."""
    source = result.source
    texts = [f"Near-copies, labels and outliers were compared by {result.features}."]
    if not any(source.splits):
        texts.append(
            "The data state no splits, so nothing can leak between them; where training draws them, equal files stay "
            "together, near-copies do not. --key, or a split column in the table of --fix, settles that."
        )
    if not source.keys:
        texts.append(
            "Whether a patient, person, product or place is in two splits: name the column of a table with --key."
        )
    if not source.labels:
        texts.append(
            "Labels: there are none, so label errors, balance and null scores are left out."
        )
    if source.has_boxes and result.box_errors is None:
        texts.append(
            "Objects without a box, and boxes that are shifted: name a detector of these classes with --detector."
        )
    return texts


def _add_checks(page: Page, result: Diagnosis) -> None:
    if not result.checks:
        return
    page.add_heading(f"Check these {len(result.checks)} first")
    expected = sum(check.probability for check in result.checks)
    labels = result.labels
    text = f"About {expected:.0f} of these {len(result.checks)} are wrong, as far as what judged them knows."
    if labels is not None:
        text += (
            f" Each label was judged by a probe ({labels.probe}) that had not seen it, whose own answers agree with "
            f"{labels.accuracy:.1%} of the labels; where classes look alike to it, fewer are wrong than it says."
        )
    page.add_text(text)
    shown = result.checks[:_SHOWN_CHECKS]
    pictures = [
        open_check_picture(result.source.records[check.position], check.box) for check in shown
    ]
    captions = [
        f"{number}. {check.probability:.2f}\n"
        + check.reason.replace("labelled ", "").replace(", looks like ", "\n-> ")
        for number, check in enumerate(shown, 1)
    ]
    page.add_figure(
        draw_contact_sheet(pictures, captions),
        f"The first {len(shown)}: probability of an error, the label, and what it looks like",
    )
    page.add_table(
        [
            {
                "image": result.source.records[check.position].name,
                **({"box": ", ".join(f"{v:.0f}" for v in check.box)} if check.box else {}),
                "reason": check.reason,
                "probability": check.probability,
            }
            for check in result.checks[:_SHOWN_ROWS]
        ]
    )
    page.add_text(f"doctor.json lists all {len(result.checks)}.")


def _add_duplicates(page: Page, result: Diagnosis) -> None:
    source = result.source
    if result.other is not None:
        page.add_heading("Shared with the other data set")
        page.add_text(
            f"{len({pair.first for pair in result.shared})} of {result.num_images} images are in {result.other.path} "
            "too: what is trained on one and tested on the other is known by heart."
        )
        _add_pairs(page, result, result.shared)
    page.add_heading("Leaks and duplicates")
    if any(source.splits):
        count = len({pair.second for pair in result.leaks})
        verdict = (
            "No image is in two splits."
            if not count
            else (
                f"{count} images are in two splits: a test on them measures memory. --fix takes the copies that are "
                "trained on out of the table."
            )
        )
        page.add_text(verdict)
        _add_pairs(page, result, result.leaks)
    if result.key_leaks:
        page.add_text(
            f"{len(result.key_leaks)} keys are in two splits, such as {', '.join(result.key_leaks[:5])}."
        )
    within = [pair for pair in result.pairs if pair not in set(result.leaks)]
    kinds = {
        how: sum(pair.how == how for pair in result.pairs) for how in (p.how for p in result.pairs)
    }
    listed = "; ".join(f"{count} {how}" for how, count in kinds.items())
    page.add_text(f"{len(result.pairs)} pairs of images are one{f': {listed}' if listed else ''}.")
    if within:
        page.add_text("Those within a split, or where there are no splits:")
        _add_pairs(page, result, within)


def _add_pairs(page: Page, result: Diagnosis, pairs: Sequence[DuplicatePair]) -> None:
    """Add pairs side by side: of each kind in turn, the least similar first, which a person should doubt."""
    if not pairs:
        return
    by_kind: dict[str, list[DuplicatePair]] = {}
    for pair in sorted(pairs, key=lambda pair: pair.similarity):
        by_kind.setdefault(pair.how, []).append(pair)
    turns = [
        pair
        for turn in range(_SHOWN_PAIRS)
        for members in by_kind.values()
        for pair in members[turn : turn + 1]
    ]
    shown = turns[:_SHOWN_PAIRS]
    ends = [(pair, end) for pair in shown for end in pair[:2]]
    pictures = [open_check_picture(_find_record(result, end)) for _, end in ends]
    captions = [
        f"{'other:' if end >= result.num_images else result.source.splits[end]} "
        f"{_find_record(result, end).name.rpartition('/')[2]}\n{pair.how} {pair.similarity:.3f}"
        for pair, end in ends
    ]
    page.add_figure(
        draw_contact_sheet(pictures, captions),
        f"{len(shown)} of {len(pairs)} pairs, side by side; the least similar of each kind first",
    )
    page.add_table(
        [
            {
                "image": _find_record(result, pair.first).name,
                "is": _find_record(result, pair.second).name,
                "how": pair.how,
                "correlation": pair.similarity,
            }
            for pair in turns[:_SHOWN_ROWS]
        ]
    )


def _find_record(result: Diagnosis, index: int) -> Record:
    if index >= result.num_images and result.other is not None:
        return result.other.records[index - result.num_images]
    return result.source.records[index]


def _add_files(page: Page, result: Diagnosis) -> None:
    page.add_heading("Files")
    scan = result.scan
    page.add_table(
        count_formats(type(scan)(scan.files[: result.num_images], scan.gray, scan.colors))
    )
    if result.odd:
        page.add_text(f"{len(result.odd)} files are not as the others are:")
        records = result.source.records
        page.add_table(
            [
                {"image": records[odd.position].name, "problem": odd.problem}
                for odd in result.odd[:_SHOWN_ROWS]
            ]
        )


def _add_classes(page: Page, result: Diagnosis) -> None:
    rows = count_classes(result.source)
    if not rows:
        return
    page.add_heading("Classes")
    sums = {
        row["class"]: sum(v for k, v in row.items() if isinstance(v, int) and k != "sum")
        for row in rows
    }
    low, high = min(sums.values()), max(sums.values())
    what = "boxes" if result.source.has_boxes else "images"
    text = f"{len(rows)} classes, of {low} to {high} {what}"
    text += f": the largest has {high / low:.1f} times as many as the smallest." if low else "."
    if low and high / low > 10:
        text += " Accuracy says little of the small ones; read the metrics by class, or weigh classes in training."
    page.add_text(text)
    page.add_figure(
        plot_bars(dict(list(sums.items())[:_MOST_BARS]), what), f"{what.capitalize()} of each class"
    )
    if len(rows[0]) > 2:
        page.add_table(rows[:_SHOWN_ROWS])
    if result.like_names:
        pairs = ", ".join(f"'{one}' and '{other}'" for one, other in result.like_names[:10])
        page.add_text(f"Names that may mean one class: {pairs}.")


def _add_boxes(page: Page, result: Diagnosis) -> None:
    if not result.source.has_boxes:
        return
    page.add_heading("Boxes")
    if not result.box_doubts:
        page.add_text("No box lies outside of its image, is tiny, or is there twice.")
        return
    page.add_text(
        f"{len(result.box_doubts)} boxes are doubtful. Training clips or drops those that leave their image."
    )
    page.add_table([doubt._asdict() for doubt in result.box_doubts[:_SHOWN_ROWS]])


def _add_box_errors(page: Page, result: Diagnosis) -> None:
    errors = result.box_errors
    if errors is None:
        return
    page.add_heading("Boxes that the detector sees otherwise")
    counts = Counter(suspect.problem for suspect in errors.likely)
    listed = ", ".join(f"{counts[problem]} {text}" for problem, text in PROBLEMS.items())
    page.add_text(
        f"{errors.num_judged} boxes were judged. Likely: {listed}. Doubt is the score of what the detector finds, less "
        "what speaks for the box as it stands; likely is a doubt of 0.5 or more, which a weak detector seldom has."
    )
    shown = errors.suspects[:_SHOWN_CHECKS]
    if not shown:
        return
    records, names = result.source.records, result.source.labels
    captions = [
        f"{number}. {each.doubt:.2f} {each.problem}\n{each.describe(names).partition(', ')[2]}"
        for number, each in enumerate(shown, 1)
    ]
    pictures = [_draw_suspect(records[each.position], each) for each in shown]
    page.add_figure(
        draw_contact_sheet(pictures, captions, columns=4, cell=_SIDE),
        f"The first {len(shown)}: the stated box red, what the detector finds green",
    )


def _draw_suspect(record: Record, suspect: BoxSuspect) -> NDArray[np.uint8]:
    pixels = open_image(read_source(record))  # the detector read it too
    ends = np.array([suspect.box, suspect.suggested_box], np.float32)
    around = [*ends[:, :2].min(axis=0), *ends[:, 2:].max(axis=0)]
    x0, y0, x1, y1 = place_cut(pixels, around, 0.8)
    stated, seen = (ends - np.array([x0, y0, x0, y0], np.float32))[:, None]
    wrong = stated[: int(suspect.problem != MISSING)]
    marked = Marked(seen, stated[:0], wrong, captions=[""] * len(wrong))
    return draw_marked_boxes(pixels[y0:y1, x0:x1], marked, _SIDE)


def _add_null_scores(page: Page, result: Diagnosis) -> None:
    if not result.null_scores:
        return
    page.add_heading("Labels told without content: the null score")
    page.add_text(
        "A model that is given nothing but these values, scored on images that it was not fitted on. An AUC of 0.5 is "
        "chance; what lies above, a model of the images may have learned in place of their content."
    )
    page.add_table(
        [
            {
                "by": _PARTS[part],
                "AUC": score.auroc.value,
                "95 % interval": f"{score.auroc.low:.3f} to {score.auroc.high:.3f}",
                "accuracy": None if score.accuracy is None else score.accuracy.value,
                "always the commonest": score.majority,
                "warning": "yes" if score.is_warning else "",
            }
            for part, score in result.null_scores.items()
        ]
    )


def _add_outliers(page: Page, result: Diagnosis) -> None:
    if not result.outliers:
        return
    page.add_heading("Least like any other")
    page.add_text(
        "Often damaged, of another source, or rare and worth more examples. The first is the loneliest."
    )
    records = result.source.records
    page.add_figure(
        draw_contact_sheet(
            [open_check_picture(records[index]) for index, _ in result.outliers],
            [
                f"{result.source.describe_labels(index)}\n{records[index].name.rpartition('/')[2]}"
                for index, _ in result.outliers
            ],
        ),
        f"The {len(result.outliers)} images whose nearest neighbors are farthest",
    )
