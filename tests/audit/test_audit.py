"""`vfm audit` for labels, several labels and boxes: from checkpoint and bundle, by group, and what it refuses."""

import csv
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from vfm_runtime.errors import DataError

from tests.image_folders import write_image_folder
from tests.tasks.tiny import fit, vit
from vfm.audit.command import audit
from vfm.audit.ood_auroc import open_other_images
from vfm.audit.origins import describe_origins
from vfm.audit.source import AuditedModel, AuditError, open_data, open_model
from vfm.bundle.export import export
from vfm.cli import main
from vfm.data import FolderData
from vfm.tasks.labels import LabelError


def write_table(root, path, **columns):
    """A table of all images below a root; a column is a function of the number of the image."""
    files = sorted(root.rglob("*.png"))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", *columns])
        for index, each in enumerate(files):
            cells = [make(index) for make in columns.values()]
            writer.writerow([each.relative_to(path.parent), each.parent.name, *cells])
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels")
    root = write_image_folder(folder / "images", images_per_class=70)
    data = FolderData(root, augment="none", batch_size=32, num_workers=0, val_fraction=0.3)
    torch.manual_seed(0)
    fit(folder, vit(), data, max_epochs=3)
    return folder / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """90 other images; every third of site b is turned to noise, so that the model is worse there."""
    folder = tmp_path_factory.mktemp("table")
    root = write_image_folder(folder / "images", images_per_class=60, seed=9)
    rng = np.random.default_rng(0)
    for index, path in enumerate(sorted(root.rglob("*.png"))):
        if index % 3 == 0:
            noise = rng.integers(0, 255, (32, 32, 3)).astype(np.uint8)
            Image.fromarray(noise).save(path)
    return write_table(
        root,
        folder / "table.csv",
        site=lambda i: "b" if i % 3 == 0 else "a",
        age=lambda i: ("old", "young")[i % 2],
        patient=lambda i: f"p{i // 2}",
        all_one=lambda i: "x",
    )


