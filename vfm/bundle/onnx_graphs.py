"""The two graphs of a bundle: `preprocess.onnx` (any size in, no weights) and `model.onnx` (pixels to answers)."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx
import torch
from onnx import compose
from torch import Tensor, nn
from vfm_runtime.bundle.contract import METADATA_KEY, Contract
from vfm_runtime.errors import StateError

from vfm.bundle.errors import ExportError
from vfm.bundle.ood import Reference, select_vector
from vfm.models.backbone import Backbone
from vfm.models.heads import Head
from vfm.models.heads.embedding import EmbeddingHead
from vfm.preprocess import Preprocess
from vfm.quantization.graph import MAX_PROTOBUF
from vfm.tasks import BaseTask
from vfm.types import Features

OPSETS = range(18, 26)
"""Versions of the operators that a graph can have: Resize averages since 18, and the exporter converts up to 25."""


class ExportedModel(nn.Module):
    """All that `model.onnx` computes: one pass through the backbone, and every head's outputs from it.

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
            contract: What the bundle promises; its outputs are given, in its order.
            tasks: Tasks by the names of the contract's heads; a single one's name is empty. All have the same backbone,
                see `vfm.bundle.multi_head.require_one_backbone`.
            reference: Where the training images lie, if the contract's rules promise distances from them.

        Raises:
            ExportError: The contract names other heads, a temperature that cannot be had, or promises a reference that
                is not given.
        """
        super().__init__()
        if contract.reference and reference is None:
            raise ExportError(
                "The contract's rules say that the graph gives distances from the training images, but there is no "
                "reference to measure them by. Fit one, or write rules with 'reference' false."
            )
        if reference is not None and not contract.reference:
            raise ExportError(
                "There is a reference of the training images, but the contract's rules have 'reference' false. Write "
                "them with true, or leave the reference out."
            )
        heads = contract.each
        if list(heads) != list(tasks):
            raise ExportError(
                f"The contract has the heads {list(heads)}, the tasks are {list(tasks)}. Give both in the same order."
            )
        self.outputs = tuple(contract.ports()[1])
        self.preprocess = next(iter(tasks.values())).preprocess
        self.uses = combine_uses(tasks)
        spec = contract.embedding
        more: tuple[str, ...] = ()
        self.embedding: EmbeddingHead | None = None
        if spec is not None and spec.output not in contract.type.outputs:
            self.embedding = EmbeddingHead(spec.source, normalize=spec.normalize)  # type: ignore[arg-type]
            more = self.embedding.uses
        self.backbone = _share_backbone(tasks, tuple(dict.fromkeys((*self.uses, *more))))
        self.names = tuple(tasks)
        # Not a dictionary of modules, which refuses names such as `keys` and `type`.
        self.heads = nn.ModuleList(
            _Head(
                t.head, heads[name].type.confidence.temperature if t.graph_divides_logits else 1.0
            )
            for name, t in tasks.items()
        )
        self.reference = reference

    def forward(self, pixels: Tensor, geometry: Tensor | None = None) -> dict[str, Tensor]:
        """Outputs by the names that the contract gives them, in its order.

        Args:
            pixels: Images at the model's size, uint8 [N, h, w, 3].
            geometry: How the images were resized, float [N, 6], for heads that answer in the original image.
        """
        features: Features = self.backbone(self.preprocess.normalize(pixels))
        outputs: dict[str, Tensor] = {}
        for name, head in zip(self.names, self.heads, strict=True):
            decoded = head(features, geometry)
            outputs |= {f"{name}.{key}" if name else key: value for key, value in decoded.items()}
        if self.reference is not None:
            outputs |= self.reference(select_vector(features, self.uses))
        if self.embedding is not None:
            outputs |= self.embedding.decode(self.embedding(features))
        return {name: outputs[name] for name in self.outputs}


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
        extra = (geometry,) if self.head.needs_geometry else ()
        decoded: dict[str, Tensor] = self.head.decode(raw, *extra)
        return decoded


def write_preprocess(path: Path, contract: Contract, preprocess: Preprocess, opset: int) -> None:
    """Write the graph from uint8 `image` [H, W, 3] of any size to what the model takes of it."""
    graph = preprocess.build_graph(opset, geometry="geometry" in contract.ports()[0])
    onnx.helper.set_model_props(graph, {METADATA_KEY: contract.to_json()})
    onnx.save(graph, path)


def write_model(
    path: Path,
    contract: Contract,
    tasks: Mapping[str, BaseTask],
    opset: int,
    *,
    reference: Reference | None = None,
) -> None:
    """Write the graph from uint8 `pixels` [N, h, w, 3], and `geometry` [N, 6] of a detector, to answers in float32.

    Outputs of several heads on one backbone are named `head.output`.

    Args:
        path: The ONNX file to write; weights beyond 2 GB go to one beside it.
        contract: What the bundle promises; logits are divided by its temperatures.
        tasks: Tasks by the names of their heads, in the order of the contract; a single one's name is empty. They are
            in evaluation mode, on the CPU, in float32.
        opset: Version of the operators; from 23 on, attention is one operator.
        reference: Where the training images lie, if the contract's rules promise `components` and `distances`.

    Raises:
        ExportError: The exporter has no such opset, or the contract does not fit; see `ExportedModel`.
    """
    module = ExportedModel(contract, tasks, reference)
    height, width = module.preprocess.size
    rows = torch.tensor([[0.0, 0.0, width, height, width, height]] * 2)
    examples = {"pixels": torch.zeros((2, height, width, 3), dtype=torch.uint8), "geometry": rows}
    inputs = {name: examples[name] for name in contract.ports()[0]}
    write_graph(path, module, inputs, module.outputs, contract, opset)


def write_graph(
    path: Path,
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    contract: Contract,
    opset: int,
) -> None:
    """Write what a module computes as an ONNX file with the contract inside; the first dimensions are free.

    Args:
        path: The ONNX file to write; weights beyond 2 GB go to one beside it.
        module: Module whose `forward` returns the outputs by name.
        inputs: Examples by the names of the arguments of `forward`.
        outputs: Names of the outputs, in their order.
        contract: What the bundle promises.
        opset: Version of the operators; from 23 on, attention is one operator.

    Raises:
        ExportError: The exporter has no such opset.
    """
    if opset not in OPSETS:
        raise ExportError(
            f"opset is {opset}; choices are {OPSETS[0]} to {OPSETS[-1]}. 20 runs almost everywhere, and from 23 on "
            "attention is one operator."
        )
    with _silence_exporter(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            kwargs=dict(inputs),
            dynamic_shapes={name: {0: torch.export.Dim.DYNAMIC} for name in inputs},
            input_names=list(inputs),
            output_names=list(outputs),
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise StateError("torch.onnx.export gave no graph.")
    model = program.model
    for node in model.graph.all_nodes():
        # Stack traces with the paths of this machine; of no use to who runs the graph.
        node.metadata_props.clear()
        node.doc_string = None
    model.metadata_props.clear()
    model.metadata_props[METADATA_KEY] = contract.to_json()
    model.producer_name = "vfm"
    tensors = (*module.parameters(), *module.buffers())
    num_bytes = sum(t.numel() * t.element_size() for t in tensors)
    program.save(path, external_data=num_bytes > MAX_PROTOBUF)
    onnx.checker.check_model(path)


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


def combine_uses(tasks: Mapping[str, BaseTask]) -> tuple[str, ...]:
    """Return what any head reads of the features."""
    return tuple(dict.fromkeys(field for task in tasks.values() for field in task.head.uses))


def _share_backbone(tasks: Mapping[str, BaseTask], uses: tuple[str, ...]) -> Backbone:
    """The backbone of all, without adapters; a copy where it must change, as the tasks may go on learning."""
    # A backbone that gives the pooled vector can be told to give maps too. One that was built for heads without it
    # lacks the layers that pool, so another head's backbone is taken where there is one.
    owner = max(tasks.values(), key=lambda task: "pooled" in task.head.uses)
    if set(owner.head.uses) == set(uses) and not owner.adaptation.adds_layers:
        return owner.backbone
    backbone = copy.deepcopy(owner.backbone)
    owner.adaptation.merge(backbone.model)
    backbone.select_outputs(uses)
    return backbone


@contextlib.contextmanager
def _silence_exporter() -> Iterator[None]:
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
