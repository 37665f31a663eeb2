"""Rules by group as `vfm calibrate` fits them: their guarantee, what is refused, and a bundle against torch."""

import csv
import json
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import vfm_runtime
from scipy.special import expit
from vfm_runtime.cli import main as run_bundle
from vfm_runtime.errors import DataError, OptionError
from vfm_runtime.tasks.confidence import ConfidenceRules, soften_scores

from tests.image_folders import write_image_folder
from tests.runtime.server.conftest import ask_server
from tests.tasks.test_multilabel import stripes, write_stripes
from tests.tasks.tiny import fit, vit
from vfm.bundle.contract import make_contract
from vfm.bundle.export import export
from vfm.cli import main
from vfm.cli.group_column import GroupColumn, GroupRulesReader
from vfm.data import FolderData
from vfm.metrics.calibration import compute_calibration_error
from vfm.metrics.group_thresholds import count_needed, fit_cutoff
from vfm.tasks.calibrate import calibrate
from vfm.tasks.calibration import Calibration, CalibrationError, CalibrationOptions
from vfm.tasks.checkpoint import Checkpoint
from vfm.tasks.classification.groups import fit_label_groups
from vfm.tasks.predictor import TorchPredictor

LABELS = ("no", "yes")


@pytest.mark.parametrize("at_most", [True, False])
def test_the_rate_holds_on_average_and_its_interval_covers(at_most):
    rates, covered = [], 0
    for seed in range(400):
        scores = np.random.default_rng(seed).random(60)
        fitted = fit_cutoff(scores, 0.2, at_most=at_most)
        rate = 1 - fitted.cutoff  # of further scores, which are uniform
        rates.append(rate)
        covered += fitted.low <= rate <= fitted.high
    # On the promised side, and nearer to it than one sample is worth, up to chance.
    low, high = (0.18, 0.2) if at_most else (0.2, 0.22)
    assert low - 0.008 <= np.mean(rates) <= high + 0.008
    assert covered / 400 > 0.92
    assert count_needed(0.01, at_most=at_most) == (99 if at_most else 20)


