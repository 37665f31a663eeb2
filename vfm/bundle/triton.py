"""A bundle as a model repository of Triton Inference Server: preprocessing, model, and the ensemble of both.

How the parts fit, as Triton's documentation and its core (`ensemble_utils.cc`, `ensemble_scheduler.cc`) have it:

- A model with a `max_batch_size` above 0 leaves the batch out of its `dims`, one with 0 names every dimension.
- `preprocess.onnx` takes one image of any size, so it cannot batch: 0, and its `pixels` are [1, h, w, 3].
- `model.onnx` batches: its `pixels` are [h, w, 3]. Where a tensor passes from a model that does not batch to one that
  does, the whole shapes must agree, here [1, h, w, 3] and [-1, h, w, 3]; the scheduler hands the row on as it is, and
  the dynamic batcher joins rows of several requests.
- The ensemble takes one image a request: 0, and its answers keep a first dimension of 1. Clients that want many images
  at once send many requests.

The configurations are checked against Triton's published schema and against the graphs; no server was run. Triton's
ONNX Runtime must know the graphs' opset: 20, the default of an export, since version 1.17, and 23 since 1.23.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from vfm_runtime.bundle.contract import PRECISION_FILES, PREPROCESS_FILE
from vfm_runtime.bundle.manifest import read_manifest

from vfm.bundle.errors import ExportError
from vfm.tasks.export_hooks import ExportHooks

_log = logging.getLogger(__name__)

_TYPES: dict[int, str] = {
    onnx.TensorProto.UINT8: "TYPE_UINT8",
    onnx.TensorProto.INT64: "TYPE_INT64",
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.FLOAT16: "TYPE_FP16",
}
_Port = dict[str, Any]
_Ports = tuple[list[_Port], list[_Port]]
_Labels = Mapping[str, list[str]]

_MAX_DELAY = 2000  # microseconds that a request may wait for others
# The preprocessing is small work of one thread, and in front of a GPU the bottleneck unless several run at once.
_NUM_PREPROCESSES = 4

_TENSORRT = """
# TensorRT compiles the graph when the model is loaded, which takes minutes once and then less for each batch. It needs
# a Triton whose ONNX Runtime has it; remove the marks in front of these lines:
# optimization { execution_accelerators { gpu_execution_accelerator: [ {
#   name: "tensorrt"
#   parameters { key: "precision_mode" value: "FP16" }
#   parameters { key: "trt_engine_cache_enable" value: "true" }
#   parameters { key: "trt_engine_cache_path" value: "/var/cache/tensorrt" }
# } ] } }
"""


class TritonError(ExportError):
    """The model repository cannot be written; the message says why and what to do."""


class _Word(str):
    """A word of the schema, which stands without quotes."""


def write_triton(
    bundle: Path,
    folder: Path,
    name: str,
    *,
    precision: str = "fp32",
    max_batch: int = 8,
    task: ExportHooks | type[ExportHooks] = ExportHooks,
) -> Path:
    """Write `NAME_preprocess`, `NAME_model` and the ensemble `NAME` into a model repository.

    Args:
        bundle: A bundle's folder; it is checked, and copied from.
        folder: The model repository; made where there is none.
        name: What clients call the model.
        precision: Precision of the graph: fp32, fp16 or int8, where the bundle has it.
        max_batch: Most images that go through the model at once.
        task: What was exported; it says what is left to a client.

    Returns:
        The repository.

    Raises:
        BundleError: It is not a bundle, or a file is damaged.
        TritonError: The name, the precision or the batch is none that can be had, or the model is there already.
    """
    bundle, folder = Path(bundle), Path(folder)
    contract = read_manifest(bundle).contract
    choices = [key for key, file in PRECISION_FILES.items() if (bundle / file).is_file()]
    if precision not in choices:
        raise TritonError(
            f"{bundle} has no graph of the precision '{precision}'. Choices: {', '.join(choices)}. Export it anew with "
            "--fp16 true or --int8 true to have others."
        )
    check_repository(folder, name, max_batch)
    preprocess, model = bundle / PREPROCESS_FILE, bundle / PRECISION_FILES[precision]
    before, after = _read_ports(preprocess), _read_ports(model)
    labels = {
        f"{head}_labels.txt" if head else "labels.txt": list(each.labels)
        for head, each in contract.each.items()
        if list(each.type.outputs) == ["scores"]  # those of boxes are in another order
    }
    first, second = f"{name}_preprocess", f"{name}_model"
    first_text = _configure_preprocess(first, before)
    second_text = _configure_model(second, after, labels, max_batch, precision)
    text = task.serving_comment + _configure_ensemble(name, before, after, labels)
    folder.mkdir(parents=True, exist_ok=True)
    # Beside its place and moved there when whole: a server may be looking at the repository.
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder) as draft:
        _write_model(Path(draft) / first, preprocess, first_text, {})
        _write_model(Path(draft) / second, model, second_text, labels)
        _write_model(Path(draft) / name, None, text, labels)
        for part in (first, second, name):  # the ensemble last, which needs the others
            (Path(draft) / part).replace(folder / part)
    if task.serving_warning is not None:
        _log.warning("%s %s", folder / name, task.serving_warning)
    return folder


def check_repository(folder: Path, name: str, max_batch: int = 8) -> None:
    """Refuse, before any work, a name or a batch that cannot be had, or a model that is there already.

    Raises:
        TritonError: What is refused.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise TritonError(
            f"A model cannot be called '{name}' in Triton. Give letters, digits, '_', '-' and '.'."
        )
    if max_batch < 1:
        raise TritonError(f"max_batch is {max_batch}. Give 1 or more images.")
    for each in (f"{name}_preprocess", f"{name}_model", name):
        if (folder / each).exists():
            raise TritonError(
                f"{folder / each} exists, and may be served at this moment. Give another name or another folder, or "
                "remove it first."
            )


