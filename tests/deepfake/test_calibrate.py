"""The operating point: what it promises, and what it is refused for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from vfm_runtime.deepfake.decision import Decision
from vfm_runtime.errors import DataError

from vfm.deepfake.calibrate import (
    CalibrationEvidence,
    describe_calibration,
    fit_decision,
    require_both,
    require_untested,
)
from vfm.deepfake.data.dataset import DeepfakeRecord
from vfm.deepfake.data.record import LABELS, Item
from vfm.deepfake.data.synthetic import SyntheticDeepfakes
from vfm.deepfake.groups import fit_video_groups, fit_video_temperatures, read_video_groups
from vfm.deepfake.head import DeepfakeHead
from vfm.deepfake.metrics import average_by_video
from vfm.deepfake.operating_point import OPERATING_POINT, OperatingPoint
from vfm.deepfake.results import fingerprint_videos
from vfm.deepfake.task import DeepfakeTask
from vfm.metrics.calibration import TooFewError
from vfm.tasks import BaseTask, Optim
from vfm.tasks.calibrate import calibrate
from vfm.tasks.calibration import CALIBRATION_FILE, CalibrationError, CalibrationOptions
from vfm.tasks.checkpoint import require_disjoint
from vfm.tasks.labeled_images import ValidationError

RNG = np.random.default_rng(0)


def evidence(num_reals=200, num_fakes=200, shift=3.0, num_frames=4) -> CalibrationEvidence:
    """Videos of as many people, whose frames' logits vary a little."""
    labels = np.repeat([0, 1], [num_reals, num_fakes])
    mean = RNG.normal(size=len(labels)) + shift * labels
    logits = mean[:, None] + 0.5 * RNG.normal(size=(len(labels), num_frames))
    keys = [("set", "m" * int(label), str(i)) for i, label in enumerate(labels)]
    videos = average_by_video(
        logits.ravel(),
        np.repeat(labels, num_frames),
        [key for key in keys for _ in range(num_frames)],
    )
    return CalibrationEvidence(
        videos,
        RNG.random(len(labels)),
        100 + RNG.random(len(labels)),
        [str(i) for i in range(len(labels))],
        num_frames,
        0,
    )


