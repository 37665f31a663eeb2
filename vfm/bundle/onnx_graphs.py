"""The two graphs of a bundle: `preprocess.onnx` (any size in, no weights) and `model.onnx` (pixels to answers)."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import torch
from onnx import compose
from torch import Tensor, nn
from vfm_runtime.bundle.contract import METADATA_KEY, Contract
from vfm_runtime.errors import StateError

from vfm.bundle.errors import ExportError
from vfm.bundle.ood_graph import ReferenceOutputs, vector_of
from vfm.models.backbone import Backbone
from vfm.models.heads import Head
from vfm.preprocess import Preprocess
from vfm.quantization.graph import MAX_PROTOBUF
from vfm.tasks import BaseTask
from vfm.types import Features

if TYPE_CHECKING:
    from vfm.bundle.ood import Reference

OPSETS = range(18, 26)
"""Versions of the operators that a graph can have: Resize averages since 18, and the exporter converts up to 25."""


class Answers(nn.Module):
    """All that `model.onnx` computes: one pass through the backbone, and every head's answers from it.

    Temperatures are those of the contract's rules, so that the graph does what they say.
    """

    def __init__(
        self,
        contract: Contract,
        tasks: Mapping[str, BaseTask],
        reference: Reference | None = None,
    ) -> None:
        """Take the parts of the tasks, which stay as they are.

        Args:
            contract: Its outputs are given, in its order.
            tasks: By the names of the contract's heads; a single one's name is empty. All have the same backbone, see
                `vfm.bundle.multi_head.require_one_backbone`.
            reference: Where the contract's rules say that the graph places images among the training images.

        Raises:
            ValueError: The contract names other heads, a temperature that cannot be had, or promises a reference that
                is not given.
        """
        super().__init__()
        _check_reference(contract, reference)
        heads = contract.each
        if list(heads) != list(tasks):
            raise ExportError(
                f"The contract has the heads {list(heads)}, the tasks are {list(tasks)}. Give both in the same order."
            )
        self.outputs = tuple(contract.ports()[1])
        self.preprocess = next(iter(tasks.values())).preprocess
        self.reads = _union(tasks.values())
        self.backbone = _shared(tasks.values(), self.reads)
        self.names = tuple(tasks)
        # Not a dictionary of modules, which refuses names such as `keys` and `type`.
        self.heads = nn.ModuleList(
            _Head(
                t.head, heads[name].type.confidence.temperature if t.graph_divides_logits else 1.0
            )
            for name, t in tasks.items()
        )
        self.reference = (
            ReferenceOutputs(reference.mean, reference.axes, reference.residual)
            if reference is not None
            else None
        )

    def forward(self, pixels: Tensor, geometry: Tensor | None = None) -> dict[str, Tensor]:
        """Answers by the names of the contract's outputs, in their order.

        Args:
            pixels: uint8 [N, h, w, 3], at the model's size.
            geometry: float [N, 6], for heads whose answers are places in the original image.
        """
        features: Features = self.backbone(self.preprocess.normalize(pixels))
        answers: dict[str, Tensor] = {}
        for name, head in zip(self.names, self.heads, strict=True):
            found = head(features, geometry)
            answers |= {f"{name}.{key}" if name else key: value for key, value in found.items()}
        if self.reference is not None:
            answers |= self.reference(vector_of(features, self.reads))
        return {name: answers[name] for name in self.outputs}


class _Head(nn.Module):
    """A head's decoded answers, its logits divided by a temperature."""

    def __init__(self, head: Head, temperature: float) -> None:
        super().__init__()
        self.head = head
        self.temperature = temperature
        if temperature != 1.0 and not head.gives_logits:
            raise ExportError(
                f"The temperature is {temperature}, but {type(head).__name__} is not known to give logits that it "
                "could divide: only the heads of ClassificationHead and DetectionHead do, and others that set "
                "'gives_logits'. Give 1."
            )

    def forward(self, features: Features, geometry: Tensor | None) -> dict[str, Tensor]:
        raw = self.head(features)
        if self.temperature != 1.0:
            raw = {**raw, "logits": raw["logits"].float() / self.temperature}
        answers: dict[str, Tensor]
        answers = (
            self.head.decode(raw, geometry) if self.head.needs_geometry else self.head.decode(raw)
        )
        return answers


def write_preprocess(path: Path, contract: Contract, preprocess: Preprocess, opset: int) -> None:
    """Write the graph from uint8 `image` [H, W, 3] of any size to what the model takes of it."""
    graph = preprocess.build_graph(opset, geometry="geometry" in contract.ports()[0])
    onnx.helper.set_model_props(graph, {METADATA_KEY: contract.to_json()})
    onnx.save(graph, path)


