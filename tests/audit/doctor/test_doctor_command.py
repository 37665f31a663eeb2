"""`vfm doctor` for labels and boxes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from vfm_runtime.errors import DataError, OptionError

from tests.audit.doctor.conftest import draw_scene
from vfm import TableData
from vfm.audit.doctor.command import doctor
from vfm.audit.doctor.diagnosis import DoctorOptions
from vfm.audit.doctor.facts import find_like_names
from vfm.audit.rules import AuditFailed
from vfm.cli.command import run
from vfm.data.tables import read_csv
from vfm.tasks import EmbeddingTask


@pytest.fixture(autouse=True)
def work_in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def read_results(folder="doctor"):
    return json.loads(Path(folder, "doctor.json").read_text(encoding="utf-8"))


def paint(color, seed):
    """A scene of one color's shades: the class is easy to see."""
    pixels = np.asarray(draw_scene(seed, 64), float) * 0.4
    pixels[:, :, color] += 120
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture
def colors(scenes):
    """Two classes by color in two splits: a wrong label, a leak, a file that is none, a copy within a split."""
    pictures = {
        f"{'test' if k % 4 == 3 else 'train'}/{('red', 'green')[k % 2]}/{k:02d}.png": paint(
            k % 2, k
        )
        for k in range(40)
    }
    pictures["train/red/wrong.png"] = paint(1, 100)
    pictures["test/red/leak.jpg"] = paint(0, 0)
    pictures["train/red/copy.png"] = paint(0, 2)
    pictures["test/red/more.png"] = paint(0, 200)
    folder = scenes(pictures)
    (folder / "train/green/broken.png").write_bytes(b"none")
    return folder


def test_a_folder_is_looked_over_and_its_table_cleaned(colors, tmp_path, capsys):
    before = {path: path.read_bytes() for path in colors.rglob("*.*")}
    words = [str(colors), "--fix", "true", "--out", "seen", "--fail-on", "leaks<1,unreadable<2"]
    with pytest.raises(
        AuditFailed, match=r"1 of 2 rules do not hold: leaks<1 \(is 1\)\. See seen/doctor\.html"
    ):
        run("doctor", doctor, words)
    seen = read_results("seen")
    assert seen["num_images"] == 45
    (leak,) = seen["leaks"]
    assert {leak["first"], leak["second"]} == {"train/red/00.png", "test/red/leak.jpg"}
    assert seen["label_errors"]["suspects"][0]["image"] == "train/red/wrong.png"
    assert seen["label_errors"]["suspects"][0]["suggested"] == "green"
    assert seen["check_first"]["images"][0]["image"] == "train/red/wrong.png"
    assert [odd["image"] for odd in seen["odd_files"]] == ["train/green/broken.png"]
    assert "unreadable: not an image" in seen["odd_files"][0]["problem"]
    assert seen["values"]["duplicates"] == pytest.approx(2 / 45)
    assert seen["left_out"] == {"unreadable": 1, "in two splits": 1, "equal files": 1}
    said = capsys.readouterr().out
    assert "Leaks: 1 images are in another split too." in said
    page = (tmp_path / "seen/doctor.html").read_text(encoding="utf-8")
    assert "a test on them measures memory" in page
    assert "What was not looked at" in page
    # The table is read by training, and no image was touched.
    data = TableData(tmp_path / "seen/cleaned.csv", val_fraction=0.0)
    data.setup()
    assert {split: len(records) for split, records in data.records.items()} == {
        "train": 30,
        "test": 12,
    }
    doubts = {row["path"]: row["doubt"] for row in read_csv(tmp_path / "seen/cleaned.csv").rows}
    assert doubts[str(colors / "train/red/wrong.png")] == "green"
    assert before == {path: path.read_bytes() for path in colors.rglob("*.*")}


def test_two_data_sets_that_share_images(scenes, tmp_path):
    pictures = {}
    for k, label in enumerate("xyxy"):
        pictures[f"a/{label}/{k}.png"] = draw_scene(k)
        pictures[f"b/{label}/{k}.png"] = draw_scene(k if k < 2 else 10 + k)
    folder = scenes(pictures)
    doctor(folder / "a", against=folder / "b", options=DoctorOptions(label_errors=False))
    seen = read_results()
    assert {pair["first"] for pair in seen["shared"]} == {"x/0.png", "y/1.png"}
    assert seen["values"]["shared"] == 2
    assert seen["values"]["leaks"] == 0
    assert "Shared with the other data set" in (tmp_path / "doctor/doctor.html").read_text()


