"""The two graphs of a bundle: `preprocess.onnx` (any size in, no weights) and `model.onnx` (pixels to answers)."""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import compose
from torch import Tensor, nn
from vfm_runtime.contract import METADATA_KEY, Contract, ports

from vfm.models.adapters import has_adapters, merge
from vfm.preprocess import Preprocess
from vfm.tasks import BaseTask

MAX_PROTOBUF = 2_000_000_000
"""Bytes of weights above which they go to a file of their own; a protobuf ends at 2 GiB."""


class _Answer(nn.Module):
    def __init__(self, task: BaseTask) -> None:
        super().__init__()
        self.preprocess = task.preprocess
        self.backbone = task.backbone
        self.head = task.head
        if has_adapters(task.backbone):
            # A copy: the task itself may go on learning.
            self.backbone = copy.deepcopy(task.backbone)
            merge(self.backbone)

    def forward(self, pixels: Tensor, geometry: Tensor | None = None) -> dict[str, Tensor]:
        raw = self.head(self.backbone(self.preprocess.normalise(pixels)))
        answers: dict[str, Tensor]
        answers = self.head.decode(raw, geometry) if self.head.places else self.head.decode(raw)
        return answers


def write_preprocess(path: Path, contract: Contract, preprocess: Preprocess, opset: int) -> None:
    """Write the graph from uint8 `image` [H, W, 3] of any size to what the model takes of it."""
    graph = preprocess.graph(opset, geometry="geometry" in ports(contract.task)[0])
    onnx.helper.set_model_props(graph, {METADATA_KEY: contract.to_json()})
    onnx.save(graph, path)


def write_model(path: Path, contract: Contract, task: BaseTask, opset: int) -> None:
    """Write the graph from uint8 `pixels` [N, h, w, 3], and `geometry` [N, 6] of a detector, to answers in float32."""
    height, width = task.preprocess.size
    rows = torch.tensor([[0.0, 0.0, width, height, width, height]] * 2)
    examples = {"pixels": torch.zeros((2, height, width, 3), dtype=torch.uint8), "geometry": rows}
    inputs, outputs = ports(contract.task)
    given = {name: examples[name] for name in inputs}
    batch = {name: {0: torch.export.Dim.DYNAMIC} for name in inputs}
    program = _exported(_Answer(task), given, batch, list(outputs), opset)
    num_bytes = sum(p.numel() * p.element_size() for p in task.state_dict().values())
    _save(program, path, contract, external=num_bytes > MAX_PROTOBUF)


def write_onefile(path: Path, preprocess: Path, model: Path, contract: Contract) -> None:
    """Join both graphs to one from uint8 `image` [H, W, 3] to the answers of that image."""
    first, second = onnx.load(preprocess), onnx.load(model)
    joined = compose.merge_models(
        compose.add_prefix(first, "preprocess/", rename_inputs=False, rename_outputs=False),
        compose.add_prefix(second, "model/", rename_inputs=False, rename_outputs=False),
        io_map=[(name, name) for name in ports(contract.task)[0]],
        producer_name="vfm",
    )
    del joined.metadata_props[:]
    onnx.helper.set_model_props(joined, {METADATA_KEY: contract.to_json()})
    onnx.checker.check_model(joined)
    onnx.save(joined, path)


def _exported(
    module: nn.Module,
    inputs: dict[str, Tensor],
    dynamic: dict[str, Any],
    outputs: list[str],
    opset: int,
) -> torch.onnx.ONNXProgram:
    # The exporter reports its progress, and warns of its own internals; failures are raised.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            kwargs=inputs,
            dynamic_shapes=dynamic,
            input_names=list(inputs),
            output_names=outputs,
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export gave no graph.")
    return program


def _save(
    program: torch.onnx.ONNXProgram, path: Path, contract: Contract, *, external: bool
) -> None:
    model = program.model
    for node in model.graph.all_nodes():
        # Stack traces with the paths of this machine; of no use to who runs the graph.
        node.metadata_props.clear()
        node.doc_string = None
    model.metadata_props.clear()
    model.metadata_props[METADATA_KEY] = contract.to_json()
    model.producer_name = "vfm"
    program.save(path, external_data=external)
    onnx.checker.check_model(path)