@pytest.fixture(scope="module")
def bundle(checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("bundle") / "bundle"
    export(checkpoint, out=out, images=checkpoint.parents[1] / "images", reference=True)
    return out


def read(folder):
    return json.loads((folder / "audit.json").read_text())


def test_a_planted_gap_is_found_and_the_rule_breaks(checkpoint, table, tmp_path, capsys):
    words = ["audit", str(checkpoint), "--data", str(table), "--groups", "site,age"]
    words += ["--out", str(tmp_path)]
    assert main([*words, "--fail-on", "worst_group_gap<0.1, num_skipped<1"]) == 1
    captured = capsys.readouterr()
    result = read(tmp_path)
    found = {row["group"]: row for row in result["groups"]["comparisons"] if row["found"]}
    assert "site=b" in found
    assert found["site=b"]["gap"]["high"] < 0
    assert result["groups"]["worst"]["group"].startswith("site=b")
    assert "age=old" not in found
    assert result["calibration"]["num_answers"] == 180
    assert sum(row["num"] for row in result["calibration"]["bins"]) == 180
    assert [row["holds"] for row in result["rules"]] == [False, True]
    assert "1 of 2 rules of --fail-on do not hold: worst_group_gap<0.1 (it is 0." in captured.err
    assert "points below all others" in captured.out
    assert "images of this group a gap under" in captured.out
    assert "Not looked at: images that belong together" in captured.out
    page = (tmp_path / "audit.html").read_text()
    assert page.count("data:image/png") == 2
    assert "What was looked at, and what was not" in page


def audit_both(checkpoint, model, table, folder):
    results = []
    (folder / "gray").mkdir()
    for value in range(12):
        Image.new("RGB", (32, 32), (20 * value,) * 3).save(folder / "gray" / f"{value}.png")
    for path in (checkpoint, model):
        words = ["--data", str(table), "--groups", "site", "-o", str(folder / path.name)]
        words += ["--ood-data", str(folder / "gray")]
        assert main(["audit", str(path), *words]) == 0
        results.append(read(folder / path.name))
    first, second = results
    assert first["metrics"] == second["metrics"]
    assert first["groups"] == second["groups"]
    assert first["calibration"]["ece"] == pytest.approx(second["calibration"]["ece"], abs=1e-4)
    assert (first["is_bundle"], second["is_bundle"]) == (False, True)
    auroc, other = (each["ood"]["auroc"] for each in results)
    assert other["value"] == pytest.approx(auroc["value"], abs=0.01)
    assert auroc["low"] < auroc["value"] < auroc["high"] or auroc["value"] == 1
    assert first["ood"]["limit"] is None
    beyond = second["ood"]["fraction_beyond"]
    assert (auroc["value"] > 0.5) == (beyond["other"] >= beyond["audited"])
    assert "OOD AUROC" in (folder / model.name / "audit.html").read_text()
    sources = [each["lineage"].pop("source") for each in results]
    assert sources == ["the checkpoint", "bom.cdx.json"]
    assert first["lineage"] == second["lineage"]
    assert first["lineage"]["fingerprint"]
    assert [row["part"] for row in first["lineage"]["parts"]] == ["training images"]
    assert "there are no first weights" in first["lineage"]["remarks"][0]
    assert [each["leaks"]["is_checked"] for each in results] == [True, False]
    for each in results:
        cost = each["cost"]
        assert 0 < cost["model_seconds_per_image"] < 1 / cost["images_per_second"]
        assert (
            cost["joules_per_image"] is not None or "not measurable here" in cost["energy_source"]
        )
        assert cost["device"] == "cpu"


def test_checkpoint_and_bundle_are_audited_alike(checkpoint, bundle, table, tmp_path):
    audit_both(checkpoint, bundle, table, tmp_path)


@pytest.mark.slow
def test_a_calibrated_checkpoint_is_audited_as_its_bundle(checkpoint, table, tmp_path):
    assert main(["calibrate", str(checkpoint)]) == 0
    try:
        images = checkpoint.parents[1] / "images"
        export(checkpoint, out=tmp_path / "fitted", images=images, reference=True)
        audit_both(checkpoint, tmp_path / "fitted", table, tmp_path)
    finally:
        (checkpoint.parent / "calibration.json").unlink()


@pytest.mark.slow
def test_groups_are_found_without_their_column(checkpoint, bundle, table, tmp_path, capsys):
    words = ["--data", str(table), "--find-groups", "-o", str(tmp_path)]
    assert main(["audit", str(checkpoint), *words]) == 0
    result = read(tmp_path)
    (first, *_) = result["found_groups"]["confirmed"]
    assert first["gap"]["high"] < 0
    assert result["null_scores"]["all"]["num_images"] == 180
    assert "Found without labels: " in capsys.readouterr().out
    page = (tmp_path / "audit.html").read_text()
    assert page.count("The worst images of the group, then its best") >= 1
    assert main(["audit", str(bundle), *words]) == 0
    assert (
        "gives no embeddings, so groups were looked for by plain traits" in capsys.readouterr().out
    )


@pytest.mark.slow
def test_robustness_is_a_section_of_the_page(checkpoint, table, tmp_path, capsys):
    words = [
        "--data",
        str(table),
        "--robustness",
        "--kinds",
        "gaussian_noise,jpeg",
        "-o",
        str(tmp_path),
    ]
    assert main(["audit", str(checkpoint), *words]) == 0
    result = read(tmp_path)
    assert set(result["robustness"]["curves"]) == {"gaussian_noise", "jpeg"}
    assert result["robustness"]["clean"]["value"] == result["metrics"]["accuracy"]["value"]
    assert "Mean corruption error 0." in capsys.readouterr().out
    page = (tmp_path / "audit.html").read_text()
    assert "gaussian noise" in page
    assert "strength 5" in page


def test_predictions_are_explained_by_maps(checkpoint, table, bundle, tmp_path, capsys):
    words = ["--data", str(table), "--explain", "2", "-o", str(tmp_path)]
    assert main(["audit", str(checkpoint), *words]) == 0
    assert "Grad-CAM: more than all random maps for" in capsys.readouterr().out
    result = read(tmp_path)["explain"]
    assert [row["right"] for row in result["images"]] == [True, False]
    scores = result["images"][0]["maps"]["grad_cam"]
    assert scores["gain"] == pytest.approx(scores["insertion"] - scores["deletion"])
    assert "Petsiuk et al., 2018" in (tmp_path / "audit.html").read_text()
    assert main(["audit", str(bundle), *words]) == 1
    assert "is a bundle without. Audit the checkpoint" in capsys.readouterr().err
    assert main(["audit", str(checkpoint), *words, "--explain", "-1"]) == 1
    assert "--explain is -1" in capsys.readouterr().err


@pytest.mark.slow
def test_images_of_a_key_belong_together(checkpoint, table, tmp_path):
    words = ["--data", str(table), "-o", str(tmp_path), "--cluster", "patient"]
    assert main(["audit", str(checkpoint), *words]) == 0
    assert read(tmp_path)["num_clusters"] == 90


def test_the_test_split_of_the_training_is_the_default(checkpoint, capsys):
    assert main(["audit", str(checkpoint)]) == 0
    assert "of the test split of the training" in capsys.readouterr().out
    assert read(checkpoint.parent)["num_images"] == 21


def test_without_labels_what_needs_none_is_looked_at(checkpoint, table, tmp_path, capsys):
    bare = tmp_path / "bare.csv"
    rows = [line.split(",") for line in table.read_text().splitlines()]
    bare.write_text("\n".join(",".join([row[0], row[2]]) for row in rows) + "\n")
    shutil.copytree(table.parent / "images", tmp_path / "images")
    words = ["--data", str(bare), "--groups", "site", "-o", str(tmp_path), "--positive", "class_1"]
    assert main(["audit", str(checkpoint), *words]) == 0
    result = read(tmp_path)
    assert set(result["metrics"]) == {"mean_confidence", "selection_rate"}
    assert "The data has no labels: only what needs none was looked at" in capsys.readouterr().out
    assert "calibration" not in result


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--groups", "sites"], r"has no column 'sites' \(--groups\)\. Did you mean 'site'\?"),
        (["--groups", "all_one"], "is 'x' for all 180 images, so there is nothing to compare"),
        (["--groups", "patient"], "90 values for 180 images.*give --cluster patient"),
        (["--cluster", "person"], r"has no column 'person' \(--cluster\)"),
        (["--positive", "class_7"], "--positive is 'class_7'.*Choices: class_0, class_1, class_2"),
        (["--fail-on", "accuracy=0.9"], "holds 'accuracy=0.9', which is no rule"),
        (["--fail-on", "recall>0.9"], "names 'recall', which this audit does not measure"),
        (["--split", "val"], "has no val images. Splits: .* or leave --split out"),
        (["--conformal", "90"], "--conformal is 90. Give the fraction of images whose set shall"),
        (["--ood-data", "nowhere"], r"There is no nowhere .* Check --ood-data"),
        (["--native"], "--native is for models that answer for videos"),
        (
            ["--kinds", "rain"],
            r"There is no corruption 'rain' \(--kinds\)\. Choices: gaussian_noise",
        ),
    ],
)
def test_bad_options(checkpoint, table, tmp_path, words, message, capsys):
    assert main(["audit", str(checkpoint), "--data", str(table), "-o", str(tmp_path), *words]) == 1
    assert __import__("re").search(message, " ".join(capsys.readouterr().err.split()))