def write_table(folder, header, rows):
    path = folder / "table.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def test_a_key_in_two_splits_is_said(scenes):
    folder = scenes({f"{k}.png": draw_scene(k) for k in range(6)})
    rows = [f"{k}.png,{'ab'[k % 2]},{'train' if k < 4 else 'test'},p{k // 3}" for k in range(6)]
    table = write_table(folder, "path,label,split,patient", rows)
    doctor(table, options=DoctorOptions(key="patient", label_errors=False))
    assert read_results()["key_leaks"] == ["p1"]
    with pytest.raises(
        DataError, match=r"has no column 'person' \(--key\).*Columns: path, label, split, patient"
    ):
        doctor(table, options=DoctorOptions(key="person"))
    with pytest.raises(
        DataError, match=r"--key is 'patient', a column of a table of images, but .* is no such"
    ):
        doctor(folder, options=DoctorOptions(key="patient"))


def test_labels_of_which_several_apply_are_doubted_one_by_one(scenes, capsys):
    """Halves of two colors are the labels; one is missing, one too many, and a picture has none."""
    pictures, rows, random = {}, [], np.random.default_rng(0)
    for k in range(120):
        pixels = np.asarray(draw_scene(k, 32), float) * 0.2
        has = random.random(2) < 0.5
        pixels[:16, :, 0] += 150 * has[0]
        pixels[16:, :, 1] += 150 * has[1]
        pictures[f"{k}.png"] = Image.fromarray(pixels.astype(np.uint8))
        rows.append([name for name, applies in zip(("red", "green"), has, strict=True) if applies])
    missing = next(k for k in range(120) if rows[k] == ["red", "green"])
    rows[missing] = ["red"]
    excess = next(k for k in range(120) if rows[k] == [])
    rows[excess] = ["green"]
    folder = scenes(pictures)
    cells = [f"{k}.png,{'|'.join(labels)}" for k, labels in enumerate(rows)]
    table = write_table(folder, "path,label", cells)
    run("doctor", doctor, [str(table), "--label-separator", "|", "--fix", "true"])
    said = capsys.readouterr().out
    assert "of 240 labels, yes or no of each image, are likely wrong" in said
    first, second, third, *_ = read_results()["label_errors"]["suspects"]
    found = {(one["image"], one["stated"], one["suggested"]) for one in (first, second)}
    assert found == {(f"{missing}.png", None, "green"), (f"{excess}.png", "green", None)}
    assert min(first["probability"], second["probability"]) > third["probability"]
    doubts = {row["path"]: row["doubt"] for row in read_csv(Path("doctor/cleaned.csv")).rows}
    assert doubts[str(folder / f"{missing}.png")] == "green"
    assert doubts[str(folder / f"{excess}.png")] == "-green"
    reasons = [check["reason"] for check in read_results()["check_first"]["images"]]
    assert "not labelled green, which it shows" in reasons
    assert "labelled green, which it does not show" in reasons
    with pytest.raises(
        DataError, match=r"--label-separator is '\|', what stands between .* is no such table"
    ):
        doctor(folder, options=DoctorOptions(label_separator="|"))


