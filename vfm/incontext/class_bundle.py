"""Bundle with a class matrix: an embedding bundle whose graph also answers by class rows, as inputs with a default."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from scipy.special import expit, softmax
from vfm_runtime.bundle.contract import (
    CARD_FILE,
    GOLDEN_DIR,
    GOLDEN_FILE,
    METADATA_KEY,
    MODEL_FILE,
    PREPROCESS_FILE,
    WEIGHTS_FILE,
    Contract,
)
from vfm_runtime.bundle.manifest import read_bundle, write_manifest
from vfm_runtime.errors import DataError, OptionError
from vfm_runtime.heads_on_features import AffineHead
from vfm_runtime.tasks.classification import ClassificationType
from vfm_runtime.tasks.embedding import EmbeddingType
from vfm_runtime.text import TEXT_FILE, TEXT_WEIGHTS_FILE

from vfm.bundle.drafts import load_draft, write_draft

MATRIX = "class_matrix"
"""Input of the graph with a row for each class, [C, D]; `class_bias` [C] and `class_center` [D] go with it."""
_MOST_DIFFERENCE = 1e-3


def write_class_bundle(
    bundle: Path,
    head: AffineHead,
    labels: Sequence[str],
    out: Path,
    *,
    note: str,
    sigmoid: bool = False,
) -> Contract:
    """Write a bundle that labels images by a head on its embedding, such as class means or words, and still embeds.

    The rows of the head are overridable inputs of its graph (initializers that are inputs too): a client of ONNX that
    gives others adds classes without an export, and one that gives none has these. Graphs of fewer bits are left out.

    Args:
        bundle: Folder of a bundle whose only answer is an embedding.
        head: Affine map of vectors, centered and of norm 1, to logits.
        labels: Names of the classes, in the order of the rows.
        out: Folder to write, which is not there yet.
        note: What the card says of the classes.
        sigmoid: Whether each class has a probability of its own, in place of one among all.

    Raises:
        OptionError: The bundle answers something else, or the folder is there.
        DataError: The graph does not answer as numpy does.
    """
    source = read_bundle(bundle)
    if source.task != EmbeddingType.name or source.embedding is None:
        raise OptionError(
            f"{bundle} {source.type.summary}, and has labels of its own. Give the bundle of a bare backbone: vfm "
            "export NAME --images IMAGES -o BUNDLE."
        )
    if out.exists():
        raise OptionError(f"{out} is there already. Name a folder that is not.")
    center = np.zeros(head.weight.shape[1]) if head.center is None else head.center
    head = replace(head, center=center, normalizes=True)
    extensions = {**source.extensions, MATRIX: {"input": MATRIX}}
    contract = replace(
        source,
        task=ClassificationType.name,
        labels=tuple(labels),
        rules=None,
        extensions=extensions,
    )
    with write_draft(out) as draft:
        _write_graphs(bundle, draft, contract, head, "Sigmoid" if sigmoid else "Softmax")
        _write_golden(bundle, draft, contract, head, sigmoid)
        card = bundle / CARD_FILE
        text = card.read_text(encoding="utf-8") if card.is_file() else ""
        text += f"\n## Classes\n\n{note} Not judged here.\n"
        (draft / CARD_FILE).write_text(text, encoding="utf-8")
        write_manifest(draft, contract)
    return contract


def _write_graphs(
    bundle: Path, draft: Path, contract: Contract, head: AffineHead, activation: str
) -> None:
    text = contract.text
    for name in (WEIGHTS_FILE, *([] if text is None else [TEXT_WEIGHTS_FILE, text.file])):
        if (bundle / name).exists():
            shutil.copyfile(bundle / name, draft / name)
    for name in (PREPROCESS_FILE, MODEL_FILE, *([] if text is None else [TEXT_FILE])):
        graph = onnx.load(bundle / name, load_external_data=False)
        if name == MODEL_FILE:
            _add_head(graph.graph, head, contract, activation)
        del graph.metadata_props[:]
        helper.set_model_props(graph, {METADATA_KEY: contract.to_json()})
        onnx.save(graph, draft / name)
    onnx.checker.check_model(draft / MODEL_FILE)


def _add_head(
    graph: onnx.GraphProto, head: AffineHead, contract: Contract, activation: str
) -> None:
    """Add a head to a graph, whose first output becomes `scores`."""
    assert contract.embedding is not None
    assert head.center is not None
    embedding = contract.embedding.output
    width = head.weight.shape[1]
    defaults = {
        MATRIX: (head.weight, ["classes", width]),
        "class_bias": (head.bias, ["classes"]),
        "class_center": (head.center, [width]),
    }
    for name, (values, shape) in defaults.items():
        graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "class_axis"))
    graph.initializer.append(numpy_helper.from_array(np.array(1e-12, np.float32), "class_tiny"))
    nodes: list[tuple[str, list[str], str, dict[str, Any]]] = [
        ("Sub", [embedding, "class_center"], "class_centered", {}),
        ("Mul", ["class_centered", "class_centered"], "class_squares", {}),
        ("ReduceSum", ["class_squares", "class_axis"], "class_sum", {"keepdims": 1}),
        ("Sqrt", ["class_sum"], "class_norm", {}),
        ("Max", ["class_norm", "class_tiny"], "class_length", {}),
        ("Div", ["class_centered", "class_length"], "class_unit", {}),
        ("Transpose", [MATRIX], "class_columns", {"perm": [1, 0]}),
        ("MatMul", ["class_unit", "class_columns"], "class_products", {}),
        ("Add", ["class_products", "class_bias"], "class_logits", {}),
        (activation, ["class_logits"], "scores", {"axis": 1} if activation == "Softmax" else {}),
    ]
    for kind, inputs, output, options in nodes:
        graph.node.append(helper.make_node(kind, inputs, [output], name=output, **options))
    rows = graph.output[0].type.tensor_type.shape.dim[0].dim_param or "N"
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, [rows, "classes"])
    graph.output.insert(0, scores)


def _write_golden(
    bundle: Path, draft: Path, contract: Contract, head: AffineHead, sigmoid: bool
) -> None:
    """Compare the graph with numpy on the golden images of the other bundle, and keep its answers to them."""
    images = sorted((bundle / GOLDEN_DIR).glob("*.png"))
    if not images:
        return
    model = load_draft(draft, contract)
    logits = head.compute_logits(model.embed(images))
    expected = expit(logits) if sigmoid else softmax(logits, axis=1)
    predictions = model.predict(images)
    difference = max(
        float(np.abs(one.scores - row).max())
        for one, row in zip(predictions, expected, strict=True)
    )
    if not difference <= _MOST_DIFFERENCE:
        raise DataError(
            f"The graph with the class matrix answers otherwise than numpy, by up to {difference:.2g}. Report this "
            "with the versions of onnx and onnxruntime."
        )
    (draft / GOLDEN_DIR).mkdir()
    rows = []
    for path, one in zip(images, predictions, strict=True):
        shutil.copyfile(path, draft / GOLDEN_DIR / path.name)
        rows.append({"file": path.name, **one.to_golden()})
    values = {"tolerance": _MOST_DIFFERENCE, "images": rows}
    (draft / GOLDEN_FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
