import json
import re

import pytest
from vfm_runtime.bundle.contract import Contract, parse_json
from vfm_runtime.bundle.manifest import (
    check_metadata,
    hash_file,
    read_bundle,
    read_manifest,
    write_manifest,
)
from vfm_runtime.bundle.model import load
from vfm_runtime.deepfake.task import DeepfakeType
from vfm_runtime.errors import BundleError, ContractError

from tests.runtime import toy, toy_deepfake


def changed(**values):
    return {**toy.CONTRACT, **values}


def test_round_trip():
    contract = Contract.from_dict(toy.CONTRACT)
    assert contract.labels == toy.LABELS
    assert contract.size == (16, 16)
    assert contract.to_dict() == toy.CONTRACT
    assert Contract.from_json(contract.to_json()) == contract


def test_json_is_deterministic():
    backwards = dict(reversed(toy.CONTRACT.items()))
    text = Contract.from_dict(toy.CONTRACT).to_json()
    assert Contract.from_dict(backwards).to_json() == text
    assert list(json.loads(text)) == sorted(toy.CONTRACT)
    assert text.count(" ") == 0
    assert text.isascii()


def test_made_by_hand_it_is_checked_and_plain():
    values = changed(labels=toy.LABELS, preprocess={"size": (16, 24), "mean": (0.5,)})
    contract = Contract(**values)
    assert contract.preprocess == {"size": [16, 24], "mean": [0.5]}
    assert Contract.from_json(contract.to_json()) == contract
    with pytest.raises(ContractError, match="'backbone' is ''"):
        Contract(**changed(backbone=""))


@pytest.mark.parametrize("key", toy.CONTRACT)
def test_missing_key(key):
    values = {name: value for name, value in toy.CONTRACT.items() if name != key}
    with pytest.raises(ContractError, match=f"no key '{key}'. Export the bundle anew"):
        Contract.from_dict(values)


BAD_VALUES = [
    (
        "task",
        "depth",
        "'task' is 'depth'; expected one of classification, multilabel, detection, embedding, deepfake",
    ),
    ("task", 3, "'task' is 3"),
    ("labels", [], "'labels' is []; expected a list of at least one name"),
    ("labels", "cat", "'labels' is 'cat'"),
    ("labels", ["cat", 3], "'labels' is 3; expected names that are strings"),
    ("labels", ["cat", ""], "'labels' is ''"),
    ("labels", ["cat", "dog", "cat"], "'labels' is 'cat'; expected each name once"),
    ("preprocess", [], "'preprocess' is []"),
    ("preprocess", {}, "'preprocess.size' is None; expected [height, width]"),
    ("preprocess", {"size": 16}, "'preprocess.size' is 16"),
    ("preprocess", {"size": [16, 0]}, "'preprocess.size' is [16, 0]"),
    ("preprocess", {"size": [16, True]}, "'preprocess.size' is [16, True]"),
    ("preprocess", {"size": [16, 16.0]}, "'preprocess.size' is [16, 16.0]"),
    ("preprocess", {"size": [1, 1], "x": {1}}, "expected plain JSON values"),
    ("preprocess", {"size": [1, 1], "x": float("nan")}, "expected plain JSON values"),
    ("backbone", None, "'backbone' is None; expected a name"),
    ("license", 3, "'license' is 3; expected a string or null"),
    ("versions", ["torch"], "'versions' is ['torch']"),
    ("versions", {"torch": 2}, "'versions' is {'torch': 2}; expected strings only"),
    ("format", "1", "'format' is '1'; expected a whole number from 1 to 2"),
    ("format", True, "'format' is True"),
    ("format", 0, "'format' is 0"),
    ("format", 3, "written by a newer vfm: its format is 3, this version reads up to 2"),
]


@pytest.mark.parametrize(("key", "value", "text"), BAD_VALUES)
def test_bad_values(key, value, text):
    with pytest.raises(ContractError, match=re.escape(text)):
        Contract.from_dict(changed(**{key: value}))


def test_rules_of_a_deepfake_model():
    values = toy_deepfake.contract()
    contract = Contract.from_dict(values)
    assert contract.to_dict() == values
    assert Contract.from_json(contract.to_json()) == contract
    assert (dict(DeepfakeType.inputs), dict(DeepfakeType.outputs)) == (
        {"pixels": "uint8"},
        {"logits": "float", "heatmaps": "float", "distances": "float"},
    )


