"""Lineage of a bundle: what it is made of and under which licences, and its bill of materials (CycloneDX 1.7).

Every statement of the bill says how it is known: `verified` against bytes by a hash, `measured` by vfm, `declared` by
whoever made it, or `missing`.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vfm_runtime.bundle.contract import Contract
from vfm_runtime.bundle.manifest import hash_file, list_bundle_files

from vfm.bundle.errors import ExportError
from vfm.models.licenses import find_terms, list_limits
from vfm.models.weights import list_teachers
from vfm.tasks.checkpoint import Checkpoint

BOM_FILE = "bom.cdx.json"
"""Name of the bill of materials in a bundle."""
WEIGHTS, DATA = "pretrained weights", "training images"
"""Names of the parts of a model whose licences are looked at."""
TEACHER = "teacher"
"""Begins the names of the parts that the weights were distilled from."""

_Evidence = Literal["verified", "measured", "declared", "missing"]
HUB_LICENSES = {
    name.lower(): name
    for name in (
        "Apache-2.0",
        "BSD-3-Clause",
        "CC-BY-4.0",
        "CC-BY-NC-4.0",
        "CC-BY-NC-SA-4.0",
        "MIT",
    )
}
"""SPDX identifier of each licence that the Hugging Face hub names too, by its name there."""


class StatedMetric(NamedTuple):
    """A figure of a checkpoint's results that its task puts on the card."""

    split: str
    name: str
    value: float
    interval: tuple[float, float] | None
    """Interval of 95 %; None where none was computed."""
    num_samples: int
    """Images or videos that it is of."""


def list_metrics(checkpoint: Checkpoint) -> Iterator[StatedMetric]:
    """Yield the figures that a task puts on the card, by split."""
    for split, values in checkpoint.results.items():
        for name, count in checkpoint.task.card_metrics.items():
            v = values.get(name)
            if isinstance(v, float):
                yield StatedMetric(split, name, v, None, values[count])
            elif v and v["low"] is not None:
                interval = v["low"], v["high"]
                yield StatedMetric(split, name, v["value"], interval, values[count])


def list_licenses(
    checkpoints: Mapping[str, Checkpoint], data_license: str | None = None
) -> dict[str, str | None]:
    """Return the licence of each part of a model, None where none is stated.

    Teachers of a distillation are parts. Weights from a random start are none; nor are training images whose licence
    nobody declared, of which the bill of materials says so.
    """
    (first, *_) = checkpoints.values()
    licenses = {WEIGHTS: first.task.license} if first.entry.get("weights") is not None else {}
    for checkpoint in checkpoints.values():
        for name, license in list_teachers(checkpoint.entry).items():
            licenses[f"{TEACHER} {name}"] = license
    return licenses | ({DATA: data_license} if data_license is not None else {})


def require_commercial(licenses: Mapping[str, str | None]) -> None:
    """Refuse to go on where a part may not be sold.

    Raises:
        ExportError: With each such part, its licence and what it obliges to.
    """
    if parts := list_limits(licenses)["sell"]:
        duties = "; ".join(
            dict.fromkeys(find_terms(license).duties for license in licenses.values() if license)
        )
        raise ExportError(
            f"--commercial was asked for, and this may not be sold: {', '.join(parts)}{f' ({duties})' * bool(duties)}. "
            "Take other weights (vfm models --may sell), name the licence of your images (--data_license), or leave "
            "--commercial out."
        )


def describe_uses(licenses: Mapping[str, str | None]) -> list[str]:
    """Return a line for each use that some part does not permit."""
    words = {
        "sell": "sold",
        "redistribute": "given to others",
        "train-others": "used to train other models",
    }
    return [
        f"Not cleared to be {words[use]}: {', '.join(parts)}"
        for use, parts in list_limits(licenses).items()
        if parts
    ]


def make_bom(
    folder: Path,
    contract: Contract,
    origins: Sequence[Mapping[str, Any]],
    *,
    versions: Mapping[str, str],
    fingerprint: str | None,
    metrics: Mapping[str, Sequence[StatedMetric]],
) -> dict[str, Any]:
    """Return the bill of materials of a bundle whose graphs are written, for JSON.

    Args:
        folder: Folder of the bundle, whose files are hashed.
        contract: Contract of the bundle.
        origins: What the model comes from, as `list_origins` returns it.
        versions: Versions of the packages that the model was made with, and of `python`.
        fingerprint: Fingerprint of the model, where it has one.
        metrics: Measured figures by the name of each head; that of a single one is empty.

    Returns:
        CycloneDX 1.7 without a time, so that the same model gives the same bill. The card of the model is in the
        component that the bill is about.
    """
    data = [each for each in origins if each["type"] == "data"]
    packages = {"vfm-runtime": importlib.metadata.version("vfm-runtime"), **versions}
    python = packages.pop("python", "unknown")
    libraries = [
        {
            "type": "library",
            "bom-ref": f"pkg:pypi/{name}@{version}",
            "name": name,
            "version": version,
            "purl": f"pkg:pypi/{name}@{version}",
            **_tag(version="measured"),
        }
        for name, version in packages.items()
    ]
    libraries.append(
        {
            "type": "platform",
            "bom-ref": "python",
            "name": "python",
            "version": python,
            **_tag(version="measured"),
        }
    )
    files = [
        {
            "type": "file",
            "bom-ref": f"file:{name}",
            "name": name,
            "hashes": [{"alg": "SHA-256", "content": hash_file(folder / name)}],
            **_tag(hashes="verified"),
        }
        for name in list_bundle_files(folder)
    ]
    components = [*origins, *libraries, *files]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.7.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.7",
        "version": 1,
        "metadata": {
            "tools": {
                "components": [
                    {
                        "type": "application",
                        "name": "vfm",
                        "version": importlib.metadata.version("vfm"),
                    }
                ]
            },
            "component": {
                "type": "machine-learning-model",
                "bom-ref": "model",
                "name": f"{contract.task} by {contract.backbone}",
                "version": fingerprint or "unknown",
                "modelCard": _make_model_card(contract, metrics, [one["bom-ref"] for one in data]),
                **_tag(
                    version="verified" if fingerprint else "missing",
                    performance="measured" if any(metrics.values()) else "missing",
                ),
            },
        },
        "components": components,
        "dependencies": [
            {"ref": "model", "dependsOn": [component["bom-ref"] for component in components]}
        ],
    }


