"""What is written about a split of real and forged videos."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from vfm_runtime.deepfake.decision import Decision

from vfm.data.records import Record
from vfm.deepfake.data.dataset import DeepfakeRecord
from vfm.deepfake.data.record import LABELS, Item
from vfm.deepfake.results import (
    OPERATING_POINT,
    SHORTCUTS,
    count_decisions,
    fingerprint_videos,
    join_records,
    select_most_fake,
    write_deepfake_results,
)
from vfm.tasks.results import Collector

MORE = {"checkpoint": None, "num_skipped": 0, "skipped": {}}


def split(num_videos=30, num_frames=2, shift=3.0, seed=0):
    """Records and their logits: every third video is real."""
    random = np.random.default_rng(seed)
    records, logits = [], []
    for video in range(num_videos):
        method = ("", "swap", "reenact")[video % 3]
        mean = random.normal() + shift * bool(method)
        pixels = np.full((8, 8, 3), 8 * video % 255, np.uint8)
        for frame in range(num_frames):
            label = int(bool(method))
            item = Item(
                "", LABELS[label], f"{video:03d}", method=method, dataset="set", frame=frame
            )
            record = DeepfakeRecord(
                pixels, label, f"{video}/{frame}", item=item, component=f"p{video // 6}"
            )
            records.append(record)
            logits.append(mean + 0.1 * frame)
    return records, torch.tensor(logits, dtype=torch.float32)


def answered(logits, index=None, loss=0.0):
    collector = Collector()
    values = {"logits": logits, "distances": torch.zeros(len(logits)), "loss": torch.tensor(loss)}
    collector.add(torch.arange(len(logits)) if index is None else index, values)
    return collector.gather()


def write_results(folder, *args, **options):
    write_deepfake_results(folder, *args, **options)
    return folder / "results.json"


def test_the_page_shows_images_of_12_bits_as_the_model_sees_them(tmp_path):
    records, logits = split(num_videos=9, num_frames=1)
    white = tmp_path / "white.png"
    Image.fromarray(np.full((40, 40), 4095, np.uint16)).save(white)
    records = [replace(record, source=str(white)) for record in records]
    args = ("val", answered(logits), records, MORE)
    for name, value_range, least, most in (("seen", (0, 4095), 255, 255), ("dark", None, 15, 16)):
        folder = tmp_path / name
        folder.mkdir()
        write_results(folder, *args, value_range=value_range)
        sheet = np.asarray(Image.open(folder / "missed_val.png").convert("L"))
        assert least <= sheet[70, 75] <= most  # in the middle of the first picture


def test_repeated_images_count_once_and_order_is_that_of_the_split():
    collector = Collector()
    for index, logits, distances, loss in (
        ([2, 0], [3.0, 1.0], [0.75, 0.0], 1.5),
        ([1, 2], [2.0, 3.0], [0.25, 0.75], 0.5),
    ):
        values = {"logits": logits, "distances": distances, "loss": loss}
        collector.add(torch.tensor(index), {k: torch.tensor(v) for k, v in values.items()})
    answers = collector.gather()
    assert answers.position.tolist() == [0, 1, 2]
    assert answers.stack("logits").tolist() == [1, 2, 3]
    assert answers.stack("distances").tolist() == [0, 0.25, 0.75]
    assert answers.sums["loss"] == 2
    assert collector.gather() is None


def test_trap_22_of_several_faces_the_most_fake_judges_the_frame():
    faces = [("a", 0), ("a", 0), ("a", 1), ("b", -1), ("b", -1), ("c", -1)]
    items = [Item(f"{i}.png", "real", video, frame=n) for i, (video, n) in enumerate(faces)]
    logits = torch.tensor([1.0, 3.0, -2.0, 0.5, -1.0, 0.0])
    assert select_most_fake(logits.numpy(), items).tolist() == [1, 2, 3, 5]
    records = [DeepfakeRecord(i.path, 0, i.path, item=i, component="p") for i in items]
    scored = join_records(answered(logits), records, by_frame=True)
    assert scored.logits.tolist() == [3.0, -2.0, 0.5, 0.0]
    assert [record.item for record in scored.records] == [items[k] for k in (1, 2, 3, 5)]


def test_half_precision_is_kept_as_float32():
    assert answered(torch.tensor([1.0], dtype=torch.bfloat16)).stack("logits").dtype == np.float32


def test_a_video_without_any_scored_frame_has_failed():
    records, logits = split()
    index = torch.arange(1, len(records) - 2)
    found = join_records(answered(logits[index], index), records)
    # The first video has lost one of two frames, the last both.
    assert [(lost.key, lost.label) for lost in found.lost] == [(("set", "reenact", "029"), 1)]


def test_records_without_groups_are_refused():
    record = Record("a.png", 1, "a.png")
    with pytest.raises(ValueError, match=r"a\.png has the groups \(\), .* with DeepfakeData"):
        join_records(answered(torch.tensor([1.0])), [record])


def test_fingerprint_is_of_videos_and_labels_not_of_order():
    records, _ = split()
    assert fingerprint_videos(records) == fingerprint_videos(records[::-1])
    assert fingerprint_videos(records) == fingerprint_videos(records[::2])
    assert fingerprint_videos(records) != fingerprint_videos(records[2:])
    other = [replace(record, label=1) for record in records]
    assert fingerprint_videos(records) != fingerprint_videos(other)


def test_everything_is_written(tmp_path):
    records, logits = split()
    path = write_results(
        tmp_path, "val", answered(logits, loss=6.0), records, MORE, trained_on=["swap"]
    )
    results = json.loads(path.read_text())["val"]
    assert results["num_videos"] == 30
    assert results["num_reals"] == 10
    assert results["loss"] == pytest.approx(0.1)
    assert results["video_auc"]["value"] > 0.9
    assert [row["seen"] for row in results["per_method"]].count(True) == 1
    assert results["operating_point"] is None
    assert results["warnings"] == []
    with (tmp_path / "videos_val.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 30
    assert float(rows[0]["logit"]) == pytest.approx(float(logits[:2].mean()), abs=1e-5)
    for name in ("scores", "curves", "reliability", "missed", "alarms"):
        with Image.open(tmp_path / f"{name}_val.png") as image:
            assert image.width > 100
    page = (tmp_path / "report_val.html").read_text()
    for text in (
        "Worst method",
        "set/reenact",
        "There is no operating point",
        "Fakes found at 1 %",
    ):
        assert text in page


def test_reals_alone_are_reported_without_areas(tmp_path):
    records, logits = split()
    index = torch.tensor([i for i, record in enumerate(records) if record.label == 0])
    reals = [records[i] for i in index]
    path = write_results(tmp_path, "test", answered(logits[index]), reals, MORE)
    results = json.loads(path.read_text())["test"]
    assert results["video_auc"]["value"] is None
    assert results["warnings"] == ["The test split has only reals, so nothing is told apart."]
    assert not (tmp_path / "curves_test.png").exists()
    assert (tmp_path / "report_test.html").is_file()


def test_trap_16_a_shortcut_in_the_data_stands_first_in_the_report(tmp_path):
    records, logits = split()
    found = {"metadata_auc": {"value": 0.91, "low": 0.88, "high": 0.94, "level": 0.95}}
    (tmp_path / SHORTCUTS).write_text(json.dumps(found))
    write_results(tmp_path / "out", "test", answered(logits), records, MORE, data_root=tmp_path)
    results = json.loads((tmp_path / "out" / "results.json").read_text())["test"]
    assert results["metadata_auc"]["value"] == 0.91
    assert results["warnings"][0].startswith("SHORTCUT: size, format and compression")
    assert "AUC of 0.910" in (tmp_path / "out" / "report_test.html").read_text()


def test_trap_03_tests_are_counted(tmp_path):
    records, logits = split()
    for times in (1, 2):
        path = write_results(tmp_path, "test", answered(logits), records, MORE)
        results = json.loads(path.read_text())["test"]
        assert results["times_evaluated"] == times
    assert "evaluated 2 times" in results["warnings"][0]


def test_trap_08_swapped_labels_are_suspected(tmp_path):
    records, logits = split()
    path = write_results(tmp_path, "val", answered(-logits), records, MORE)
    assert "Labels may be swapped" in json.loads(path.read_text())["val"]["warnings"][0]


def test_trap_21_failed_videos_are_told_and_bounded(tmp_path):
    records, logits = split()
    index = torch.arange(len(records) - 2)
    path = write_results(tmp_path, "val", answered(logits[index], index), records, MORE)
    results = json.loads(path.read_text())["val"]
    assert results["warnings"] == [
        "1 of 30 videos got no score (0 real, 1 fake). They are in no figure but the worst case."
    ]
    lost = results["failures"]
    assert lost["worst_case_auc"] < lost["excluded_auc"]
    assert "Videos without a score" in (tmp_path / "report_val.html").read_text()


def operating_point(folder, fingerprint):
    rules = Decision(temperature=2.0, threshold=1.0, fpr=0.1, num_reals=40, calibration=fingerprint)
    (folder / OPERATING_POINT).write_text(json.dumps(rules.to_dict()))


def test_the_operating_point_is_judged_on_other_videos(tmp_path):
    records, logits = split()
    operating_point(tmp_path, "of others")
    path = write_results(tmp_path, "test", answered(logits), records, MORE)
    results = json.loads(path.read_text())["test"]
    mean = logits.reshape(-1, 2).mean(1).numpy()
    alarms = int((mean[::3] > 2).sum())
    assert results["operating_point"]["num_false_alarms"] == alarms
    assert results["operating_point"]["fpr"] == alarms / 10
    assert results["operating_point"]["fpr_at_most"] > alarms / 10
    assert results["calibration"]["temperature"] == 2
    assert "balanced accuracy" in (tmp_path / "report_test.html").read_text()


def test_trap_20_a_threshold_proves_nothing_on_the_videos_that_set_it(tmp_path):
    records, logits = split()
    operating_point(tmp_path, fingerprint_videos(records))
    path = write_results(tmp_path, "test", answered(logits), records, MORE)
    results = json.loads(path.read_text())["test"]
    assert results["operating_point"] is None
    assert "calibrated on these very videos" in results["warnings"][-1]


def test_three_answers():
    rules = Decision(threshold=1.0, real_below=-1.0)
    logits = np.array([-2.0, -1.0, 0.0, 1.0, 2.0, -2.0, 3.0])
    fake = np.array([False, False, False, False, False, True, True])
    found = count_decisions(logits, fake, rules)
    assert found["num_false_alarms"] == 1
    assert found["undecided"] == pytest.approx(3 / 7)
    assert found["tpr"] == found["missed"] == 0.5
    assert found["balanced_accuracy"] == pytest.approx((0.5 + 0.8) / 2)