def test_groups_of_a_folder_need_a_table(checkpoint, table, tmp_path):
    folder = table.parent / "images"
    with pytest.raises(DataError, match=r"is no table\. Give a CSV file with a row for each image"):
        audit(checkpoint, folder, out=tmp_path, options=options(groups="site"))
    audit(checkpoint, folder, out=tmp_path, options=options(groups="site", table=table))
    assert read(tmp_path)["groups"]["num_comparisons"] == 2
    lacking = tmp_path / "few.csv"
    lacking.write_text("path,site\nclass_0/0000.png,a\n")
    with pytest.raises(DataError, match="179 of 180 images have no row in"):
        audit(checkpoint, folder, out=tmp_path, options=options(groups="site", table=lacking))


def options(**changes):
    from vfm.audit.command import AuditOptions

    return AuditOptions(**changes)


@pytest.mark.slow
def test_a_group_of_one_class_is_said(checkpoint, table, tmp_path):
    other = write_table(
        table.parent / "images",
        table.parent / "one.csv",
        site=lambda i: "first" if i < 60 else ("a", "b")[i % 2],
    )
    audit(checkpoint, other, out=tmp_path, options=options(groups="site", positive="class_1"))
    assert any("All 60 images of site=first are 'class_0'" in n for n in read(tmp_path)["notes"])