def list_origins(
    checkpoints: Mapping[str, Checkpoint], licenses: Mapping[str, str | None]
) -> list[dict[str, Any]]:
    """Return what a model comes from as components of a bill of materials: first weights, teachers, training images.

    Args:
        checkpoints: Where each head comes from, by its name; that of a single one is empty.
        licenses: Licence of each part, as `list_licenses` returns them.
    """
    (first, *_) = checkpoints.values()
    teachers = [
        {
            "type": "machine-learning-model",
            "bom-ref": part,
            "name": part,
            "description": "The weights were distilled from it",
            **_format_license(license),
            **_tag(license="declared" if license else "missing", origin="declared"),
        }
        for part, license in licenses.items()
        if part.startswith(f"{TEACHER} ")
    ]
    data = [_describe_data(name, checkpoint, licenses) for name, checkpoint in checkpoints.items()]
    report = first.entry.get("weights")
    if report is None:
        return [*teachers, *data]
    weights = describe_weights(
        first.task.backbone.name,
        str(report["source"]),
        str(report["after"]),
        licenses[WEIGHTS],
    )
    return [weights, *teachers, *data]


def _tag(**evidence: _Evidence) -> dict[str, Any]:
    """Say how each statement of a component is known."""
    return {
        "properties": [
            {"name": f"vfm:evidence:{name}", "value": value} for name, value in evidence.items()
        ]
    }


def _format_license(license: str | None) -> dict[str, Any]:
    if license is None:
        return {}
    name = HUB_LICENSES.get(license.lower())
    return {"licenses": [{"license": {"id": name} if name else {"name": license}}]}


def describe_weights(name: str, source: str, checksum: str, license: str | None) -> dict[str, Any]:
    """Return pretrained weights as a component of a bill of materials.

    Args:
        name: Name of the model that they are of.
        source: Where they come from, of whose path the last part is told.
        checksum: Checksum of the weights as they were loaded.
        license: Licence that they are under; None where none is stated.
    """
    described = _tag(
        license="declared" if license else "missing", checksum="verified", origin="declared"
    )
    described["properties"].append({"name": "vfm:checksum", "value": checksum})
    return {
        "type": "machine-learning-model",
        "bom-ref": "weights",
        "name": name,
        "description": f"Pretrained weights, from {Path(source).name}",
        **_format_license(license),
        **described,
    }


def _describe_data(
    name: str, checkpoint: Checkpoint, licenses: Mapping[str, str | None]
) -> dict[str, Any]:
    data = checkpoint.entry.get("data") or {}
    license = licenses.get(DATA)
    described = _tag(
        fingerprint="verified" if data else "missing", license="declared" if license else "missing"
    )
    if data:
        described["properties"].append({"name": "vfm:fingerprint", "value": data["fingerprint"]})
    title = f"training images{f' of {name}' * bool(name)}"
    return {
        "type": "data",
        "bom-ref": f"data:{name}",
        "name": title,
        "data": [{"type": "dataset", "name": title}],
        **_format_license(license),
        **described,
    }


def _make_model_card(
    contract: Contract, metrics: Mapping[str, Sequence[StatedMetric]], data: list[str]
) -> dict[str, Any]:
    rows = []
    for name, stated in metrics.items():
        for metric in stated:
            row: dict[str, Any] = {
                "type": metric.name,
                "value": f"{metric.value:.4f}",
                "slice": f"{name} {metric.split}".strip(),
            }
            if metric.interval is not None:
                low, high = (f"{bound:.4f}" for bound in metric.interval)
                row["confidenceInterval"] = {"lowerBound": low, "upperBound": high}
            rows.append(row)
    return {
        "modelParameters": {
            "task": contract.task,
            "modelArchitecture": contract.backbone,
            "datasets": [{"ref": ref} for ref in data],
            "inputs": [{"format": "image"}],
            "outputs": [{"format": kind} for kind in contract.type.outputs],
        },
        **({"quantitativeAnalysis": {"performanceMetrics": rows}} if rows else {}),
    }
