"""Licence and lineage of an audited model: first weights, teachers, training images, and what may be done with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vfm_runtime.bundle.model import Model
from vfm_runtime.bundle.predictor import Predictor

from vfm.audit.source import AuditError
from vfm.bundle.lineage import (
    BOM_FILE,
    DATA,
    WEIGHTS,
    describe_uses,
    list_licenses,
    list_origins,
)
from vfm.report import Page
from vfm.tasks.checkpoint import Checkpoint

_EVIDENCE = "vfm:evidence:"
_HASHES = {"vfm:checksum": "checksum", "vfm:fingerprint": "fingerprint"}
_PLAIN_USES = "Nothing that is stated of its parts stands against selling it, giving it to others, or training others."


def describe_origins(path: Path, model: Checkpoint | Predictor) -> dict[str, Any]:
    """Return what a model comes from and its licences: of a checkpoint by its entry, of a bundle by its bill.

    Args:
        path: Checkpoint, or folder of a bundle.
        model: Opened checkpoint, or predictor of the bundle.

    Returns:
        `source`, what says so; `fingerprint` of the model; `parts`, a row for each with its licence and how that is
        known (verified, declared, missing); `uses`, a sentence for each use that is not cleared; `remarks`.

    Raises:
        AuditError: The bill of materials of a bundle is damaged.
    """
    remarks: list[str] = []
    parts: list[dict[str, Any]]
    if isinstance(model, Checkpoint):
        checkpoints = {"": model}
        parts = list_origins(checkpoints, list_licenses(checkpoints))
        source, fingerprint = "the checkpoint", model.entry.get("fingerprint")
    elif (file := path / BOM_FILE).is_file():
        try:
            bill = json.loads(file.read_text(encoding="utf-8"))
            fingerprint = bill["metadata"]["component"]["version"]
            parts = [
                c for c in bill["components"] if c["type"] in ("machine-learning-model", "data")
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise AuditError(
                f"{file} is no bill of materials: {type(error).__name__}: {error}. Export the bundle again, or remove "
                "the file."
            ) from error
        source = BOM_FILE
    else:
        assert isinstance(model, Model)
        contract = model.contract
        fingerprint, source = None, "the contract"
        parts = [{"type": "", "bom-ref": "weights", "name": contract.backbone}]
        if contract.license is not None:
            parts[0] |= {
                "licenses": [{"license": {"name": contract.license}}],
                "properties": [{"name": f"{_EVIDENCE}license", "value": "declared"}],
            }
        remarks.append(
            f"The bundle carries no bill of materials ({BOM_FILE}), so teachers and training images are not known. "
            "Export it again."
        )
    rows = [_describe_part(part) for part in parts]
    if not any(row["part"] == WEIGHTS for row in rows):
        remarks.append("It was trained from a random start: there are no first weights.")
    if any(row["is_data"] and row["license"] is None for row in rows):
        remarks.append(
            f"Nobody declared the licence of the {DATA}, so it is not counted: vfm export --data_license NAME."
        )
    licenses = {r["part"]: r["license"] for r in rows if not r["is_data"] or r["license"]}
    return {
        "source": source,
        "fingerprint": None if fingerprint == "unknown" else fingerprint,
        "parts": [{k: v for k, v in row.items() if k != "is_data"} for row in rows],
        "uses": describe_uses(licenses),
        "remarks": remarks,
    }


def _describe_part(part: Mapping[str, Any]) -> dict[str, Any]:
    """Return a component of a bill of materials as a row: its licence, its hash, and how each is known."""
    properties = {each["name"]: each["value"] for each in part.get("properties", ())}
    stated = [each["license"] for each in part.get("licenses", ())]
    is_weights = part["bom-ref"] == "weights"
    name, key = next(((name, key) for name, key in _HASHES.items() if name in properties), ("", ""))
    return {
        "part": WEIGHTS if is_weights else part["name"],
        "name": part["name"] if is_weights else None,
        "license": (stated[0].get("id") or stated[0]["name"]) if stated else None,
        "license_is": properties.get(f"{_EVIDENCE}license", "missing"),
        "hash": properties.get(name),
        "hash_is": properties.get(f"{_EVIDENCE}{key}", "missing"),
        "is_data": part["type"] == "data",
    }


def add_origins(page: Page, result: Mapping[str, Any]) -> None:
    """Add licence and lineage to the page of an audit."""
    page.add_heading("Licence and lineage")
    fingerprint = result["fingerprint"] or "unknown"
    page.add_text(f"As {result['source']} says. Fingerprint of the model: {fingerprint}.")
    page.add_table(
        [
            {
                "part": row["part"],
                "name": row["name"] or "",
                "licence": row["license"] or "none stated",
                "licence is": row["license_is"],
                "hash": (row["hash"] or "")[:16],
                "hash is": row["hash_is"],
            }
            for row in result["parts"]
        ]
    )
    for sentence in list_warnings(result) or [_PLAIN_USES]:
        page.add_text(sentence)
    page.add_text("A summary for orientation, no legal advice.")


def list_warnings(result: Mapping[str, Any]) -> list[str]:
    """Return sentences on what is not cleared, and on what is not known."""
    return [f"{each}." for each in result["uses"]] + list(result["remarks"])