def test_images_of_the_training_are_refused(checkpoint, tmp_path):
    root = checkpoint.parents[1] / "images"
    copies = shutil.copytree(root, tmp_path / "copies")
    with pytest.raises(AuditError, match=r"are training images of .*: what a model has learned by"):
        audit(checkpoint, copies, out=tmp_path)


def test_copies_of_training_images_are_listed(checkpoint, table, tmp_path, capsys):
    from vfm.tasks.checkpoint import Checkpoint

    root = shutil.copytree(table.parent / "images", tmp_path / "mixed")
    trained = Checkpoint.open(checkpoint).split("train").records[:7]
    for index, record in enumerate(trained):
        shutil.copy(record.source, root / "class_0" / f"copy{index}.png")
    words = ["audit", str(checkpoint), "--data", str(root), "-o", str(tmp_path)]
    assert main([*words, "--conformal", "0.9", "--fail-on", "num_leaks<1"]) == 1
    captured = capsys.readouterr()
    leaks = read(tmp_path)["leaks"]
    assert {row["training_image"] for row in leaks["copies"]} == {r.name for r in trained}
    assert "7 of 187 images were trained on: figures are too good." in captured.out
    assert "num_leaks<1 (it is 7" in captured.err
    page = (tmp_path / "audit.html").read_text()
    assert "7 images have the same bytes as a training image" in page
    assert "Licence and lineage" in page
    assert "Conformal sets (LAC) at 90%: the true label is in" in captured.out
    assert "It promises nothing of a group" in page
    assert read(tmp_path)["conformal"]["num_measured"] == 94


def test_images_of_the_calibration_are_refused(checkpoint, tmp_path):
    from vfm.tasks.checkpoint import Checkpoint

    assert main(["calibrate", str(checkpoint)]) == 0
    try:
        for record in Checkpoint.open(checkpoint).split("val").records:
            target = tmp_path / "val" / record.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(record.source, target)
        with pytest.raises(AuditError, match="was validated and calibrated on"):
            audit(checkpoint, tmp_path / "val", out=tmp_path)
    finally:
        (checkpoint.parent / "calibration.json").unlink()


def test_a_bundle_without_its_bill_says_so_and_a_damaged_one_is_refused(bundle, tmp_path):
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    model = open_model(folder, None, device="cpu")
    (folder / "bom.cdx.json").unlink()
    result = describe_origins(folder, model.predictor)
    assert result["source"] == "the contract"
    assert "carries no bill of materials" in result["remarks"][0]
    (folder / "bom.cdx.json").write_text("{}")
    message = r"bom\.cdx\.json is no bill of materials: KeyError: .* Export the bundle again"
    with pytest.raises(AuditError, match=message):
        describe_origins(folder, model.predictor)


def test_other_images_are_no_images_of_the_audit_and_need_a_reference(bundle, table):
    model = open_model(bundle, None, device="cpu")
    root = table.parent / "images"
    records = open_data(model, table, None).records
    with pytest.raises(AuditError, match=r"180 of the 180 images of --ood-data .* are images of"):
        open_other_images(model, root, records)
    bare = SimpleNamespace(task_type=SimpleNamespace(has_reference=False))
    model = AuditedModel(bundle, bare, model.kind)
    with pytest.raises(
        AuditError, match=r"bundle carries no reference of it\. Export it with --reference"
    ):
        open_other_images(model, root, [])


def test_a_bundle_needs_data(bundle, tmp_path):
    with pytest.raises(AuditError, match="is a bundle, which names no data"):
        audit(bundle, out=tmp_path)


def test_other_labels_are_refused(checkpoint, tmp_path):
    for name in ("class_0", "cow"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (32, 32)).save(tmp_path / name / f"{name}.png")
    with pytest.raises(
        LabelError, match="The data has 1 labels that the model was not trained for"
    ):
        audit(checkpoint, tmp_path, out=tmp_path)
