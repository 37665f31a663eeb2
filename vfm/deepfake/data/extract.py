"""`vfm faces`: extraction of aligned face crops from videos or images, with a manifest; resumable and parallel."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any, Literal

from vfm_runtime.deepfake.faces.crop import CropSpec, Policy
from vfm_runtime.deepfake.faces.detector import load_detector
from vfm_runtime.deepfake.faces.face import FaceDetector
from vfm_runtime.media.demux import import_av
from vfm_runtime.media.video import is_video

from vfm.data.tables import write_rows
from vfm.deepfake.data.base import CROP_FILE, write_crop
from vfm.deepfake.data.crop_report import (
    CropCount,
    count_crops,
    draw_crop_sheet,
    format_reasons,
    summarize,
)
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
from vfm.deepfake.data.record import DeepfakeDataError, Item, sort_items

FAILURES_FILE = "failures.csv"
SETTINGS_FILE = "faces.json"
SHEET_FILE = "contact_sheet.png"

# Between two lines of progress.
_SECONDS = 10.0

_log = logging.getLogger(__name__)


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
    progress: Callable[[str], None] = _log.info,
) -> dict[str, CropCount]:
    """Write the crops of items, their manifest and what failed; `faces` without reading a layout.

    Args:
        items: Videos or images, with absolute paths.
        out: Folder to write; videos that are done there are left as they are.
        spec: How crops are made.
        num_frames: How many frames of a video.
        num_workers: Number of processes; None for one each core.
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
    jobs = plan_videos(items)
    _keep_settings(out, spec, num_frames)
    todo = [job for job in jobs if not is_done(job, out)]
    if any(is_video(job.items[0].path) for job in todo):
        # Its absence is said once, before the work.
        import_av()
    if len(todo) < len(jobs):
        progress(f"{len(jobs) - len(todo)} of {len(jobs)} videos are done already.")
    workers = min(num_workers or os.cpu_count() or 1, max(len(todo), 1))
    start = said = time.monotonic()
    for number, _ in enumerate(_cut_all(todo, out, spec, num_frames, workers), 1):
        now = time.monotonic()
        if number == len(todo) or now - said >= _SECONDS:
            said = now
            left = (now - start) / number * (len(todo) - number)
            progress(f"{number} of {len(todo)} videos, about {left:.0f} s left")
    return _write_results(jobs, [read_record(job, out) for job in jobs], out)


def _keep_settings(out: Path, spec: CropSpec, num_frames: int) -> None:
    """Write how crops are made, or make sure that those in the folder were made so."""
    path, settings = out / CROP_FILE, out / SETTINGS_FILE
    if path.is_file():
        before = _read_object(path) | {"frames": _read_object(settings).get("frames")}
        now = {**spec.to_dict(), "frames": num_frames}
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
    settings.write_text(json.dumps({"frames": num_frames}) + "\n", encoding="utf-8")
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
    todo: list[VideoJob], out: Path, spec: CropSpec, num_frames: int, num_workers: int
) -> Iterator[CutVideo]:
    """Cut the videos, in one process or several; yields as they are done."""
    if num_workers == 1:
        detector = _load_detector(spec)
        yield from (cut_video(job, out, spec, num_frames, detector) for job in todo)
        return
    # No plain fork: it hangs in ONNX Runtime once this process has used it. A fork of a fresh server shares imports.
    has_server = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if has_server else "spawn")
    if has_server:
        context.set_forkserver_preload([__name__])
    pool = ProcessPoolExecutor(num_workers, context, _start_worker, (out, spec, num_frames))
    try:
        for future in as_completed([pool.submit(_cut_in_worker, job) for job in todo]):
            yield future.result()
    except BrokenProcessPool as error:
        raise DeepfakeDataError(
            "A process died, most likely for lack of memory. What is done is kept: run again with fewer --workers."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_worker: dict[str, Any] = {}


def _start_worker(out: Path, spec: CropSpec, num_frames: int) -> None:
    _worker.update(out=out, spec=spec, num_frames=num_frames, detector=_load_detector(spec))


def _cut_in_worker(job: VideoJob) -> CutVideo:
    return cut_video(job, **_worker)


def _load_detector(spec: CropSpec) -> FaceDetector | None:
    # One thread each: the videos are what is done in parallel.
    return None if spec.detector == "precomputed" else load_detector(spec.detector)


def _write_results(jobs: list[VideoJob], cuts: list[CutVideo], out: Path) -> dict[str, CropCount]:
    """Write the manifest, the failures and the sheet."""
    failures = [failure for cut in cuts for failure in cut.failures]
    rows = ({name: str(value) for name, value in row._asdict().items()} for row in failures)
    write_rows(out / FAILURES_FILE, CropFailure._fields, rows)
    counts = count_crops(jobs, cuts)
    items = [item for cut in cuts for item in cut.items]
    if not items:
        reasons = "; ".join(f"{k}: {format_reasons(v.failures)}" for k, v in counts.items())
        raise DeepfakeDataError(
            f"No face was found in {len(jobs)} videos or images ({reasons}); see {out / FAILURES_FILE}. The first: "
            f"{failures[0].path}: {failures[0].detail}. Check the data set, lower --min_score, or give --detector "
            "precomputed where landmarks are at hand; -o must be another folder then."
        )
    write_manifest(out / MANIFEST, items)
    (out / SHEET_FILE).write_bytes(draw_crop_sheet(items, out))
    return counts