def test_contracts_without_rules_are_as_they_were():
    contract = Contract.from_dict(toy.CONTRACT)
    assert contract.rules is None
    assert contract.to_dict() == toy.CONTRACT
    assert "rules" not in contract.to_json()


def without(values, key):
    return {name: value for name, value in values.items() if name != key}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"rules": None},
            "'rules' is None; expected an object with the keys 'crop' and 'decision'",
        ),
        ({"rules": {"crop": toy_deepfake.CROP}}, "expected an object with the keys"),
        ({"labels": ["fake", "real"]}, "'labels' is ['fake', 'real']; expected ['real', 'fake']"),
        (
            {"labels": ["real", "fake", "other"]},
            "expected ['real', 'fake'] for the task 'deepfake'",
        ),
        ({"task": "classification"}, "The rules of confidence have no key 'temperature'"),
        (
            {
                "rules": {
                    "crop": {**toy_deepfake.CROP, "size": 3},
                    "decision": toy_deepfake.DECISION,
                }
            },
            "'rules' do not hold: size of the crop is 3",
        ),
        (
            {
                "rules": {
                    "crop": toy_deepfake.CROP,
                    "decision": without(toy_deepfake.DECISION, "min_face"),
                }
            },
            "'rules' do not hold: The decision rules have no key 'min_face'",
        ),
    ],
)
def test_bad_rules(change, text):
    with pytest.raises(ContractError, match=re.escape(text)):
        Contract.from_dict({**toy_deepfake.contract(), **change})


def test_unknown_key_and_newer_format():
    with pytest.raises(ContractError, match=r"unknown key 'colour'. Known: task, labels"):
        Contract.from_dict(changed(colour="red"))
    # A newer format is named as such, whatever else it holds.
    with pytest.raises(ContractError, match="upgrade vfm-runtime"):
        Contract.from_dict({"format": 7, "colour": "red"})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected a JSON object"),
        ('{"format": 1, "format": 1}', "same key twice"),
        ('{"format": NaN}', "NaN is not JSON"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_bad_json(text, reason):
    with pytest.raises(ContractError, match=reason):
        Contract.from_json(text)


def test_sha256(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert hash_file(tmp_path / "abc") == digest


def test_write_manifest_is_what_read_bundle_takes(own_bundle):
    before = json.loads((own_bundle / "vfm.json").read_text())
    (own_bundle / ".DS_Store").write_text("desktop")
    path = write_manifest(own_bundle, Contract.from_dict(toy.CONTRACT))
    assert path == own_bundle / "vfm.json"
    assert json.loads(path.read_text()) == before
    assert read_bundle(own_bundle) == Contract.from_dict(toy.CONTRACT)
    assert not list(own_bundle.glob("*.new"))
    (own_bundle / "model.onnx").unlink()
    with pytest.raises(BundleError, match=r"has no model.onnx. Write it before the manifest"):
        write_manifest(own_bundle, Contract.from_dict(toy.CONTRACT))


def test_external_weights_are_listed_and_read(tmp_path, model):
    bundle = toy.build(tmp_path / "bundle", external=True)
    assert (bundle / "model.onnx.data").stat().st_size == toy.WEIGHTS.nbytes
    photo = toy.photos()[0]
    assert load(bundle, device="cpu").predict(photo) == model.predict(photo)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (None, "There is no bundle at"),
        ("model.ckpt", "training checkpoint, which needs torch. Make a bundle of it first"),
        ("model.onnx", "one file of a bundle; its neighbours are needed too. Give the folder"),
        ("bundle.zip", "is a file, not a bundle"),
        ("folder/", "is not a bundle: it has no vfm.json"),
    ],
)
def test_paths_that_are_no_bundle(make, text, tmp_path):
    path = tmp_path / (make or "nowhere")
    if make and make.endswith("/"):
        path.mkdir()
    elif make:
        path.touch()
    with pytest.raises(BundleError, match=text):
        read_bundle(path)


