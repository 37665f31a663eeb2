"""`vfm doctor`: what is wrong with data before training: leaks, duplicates, label errors, odd files, shortcuts."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vfm_runtime.errors import DataError, OptionError

from vfm.audit.doctor.box_errors import open_detector
from vfm.audit.doctor.diagnosis import VALUES, Diagnosis, DoctorOptions, diagnose, summarize
from vfm.audit.doctor.extensions import DoctorExtension, list_extensions
from vfm.audit.doctor.fix import FILE, require_files, write_cleaned
from vfm.audit.doctor.label_errors import import_cleanlab
from vfm.audit.doctor.page import build_page
from vfm.audit.doctor.source import DoctorSource, open_source
from vfm.audit.rules import AuditFailed, check_rules, parse_rules
from vfm.data.layouts import Reading
from vfm.data.records import Record
from vfm.data.splits import SPLITS

PAGE, RESULTS = "doctor.html", "doctor.json"
_AUTO, _PLAIN = "auto", "images"
_DEFAULTS = DoctorOptions()


def doctor(
    data: Path,
    *,
    against: Path | None = None,
    out: Path | None = None,
    format: str = _AUTO,
    shortcuts: bool = False,
    options: DoctorOptions = _DEFAULTS,
    trust: Sequence[str] = (),
) -> None:
    """Look over data of any task before training: leaks, duplicates, label errors, odd files, doubtful boxes, outliers.

    Writes doctor.html and doctor.json. What could not be looked at is said.

    Args:
        data: Folder or table of images, as vfm fit reads it.
        against: Another data set, in which none of the images should be.
        out: Folder for what is written; doctor/ by default. -o for short.
        format: Kind of the data, where they are not told apart by their files; images for none of a special kind.
        shortcuts: Look more closely at what the files alone tell of the labels, for data of a special kind.
        options: What is looked at.
        trust: Packages besides vfm whose code a checkpoint may name.

    Raises:
        DataError: The data cannot be read.
        OptionError: An option has a value that it cannot have, or goes with other data.
        MissingPackageError: Labels are to be judged, and cleanlab is not installed.
        AuditFailed: A rule of --fail-on does not hold.
    """
    data = Path(data)
    rules = parse_rules(options.fail_on)
    check_rules(rules, dict.fromkeys(VALUES))
    extension, reading = _find_extension(data, format)
    if reading is not None:
        source = _take_reading(data, reading, options.key)
    elif shortcuts:
        raise OptionError(
            f"--shortcuts goes with data of a special kind, such as videos that are real or not, but {data} is read as "
            "plain images. Leave it out: their null score is measured anyway."
        )
    else:
        source = _open(data, options)
    if extension is None and options.label_errors and source.labels:
        import_cleanlab()
    detector = (
        None
        if options.detector is None
        else open_detector(options.detector, source, device=options.device, trust=trust)
    )
    if options.fix:
        require_files(source)
    folder = Path("doctor") if out is None else Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{folder} cannot be written ({error.strerror}). Name another folder with --out."
        ) from error
    # The labels and the model of a special kind are its own to judge.
    plain = options if extension is None else replace(options, model=None, label_errors=False)
    result = diagnose(
        source,
        plain,
        other=None if against is None else _open(against, _DEFAULTS),
        detector=detector,
        progress=lambda text: print(text, file=sys.stderr, flush=True),
    )
    page, content = build_page(result), summarize(result)
    if extension is not None:
        content["sections"] = extension.add_sections(
            page,
            data,
            shortcuts=shortcuts,
            model=None if options.model is None else Path(options.model),
            format=format,
            out=out,
            max_files=options.max_files,
            seed=options.seed,
            trust=trust,
        )
    content["rules"] = check_rules(rules, content["values"])
    print("\n".join(describe(result)))
    if options.fix:
        left_out = write_cleaned(result, folder / FILE)
        content["left_out"] = left_out
        reasons = "; ".join(f"{count} {reason}" for reason, count in left_out.items()) or "nothing"
        print(f"Cleaned table: {folder / FILE}; left out: {reasons}")
    page.write(folder / PAGE)
    (folder / RESULTS).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(f"Page: {folder / PAGE}\nJSON: {folder / RESULTS}")
    broken = [row for row in content["rules"] if not row["holds"]]
    if broken:
        measured = [
            "not measured" if r["value"] is None else f"is {r['value']:.4g}" for r in broken
        ]
        texts = [f"{row['rule']} ({value})" for row, value in zip(broken, measured, strict=True)]
        raise AuditFailed(
            f"--fail-on: {len(broken)} of {len(rules)} rules do not hold: {', '.join(texts)}. See {folder / PAGE}."
        )


def describe(result: Diagnosis) -> list[str]:
    """Return what was seen in a few lines."""
    values = result.compute_values()
    source = result.source
    copies = len({pair.second for pair in result.pairs})
    lines = [
        f"{result.num_images:,} images in {source.path}, read as {source.format}, {len(source.labels)} classes.",
        f"Files: {values['unreadable']:.0f} unreadable, {len(result.odd)} odd.",
        f"Copies: {copies:,} images beyond the first, in {len(result.pairs):,} pairs.",
    ]
    if any(source.splits):
        lines.append(f"Leaks: {values['leaks']:.0f} images are in another split too.")
    if source.keys:
        lines.append(f"Keys in two splits: {len(result.key_leaks):,}.")
    if result.other is not None:
        lines.append(f"Shared with {result.other.path}: {values['shared']:.0f} images.")
    if result.labels is not None:
        kind = "boxes" if source.has_boxes else "images"
        what = "labels, yes or no of each image," if source.multilabel else kind
        lines.append(
            f"Labels: about {result.labels.num_errors:,} of {result.labels.num_judged:,} {what} are likely wrong "
            f"(probe of {result.features}, right on {result.labels.accuracy:.1%})."
        )
    if result.checks:
        expected = sum(check.probability for check in result.checks)
        lines.append(
            f"Check first: {len(result.checks)} images, about {expected:.0f} of them wrong."
        )
    if result.box_doubts:
        lines.append(f"Boxes: {len(result.box_doubts):,} doubtful.")
    if result.box_errors is not None:
        lines.append(
            f"Boxes that the detector sees otherwise: {len(result.box_errors.likely):,} of "
            f"{result.box_errors.num_judged:,} and of what it finds beside them."
        )
    if result.like_names:
        lines.append(f"Class names that may be one: {' and '.join(result.like_names[0])}.")
    if "all" in result.null_scores:
        score = result.null_scores["all"]
        warning = "; WARNING: a model can learn this in place of the content" * score.is_warning
        lines.append(f"Null score, AUC without content: {score.auroc}{warning}.")
    return lines + [f"Note: {note}" for note in result.notes]


def _open(path: Path, options: DoctorOptions) -> DoctorSource:
    return open_source(
        path,
        path_column=options.path_column,
        label_column=options.label_column,
        label_separator=options.label_separator,
        key=options.key,
    )


def _find_extension(
    data: Path, format: str
) -> tuple[DoctorExtension | None, Reading[Record] | None]:
    """Return the extension that the data are for, with what it read; None for plain images."""
    extensions = list_extensions()
    if format == _PLAIN:
        return None, None
    names = [_AUTO, _PLAIN, *(name for one in extensions for name in one.formats)]
    if format not in names:
        raise OptionError(f"--format is '{format}'. Choices: {', '.join(dict.fromkeys(names))}.")
    for extension in extensions:
        if format == _AUTO or format in extension.formats:
            reading = extension.read(data, format)
            if reading is not None:
                return extension, reading
    return None, None


def _take_reading(data: Path, reading: Reading[Record], key: str | None) -> DoctorSource:
    if key is not None:
        raise OptionError(
            f"--key is '{key}', but {data} has keys of its own: videos, and persons where they are known. Leave it out."
        )
    splits = [(split, r) for split in ("", *SPLITS) for r in reading.splits.get(split, [])]
    records = [record for _, record in splits]
    labels = tuple(reading.labels or ())
    return DoctorSource(
        data,
        "data of a special kind",
        records,
        [split for split, _ in splits],
        labels,
        keys=[record.key for record in records],
        notes=[*reading.notes],
    )
