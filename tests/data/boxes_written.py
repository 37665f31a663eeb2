"""Sets of scenes, written in every format."""

from pathlib import Path

from tests.data.box_writing import Drawn, write_coco, write_table, write_voc, write_yolo
from vfm.data import SyntheticScenes

WRITERS = {"coco": write_coco, "yolo": write_yolo, "voc": write_voc, "csv": write_table}
LABELS = ["class_0", "class_1", "class_2"]


def drawn(number=24, side=64):
    """Scenes by split, as files are written from them."""
    data = SyntheticScenes(num_images=number, image_size=side, num_classes=3)
    data.setup()
    return {
        split: [
            Drawn(f"{r.name}.png", r.source, r.objects.corners, [data.labels[k] for k in r.label])
            for r in records
        ]
        for split, records in data.records.items()
    }


def write(folder: Path, name: str, splits=None) -> Path:
    root = folder / name
    root.mkdir(parents=True)
    return WRITERS[name](root, splits or drawn(), LABELS)