def rewrite(bundle, change):
    values = json.loads((bundle / "vfm.json").read_text())
    change(values)
    (bundle / "vfm.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda v: v.pop("files"), "must hold 'contract' and 'files'"),
        (lambda v: v.update(extra=1), "must hold 'contract' and 'files'"),
        (lambda v: v.update(files=[]), "'files' is not an object"),
        (lambda v: v["files"].update({"card.md": 3}), "the sha256 of 'card.md' is 3"),
        (lambda v: v["files"].pop("model.onnx"), "does not list model.onnx"),
        (lambda v: v["files"].pop("onefile.onnx"), "does not list onefile.onnx"),
        (lambda v: v["files"].pop("golden/golden.json"), "does not list golden/golden.json"),
        (lambda v: v["files"].update({"gone.txt": "0"}), "gone.txt is missing"),
        (lambda v: v["contract"].pop("task"), "no key 'task'"),
    ],
)
def test_bad_manifests(own_bundle, change, text):
    rewrite(own_bundle, change)
    with pytest.raises((BundleError, ContractError), match=text) as caught:
        read_bundle(own_bundle)
    assert str(own_bundle) in str(caught.value)


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/../../x", "a\\..\\x", "C:x", "./x", "a//b", "", ".", "a\0"]
)
def test_names_stay_inside(own_bundle, name):
    rewrite(own_bundle, lambda values: values["files"].update({name: "0" * 64}))
    with pytest.raises(BundleError, match="not a plain name inside the bundle"):
        read_bundle(own_bundle)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null"])
def test_manifest_that_is_no_json(own_bundle, content):
    (own_bundle / "vfm.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"vfm.json is damaged"):
        read_bundle(own_bundle)


def test_flipped_bytes_in_every_file(own_bundle):
    names = [path for path in own_bundle.rglob("*") if path.is_file() and path.name != "vfm.json"]
    assert len(names) == 8
    for path in names:
        content = path.read_bytes()
        size = len(content)
        for position in {0, 1, size // 3, size // 2, size - 2, size - 1}:
            damaged = bytearray(content)
            damaged[position] ^= 1
            path.write_bytes(damaged)
            with pytest.raises(
                BundleError, match=rf"{path.name} is damaged: its sha256 is [0-9a-f]"
            ):
                read_bundle(own_bundle)
        path.write_bytes(content)
    read_bundle(own_bundle)


@pytest.mark.parametrize("mask", [0x01, 0x20, 0x80])
def test_every_flipped_byte_of_the_manifest_is_refused_or_harmless(own_bundle, mask):
    path = own_bundle / "vfm.json"
    content = path.read_bytes()
    metadata = json.dumps(toy.CONTRACT)
    refused = 0
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= mask
        path.write_bytes(damaged)
        try:
            manifest = read_manifest(own_bundle)
            check_metadata(own_bundle, "model.onnx", metadata, manifest.contract)
        except (BundleError, ContractError):
            refused += 1
        else:
            assert parse_json(bytes(damaged)) == parse_json(content)
    assert refused > len(content) * 0.7


def test_changed_threshold_is_found_when_loading(tmp_path):
    bundle = toy_deepfake.build(tmp_path / "bundle")
    path = bundle / "vfm.json"
    changed_text = path.read_text().replace('"threshold": null', '"threshold": 3.0')
    path.write_text(changed_text)
    with pytest.raises(BundleError, match=r"its rules differ from the metadata inside model.onnx"):
        load(bundle, device="cpu")


def test_rules_that_only_one_side_has(tmp_path):
    bundle = toy_deepfake.build(tmp_path / "bundle")
    with pytest.raises(BundleError, match=r"its task, labels, rules differ"):
        check_metadata(
            bundle,
            "model.onnx",
            json.dumps(toy.CONTRACT),
            Contract.from_dict(toy_deepfake.contract()),
        )


def test_changed_label_is_found_when_loading(own_bundle):
    path = own_bundle / "vfm.json"
    path.write_text(path.read_text().replace('"bee"', '"bed"'))
    assert read_bundle(own_bundle).labels == ("ant", "bed", "cat")
    with pytest.raises(BundleError, match=r"its labels differ from the metadata inside model.onnx"):
        load(own_bundle, device="cpu")


@pytest.mark.parametrize(
    ("metadata", "text"),
    [
        (None, "holds no vfm metadata, so it was not exported by vfm"),
        ("{", "not valid JSON"),
        (json.dumps(changed(backbone="other")), "its backbone differ"),
        (json.dumps(changed(versions={})), "its versions differ"),
    ],
)
def test_metadata_of_the_model_must_agree(own_bundle, metadata, text):
    toy.save_model(own_bundle / "model.onnx", metadata)
    toy.write_vfm_json(own_bundle)
    read_bundle(own_bundle)
    with pytest.raises(BundleError, match=text):
        load(own_bundle, device="cpu")
