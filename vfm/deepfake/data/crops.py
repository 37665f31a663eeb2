"""Aligned face crops of one video, or of the images of one, on disk: all or nothing, and never twice."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from vfm_runtime.deepfake.faces.crop import CropSpec, choose_faces, choose_forged_face, crop_face
from vfm_runtime.deepfake.faces.face import Face, FaceDetector
from vfm_runtime.deepfake.faces.geometry import move_points, warp
from vfm_runtime.deepfake.faces.precomputed import ListedFaces, build_face, read_landmarks
from vfm_runtime.errors import VfmError
from vfm_runtime.media.bit_depth import ValueRange
from vfm_runtime.media.image import ImageError, Pixels, open_image
from vfm_runtime.media.video import VideoClip, choose_evenly, is_video, read_video

from vfm.deepfake.data.record import DeepfakeDataError, Item, sort_items

UNREADABLE = "unreadable"
NO_FACE = "no_face"
BAD_LANDMARKS = "bad_landmarks"
BAD_MASK = "bad_mask"

RECORD_FILE = "video.json"
"""Beside the crops of a video; written last, so what has it is whole."""

_FOLDERS = ("crops", "masks", "landmarks")
# A mask that came as a compressed video is not quite black where nothing was changed.
_CHANGED = 128
# Level 1 takes a fifth of the default's time for a tenth more bytes.
_PNG_LEVEL = 1


class VideoJob(NamedTuple):
    """A video to be cut: its file, or its frames as images."""

    items: list[Item]
    folder: str
    """Folder of its crops, below `crops/`: data set, method and video."""


class CropFailure(NamedTuple):
    """Frames of a video that have no crop, for one reason."""

    path: str
    label: str
    dataset: str
    method: str
    video: str
    reason: str
    num_frames: int
    """How many of them; of a video that cannot be read, 1."""
    of_frames: int
    """How many frames were looked at."""
    detail: str


class CutVideo(NamedTuple):
    """What became of a video."""

    items: list[Item]
    """Its crops; paths are relative to the folder that everything is written to."""
    failures: list[CropFailure]
    num_frames: int
    """How many frames were looked at."""
    notes: list[str]
    """What is unusual about the file."""


_Mask: TypeAlias = NDArray[np.uint8]
_View: TypeAlias = tuple[Pixels, _Mask | None]
"""A frame and its mask, [height, width], where there is one."""
_Shot: TypeAlias = tuple[Item, Callable[[], _View]]
"""A frame that is to be cut, with its number, and what loads it."""


class _RefusedError(VfmError):
    """A frame that gets no crop: the reason and the detail."""


def plan_videos(items: Sequence[Item]) -> list[VideoJob]:
    """Group items into videos, in a fixed order.

    Raises:
        DeepfakeDataError: A video has several files, or a file and images.
    """
    groups: dict[tuple[str, ...], list[Item]] = {}
    for item in sort_items(items):
        groups.setdefault((*item.key, item.compression), []).append(item)
    jobs = []
    for key, group in groups.items():
        files = [item.path for item in group if is_video(item.path)]
        if files and len(group) > 1:
            other = next(item.path for item in group if item.path != files[0])
            raise DeepfakeDataError(
                f"The video '{'/'.join(filter(None, key))}' is both {files[0]} and {other}. Give each file a name "
                "of its own in the column 'video', or a method or data set of its own."
            )
        jobs.append(VideoJob(group, _name_folder(*key)))
    return jobs


def is_done(job: VideoJob, out: Path) -> bool:
    """Whether the crops of a video are there, or it is known to have none."""
    return (out / "crops" / job.folder / RECORD_FILE).is_file()


def read_record(job: VideoJob, out: Path) -> CutVideo:
    """Read what became of a video that is done.

    Raises:
        DeepfakeDataError: Its record is damaged.
    """
    path = out / "crops" / job.folder / RECORD_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        items = [
            Item(**{**item, "identities": tuple(item["identities"])}) for item in values["items"]
        ]
        failures = [CropFailure(**failure) for failure in values["failures"]]
        return CutVideo(items, failures, values["num_frames"], values["notes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DeepfakeDataError(
            f"{path} is damaged ({error}). Delete it to cut that video again."
        ) from error


def cut_video(
    job: VideoJob,
    out: Path,
    spec: CropSpec,
    num_frames: int,
    detector: FaceDetector | None,
    value_range: ValueRange | None = None,
) -> CutVideo:
    """Write crops, landmarks, masks where there are any, and the record of a video.

    Of so many frames, or all where there are fewer; without a detector the landmarks of the items are taken.
    The range is that of images of more than 8 bits.
    """
    for name in _FOLDERS:
        folder = out / name / job.folder
        # What an interrupted run left.
        shutil.rmtree(folder, ignore_errors=True)
        if name != "masks" or any(item.mask for item in job.items):
            folder.mkdir(parents=True)
    try:
        shots, notes = _list_shots(job.items, num_frames, value_range)
    except ImageError as error:
        cut = CutVideo([], [_describe(job.items[0], UNREADABLE, 1, 1, str(error))], 0, [])
    else:
        cut = _cut_shots(job, out, spec, detector, shots)._replace(notes=notes)
    record = cut._asdict() | {
        "items": [item._asdict() for item in cut.items],
        "failures": [failure._asdict() for failure in cut.failures],
    }
    folder = out / "crops" / job.folder
    unfinished = folder / f".{RECORD_FILE}"
    unfinished.write_text(json.dumps(record, indent=1), encoding="utf-8")
    unfinished.replace(folder / RECORD_FILE)
    return cut


def _list_shots(
    items: list[Item], num_frames: int, value_range: ValueRange | None
) -> tuple[list[_Shot], list[str]]:
    """The frames to cut, and what is unusual about the file.

    Raises:
        ImageError: A video or the video of its mask cannot be read.
    """
    item = items[0]
    if is_video(item.path):
        clip = read_video(item.path, num_frames, num_threads=1)
        masks = _read_masks(item, clip, num_frames) if item.mask else {}
        views = {frame.index: (frame.pixels, masks.get(frame.index)) for frame in clip.frames}
        shots: list[_Shot] = [
            (item._replace(frame=n), partial(views.__getitem__, n)) for n in views
        ]
        return shots, clip.warnings
    chosen = [items[index] for index in choose_evenly(len(items), num_frames)]
    numbers = [item.frame if item.frame >= 0 else n for n, item in enumerate(chosen)]
    return [
        (item._replace(frame=n), partial(_open_still, item, value_range))
        for item, n in zip(chosen, numbers, strict=True)
    ], []


def _open_still(item: Item, value_range: ValueRange | None) -> _View:
    mask = _open_gray(item.mask) if item.mask else None
    return open_image(item.path, value_range=value_range), mask


def _read_masks(item: Item, clip: VideoClip, num_frames: int) -> dict[int, _Mask]:
    """The mask of each frame of a video: an image for all of them, or a video as long.

    Raises:
        ImageError: It cannot be read, or has another number of frames.
    """
    if not is_video(item.mask):
        mask = _open_gray(item.mask)
        return {frame.index: mask for frame in clip.frames}
    masks = read_video(item.mask, num_frames, num_threads=1)
    if masks.num_frames != clip.num_frames:
        raise ImageError(
            item.mask,
            f"the mask has {masks.num_frames} frames, its video {clip.num_frames}",
            "Give the mask of this video, or leave it out.",
        )
    return {
        # Frames that repeat the one before are left out.
        frame.index: [m.pixels for m in masks.frames if m.index <= frame.index][-1].max(2)
        for frame in clip.frames
    }


def _open_gray(path: str) -> _Mask:
    gray: _Mask = open_image(path).max(2)
    return gray


def _cut_shots(
    job: VideoJob, out: Path, spec: CropSpec, detector: FaceDetector | None, shots: list[_Shot]
) -> CutVideo:
    items: list[Item] = []
    failures: dict[str, CropFailure] = {}
    for item, load in shots:
        try:
            image, mask = load()
            mask = None if mask is None else _fit_mask(mask, image, item)
            faces = _find_faces(image, mask, spec, detector, item)
            for number, face in enumerate(faces):
                items.append(_write_crop(job, out, spec, item, number, (image, mask), face))
            continue
        except ImageError as error:
            reason, detail = UNREADABLE, str(error)
        except _RefusedError as error:
            reason, detail = error.args
        # The first frame stands for all that fail for its reason.
        failure = failures.setdefault(reason, _describe(item, reason, 0, len(shots), detail))
        failures[reason] = failure._replace(num_frames=failure.num_frames + 1)
    return CutVideo(items, list(failures.values()), len(shots), [])


def _find_faces(
    image: Pixels, mask: _Mask | None, spec: CropSpec, detector: FaceDetector | None, item: Item
) -> list[Face]:
    """The faces that count: where something was changed the one under the mask, for the largest may be real."""
    if detector is None:
        try:
            detector = ListedFaces([build_face(read_landmarks(item.landmarks))])
        except ValueError as error:
            raise _RefusedError(BAD_LANDMARKS, str(error)) from error
    faces = [face for face in detector.detect(image) if face.score >= spec.min_score]
    if not faces:
        size = f"{image.shape[1]} x {image.shape[0]}"
        raise _RefusedError(NO_FACE, f"the detector found no face in {size} pixels")
    if mask is None or not (mask >= _CHANGED).any():
        return choose_faces(faces, spec.policy)
    face = choose_forged_face(faces, mask >= _CHANGED)
    left, top = np.maximum(face.box[:2], 0).astype(int)
    right, bottom = np.ceil(np.maximum(face.box[2:], 0)).astype(int)
    if not (mask[top:bottom, left:right] >= _CHANGED).any():
        raise _RefusedError(NO_FACE, f"none of the {len(faces)} faces found lies under the mask")
    return [face]


def _fit_mask(mask: _Mask, image: Pixels, item: Item) -> _Mask:
    """The mask at the size of its image."""
    height, width = image.shape[:2]
    if mask.shape == (height, width):
        return mask
    if abs(mask.shape[1] * height - mask.shape[0] * width) > max(height, width):
        raise _RefusedError(
            BAD_MASK,
            f"{item.mask} has {mask.shape[1]} x {mask.shape[0]} pixels, the image {width} x {height}",
        )
    return np.array(Image.fromarray(mask).resize((width, height), Image.Resampling.BILINEAR))


def _write_crop(
    job: VideoJob, out: Path, spec: CropSpec, shot: Item, number: int, view: _View, face: Face
) -> Item:
    """Write the files of one face, the number-th of its frame."""
    image, mask = view
    crop = crop_face(image, face.landmarks, spec)
    name = f"{job.folder}/{shot.frame:06d}" + (f"_{number}" if number else "")
    item = shot._replace(
        path=f"crops/{name}.png",
        landmarks=f"landmarks/{name}.npy",
        mask="" if mask is None else f"masks/{name}.png",
    )
    Image.fromarray(crop.pixels).save(out / item.path, compress_level=_PNG_LEVEL)
    np.save(out / item.landmarks, move_points(face.landmarks, crop.matrix).astype(np.float32))
    if mask is not None:
        cropped = warp(mask, crop.matrix, spec.size, resample=Image.Resampling.BILINEAR)
        Image.fromarray(cropped).save(out / item.mask)
    return item


def _describe(item: Item, reason: str, number: int, whole: int, detail: str) -> CropFailure:
    return CropFailure(item.path, item.label, *item.key, reason, number, whole, detail)


def _name_folder(dataset: str, method: str, video: str, compression: str) -> str:
    parts = (dataset or "data", method or "real", video)
    names = [re.sub(r"[^\w.+=@-]+", "_", part).strip(".") for part in parts]
    is_changed = names[0] != (dataset or "data") or names[2] != video
    if compression:
        names[1] += f"_{re.sub(r'[^A-Za-z0-9]+', '', compression)}"
    # What was changed, or taken by the default name, could be another video's: told apart by a hash.
    if is_changed or dataset == "data" or method == "real":
        key = repr((dataset, method, video, compression)).encode()
        names[2] = f"{names[2][:80]}-{hashlib.sha256(key).hexdigest()[:8]}"
    return "/".join(names)