def _write_model(folder: Path, graph: Path | None, config: str, labels: _Labels) -> None:
    """Write a model's folder with one version; Triton wants one of an ensemble too, though it holds nothing."""
    version = folder / "1"
    version.mkdir(parents=True)
    if graph is None:
        (version / ".keep").touch()  # stores of objects, and git, know no empty folder
    else:
        shutil.copyfile(graph, version / "model.onnx")
        tensors = onnx.load(graph, load_external_data=False).graph.initializer
        entries = (entry for tensor in tensors for entry in tensor.external_data)
        # Files beside a graph that hold its weights, as the graph names them.
        for file in {entry.value for entry in entries if entry.key == "location"}:
            shutil.copyfile(graph.parent / file, version / file)
    for file, names in labels.items():
        # One label a line, so that none may have two.
        lines = [" ".join(name.splitlines()) for name in names]
        (folder / file).write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "config.pbtxt").write_text(config, encoding="utf-8")


def _read_ports(path: Path) -> _Ports:
    """Name, type and dimensions of what a graph takes and gives; -1 stands for any size."""
    graph = onnx.load(path, load_external_data=False).graph
    inputs, outputs = (
        [
            {
                "name": value.name,
                "data_type": _Word(_TYPES[value.type.tensor_type.elem_type]),
                "dims": [
                    dim.dim_value if dim.HasField("dim_value") else -1
                    for dim in value.type.tensor_type.shape.dim
                ],
            }
            for value in values
        ]
        for values in (graph.input, graph.output)
    )
    return inputs, outputs


def _configure_preprocess(name: str, ports: _Ports) -> str:
    return _format_text(
        {
            "name": name,
            "backend": "onnxruntime",
            "max_batch_size": 0,
            "input": ports[0],
            "output": ports[1],
            "instance_group": [{"kind": _Word("KIND_CPU"), "count": _NUM_PREPROCESSES}],
            "parameters": [{"key": "intra_op_thread_count", "value": {"string_value": "1"}}],
        }
    )


def _configure_model(
    name: str, ports: _Ports, labels: _Labels, max_batch: int, precision: str
) -> str:
    # 8 bits are made for the CPU.
    kind = "KIND_CPU" if precision == "int8" else "KIND_AUTO"
    text = _format_text(
        {
            "name": name,
            "backend": "onnxruntime",
            "max_batch_size": max_batch,
            "input": [_drop_batch(port) for port in ports[0]],
            "output": [_add_labels(_drop_batch(port), labels) for port in ports[1]],
            "instance_group": [{"kind": _Word(kind), "count": 1}],
            "dynamic_batching": {
                "preferred_batch_size": sorted({max(1, max_batch // 2), max_batch}),
                "max_queue_delay_microseconds": _MAX_DELAY,
            },
        }
    )
    return text + (_TENSORRT if precision == "fp16" else "")


def _configure_ensemble(name: str, before: _Ports, after: _Ports, labels: _Labels) -> str:
    steps = []
    for part, ports in (("preprocess", before), ("model", after)):
        # Tensors are called alike inside and outside, as one graph's outputs are the next one's inputs.
        inputs, outputs = ([{"key": p["name"], "value": p["name"]} for p in side] for side in ports)
        step = {"model_name": f"{name}_{part}", "model_version": -1}
        steps.append({**step, "input_map": inputs, "output_map": outputs})
    outputs = [{**port, "dims": [1, *_drop_batch(port)["dims"]]} for port in after[1]]
    return _format_text(
        {
            "name": name,
            "platform": "ensemble",
            "max_batch_size": 0,
            "input": before[0],
            "output": [_add_labels(port, labels) for port in outputs],
            "ensemble_scheduling": {"step": steps},
        }
    )


def _drop_batch(port: _Port) -> _Port:
    dims = port["dims"][1:]
    # Triton knows no tensor of no dimension: one number an image is a list of one to its clients.
    return {**port, "dims": dims} if dims else {**port, "dims": [1], "reshape": {"shape": []}}


def _add_labels(port: _Port, labels: _Labels) -> _Port:
    """Name the output's file of labels, if it has one: clients may then ask for the names of the best."""
    head, _, output = port["name"].rpartition(".")
    file = f"{head}_labels.txt" if head else "labels.txt"
    return {**port, "label_filename": file} if output == "scores" and file in labels else port


def _format_text(values: Mapping[str, Any], indent: str = "") -> str:
    """Values in the text format of protocol buffers: a field a line, messages in braces."""
    lines = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            lines.append(f"{indent}{key} {{\n{_format_text(value, indent + '  ')}{indent}}}\n")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            lines += [_format_text({key: one}, indent) for one in value]
        else:
            text = value if isinstance(value, _Word) else json.dumps(value, ensure_ascii=False)
            lines.append(f"{indent}{key}: {text}\n")
    return "".join(lines)
