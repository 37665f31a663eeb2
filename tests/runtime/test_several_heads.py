"""A bundle with several heads, with rules of confidence, and in several precisions."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
import vfm_runtime
from vfm_runtime.bundle.contract import Contract
from vfm_runtime.bundle.golden import replay
from vfm_runtime.cli import main
from vfm_runtime.errors import BundleError, ContractError
from vfm_runtime.tasks.confidence import ConfidenceRules

from tests.runtime import toy, toy_several


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return toy_several.build(tmp_path_factory.mktemp("several") / "bundle")


@pytest.fixture(scope="module")
def several(folder):
    return vfm_runtime.load(folder, device="cpu", precision="fp32")


def changed(**values):
    return {**toy_several.CONTRACT, **values}


def head(**values):
    return changed(heads={**toy_several.HEADS, "traits": {**toy_several.HEADS["traits"], **values}})


def test_contract_round_trip():
    contract = Contract.from_dict(toy_several.CONTRACT)
    assert contract.to_dict() == toy_several.CONTRACT
    assert Contract.from_json(contract.to_json()) == contract
    # JSON sorts keys; the order of the outputs is that of the labels.
    backwards = changed(labels=["traits", "animal"])
    assert list(Contract.from_json(Contract.from_dict(backwards).to_json()).heads) == [
        "traits",
        "animal",
    ]
    assert contract.ports() == (
        {"pixels": "uint8"},
        {
            "animal.scores": "float",
            "traits.scores": "float",
            "components": "float",
            "distances": "float",
        },
    )


BAD = [
    (changed(heads=None), "'heads' is None; expected an object with the keys animal, traits"),
    (changed(labels=["animal"]), "expected an object with the keys animal"),
    (changed(rules={}), "'rules' is {}; expected null: each of several heads has its own"),
    ({**toy.CONTRACT, "heads": {}}, "'heads' is {}; expected null for the task 'classification'"),
    (head(task="depth"), "'task' is 'depth'"),
    (head(labels=[]), "'labels' is []"),
    (head(more=1), "'heads.traits' is {"),
    (head(rules={"temperature": 1.0}), "'rules' do not hold: The rules of confidence have no key"),
    (
        changed(labels=["a b"], heads={"a b": toy_several.HEADS["traits"]}),
        "'heads' is 'a b'; expected names of letters, digits and underscores",
    ),
]


@pytest.mark.parametrize(("values", "text"), BAD)
def test_bad_heads_are_refused(values, text):
    with pytest.raises(ContractError, match=re.escape(text)):
        Contract.from_dict(values)


def test_one_threshold_a_label():
    rules = {"temperature": 1.0, "thresholds": [0.5], "max_distance": None, "reference": False}
    with pytest.raises(ContractError, match="'1 numbers' as 'thresholds'; expected 3"):
        Contract.from_dict({**toy.CONTRACT, "rules": rules})


def test_each_head_answers(several):
    assert several.task_type.name == "multi_head"
    assert several.labels == ("animal", "traits")
    assert several.precisions == ("fp32", "int8")
    photos = toy.photos()
    answers = several.predict(photos)
    pixels = np.concatenate([several.preprocess(photo) for photo in photos])
    flat = pixels.reshape(len(pixels), -1).astype("float32") / 255 - 0.5
    raw = flat @ toy_several.TRAITS
    for answer, scores, row in zip(answers, toy.expected_scores(pixels), raw, strict=True):
        assert list(answer) == ["animal", "traits"]
        np.testing.assert_allclose(answer["animal"].scores, scores, atol=1e-5)
        np.testing.assert_allclose(answer["traits"].scores, 1 / (1 + np.exp(-row)), atol=1e-5)
        assert answer["traits"].multilabel
        assert answer["animal"].distance == pytest.approx(np.linalg.norm(row), abs=1e-4)
    assert several.predict(photos[0]) == answers[0]
    with pytest.raises(ValueError, match="This model has several heads: take `predict`"):
        several.scores(pixels)


def test_sureness(several):
    rules = several.task_type.heads["animal"].confidence
    answers = [answer["animal"] for answer in several.predict(toy.photos())]
    for answer in answers:
        if answer.distance > 10:
            expected = "unlike_training"
        else:
            low = answer.score < rules.thresholds[toy.LABELS.index(answer.label)]
            expected = "low_score" if low else None
        assert answer.reason == expected
        assert answer.unsure is (expected is not None)
        assert answer.to_dict()["reason"] == expected
        assert (f", {expected}," in repr(answer)) is (expected is not None)


@pytest.mark.parametrize(
    ("device", "asked", "runs"),
    [("auto", "auto", "int8"), ("cpu", "auto", "int8"), ("cpu", "fp32", "fp32")],
)
def test_precision(folder, device, asked, runs):
    model = vfm_runtime.load(folder, device=device, precision=asked)
    assert (model.precision, model.device) == (runs, "cpu")
    total = model.predict(toy.photos()[0])["animal"].scores.sum()
    assert total == pytest.approx(1 + 3 * toy_several.SHIFT * (runs == "int8"), abs=1e-5)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ({"precision": "int4"}, "There is no precision 'int4'. Precisions: auto, fp32,"),
        (
            {"precision": "fp16"},
            "This bundle has no fp16 graph; it has fp32, int8. Export it with --fp16",
        ),
        ({"precision": "int8", "device": "cuda"}, "int8 does not run on 'cuda'; it runs on cpu."),
        (
            {"precision": "bf16", "device": "cpu"},
            "bf16 does not run on 'cpu'; it runs on openvino and tensorrt",
        ),
    ],
)
def test_precisions_that_cannot_be_had(folder, words, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        vfm_runtime.load(folder, **words)


def test_golden_answers_of_each_precision(folder, several, capsys):
    assert [result.passed for result in replay(several)] == [True, True]
    assert main(["check", str(folder), "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "OK: 2 golden answers, int8 on cpu" in lines
    assert "OK: 2 golden answers, fp32 on cpu" in lines
    assert main(["check", str(folder), "--precision", "fp32"]) == 0
    assert "int8" not in capsys.readouterr().out


def test_a_head_that_answers_otherwise_is_named(folder, several, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "bundle")
    path = copy / "golden" / "golden.json"
    values = json.loads(path.read_text())
    values["images"][0]["heads"]["traits"]["scores"][0] += 0.5
    path.write_text(json.dumps(values))
    toy.write_vfm_json(copy, toy_several.CONTRACT)
    first, second = replay(vfm_runtime.load(copy, device="cpu", precision="fp32"))
    assert not first.passed
    assert "traits: " in str(first)
    assert second.passed
    del values["images"][0]["heads"]["traits"]
    path.write_text(json.dumps(values))
    toy.write_vfm_json(copy, toy_several.CONTRACT)
    with pytest.raises(BundleError, match="is malformed"):
        replay(vfm_runtime.load(copy, device="cpu", precision="fp32"))


def test_the_head_that_differs_most_counts(several):
    one, other = several.predict(toy.photos()[:2])
    found = one.compare({"animal": other["animal"], "traits": one["traits"]})
    assert found.expected.startswith("animal: ")
    assert found.difference > 0


def test_the_distance_is_part_of_the_answer(several):
    (answer,) = several.predict(toy.photos()[:1])
    one = answer["animal"]
    far = dataclasses.replace(one, distance=999.0)
    near = dataclasses.replace(
        one, rules=ConfidenceRules()
    )  # a NaN is refused where there is a limit
    lost = dataclasses.replace(near, distance=float("nan"))
    assert one.compare(one).difference == 0
    assert one.compare(far).difference > 0.5
    assert one.compare(far, approximate=True).difference == 0
    assert near.compare(lost, approximate=True).difference == float("inf")
    assert one.compare(dataclasses.replace(one, distance=None)).difference == float("inf")
    assert near.compare(lost).difference == float("inf")


def test_an_unlisted_graph_is_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "bundle")
    manifest = json.loads((copy / "vfm.json").read_text())
    del manifest["files"]["model.int8.onnx"]
    (copy / "vfm.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"does not list model\.int8\.onnx"):
        vfm_runtime.load(copy)


def test_the_command_shows_each_head(folder, capsys):
    image = str(folder / "golden" / "000.png")
    assert main(["predict", str(folder), image, "--precision", "fp32"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{image}: animal: ")
    assert second.startswith(f"{image}: traits: ")
    assert main(["predict", str(folder), image, "--json"]) == 0
    heads = json.loads(capsys.readouterr().out)["heads"]
    assert set(heads) == {"animal", "traits"}
    assert heads["animal"]["label"] in toy.LABELS
    assert main(["info", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "precision  int8 (the bundle has fp32, int8)" in out
    assert "head       animal: classification, 3 labels" in out
    assert "sure       temperature 1, scores from 0.000 to 0.900 up, distance up to 10.000" in out
    assert "head       traits: multilabel, 2 labels" in out


def test_a_threshold_holds_for_several_labels(folder, bundle, several, capsys):
    image = str(folder / "golden" / "000.png")
    words = ["predict", str(folder), image, "--precision", "fp32", "--json", "--threshold"]
    for threshold in (0.0, 1.0):
        assert main([*words, str(threshold)]) == 0
        row = json.loads(capsys.readouterr().out)["heads"]["traits"]
        assert len(row["labels"]) == (2 if threshold == 0 else 0)
    assert main(["predict", str(bundle), image, "--threshold", "0.9"]) == 2
    assert "answers with one label: --threshold is for boxes" in capsys.readouterr().err
    assert main(["predict", str(folder), image, "--draw", "x"]) == 2
    assert (
        "has several heads: only boxes and heatmaps of one can be drawn" in capsys.readouterr().err
    )
