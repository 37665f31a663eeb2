"""Bill of materials and licences of a bundle."""

import json
from types import SimpleNamespace

import pytest
import vfm_runtime
import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from vfm_runtime.bundle.manifest import hash_file

from vfm.bundle import ExportError
from vfm.bundle.card import format_card
from vfm.bundle.lineage import (
    describe_uses,
    list_licenses,
    list_metrics,
    list_origins,
    make_bom,
    require_commercial,
)
from vfm.cli import main
from vfm.models.licenses import list_limits
from vfm.tasks.checkpoint import Checkpoint

RESULTS = {
    "test": {
        "accuracy": {"value": 0.9, "low": 0.8, "high": 0.95},
        "macro_f1": 0.5,
        "num_samples": 7,
    }
}
ENTRY = {
    "versions": {"python": "3.11.7", "vfm": "0.2.0", "torch": "2.14.1"},
    "seed": 0,
    "fingerprint": "ab" * 16,
    "data": {"fingerprint": "cd" * 32, "spec": {}},
    "weights": {
        "source": "/secret/place/weights.pth",
        "after": "1b563bb0052e4d21",
        "fetched": False,
    },
}


def read_evidence(component):
    return {
        entry["name"].removeprefix("vfm:evidence:"): entry["value"]
        for entry in component["properties"]
        if entry["name"].startswith("vfm:evidence:")
    }


@pytest.fixture
def described(exported, monkeypatch):
    """Bill and card of a bundle whose weights may not be sold."""
    monkeypatch.setattr(exported.task, "license", "cc-by-nc-4.0", raising=False)
    one = {"": Checkpoint(exported.task, ENTRY, RESULTS)}
    licenses = list_licenses(one, "CC-BY-4.0")
    contract = vfm_runtime.load(exported.folder).contract
    bom = make_bom(
        exported.folder,
        contract,
        list_origins(one, licenses),
        versions=ENTRY["versions"],
        fingerprint=ENTRY["fingerprint"],
        metrics={"": list(list_metrics(one[""]))},
    )
    return SimpleNamespace(
        bom=bom,
        card=format_card(contract, exported.parity, one, licenses=licenses),
        licenses=licenses,
        folder=exported.folder,
    )


def test_the_bill_fits_the_published_schema_and_says_how_all_is_known(described):
    text = json.dumps(described.bom)
    assert JsonStrictValidator(SchemaVersion.V1_7).validate_str(text) is None
    assert "/secret" not in text
    about = described.bom["metadata"]["component"]
    assert about["version"] == ENTRY["fingerprint"]
    assert read_evidence(about) == {"version": "verified", "performance": "measured"}
    metrics = about["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert metrics[0] == {
        "type": "accuracy",
        "value": "0.9000",
        "slice": "test",
        "confidenceInterval": {"lowerBound": "0.8000", "upperBound": "0.9500"},
    }
    parts = {component["bom-ref"]: component for component in described.bom["components"]}
    assert parts["weights"]["licenses"] == [{"license": {"id": "CC-BY-NC-4.0"}}]
    assert read_evidence(parts["weights"])["license"] == "declared"
    assert read_evidence(parts["data:"]) == {"fingerprint": "verified", "license": "declared"}
    (graph,) = parts["file:model.onnx"]["hashes"]
    assert graph["content"] == hash_file(described.folder / "model.onnx")
    assert parts["pkg:pypi/torch@2.14.1"]["version"] == "2.14.1"
    assert about["modelCard"]["modelParameters"]["datasets"] == [{"ref": "data:"}]
    assert set(described.bom["dependencies"][0]["dependsOn"]) == set(parts)


def test_the_card_has_the_fields_of_the_hub(described):
    _, front, text = described.card.split("---\n", 2)
    fields = yaml.safe_load(front)
    assert fields["license"] == "cc-by-nc-4.0"
    assert fields["pipeline_tag"] == "image-classification"
    assert "base_model" not in fields  # a file of one's own is no model of the hub
    (metric, *_) = fields["model-index"][0]["results"][0]["metrics"]
    assert metric == {"type": "accuracy", "value": 0.9, "name": "test"}
    assert "- Licence of the training images: CC-BY-4.0\n" in text
    assert "- **Not cleared to be sold: pretrained weights (cc-by-nc-4.0)**\n" in text


def test_a_whole_may_what_all_of_its_parts_may():
    limits = list_limits({"pretrained weights": "cc-by-nc-4.0", "training images": "MIT"})
    assert limits == {
        "sell": ["pretrained weights (cc-by-nc-4.0)"],
        "redistribute": [],
        "train-others": [],
    }
    assert describe_uses({"pretrained weights": None}) == [
        "Not cleared to be sold: pretrained weights (no licence stated)",
        "Not cleared to be given to others: pretrained weights (no licence stated)",
        "Not cleared to be used to train other models: pretrained weights (no licence stated)",
    ]
    assert describe_uses({}) == []


def test_commercial_refuses_before_any_work(described, exported, tmp_path, monkeypatch, capsys):
    with pytest.raises(ExportError, match=r"may not be sold: pretrained weights \(cc-by-nc-4\.0\)"):
        require_commercial(described.licenses)
    require_commercial({"pretrained weights": "apache-2.0"})
    # On the shell, by the name of a backbone whose weights state no licence.
    weights = tmp_path / "weights.pt"
    import torch

    from vfm.models.backbone import Backbone

    torch.save(Backbone("test_vit", pretrained=False).model.state_dict(), weights)
    words = ["export", "test_vit", "--base", str(weights), "--embedding", "pooled"]
    words += ["--images", str(tmp_path), "--out", str(tmp_path / "bundle"), "--commercial", "true"]
    assert main(words) == 1
    error = capsys.readouterr().err
    assert "this may not be sold: pretrained weights (no licence stated)" in error
    assert "vfm models --may sell" in error
    assert not (tmp_path / "bundle").exists()
