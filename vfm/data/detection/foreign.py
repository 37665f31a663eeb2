"""Formats of annotation tools that are not read: told by their files, each with what to export in its place."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_START = 65_536
_FIFTYONE = "Export it again with dataset_type=fiftyone.types.COCODetectionDataset"


class ForeignFormat(NamedTuple):
    """A format that is not read."""

    name: str
    patterns: Sequence[str]
    """Where its files lie, below the folder of the data."""
    start: str
    """What is in the first bytes of one, as a regular expression."""
    remedy: str


FOREIGN_FORMATS = (
    ForeignFormat(
        "CVAT's own XML",
        ("*.xml",),
        r"<annotations\b",
        "Export the task again as COCO 1.0, Pascal VOC 1.1 or YOLO 1.1",
    ),
    ForeignFormat(
        "Datumaro's JSON",
        ("annotations/*.json", "*.json"),
        r'"categories"\s*:\s*\{',
        "Export it again as COCO 1.0, or convert it: datum convert -f coco",
    ),
    ForeignFormat("FiftyOne's own format", ("samples.json",), r'"samples"', _FIFTYONE),
    ForeignFormat("FiftyOne's labels", ("labels.json",), r'"classes"\s*:', _FIFTYONE),
    ForeignFormat(
        "Label Studio's JSON",
        ("*.json",),
        r'^\s*\[\s*\{(?s:.*)"(annotations|annotation_id|annotator)"\s*:',
        "Export it again as YOLO with images, or as COCO with images",
    ),
    ForeignFormat(
        "Supervisely's JSON",
        ("meta.json", "*/ann/*.json", "ann/*.json"),
        r'"classTitle"|"classes"\s*:\s*\[\s*\{\s*"title"',
        "Export it by Supervisely's app 'Export to COCO' or 'Export to YOLOv8'",
    ),
    ForeignFormat(
        "Ultralytics' NDJSON",
        ("*.ndjson",),
        r'"type"\s*:',
        "Export it as YOLO, or convert it: ultralytics.data.converter.convert_ndjson_to_yolo",
    ),
    ForeignFormat(
        "LabelMe's JSON",
        ("*.json", "*/*.json"),
        r'"shapes"\s*:\s*\[',
        "Convert it to COCO, as labelme2coco does",
    ),
    ForeignFormat(
        "TensorFlow's CSV",
        ("*/_annotations.csv",),
        r"filename,width,height,class",
        "Export it again as COCO or YOLO",
    ),
    ForeignFormat(
        "TFRecord",
        ("*.tfrecord", "*/*.tfrecord", "*.record"),
        "",
        "Export it again as COCO or YOLO",
    ),
)
"""Told apart in this order."""


def explain_foreign(root: Path) -> str:
    """Say of a path, where it is in a format that is not read, in which, and what to do; else an empty text."""
    for foreign in FOREIGN_FORMATS:
        if root.is_file():
            paths = [root] if any(root.match(pattern) for pattern in foreign.patterns) else []
        else:
            # One file is looked at for each pattern: the others are as it is.
            firsts = (next(iter(sorted(root.glob(p))), None) for p in foreign.patterns)
            paths = [path for path in firsts if path is not None]
        for path in paths:
            with path.open("rb") as file:
                start = file.read(_START).decode("utf-8", errors="replace")
            if re.search(foreign.start, start):
                return f"{path} is {foreign.name}, which is not read. {foreign.remedy}."
    return ""
