"""`vfm faces`: extraction of aligned face crops from videos or images, with a manifest; resumable and parallel."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from vfm_runtime.deepfake.faces.crop import CropSpec, Policy
from vfm_runtime.deepfake.faces.detector import load_detector
from vfm_runtime.deepfake.faces.face import FaceDetector
from vfm_runtime.media.bit_depth import ValueRange, make_range
from vfm_runtime.media.demux import import_av
from vfm_runtime.media.image import Pixels, open_image
from vfm_runtime.media.video import choose_evenly, is_video

from vfm.data.tables import write_rows
from vfm.deepfake.data.base import CROP_FILE, write_crop
from vfm.deepfake.data.crops import (
    CropFailure,
    CutVideo,
    VideoJob,
    cut_video,
    is_done,
    plan_videos,
    read_record,
)
from vfm.deepfake.data.layouts import MANIFEST, Format, import_layout
from vfm.deepfake.data.manifest import write_manifest
from vfm.deepfake.data.record import LABELS, REAL, DeepfakeDataError, Item, sort_items
from vfm.preprocess import check_bit_depth
from vfm.report import draw_contact_sheet

FAILURES_FILE = "failures.csv"
SETTINGS_FILE = "faces.json"
SHEET_FILE = "contact_sheet.png"

# Between two lines of progress.
_SECONDS = 10.0
# Points in which the fractions of failures differ between the classes, before it is a warning.
_SKEW = 0.05

_log = logging.getLogger(__name__)


class CropCount(NamedTuple):
    """What became of the videos of one label."""

    videos: int
    without: int
    """Videos without any crop."""
    frames: int
    """Frames that were looked at."""
    crops: int
    failures: dict[str, int]
    """Frames without a crop by reason; a video that cannot be read counts once."""


def faces(
    root: Path,
    *,
    out: Path = Path("faces"),
    frames: int = 32,
    size: int = 256,
    margin: float = 1.3,
    policy: Policy = "largest",
    detector: Literal["mtcnn", "precomputed"] = "mtcnn",
    min_score: float = 0.9,
    workers: int | None = None,
    format: Format = "auto",
    layout: dict[str, Any] | None = None,
    bit_depth: int | None = None,
) -> Path:
    """Cut aligned faces out of videos and images, for training and testing a detector of fakes.

    Can be interrupted at any time: run again, it goes on with the videos that are missing.

    Args:
        root: Folder of a data set of real and fake videos or images, or a manifest.
        out: Folder to write: crops, landmarks, masks, manifest.csv, crop.json, failures.csv, contact_sheet.png; -o for
            short.
        frames: How many frames of a video, spread evenly.
        size: Side of a crop in pixels.
        margin: Side of a crop over that of the tight crop of the face.
        policy: Which face of a frame counts: largest, or all of at least half its area. Where there is a mask of what
            was forged, always the face under it.
        detector: What finds faces: mtcnn, or precomputed for the landmarks that come with the images.
        min_score: Least score of a face, 0 to 1.
        workers: Processes; by default one for each core.
        format: Layout of the data set; auto to find out.
        layout: More about it, such as --layout.compression c23 where FaceForensics++ lies in several; as
            `vfm.deepfake.data.layouts.import_layout` takes it.
        bit_depth: Bits that the values of images of 16 or 32 bits use, such as 12; give the training the same
            (--data.bit_depth), so that the model reads photos like these in production too.

    Returns:
        The manifest.

    Raises:
        DeepfakeDataError: The data set cannot be read, `out` holds crops that were made otherwise, or no face is found.
    """
    spec = CropSpec(size=size, margin=margin, policy=policy, detector=detector, min_score=min_score)
    root, out = Path(root), Path(out)
    if out.absolute().is_relative_to(root.absolute()):
        raise DeepfakeDataError(
            f"The crops would go into the data set itself ({out} lies in {root}), and be read as a part of it the "
            "next time. Give a folder outside with -o."
        )
    reading = import_layout(root, format, **(layout or {}))
    for note in reading.notes:
        print(note)
    counts = extract(
        sort_items(reading.entries),
        out,
        spec,
        num_frames=frames,
        num_workers=workers,
        bit_depth=bit_depth,
        progress=partial(print, flush=True),
    )
    print(summarize(counts))
    print(f"Manifest: {out / MANIFEST}\nLook at: {out / SHEET_FILE}")
    return out / MANIFEST


def extract(
    items: Sequence[Item],
    out: Path,
    spec: CropSpec,
    *,
    num_frames: int = 32,
    num_workers: int | None = None,
    bit_depth: int | None = None,
    progress: Callable[[str], None] = _log.info,
) -> dict[str, CropCount]:
    """Write the crops of items, their manifest and what failed; `faces` without reading a layout.

    Args:
        items: Videos or images, with absolute paths.
        out: Folder to write; videos that are done there are left as they are.
        spec: How crops are made.
        num_frames: How many frames of a video.
        num_workers: Number of processes; None for one each core.
        bit_depth: Bits that the values of images of 16 or 32 bits use; None for all.
        progress: Called with lines on how far it is.

    Returns:
        What became of the videos, by label.

    Raises:
        DeepfakeDataError: As for `faces`, or a process died.
    """
    if not items:
        raise DeepfakeDataError(
            "There are no videos or images to cut faces from. Check the data set."
        )
    for name, value in (("frames", num_frames), ("workers", num_workers)):
        if value is not None and value < 1:
            raise DeepfakeDataError(f"--{name} is {value}. Give 1 or more.")
    check_bit_depth(bit_depth)
    jobs = plan_videos(items)
    _keep_settings(out, spec, {"frames": num_frames, "bit_depth": bit_depth})
    todo = [job for job in jobs if not is_done(job, out)]
    if any(is_video(job.items[0].path) for job in todo):
        # Its absence is said once, before the work.
        import_av()
    if len(todo) < len(jobs):
        progress(f"{len(jobs) - len(todo)} of {len(jobs)} videos are done already.")
    workers = min(num_workers or os.cpu_count() or 1, max(len(todo), 1))
    start = said = time.monotonic()
    value_range = None if bit_depth is None else make_range(bit_depth)
    cut = partial(_cut, out=out, spec=spec, num_frames=num_frames, value_range=value_range)
    for number, _ in enumerate(_cut_all(todo, cut, workers), 1):
        now = time.monotonic()
        if number == len(todo) or now - said >= _SECONDS:
            said = now
            left = (now - start) / number * (len(todo) - number)
            progress(f"{number} of {len(todo)} videos, about {left:.0f} s left")
    return _write_results(jobs, [read_record(job, out) for job in jobs], out)


def _keep_settings(out: Path, spec: CropSpec, more: Mapping[str, Any]) -> None:
    """Write how crops are made, or make sure that those in the folder were made so."""
    path, settings = out / CROP_FILE, out / SETTINGS_FILE
    if path.is_file():
        before = _read_object(path) | _read_object(settings)
        now = {**spec.to_dict(), **more}
        changed = [
            f"{name} {before.get(name)} there, {value} now"
            for name, value in now.items()
            if before.get(name) != value
        ]
        if changed:
            raise DeepfakeDataError(
                f"{out} holds crops that were made otherwise: {', '.join(changed)}. Crops of two kinds do not mix. "
                "Give the same options, or another folder with -o."
            )
        return
    if out.exists() and (not out.is_dir() or {p.name for p in out.glob("[!.]*")} - {SETTINGS_FILE}):
        raise DeepfakeDataError(
            f"{out} is there already, but has no {CROP_FILE}. Give a new folder with -o."
        )
    out.mkdir(parents=True, exist_ok=True)
    settings.write_text(json.dumps(more) + "\n", encoding="utf-8")
    # Last and at once, under a name that the check above leaves out until then.
    write_crop(out, spec)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DeepfakeDataError(
            f"{path} cannot be read ({error}). Give a new folder with -o, or delete this one."
        ) from error
    return values if isinstance(values, dict) else {}


def _cut_all(
    todo: list[VideoJob], cut: Callable[[VideoJob], CutVideo], num_workers: int
) -> Iterator[CutVideo]:
    """Cut the videos, in one process or several; yields as they are done."""
    if num_workers == 1:
        yield from map(cut, todo)
        return
    # No plain fork: it hangs in ONNX Runtime once this process has used it. A fork of a fresh server shares imports.
    has_server = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if has_server else "spawn")
    if has_server:
        context.set_forkserver_preload([__name__])
    pool = ProcessPoolExecutor(num_workers, context)
    try:
        for future in as_completed([pool.submit(cut, job) for job in todo]):
            yield future.result()
    except BrokenProcessPool as error:
        raise DeepfakeDataError(
            "A process died, most likely for lack of memory. What is done is kept: run again with fewer --workers."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _cut(
    job: VideoJob, out: Path, spec: CropSpec, num_frames: int, value_range: ValueRange | None
) -> CutVideo:
    return cut_video(job, out, spec, num_frames, _load_detector(spec.detector), value_range)


@cache
def _load_detector(name: str) -> FaceDetector | None:
    # One thread each: the videos are what is done in parallel.
    return None if name == "precomputed" else load_detector(name)


def _write_results(jobs: list[VideoJob], cuts: list[CutVideo], out: Path) -> dict[str, CropCount]:
    """Write the manifest, the failures and the sheet."""
    failures = [failure for cut in cuts for failure in cut.failures]
    rows = ({name: str(value) for name, value in row._asdict().items()} for row in failures)
    write_rows(out / FAILURES_FILE, CropFailure._fields, rows)
    counts = _count_crops(jobs, cuts)
    items = [item for cut in cuts for item in cut.items]
    if not items:
        reasons = "; ".join(f"{k}: {_format_reasons(v.failures)}" for k, v in counts.items())
        raise DeepfakeDataError(
            f"No face was found in {len(jobs)} videos or images ({reasons}); see {out / FAILURES_FILE}. The first: "
            f"{failures[0].path}: {failures[0].detail}. Check the data set, lower --min_score, or give --detector "
            "precomputed where landmarks are at hand; -o must be another folder then."
        )
    write_manifest(out / MANIFEST, items)
    (out / SHEET_FILE).write_bytes(_draw_crop_sheet(items, out))
    return counts


def _count_crops(jobs: Sequence[VideoJob], cuts: Sequence[CutVideo]) -> dict[str, CropCount]:
    """Count by label, of labels that there are, what became of each video."""
    counts = {}
    for label in LABELS:
        of_label = [c for job, c in zip(jobs, cuts, strict=True) if job.items[0].label == label]
        if of_label:
            failures: Counter[str] = Counter()
            for failure in (failure for cut in of_label for failure in cut.failures):
                failures[failure.reason] += failure.num_frames
            counts[label] = CropCount(
                videos=len(of_label),
                without=sum(not cut.items for cut in of_label),
                frames=sum(cut.num_frames for cut in of_label),
                crops=sum(len(cut.items) for cut in of_label),
                failures=dict(failures.most_common()),
            )
    return counts


def summarize(counts: dict[str, CropCount]) -> str:
    """The counts of each label as a few lines, with a warning where the classes fail unequally."""
    lines = []
    for label, count in counts.items():
        lost = _format_reasons(count.failures)
        lines.append(
            f"{label}: {count.crops} crops from {count.frames} frames of {count.videos} videos or images; "
            f"{count.without} of these have none ({count.without / count.videos:.1%})"
            + (f"; frames that failed: {lost}" if lost else "")
        )
    fractions = [count.without / count.videos for count in counts.values()]
    if max(fractions) - min(fractions) > _SKEW:
        lines.append(
            "WARNING: the classes fail unequally, so a score over the rest is not the score over all. State the "
            "share that failed beside it."
        )
    return "\n".join(lines)


def _format_reasons(failures: dict[str, int]) -> str:
    """Numbers of failures by reason as text."""
    return ", ".join(f"{number} {reason}" for reason, number in failures.items())


def _draw_crop_sheet(items: Sequence[Item], folder: Path) -> bytes:
    """Draw crops of both labels, spread over all videos of the folder, with landmarks and masks: PNG bytes."""
    shown: list[Item] = []
    for label in LABELS:
        of_label = [item for item in items if item.label == label]
        shown += [of_label[i] for i in choose_evenly(len(of_label), 24)] if of_label else []
    names = [" ".join(filter(None, (i.label, i.dataset, i.method))) for i in shown]
    return draw_contact_sheet(
        [_mark_crop(item, folder) for item in shown],
        [f"{name}\n{item.video} #{item.frame}" for name, item in zip(names, shown, strict=True)],
        columns=8,
        cell=140,
        marks=[item.label == REAL for item in shown],
    )


def _mark_crop(item: Item, folder: Path) -> Pixels:
    pixels = open_image(folder / item.path)
    if item.mask:
        weight = open_image(folder / item.mask)[..., :1] / 255 * 0.4
        pixels = (pixels * (1 - weight) + np.array((255, 0, 0)) * weight).astype(np.uint8)
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    radius = max(1, picture.width // 96)
    for x, y in np.load(folder / item.landmarks).tolist():
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline="lime")
    return np.array(picture)
