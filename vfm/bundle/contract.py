"""A bundle's contract: labels, confidence rules and the OOD limit of every head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from vfm_runtime.bundle.contract import Contract, HeadContract
from vfm_runtime.errors import OptionError
from vfm_runtime.tasks.confidence import ConfidenceRules
from vfm_runtime.tasks.embedding import EmbeddingSpec
from vfm_runtime.tasks.registry import MULTI_HEAD

from vfm.bundle.ood import OodFit
from vfm.tasks import BaseTask
from vfm.tasks.calibration import Calibration
from vfm.training.checkpoint import list_versions


def make_contract(
    tasks: Mapping[str, BaseTask],
    calibrations: Mapping[str, Calibration],
    ood: OodFit | None,
    embedding: EmbeddingSpec | None = None,
    tokenizer: Mapping[str, Any] | None = None,
) -> Contract:
    """Make the contract of tasks with one backbone.

    Args:
        tasks: Tasks by the names of their heads; that of a single one is empty.
        calibrations: Calibrations by the names of the heads that have one.
        ood: Where the training images lie, if that was fitted.
        embedding: The embedding that the graph gives, if it shall give one.
        tokenizer: How words become tokens, if the bundle shall read words.
    """
    heads = {}
    for name, task in tasks.items():
        rules = task.define_rules()
        if rules is None and (name in calibrations or ood is not None):
            confidence = calibrations[name].rules if name in calibrations else ConfidenceRules()
            if ood is not None:
                confidence = replace(confidence, reference=True, max_distance=ood.max_distance)
            rules = confidence.to_dict()
        rules = task.complete_rules(rules)
        heads[name] = HeadContract(task=task.kind, labels=task.labels, rules=rules)
    task = next(iter(tasks.values()))
    preprocess = task.preprocess.to_dict()
    # Extensions, since versions that do not know them must refuse the bundle.
    preprocess.pop("bit_depth", None)
    tiles = preprocess.pop("tiles", None)
    extensions: dict[str, Any] = {} if tiles is None else {"tiles": tiles}
    limits = task.preprocess.value_range
    if limits is not None:
        extensions["value_range"] = dict(zip(("low", "high"), limits, strict=True))
    single = heads.get("")
    boxes = None if single is None else task.describe_box_embedding()
    specs = {"embedding": embedding, "box_embedding": boxes}
    extensions |= {name: asdict(spec) for name, spec in specs.items() if spec is not None}
    if tokenizer is not None:
        extensions["tokenizer"] = dict(tokenizer)
    for name, each in tasks.items():
        groups = calibrations[name].groups if name in calibrations else each.define_group_rules()
        if groups is None:
            continue
        if single is None:
            raise OptionError(
                f"The calibration of '{name}' has rules by {groups.rules.column}, which a bundle of several heads "
                "cannot hold. Export that checkpoint alone, or calibrate it without --group-column."
            )
        extensions["group_thresholds"] = groups.rules.to_dict()
    return Contract(
        task=MULTI_HEAD if single is None else single.task,
        labels=tuple(heads) if single is None else single.labels,
        preprocess=preprocess,
        backbone=task.backbone.name,
        license=task.license,
        versions=list_versions(),
        rules=None if single is None else single.rules,
        heads=heads if single is None else None,
        extensions=extensions,
    )
