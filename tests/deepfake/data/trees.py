"""Folders laid out as the public data sets are, with empty files and the traps that are in them."""

import csv
import json
from pathlib import Path


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def put(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


FORENSICS_METHODS = ("Deepfakes", "Face2Face")
PAIRS = {
    "train": [["000", "003"], ["001", "002"]],
    "val": [["004", "005"]],
    "test": [["006", "007"]],
}


def forensics(root: Path, compressions=("c23",), lists=True, dfd=True, frames=False) -> Path:
    """FaceForensics++: pairs in both orders, names that recur from method to method."""
    for comp in compressions:
        ending = f"{comp}/frames/{{}}/%d.png" if frames else f"{comp}/videos/{{}}.mp4"
        for pairs in PAIRS.values():
            for a, b in pairs:
                for name in (a, b):
                    _clip(root, f"original_sequences/youtube/{ending.format(name)}")
                for method in FORENSICS_METHODS:
                    for name in (f"{a}_{b}", f"{b}_{a}"):
                        _clip(root, f"manipulated_sequences/{method}/{ending.format(name)}")
        if dfd:
            _clip(root, f"original_sequences/actors/{ending.format('01__walking_outside')}")
            name = "01_02__walking_outside__YVGY8LOK"
            _clip(root, f"manipulated_sequences/DeepFakeDetection/{ending.format(name)}")
    touch(root, "manipulated_sequences/Deepfakes/masks/videos/000_003.mp4")
    if lists:
        for split, pairs in PAIRS.items():
            put(root / f"{split}.json", pairs)
    return root


def _clip(root: Path, name: str) -> None:
    # 2 and 10: their order as text is the wrong one.
    touch(root, *(name % n for n in (2, 10, 1)) if "%d" in name else (name,))


CELEB_LIST = (
    "1 YouTube-real/00001.mp4\n1 Celeb-real/id0_0000.mp4\n0 Celeb-synthesis/id0_id1_0000.mp4\n"
)


def celeb(root: Path, listed: str | None = CELEB_LIST, under="") -> Path:
    """Celeb-DF: persons in the names; the digit of the list is 1 for what is real."""
    reals = ("id0_0000", "id0_0001", "id1_0000", "id2_0000", "id3_0000", "id4_0000", "id5_0000")
    touch(root, *(f"Celeb-real/{under}{name}.mp4" for name in reals))
    touch(root, f"YouTube-real/{under}00000.mp4", f"YouTube-real/{under}00001.mp4")
    deepfakes = ("id0_id1_0000", "id1_id2_0000", "id2_id3_0000", "id4_id5_0000")
    touch(root, *(f"Celeb-synthesis/{under}{name}.mp4" for name in deepfakes))
    if listed is not None:
        put(root / "List_of_testing_videos.txt", listed)
    return root


def celeb_plus(root: Path) -> Path:
    """Celeb-DF++: folders of kinds and methods, one of which is called Real3DPortrait."""
    touch(root, "Celeb-real/id0_0000.mp4", "YouTube-real/00000.mp4")
    touch(root, "Celeb-synthesis/FaceSwap/SimSwap/id0_id1_0000.mp4")
    touch(root, "Celeb-synthesis/TalkingFace/Real3DPortrait/id0_id1_0000.mp4")
    put(
        root / "List_of_testing_videos.txt",
        "0 Celeb-synthesis/TalkingFace/Real3DPortrait/id0_id1_0000.mp4\n",
    )
    return root


def challenge(root: Path) -> Path:
    """DFDC: parts with metadata, and a test set with a table."""
    part = root / "train" / "dfdc_train_part_0"
    touch(part, "aaa.mp4", "bbb.mp4", "ccc.mp4")
    entries = {
        "aaa.mp4": {"label": "REAL", "split": "train", "original": None},
        "bbb.mp4": {"label": "FAKE", "split": "train", "original": "aaa.mp4"},
        "ccc.mp4": {"label": "FAKE", "split": "train", "original": "aaa.mp4"},
    }
    put(part / "metadata.json", entries)
    touch(root / "test", "videos/x.mp4", "videos/y.mp4")
    put(root / "test" / "labels.csv", "filename,label\nx.mp4,0\ny.mp4,1\n")
    return root


def preview(root: Path) -> Path:
    names = {
        "original_videos/10/10_A.mp4": ("real", "train", None, []),
        "method_A/10/11/10_A.mp4": ("fake", "train", 10, [11]),
        "method_B/20/20_A.mp4": ("fake", "test", 20, [21]),
        "original_videos/20/20_A.mp4": ("real", "test", None, []),
    }
    touch(root, *names)
    entries = {
        name: {"label": label, "set": split, "target_id": target, "swapped_ids": swapped}
        for name, (label, split, target, swapped) in names.items()
    }
    put(root / "dataset.json", entries)
    return root


def ffiw(root: Path) -> Path:
    for side in ("source", "target"):
        for split in ("train", "val", "test"):
            touch(root / "FFIW10K-v1-release" / side / split / "videos", "0.mp4", "1.mp4")
    return root


def bench_entry(label: str, name: str, numbers=(10, 2), masks=False) -> dict:
    """A video as DeepfakeBench lists it on Windows: the slashes, and frames in the order of their names."""
    folder = name.replace("/", "\\")
    entry = {"label": label, "frames": [f"{folder}\\frames\\v\\{n:03}.png" for n in numbers]}
    if masks:
        entry["masks"] = [f"{folder}\\masks\\v\\{n:03}.png" for n in numbers]
    return entry


def bench(root: Path) -> Path:
    """DeepfakeBench: compressions in one list, test videos in train and val of the other, Windows slashes."""
    forensics_list = {"FaceForensics++": {"FF-real": {}, "FF-DF": {}, "FF-F2F": {}}}
    for split, names in {"train": ("000", "003"), "val": ("004",), "test": ("006",)}.items():
        for key in forensics_list["FaceForensics++"]:
            videos = forensics_list["FaceForensics++"][key].setdefault(
                split, {"c23": {}, "c40": {}}
            )
            for comp, found in videos.items():
                for name in names:
                    video = name if key == "FF-real" else f"{name}_00{int(name[-1]) ^ 3}"
                    found[video] = bench_entry(
                        key, f"FF/{key}/{comp}/{video}", masks=key != "FF-real"
                    )
    put(root / "dataset_json" / "FaceForensics++.json", forensics_list)
    touch_frames(forensics_list, root)
    return root


def bench_celeb(root: Path) -> Path:
    """The list of Celeb-DF that has its test videos in all splits."""
    real = {name: bench_entry("CelebDFv2_real", f"CDF/{name}") for name in ("id0_0000", "id1_0000")}
    fake = {"id0_id1_0000": bench_entry("CelebDFv2_fake", "CDF/id0_id1_0000")}
    test = {"id0_0000": real["id0_0000"]}
    content = {
        "Celeb-DF-v2": {
            "CelebDFv2_real": {"train": real, "val": test, "test": test},
            "CelebDFv2_fake": {"train": fake, "val": fake, "test": fake},
        }
    }
    put(root / "Celeb-DF-v2.json", content)
    touch_frames(content, root)
    return root


def touch_frames(content: object, root: Path) -> None:
    """Make the files that lists of DeepfakeBench name."""
    if isinstance(content, dict):
        for value in content.values():
            touch_frames(value, root)
    elif isinstance(content, list):
        touch(root, *(name.replace("\\", "/") for name in content))


def table(path: Path, rows: list[dict]) -> Path:
    """A manifest and the files that it names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        name = row["path"].replace("\\", "/")
        if not name.startswith("/"):
            touch(path.parent, name)
    return path