def record(name: str, label: int, source: str = "") -> DeepfakeRecord:
    item = Item("", LABELS[label], name, dataset="set")
    path = source or f"/data/{name}.png"
    return DeepfakeRecord(path, label, name, item=item, component=name)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a tiny task, trained a little, that gives fakes higher logits than reals."""
    folder = tmp_path_factory.mktemp("run")
    L.seed_everything(0, verbose=False)
    task = DeepfakeTask(
        "vit_tiny_patch16_224",
        DeepfakeHead(bank_size=8),
        pretrained=False,
        image_size=32,
        backbone_args={"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8},
        adapt="full",
        optim=Optim(lr=2e-3),
    )
    data = SyntheticDeepfakes(num_identities=40, num_frames=1, image_size=32, mode="paired")
    trainer = L.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_epochs=6,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        limit_val_batches=0,
    )
    trainer.fit(task, datamodule=data)
    # So small a model hardly learns: its sign and its zero are set, not left to luck.
    data.setup("validate")
    task.eval()
    batches = list(data.build_plain_loader("val"))
    with torch.inference_mode():
        logits = torch.cat([task.answer(batch["image"])["logits"] for batch in batches])
        fake = torch.cat([batch["target"].label for batch in batches]) == 1
        means = logits[fake].mean(), logits[~fake].mean()
        task.head.linear.bias.sub_(sum(means) / 2)
        if means[0] < means[1]:
            task.head.linear.weight.neg_()
            task.head.linear.bias.neg_()
    trainer.save_checkpoint(folder / "best.ckpt")
    return folder / "best.ckpt"


def test_a_checkpoint_gets_its_operating_point(checkpoint, capsys):
    calibrate(checkpoint, options=CalibrationOptions(fpr=0.2, abstain=0))
    path = checkpoint.parent / OPERATING_POINT
    rules = Decision.from_dict(json.loads(path.read_text()))
    details = json.loads(path.with_name(CALIBRATION_FILE).read_text())
    data = SyntheticDeepfakes(num_identities=40, num_frames=1, image_size=32, mode="paired")
    data.setup("validate")
    assert rules.calibration == fingerprint_videos(data.records["val"])
    assert rules.num_reals == details["num_reals"] == 10
    assert rules.fpr == 0.2
    # The ninth of ten logits: one real lies above it.
    assert details["decisions"]["num_false_alarms"] == 1
    printed = capsys.readouterr().out
    assert "at most 20 % are called fake, on average" in printed
    assert str(path) in printed
    task = BaseTask.load(checkpoint)
    assert isinstance(task, DeepfakeTask)
    assert task.decision == rules


def test_too_few_reals_of_a_split_are_refused(checkpoint):
    with pytest.raises(TooFewError, match=r"There are 10 real videos.*at least 99"):
        calibrate(checkpoint)


def test_all_splits_of_the_training_data_hold_what_was_trained_on(checkpoint):
    with pytest.raises(ValidationError, match=r"of these \d+ images were trained on"):
        calibrate(checkpoint, options=CalibrationOptions(fpr=0.2, split="all"))


def test_the_test_split_of_the_training_data_is_for_the_test(checkpoint):
    with pytest.raises(ValidationError, match=r"(\d+) of these \1 images were tested on, or will"):
        calibrate(checkpoint, options=CalibrationOptions(fpr=0.2, split="test"))


def test_an_option_of_another_task_is_refused_by_name(checkpoint):
    text = "--min_precision is 0.9, but a DeepfakeTask has no such option. Choices: --fpr, --miss, "
    with pytest.raises(CalibrationError, match=text):
        calibrate(checkpoint, options=CalibrationOptions(min_precision=0.9))


def test_a_column_of_groups_needs_a_table(checkpoint):
    with pytest.raises(DataError, match=r"SyntheticDeepfakes is no table\. Give a CSV file"):
        calibrate(checkpoint, options=CalibrationOptions(fpr=0.2, group_column="site"))
    with pytest.raises(CalibrationError, match=r"--table is x\.csv, which is for rules by group"):
        calibrate(checkpoint, options=CalibrationOptions(fpr=0.2, table=Path("x.csv")))
    with pytest.raises(CalibrationError, match=r"--equal is 'tpr'\. Choices: fpr .*, calibration"):
        calibrate(checkpoint, options=CalibrationOptions(group_column="site", equal="tpr"))


def test_a_video_is_in_one_group(tmp_path):
    (tmp_path / "t.csv").write_text("path,site\na,x\nb,y\n")
    frames = [replace(record(name, 0), item=Item("", "real", "one")) for name in "ab"]
    with pytest.raises(CalibrationError, match="b has 'y' in the column 'site', but another image"):
        read_video_groups(frames, "site", tmp_path / "t.csv", "--group_column", source="data")


def test_a_damaged_operating_point_is_written_anew(checkpoint):
    path = checkpoint.parent / OPERATING_POINT
    path.write_text("{}x")
    calibrate(checkpoint, options=CalibrationOptions(fpr=0.2, abstain=0))
    assert json.loads(path.read_text())["fpr"] == 0.2


def test_trap_20_the_tested_videos_cannot_set_the_threshold(tmp_path):
    records = [record("a", 0), record("b", 1)]
    results = {"test": {"videos_fingerprint": fingerprint_videos(records)}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(CalibrationError, match="These are the videos of the test"):
        require_untested(records[::-1], tmp_path)
    require_untested([*records, record("c", 0)], tmp_path)


def test_training_images_are_known_by_their_files():
    own = [record("a", 0), record("b", 1)]
    with pytest.raises(ValidationError, match=r"1 of these 2 images were trained on, such as b"):
        require_disjoint(own, [record("b", 1)], "train")
    # Another data set may use the same names.
    require_disjoint(own, [record("b", 1, "/elsewhere/b.png")], "train")


def test_copies_of_training_images_are_known_by_their_bytes(tmp_path):
    contents = {"a": b"one", "copy": b"one", "b": b"two", "long": b"three"}
    for name, content in contents.items():
        (tmp_path / f"{name}.png").write_bytes(content)
    records = {name: record(name, 0, str(tmp_path / f"{name}.png")) for name in contents}
    trained = [records["a"], record("gone", 0)]
    with pytest.raises(ValidationError, match=r"1 of these 3 images were trained on, such as copy"):
        require_disjoint([records[n] for n in ("copy", "b", "long")], trained, "train")
    require_disjoint([records["b"], records["long"], record("lost", 1)], trained, "train")
    require_disjoint([records["copy"]], trained, "train", copies=False)


def test_one_label_alone_is_refused():
    with pytest.raises(CalibrationError, match="All 2 images of val are real"):
        require_both([record("a", 0), record("b", 0)], "val")


def test_the_threshold_holds_on_new_reals_by_the_rule_that_decides():
    random = np.random.default_rng(3)
    passed = []
    for _ in range(200):
        rules = fit_decision(evidence(60, 60), fpr=0.1, miss=None, abstain=0)
        new = random.normal(size=2000) + 0.25 * random.normal(size=2000)
        passed.append((new / rules.temperature > rules.limit).mean())
    assert np.mean(passed) <= 0.1 + 3 * np.std(passed) / np.sqrt(200)
    assert np.mean(passed) > 0.05


def test_a_band_leaves_videos_undecided_and_limits_both_errors():
    rules = fit_decision(evidence(1000, 1000, shift=1.0), fpr=0.05, miss=0.05, abstain=0)
    assert rules.real_below is not None
    assert rules.real_below < rules.limit
    found = describe_calibration(evidence(1000, 1000, shift=1.0), rules)["decisions"]
    assert found["fpr"] == pytest.approx(0.05, abs=0.03)
    assert found["missed"] == pytest.approx(0.05, abs=0.03)
    assert found["undecided"] > 0.3


def test_limits_that_cross_leave_no_band():
    rules = fit_decision(evidence(shift=20.0), fpr=0.05, miss=0.05, abstain=0)
    assert rules.real_below is None


def test_rules_of_doubt_set_few_of_these_videos_aside():
    seen = evidence(300, 300)
    rules = fit_decision(seen, fpr=0.05, miss=None, abstain=0.05)
    assert rules.max_distance is not None
    assert rules.max_spread is not None
    assert rules.min_sharpness is not None
    assert (seen.distances > rules.max_distance).mean() <= 0.05
    assert (seen.videos.spread > rules.max_spread).mean() <= 0.05
    assert (seen.sharpness < rules.min_sharpness).mean() <= 0.05
    assert rules.num_frames == 4


def test_without_a_bank_or_frames_there_are_no_such_rules():
    seen = evidence(300, 300, num_frames=1)._replace(distances=np.zeros(600))
    rules = fit_decision(seen, fpr=0.05, miss=None, abstain=0.05)
    assert rules.max_distance is None
    assert rules.max_spread is None
    assert rules.num_frames == Decision().num_frames


def test_too_few_videos_for_a_rule_of_doubt_leave_it_out_and_say_so(caplog):
    rules = fit_decision(evidence(20, 20), fpr=0.1, miss=None, abstain=0.01)
    assert rules.max_distance is None
    assert "No rule max_distance: There are 40 videos, too few" in caplog.text


def test_each_data_set_is_described():
    seen = evidence(200, 200)
    rules = fit_decision(seen, fpr=0.05, miss=None, abstain=0)
    details = describe_calibration(seen, rules)
    assert [row["dataset"] for row in details["per_dataset"]] == ["set"]
    assert details["after"]["nll"] <= details["before"]["nll"]
    assert rules.fpr is not None
    assert details["fpr_at_most"] > rules.fpr
    assert torch.tensor(details["decisions"]["tpr"]) > 0.5


def test_false_alarms_of_groups_become_equal():
    seen = evidence(800, 400)
    groups = ["ab"[i % 2] if i % 40 else ("c" if i % 80 else "") for i in range(1200)]
    is_b = np.array(groups) == "b"
    videos = seen.videos._replace(logits=seen.videos.logits + 0.8 * is_b)
    rules = fit_decision(seen._replace(videos=videos), fpr=0.1, miss=None, abstain=0)
    fit = fit_video_groups(videos, groups, rules, 0.1, "site")
    rows = {row["group"]: row for row in fit.rows}
    assert [rows[name]["own"] for name in "abc"] == [True, True, False]
    assert fit.rules.groups["c"] is None
    assert rows["b"]["before"] - rows["a"]["before"] > 0.05
    assert rows["a"]["after"] == pytest.approx(rows["b"]["after"], abs=0.01)
    assert rows["b"]["low"] < 0.1 < rows["b"]["high"]
    assert fit.rules.groups["b"]["threshold"] > rules.limit > fit.rules.groups["a"]["threshold"]
    assert "Of the real videos of each group 10.0% at most" in fit.list_lines()[0]
    point = OperatingPoint(rules, fit)
    assert OperatingPoint.from_dict(json.loads(json.dumps(point.to_dict()))) == point
    with pytest.raises(
        CalibrationError, match=r"enough real videos for a false alarm rate of 0.1%: it takes 999"
    ):
        fit_video_groups(videos, groups, rules, 0.001, "site")


def test_scores_of_groups_become_calibrated_and_verdicts_stay():
    seen = evidence(800, 800, shift=2.0)
    names = np.array(["a", "b", "a", "b", "upside down", ""] * 266 + ["c"] * 4)
    logits = (seen.videos.logits - 1) * np.where(names == "a", 4.0, 1.0)
    videos = seen.videos._replace(logits=np.where(names == "upside down", -logits, logits))
    rules = fit_decision(seen._replace(videos=videos), fpr=0.1, miss=0.05, abstain=0)
    fit = fit_video_temperatures(videos, names.tolist(), rules, "site")
    a, b = (fit.rules.groups[name] for name in "ab")
    assert a["temperature"] == pytest.approx(4 * b["temperature"], rel=0.2)
    (row,) = (row for row in fit.rows if row["group"] == "b")
    assert row["after"] < row["before"] / 2
    assert fit.after < fit.before
    divided = videos.logits[names == "a"]
    assert rules.real_below is not None
    for limit, moved in ((rules.limit, a["threshold"]), (rules.real_below, a["real_below"])):
        distance = divided / rules.temperature - limit
        # A limit is a score that was seen; on which side of it that score itself lies, rounding decides.
        is_clear = abs(distance) > 1e-9
        assert is_clear.sum() >= len(divided) - 1
        above = divided / a["temperature"] > moved
        assert (above == (distance > 0))[is_clear].all()
    text = "\n".join(fit.list_lines())
    assert "c: the general rule, for its 0 real and 4 fake ones are too few: it takes 25" in text
    assert "upside down: the general rule, for its real ones have no lower scores than" in text
    point = OperatingPoint(rules, fit)
    assert OperatingPoint.from_dict(json.loads(json.dumps(point.to_dict()))) == point
    some = slice(790, 810)
    few = average_by_video(videos.logits[some], videos.fake[some], videos.keys[some])
    with pytest.raises(
        CalibrationError, match=r"No group of 'site' .*\(x: its 10 real and 10 fake"
    ):
        fit_video_temperatures(few, ["x"] * 20, rules, "site")