def draw(number=900, seed=0):
    """Scores of two labels; those of site b are lower, site c has few images, some images have no site."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, number)
    groups = rng.choice(["a", "b", "c", ""], number, p=[0.5, 0.4, 0.02, 0.08])
    logits = 2 * truth - 1 + rng.normal(0, 1.5, number) - 1.5 * (groups == "b")
    yes = 1 / (1 + np.exp(-logits))
    return np.stack([1 - yes, yes], 1), truth, groups.tolist()


def fit_groups(scores, truth, groups, labels=LABELS, rules=ConfidenceRules(), **options):
    asked = CalibrationOptions(group_column="site", **options)
    return fit_label_groups(scores, truth, labels, rules, groups, asked)


@pytest.mark.parametrize("equal", ["tpr", "fpr"])
def test_rates_of_groups_become_equal(equal):
    scores, truth, groups = draw()
    fitted = fit_groups(scores, truth, groups, equal=equal)
    rows = {row["group"]: row for row in fitted.rows}
    assert [rows[name]["own"] for name in "abc"] == [True, True, False]
    assert fitted.rules.groups["c"] is None
    assert abs(rows["a"]["before"] - rows["b"]["before"]) > 0.1
    assert abs(rows["a"]["after"] - rows["b"]["after"]) < 0.02
    assert rows["b"]["low"] < rows["b"]["after"] < rows["b"]["high"]
    text = "\n".join(fitted.list_lines())
    assert ("Hardt et al." in text) == (equal == "tpr")
    assert "c: the general rule, for" in text
    assert "law may forbid" in text
    assert fitted.rules.general == {}


def test_a_stated_rate_holds_without_a_group_too():
    scores, truth, groups = draw()
    fitted = fit_groups(scores, truth, groups, rate=0.9)
    least = fitted.rules.general["cutoff"]["score"]
    assert (scores[truth == 1, 1] >= least).mean() == pytest.approx(0.9, abs=0.01)
    assert type(fitted).from_dict(json.loads(json.dumps(fitted.to_dict()))) == fitted


def test_several_labels_have_thresholds_each():
    scores, truth, groups = draw()
    both = np.stack([truth, 1 - truth, np.zeros_like(truth)], 1)
    three = np.stack([scores[:, 1], scores[:, 0], scores[:, 0]], 1)
    rules = ConfidenceRules(thresholds=(0.5, 0.4, 0.3))
    fitted = fit_groups(three, both, groups, ("x", "y", "never"), rules)
    thresholds = fitted.rules.groups["b"]["thresholds"]
    assert thresholds[0] < 0.45
    assert thresholds[2] == 0.3
    assert fitted.rules.general == {"thresholds": [0.5, 0.4, 0.3]}
    after = three[(truth == 1) & (np.array(groups) == "b"), 0] >= thresholds[0]
    overall = (three[truth == 1, 0] >= 0.5).mean()
    assert after.mean() == pytest.approx(overall, abs=0.02)
    with pytest.raises(CalibrationError, match=r"each has thresholds of its own. Leave it out"):
        fit_groups(three, both, groups, ("x", "y", "never"), rules, positive="x")


def test_scores_of_groups_become_calibrated():
    scores, truth, groups = draw(4000)
    member = np.array(groups) == "a"
    logs = np.log(scores[member]) * 3  # site a is over-confident
    scores[member] = np.exp(logs) / np.exp(logs).sum(1, keepdims=True)
    fitted = fit_groups(
        scores, truth, groups, equal="calibration", rules=ConfidenceRules(temperature=2.0)
    )
    rows = {row["group"]: row for row in fitted.rows}
    # 3 times what logits of ±1 with a spread of 1.5 take (1.5² / 2), over a model's own temperature of 2.
    assert fitted.rules.groups["a"]["temperature"] == pytest.approx(2 * 3 * 1.125, rel=0.15)
    assert rows["a"]["after"] < rows["a"]["before"] / 2
    assert fitted.after < fitted.before
    text = "\n".join(fitted.list_lines())
    assert "a: temperature 6." in text
    assert "the expected calibration error here was 0." in text
    assert type(fitted).from_dict(json.loads(json.dumps(fitted.to_dict()))) == fitted
    few = fit_groups(scores[:300], truth[:300], groups[:300], equal="calibration")
    assert few.rules.groups["c"] is None
    with pytest.raises(CalibrationError, match=r"No group of 'site' has the 50 images that a temp"):
        fit_groups(scores[:60], truth[:60], groups[:60], equal="calibration")


def test_scores_of_several_labels_become_calibrated_and_the_same_labels_apply():
    random = np.random.default_rng(0)
    logits = random.normal(-1, 2, (2000, 3))
    truth = (random.random(logits.shape) < expit(logits)).astype(np.float32)
    groups = random.choice(["a", "b", "c", ""], 2000, p=[0.5, 0.4, 0.02, 0.08])
    is_sharp = groups == "a"
    scores = expit(logits * np.where(is_sharp, 3, 1)[:, None]).astype(np.float32)
    rules = ConfidenceRules(temperature=2.0, thresholds=(0.9, 0.5, 0.2))
    fitted = fit_groups(scores, truth, groups.tolist(), ("x", "y", "z"), rules, equal="calibration")
    rule = fitted.rules.groups["a"]
    assert rule["temperature"] == pytest.approx(2 * 3, rel=0.1)
    assert fitted.rules.groups["b"]["temperature"] == pytest.approx(2, rel=0.1)
    assert fitted.rules.groups["c"] is None
    assert "probabilities that a label applies" in fitted.list_lines()[0]
    assert fitted.after < fitted.before / 2
    softened = soften_scores(scores[is_sharp], rule["temperature"] / 2, multilabel=True)
    applies = softened >= np.array(rule["thresholds"])
    assert (applies == (scores[is_sharp] >= np.array(rules.thresholds))).all()
    for k in range(3):
        error = compute_calibration_error(softened[:, k], truth[is_sharp, k] > 0)
        assert error < compute_calibration_error(scores[is_sharp, k], truth[is_sharp, k] > 0) / 2


def test_sure_answers_are_equally_precise():
    scores, truth, groups = draw(3000)
    rules = ConfidenceRules(thresholds=(0.8, 0.8))
    fitted = fit_groups(scores, truth, groups, rules=rules, min_precision=0.85)
    best = scores.argmax(1)
    for group in "ab":
        least = np.array(fitted.rules.groups[group]["thresholds"])[best]
        sure = (np.array(groups) == group) & (scores.max(1) >= least)
        assert (best == truth)[sure].mean() >= 0.85
    # Too little is known of c to prove it: never less sure than all together.
    assert min(fitted.rules.groups["c"]["thresholds"]) >= 0.8


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"equal": "odds"}, r"--equal is 'odds'\. Choices: tpr"),
        ({"equal": "calibration", "rate": 0.5}, "--rate is 0.5, for rates of a label, and"),
        ({"rate": 1.5}, "--rate is 1.5, but it is a fraction"),
        ({"rate": 0.9999}, "too few for a true positive rate of 100.0%: it takes 9999"),
        ({"positive": "maybe"}, r"--positive is 'maybe'.*Choices: no, yes"),
        ({"min_precision": 0.9, "equal": "tpr"}, "Give one of the two"),
    ],
)
def test_options_that_make_no_sense(options, match):
    with pytest.raises(CalibrationError, match=match):
        fit_groups(*draw(), **options)


def test_groups_that_cannot_be_fitted():
    scores, truth, groups = draw()
    with pytest.raises(
        CalibrationError,
        match=r"No group of 'site' has enough images with the label.*there are: a ",
    ):
        fit_groups(scores[:30], truth[:30], groups[:30])
    with pytest.raises(
        CalibrationError, match="is 0% on these images, so there is nothing to make equal"
    ):
        fit_groups(scores, np.zeros_like(truth), groups)
    # A group of one class alone has no rate, and keeps the general rule.
    one_class = [
        "d" if label == 0 and g == "a" else g for label, g in zip(truth, groups, strict=True)
    ]
    assert fit_groups(scores, truth, one_class).rules.groups["d"] is None
    with pytest.raises(CalibrationError, match=r"--positive is not given.*Choices: a, b, c"):
        fit_groups(np.ones((9, 3)), np.zeros(9, int), ["x"] * 9, ("a", "b", "c"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("groups")
    root = write_image_folder(folder / "images", images_per_class=40)
    data = FolderData(root, augment="none", batch_size=32, num_workers=0, val_fraction=0.2)
    torch.manual_seed(0)
    fit(folder, vit(), data, max_epochs=1)
    others = write_image_folder(folder / "others", images_per_class=60, seed=5)
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "site", "same", "id"])
        for index, path in enumerate(sorted(others.rglob("*.png"))):
            site = "c" if index % 10 == 0 else "ab"[index % 2]
            writer.writerow([path.relative_to(folder), path.parent.name, site, "x", index])
    return folder / "checkpoints" / "last.ckpt", folder / "table.csv"


@pytest.fixture(scope="module")
def trained_several(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    torch.manual_seed(0)
    data = stripes(write_stripes(folder / "images"))
    fit(folder, vit(multilabel=True, fit="squash"), data, max_epochs=2)
    with write_stripes(folder / "others", seed=1).open() as file:
        rows = list(csv.DictReader(file))
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "site"])
        for index, row in enumerate(rows):
            site = "c" if index < 10 else "ab"[index % 2]
            writer.writerow([f"others/{row['path']}", row["label"], site])
    return folder / "checkpoints" / "last.ckpt", folder / "table.csv"


RATES = ("--positive", "class_1", "--equal", "fpr", "--rate", "0.3")


def calibrate_copy(trained, folder, asked=RATES):
    checkpoint, table = trained
    for name in ("last.ckpt", "results.json"):
        if (source := checkpoint.with_name(name)).exists():
            shutil.copy(source, folder / name)
    words = ["--group-column", "site", *asked]
    assert main(["calibrate", str(folder / "last.ckpt"), str(table), *words]) == 0
    return Checkpoint.open(folder / "last.ckpt"), sorted((table.parent / "others").rglob("*.png"))


def count_called(predictor, images):
    called = {}
    for group in (None, "a", "b", "c"):
        answers = predictor.predict(images, group=group)
        called[group] = [each.label for each in answers].count("class_1")
    return called


def test_what_is_fitted_by_the_command_holds_in_the_contract(trained, tmp_path, capsys):
    opened, images = calibrate_copy(trained, tmp_path)
    assert "Of the images without 'class_1', 30.0% at most" in capsys.readouterr().out
    stored = json.loads((tmp_path / "calibration.json").read_text())
    del stored["groups"]  # as it was before there were any
    assert Calibration.from_dict(stored).groups is None
    contract = make_contract({"": opened.task}, {"": opened.calibration}, None)
    assert contract.group_rules.groups["c"] is None
    called = count_called(make_torch_side(opened, contract), images[::3])
    assert called[None] == called["c"]
    assert called["a"] != called["b"]


def predict_table(checkpoint, table, *words):
    """Rows of predictions.csv of every image of a table, by path."""
    root = checkpoint.parent / "out"
    call = ["predict", "--ckpt_path", str(checkpoint), "--data", "TableData", "--data.num_workers"]
    call += [
        "0",
        "--data.root",
        str(table.parent),
        "--data.table",
        str(table),
        "--trainer.default_root_dir",
        str(root),
    ]
    call += ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", *words]
    code = main(call)
    with (root / "predictions.csv").open() as file:
        return code, {row["path"]: row for row in csv.DictReader(file)}


def test_a_table_is_predicted_by_the_rules_of_its_groups(trained, tmp_path, capsys):
    opened, _ = calibrate_copy(trained, tmp_path)
    table = trained[1].with_name("to_predict.csv")
    with trained[1].open() as file:
        rows = list(csv.DictReader(file))[:60]
    rows[0]["site"] = ""
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    code, plain = predict_table(opened.path, table)
    assert (code, list(plain[rows[0]["path"]])) == (0, ["path", "label", "score", "error"])
    assert "Rules by site lie beside" in capsys.readouterr().out
    _, predicted = predict_table(opened.path, table, "--group-column", "site")
    contract = make_contract({"": opened.task}, {"": opened.calibration}, None)
    predictor = make_torch_side(opened, contract)
    for row in rows:
        answer = predictor.predict(table.parent / row["path"], group=row["site"] or None)
        cells = predicted[row["path"]]
        rule = "general" if row["site"] in ("", "c") else "own"
        assert (cells["label"], cells["group"]) == (answer.label, row["site"])
        assert cells["group_rule"] == rule == answer.group.rule
        assert float(cells["score"]) == pytest.approx(answer.score, abs=1e-4)
    # What cannot be applied is refused before anything is predicted.
    assert predict_table(opened.path, table, "--group-column", "id")[0] == 1
    assert "the model knows no such site. Choices: a, b, c." in capsys.readouterr().err
    assert predict_table(opened.path, table, "--table", str(table))[0] == 2
    assert "Add --group-column NAME" in capsys.readouterr().err
    (tmp_path / "calibration.json").unlink()
    assert predict_table(opened.path, table, "--group-column", "site")[0] == 1
    assert "has no rules by group. Leave it out, or fit them" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "asked"),
    [
        ("trained", RATES),
        ("trained", ("--equal", "calibration")),
        ("trained_several", ("--equal", "calibration")),
    ],
)
def test_the_bundle_answers_as_torch_for_each_group(request, tmp_path, capsys, kind, asked):
    trained = request.getfixturevalue(kind)
    opened, images = calibrate_copy(trained, tmp_path, asked)
    out = tmp_path / "bundle"
    export(opened.path, out=out, images=trained[1].parent / "others")
    assert "law may forbid" in (out / "card.md").read_text()
    bundle = vfm_runtime.load(out, device="cpu")
    torch_side = make_torch_side(opened, bundle.contract)
    for group in (None, "a", "b", "c"):
        ours, theirs = (side.predict(images, group=group) for side in (bundle, torch_side))
        pairs = list(zip(ours, theirs, strict=True))
        assert all(one.label == other.label for one, other in pairs)
        assert all(one.compare(other).difference < 1e-4 for one, other in pairs)
        assert [one.to_dict().get("labels") for one in ours] == [
            other.to_dict().get("labels") for other in theirs
        ]
        served = {row["label"]: row["score"] for row in ask_server(out, images[0], group)["top"]}
        scores = [served[label] for label in bundle.labels]
        assert scores == pytest.approx(ours[0].scores, abs=1e-5)
    # The rows of a table, by either command.
    several = ["--data.label_separator", "|"] if kind == "trained_several" else []
    _, rows = predict_table(opened.path, trained[1], "--group-column", "site", *several)
    words = [str(out), str(trained[1].parent / "others"), "--device", "cpu", "--json"]
    words += ["--group-column", "site", "--table", str(trained[1])]
    capsys.readouterr()
    assert run_bundle(["predict", *words]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(answers) == len(rows)
    for answer in answers:
        (path,) = (path for path in rows if answer["image"].endswith(path))
        cells = rows[path]
        for name in ("group", "group_rule"):
            assert cells[name] == (answer[name] or "")
        labels = answer.get("labels", [answer["label"]])
        assert cells["label"] == "|".join(labels)
        scores = {each["label"]: each["score"] for each in answer["top"]}
        written = [float(score) for score in cells["score"].split("|") if score]
        assert written == pytest.approx([scores[label] for label in labels], abs=1e-4)


def make_torch_side(opened, contract):
    temperature = opened.calibration.rules.temperature
    return TorchPredictor(opened.task, contract, partial(answer_divided, opened.task, temperature))


def answer_divided(task, temperature, pixels):
    """What the graph gives: logits divided by the temperature of the contract."""
    scores = task.answer(pixels)["scores"]
    if task.multilabel:
        return {"scores": (scores.logit() / temperature).sigmoid()}
    return {"scores": (scores.log() / temperature).softmax(1)}


def test_columns_and_options_that_are_refused(trained, tmp_path):
    checkpoint, table = trained

    def run(data=table, **options):
        calibrate(checkpoint, data, options=CalibrationOptions(**options))

    with pytest.raises(
        DataError, match=r"has no column 'sites' \(--group_column\)\. Did you mean 'site'"
    ):
        run(group_column="sites")
    with pytest.raises(DataError, match="is 'x' for all 180 images"):
        run(group_column="same")
    with pytest.raises(DataError, match="has 180 values for 180 images: it names images"):
        run(group_column="id")
    with pytest.raises(
        CalibrationError, match=r"--rate is 0.3, which is for rules by group. Add --group_column"
    ):
        run(rate=0.3)
    with pytest.raises(DataError, match=r"is no table. Give a CSV file"):
        run(table.parent / "others", group_column="site")
    assert not checkpoint.with_name("calibration.json").exists()


def test_several_heads_hold_no_rules_by_group(trained):
    task = Checkpoint.open(trained[0]).task
    groups = fit_groups(*draw())
    calibration = Calibration(ConfidenceRules(), 900, None, None, groups=groups)
    with pytest.raises(
        OptionError, match="calibration of 'x' has rules by site, which a bundle of several"
    ):
        make_contract({"x": task, "y": task}, {"x": calibration}, None)


def test_a_table_of_one_row_an_image_has_no_rules_of_videos(monkeypatch):
    task = vit()
    rules = SimpleNamespace(rules=SimpleNamespace(column="site"))
    monkeypatch.setattr(task, "define_group_rules", lambda: rules)
    reader = GroupRulesReader(Path("best.ckpt"), GroupColumn("site", None))
    message = (
        r"--group-column is 'site', but predictions.csv of best.ckpt has one row an image, by the general rule. Leave "
        "it out, or export the checkpoint and ask its bundle: vfm-runtime predict BUNDLE VIDEO --group-column site"
    )
    with pytest.raises(OptionError, match=message):
        reader.on_predict_start(SimpleNamespace(), task)