def write_model(
    path: Path,
    contract: Contract,
    task: BaseTask,
    opset: int,
    *,
    reference: Reference | None = None,
) -> None:
    """Write the graph from uint8 `pixels` [N, h, w, 3], and `geometry` [N, 6] of a detector, to answers in float32.

    Args:
        path: Of the ONNX file; weights beyond 2 GB go to one beside it.
        contract: Whose temperature the logits are divided by.
        task: In evaluation mode, on the CPU, in float32.
        opset: Version of the operators; from 23 on, attention is one operator.
        reference: Gives `components` and `distances` too; needed where the contract's rules promise them.

    Raises:
        ValueError: See `Answers`.
    """
    write_several(path, contract, {"": task}, opset, reference=reference)


def write_several(
    path: Path,
    contract: Contract,
    tasks: Mapping[str, BaseTask],
    opset: int,
    *,
    reference: Reference | None = None,
) -> None:
    """`write_model` for several heads on one backbone, whose outputs are named `head.output`.

    Args:
        path: Of the ONNX file.
        contract: Of all heads.
        tasks: By the names of the heads, in the order of the contract.
        opset: Version of the operators.
        reference: As for `write_model`; it is of the backbone, so that there is one for all heads.

    Raises:
        ExportError: The exporter has no such opset.
        ValueError: See `Answers`.
    """
    if opset not in OPSETS:
        raise ExportError(
            f"opset is {opset}; choices are {OPSETS[0]} to {OPSETS[-1]}. 20 runs almost everywhere, and from 23 on "
            "attention is one operator."
        )
    module = Answers(contract, tasks, reference)
    height, width = module.preprocess.size
    rows = torch.tensor([[0.0, 0.0, width, height, width, height]] * 2)
    examples = {"pixels": torch.zeros((2, height, width, 3), dtype=torch.uint8), "geometry": rows}
    given = {name: examples[name] for name in contract.ports()[0]}
    batch = {name: {0: torch.export.Dim.DYNAMIC} for name in given}
    program = _exported(module, given, batch, list(module.outputs), opset)
    tensors = (*module.parameters(), *module.buffers())
    num_bytes = sum(t.numel() * t.element_size() for t in tensors)
    _save(program, path, contract, external=num_bytes > MAX_PROTOBUF)


def write_onefile(path: Path, preprocess: Path, model: Path, contract: Contract) -> None:
    """Join both graphs to one from uint8 `image` [H, W, 3] to the answers of that image."""
    first, second = onnx.load(preprocess), onnx.load(model)
    joined = compose.merge_models(
        compose.add_prefix(first, "preprocess/", rename_inputs=False, rename_outputs=False),
        compose.add_prefix(second, "model/", rename_inputs=False, rename_outputs=False),
        io_map=[(name, name) for name in contract.ports()[0]],
        producer_name="vfm",
    )
    del joined.metadata_props[:]
    onnx.helper.set_model_props(joined, {METADATA_KEY: contract.to_json()})
    onnx.checker.check_model(joined)
    onnx.save(joined, path)


def _check_reference(contract: Contract, reference: Reference | None) -> None:
    if contract.reference and reference is None:
        raise ExportError(
            "The contract's rules say that the graph gives distances from the training images, but there is no "
            "reference to measure them by. Fit one, or write rules with 'reference' false."
        )
    if reference is not None and not contract.reference:
        raise ExportError(
            "There is a reference of the training images, but the contract's rules have 'reference' false. Write them "
            "with true, or leave the reference out."
        )


def _union(tasks: Iterable[BaseTask]) -> tuple[str, ...]:
    """What any head reads of the features."""
    return tuple(dict.fromkeys(field for task in tasks for field in task.head.uses))


def _shared(tasks: Iterable[BaseTask], reads: tuple[str, ...]) -> Backbone:
    """The backbone of all, without adapters; a copy where it must change, as the tasks may go on learning."""
    # One that pools can be told to give maps too; of one that does not, the layers for it are gone.
    owner = max(tasks, key=lambda task: "pooled" in task.head.uses)
    if set(owner.head.uses) == set(reads) and not owner.adaptation.adds_layers:
        return owner.backbone
    backbone = copy.deepcopy(owner.backbone)
    owner.adaptation.merge(backbone.model)
    backbone.select_outputs(reads)
    return backbone


def _exported(
    module: nn.Module,
    inputs: dict[str, Tensor],
    dynamic: dict[str, Any],
    outputs: list[str],
    opset: int,
) -> torch.onnx.ONNXProgram:
    with _quiet(), torch.no_grad():
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
        raise StateError("torch.onnx.export gave no graph.")
    return program


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter reports its progress, and warns of its own internals; failures are raised."""
    exporter = logging.getLogger("onnxscript")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)


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
