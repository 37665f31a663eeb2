"""How far a model's score moves when a photo is re-encoded, shrunk or screenshotted; nothing was forged in between.

    python tests/benchmarks/photo_drift.py --ckpt FILE [--each]

The photos are those of the package face-recognition (python tests/fetch_assets.py), all of them real. A JSON line for
each edit: how many photos got a score, how many answers changed, and the mean and the largest move of score and logit
against the untouched photo. With --each, a line for each photo before them.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps
from vfm_runtime.deepfake.verdict import Verdict
from vfm_runtime.media.files import find_images
from vfm_runtime.media.image import open_image

import vfm

FOLDER = Path(__file__).parents[2] / ".cache" / "assets" / "face-recognition"
LEAST_SIDE = 300
UNTOUCHED = "untouched"


def jpeg(quality: int) -> Callable[[Image.Image], bytes]:
    return lambda photo: encoded(photo, "JPEG", quality=quality)


def half(photo: Image.Image) -> bytes:
    size = (photo.width // 2, photo.height // 2)
    return encoded(photo.resize(size, Image.Resampling.LANCZOS), "PNG")


def screenshot(photo: Image.Image) -> bytes:
    """The photo in a viewer: scaled to the window, a title bar above, grey around it, saved as PNG."""
    width, height = round(photo.width * 0.7), round(photo.height * 0.7)
    shown = photo.resize((width, height), Image.Resampling.BILINEAR)
    framed = ImageOps.expand(shown, (60, 40, 60, 40), (32, 33, 36))
    return encoded(ImageOps.expand(framed, (0, 28, 0, 0), (222, 225, 230)), "PNG")


EDITS: dict[str, Callable[[Image.Image], bytes]] = {
    UNTOUCHED: lambda photo: encoded(photo, "PNG"),
    "JPEG 90": jpeg(90),
    "JPEG 70": jpeg(70),
    "JPEG 50": jpeg(50),
    "half size": half,
    "screenshot": screenshot,
}


def encoded(photo: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    photo.save(buffer, kind, **options)
    return buffer.getvalue()


def photos(folder: Path) -> dict[str, Image.Image]:
    """Every photo once: some lie in two folders of the package."""
    found: dict[bytes, tuple[str, Image.Image]] = {}
    for path in find_images(folder):
        photo = Image.fromarray(open_image(path))
        if min(photo.size) >= LEAST_SIDE:
            found.setdefault(photo.tobytes(), (path.name, photo))
    return dict(found.values())


def answers(model: Any, shown: dict[str, Image.Image]) -> dict[str, dict[str, Verdict]]:
    """The verdict on each photo by edit."""
    return {
        edit: {name: model.predict(make(photo)) for name, photo in shown.items()}
        for edit, make in EDITS.items()
    }


def photo_rows(found: dict[str, dict[str, Verdict]]) -> Iterator[dict[str, Any]]:
    for edit, verdicts in found.items():
        for name, each in verdicts.items():
            first = found[UNTOUCHED][name]
            yield {
                "photo": name,
                "edit": edit,
                "label": each.label,
                "reason": None if each.reason is None else each.reason.value,
                "score": each.score,
                "score_drift": moved(each.score, first.score),
                "logit_drift": moved(each.logit, first.logit),
                "changed": each.label != first.label,
            }


def moved(value: float | None, first: float | None) -> float | None:
    return None if value is None or first is None else value - first


def edit_rows(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for edit in EDITS:
        own = [row for row in rows if row["edit"] == edit]
        row: dict[str, Any] = {
            "edit": edit,
            "photos": len(own),
            "scored": sum(row["score"] is not None for row in own),
            "changed": sum(row["changed"] for row in own),
        }
        for what in ("score", "logit"):
            drifts = [abs(d) for each in own if (d := each[f"{what}_drift"]) is not None]
            row[f"mean_{what}_drift"] = statistics.mean(drifts) if drifts else None
            row[f"max_{what}_drift"] = max(drifts, default=None)
        yield row


def rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ckpt", type=Path, required=True, help="a checkpoint or a bundle")
    parser.add_argument("--photos", type=Path, default=FOLDER, help=f"default: {FOLDER}")
    parser.add_argument("--each", action="store_true", help="a line for each photo, too")
    options = parser.parse_args()
    if not options.photos.is_dir():
        raise SystemExit(f"There is no {options.photos}. Run: python tests/fetch_assets.py")
    model = vfm.load(options.ckpt)
    if not model.task_type.uses_crops:
        raise SystemExit(
            f"{options.ckpt} does not tell real from fake: give one of a DeepfakeTask."
        )
    rows = list(photo_rows(answers(model, photos(options.photos))))
    for row in [*(rows if options.each else []), *edit_rows(rows)]:
        print(json.dumps(rounded(row) | {"crop": model.task_type.pipeline.crop.source}))


if __name__ == "__main__":
    main()
