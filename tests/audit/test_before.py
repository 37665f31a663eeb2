"""`vfm audit --before`: what changed for each group, paired, and models that cannot be compared."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from vfm_runtime.errors import VfmError

from tests.audit.test_audit import bundle, checkpoint, options, read, table  # noqa: F401 - fixtures
from vfm.audit.before import describe_change, require_comparable
from vfm.audit.command import audit
from vfm.audit.comparison import ClusterSampler, RatioMetric
from vfm.audit.source import AuditError
from vfm.cli import main


def test_the_interval_of_a_change_is_paired():
    rng = np.random.default_rng(0)
    before = (rng.random(1000) < 0.7).astype(float)
    after = before.copy()
    after[np.flatnonzero(before == 0)[:30]] = 1  # three points more, and nothing lost
    ones = np.ones(1000)
    pair = (RatioMetric("accuracy", before, ones), RatioMetric("accuracy", after, ones))
    row = describe_change(ClusterSampler.from_keys(None, 1000), pair, np.ones(1000, bool))
    assert row["change"]["value"] == pytest.approx(0.03)
    # Unpaired, the intervals of both are 5.6 points wide and overlap.
    assert 0.015 < row["change"]["low"] < row["change"]["high"] < 0.045


def test_rules_by_group_are_compared_with_the_model_before(checkpoint, table, tmp_path, capsys):  # noqa: F811
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(checkpoint, run / "after.ckpt")
    words = ["--group-column", "site", "--positive", "class_1"]
    rows = table.read_text().splitlines()
    # Calibrated on half of the images, audited on the other.
    parts = {"fit": rows[1::4] + rows[2::4], "test": rows[3::4] + rows[4::4]}
    for name, part in parts.items():
        (table.parent / f"{name}.csv").write_text("\n".join([rows[0], *part]) + "\n")
    test = str(table.parent / "test.csv")
    code = main(["calibrate", str(run / "after.ckpt"), str(table.parent / "fit.csv"), *words])
    assert code == 0, capsys.readouterr().err
    words = ["audit", str(run / "after.ckpt"), "--data", test, "--before", str(checkpoint)]
    words += ["--groups", "site", "--positive", "class_1", "-o", str(tmp_path)]
    assert main([*words, "--fail-on", "accuracy_change>-1,worst_group_gap_change<1"]) == 0
    shown = capsys.readouterr().out
    assert "Change: accuracy: 0." in shown
    assert "(paired 95 % interval" in shown
    assert "Note: The model has rules by site: " in shown
    result = read(tmp_path)
    assert [row["holds"] for row in result["rules"]] == [True, True]
    changes = result["changes"]
    assert changes["num_images"] == 90
    assert changes["metrics"]["accuracy"]["after"] == result["metrics"]["accuracy"]["value"]
    named = {(row["group"], row["metric"]): row for row in changes["groups"]}
    after = {(r["group"], r["metric"]): r for r in result["groups"]["comparisons"]}
    for key, row in after.items():
        assert named[key]["gap"]["after"] == pytest.approx(row["gap"]["value"])
    rate = named["site=a", "true_positive_rate"]["value"]
    assert rate["before"] != rate["after"]
    page = (tmp_path / "audit.html").read_text()
    assert "Before and after" in page
    assert page.count("data:image/png") == 3


@pytest.mark.slow
def test_a_model_compared_with_itself_has_not_changed(checkpoint, table, tmp_path):  # noqa: F811
    audit(checkpoint, table, out=tmp_path, options=options(groups="site", before=checkpoint))
    changes = json.loads((tmp_path / "audit.json").read_text())["changes"]
    still = {"value": 0.0, "low": 0.0, "high": 0.0}
    assert changes["metrics"]["accuracy"]["change"] == still
    assert changes["worst_group_gap"]["change"] == still


def make_model(path, task, labels):
    predictor = SimpleNamespace(task_type=SimpleNamespace(name=task))
    return SimpleNamespace(path=path, predictor=predictor, labels=labels)


def test_models_that_cannot_be_compared():
    after, before = make_model("b.ckpt", "classification", ("x", "y")), "a.ckpt"
    require_comparable(after, make_model(before, "classification", ("y", "x")))
    with pytest.raises(AuditError, match=r"a.ckpt, of the task 'detection', but b.ckpt is of"):
        require_comparable(after, make_model(before, "detection", ("x", "y")))
    with pytest.raises(AuditError, match=r"only one of it and b.ckpt knows the label 'y'"):
        require_comparable(after, make_model(before, "classification", ("x", "z")))


def test_a_model_before_that_is_not_there_is_refused_first(checkpoint, table, tmp_path, capsys):  # noqa: F811
    with pytest.raises(VfmError, match=r"There is no checkpoint .*gone.ckpt"):
        audit(checkpoint, table, out=tmp_path, options=options(before=tmp_path / "gone.ckpt"))
    assert "Predicting" not in capsys.readouterr().out