def test_without_labels_the_rest_is_looked_at_and_it_says_so(scenes, capsys):
    folder = scenes({f"{k}.png": draw_scene(k // 2) for k in range(4)})
    for data in (folder, write_table(folder, "path", [f"{k}.png" for k in range(4)])):
        doctor(data)
        seen = read_results()
        assert len(seen["duplicates"]) == 2
        assert seen["label_errors"] is None
        assert "Labels: there are none" in Path("doctor/doctor.html").read_text(encoding="utf-8")


def write_boxes(folder, num=30):
    """Photos with one large red or green box each; one box has the wrong class."""
    rows = []
    for k in range(num):
        pixels = np.asarray(draw_scene(k, 120)).copy() // 3
        label = k % 2
        left = 2 * k
        pixels[20:80, left : left + 60] = np.asarray(paint(label, 50 + k).resize((60, 60)))
        (folder / f"{k}.png").parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{k}.png")
        name = ("red", "green")[label if k != 4 else 1]
        rows.append(f"{k}.png,{left},20,{left + 60},80,{name}")
    rows += ["1.png,2,20,62,80,red", "2.png,100,100,140,110,green", "3.png,5,5,7,30,red"]
    return write_table(folder, "image_path,xmin,ymin,xmax,ymax,label", rows)


@pytest.mark.slow
def test_boxes_are_judged_by_what_is_inside(tmp_path):
    table = write_boxes(tmp_path / "boxes")
    doctor(table, options=DoctorOptions(fix=True))
    seen = read_results()
    first = seen["label_errors"]["suspects"][:2]
    assert "4.png" in {one["image"] for one in first}
    problems = {(doubt["image"], doubt["problem"].split(":")[0]) for doubt in seen["box_doubts"]}
    assert problems == {("1.png", "marked as red too"), ("2.png", "clipped"), ("3.png", "tiny")}
    rows = read_csv(tmp_path / "doctor/cleaned.csv").rows
    assert len(rows) == 33
    assert rows[0]["image_path"] == str(table.parent / "0.png")


def test_embeddings_of_a_model_stand_in_for_thumbnails(scenes, monkeypatch):
    pretrained = EmbeddingTask.__init__
    monkeypatch.setattr(
        EmbeddingTask,
        "__init__",
        lambda self, *a, **k: pretrained(self, *a, **k | {"pretrained": False}),
    )
    folder = scenes({f"{c}/{k}.png": draw_scene(k) for c, k in zip("abab", range(4), strict=True)})
    options = {"image_size": 32, "label_errors": False}
    doctor(folder, options=DoctorOptions(model="test_vit", **options))
    assert read_results()["features"] == "embeddings of test_vit"
    with pytest.raises(OptionError, match=r"--image-size is 32, but bundle has a size of its own"):
        doctor(folder, options=DoctorOptions(model="bundle", **options))


def test_names_that_may_be_one_class():
    names = ["Hard hat", "hard-hat", "gloves", "glove", "part 11", "part 12", "car", "cat"]
    assert find_like_names(names) == [("Hard hat", "hard-hat"), ("gloves", "glove")]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"fail_on": "leaks"}, OptionError, r"--fail-on holds 'leaks', which is no rule"),
        ({"fail_on": "leeks<1"}, OptionError, r"--fail-on names 'leeks'"),
    ],
)
def test_bad_rules(scenes, options, error, text):
    folder = scenes({f"{c}/{k}.png": draw_scene(k) for c, k in zip("ab", range(2), strict=True)})
    with pytest.raises(error, match=text):
        doctor(folder, options=DoctorOptions(label_errors=False, **options))


def test_bad_data(tmp_path, scenes):
    with pytest.raises(DataError, match=r"There is no file or folder .*absent .*Check the path"):
        doctor(tmp_path / "absent")
    folder = scenes({f"{c}/{k}.png": draw_scene(k) for c, k in zip("ab", range(2), strict=True)})
    with pytest.raises(OptionError, match=r"--format is 'videos'\. Choices: auto, images"):
        doctor(folder, format="videos")
    with pytest.raises(OptionError, match=r"--shortcuts goes with data of a special kind"):
        doctor(folder, shortcuts=True)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot be written .* Name another folder with --out"):
        doctor(folder, out=tmp_path / "file", options=DoctorOptions(label_errors=False))


def write_idx(folder):
    folder.mkdir()
    for split, count in (("train", 12), ("t10k", 4)):
        pixels = np.stack([np.asarray(draw_scene(k, 28).convert("L")) for k in range(count)])
        head = bytes([0, 0, 8, 3]) + np.array(pixels.shape, ">i4").tobytes()
        (folder / f"{split}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        labels = bytes(k % 2 for k in range(count))
        head = bytes([0, 0, 8, 1]) + np.array([count], ">i4").tobytes()
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(head + labels)
    return folder


def test_images_in_memory_have_leaks_but_no_table(tmp_path):
    folder = write_idx(tmp_path / "idx")
    doctor(folder, options=DoctorOptions(label_errors=False))
    assert read_results()["values"]["leaks"] == 4
    with pytest.raises(
        OptionError, match=r"--fix writes a table of files, but the images of .* are not files"
    ):
        doctor(folder, options=DoctorOptions(fix=True, label_errors=False))
