"""A model repository for Triton: against its published schema, against the graphs, and as its ensemble would run it."""

import logging
import re
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelInstanceGroup
from vfm_runtime.bundle.contract import Contract
from vfm_runtime.bundle.manifest import write_manifest
from vfm_runtime.deepfake.decision import Decision
from vfm_runtime.deepfake.faces.crop import CropSpec

from tests.tasks.tiny import VIT
from vfm.bundle import onnx_graphs
from vfm.bundle.triton import TritonError, write_triton
from vfm.deepfake import DeepfakeHead, DeepfakeTask
from vfm.models.heads import DetrHead, MLPHead
from vfm.tasks import ClassificationTask, DetectionTask

CPU = ["CPUExecutionProvider"]
LABELS = ("ant", "bee\nand wasp", "Käfer")
TYPES = {"TYPE_UINT8": np.uint8, "TYPE_INT64": np.int64, "TYPE_FP32": np.float32}


@dataclass
class Repository:
    folder: object
    bundle: object
    contract: Contract

    def config(self, name):
        text = (self.folder / name / "config.pbtxt").read_text(encoding="utf-8")
        return text_format.Parse(text, ModelConfig())

    def session(self, name):
        path = self.folder / name / "1" / "model.onnx"
        return onnxruntime.InferenceSession(str(path), providers=CPU)


def make(head=None, labels=LABELS, kind=ClassificationTask, **changes):
    torch.manual_seed(0)
    settings = {"backbone": "vit_tiny_patch16_224", "backbone_args": VIT, "pretrained": False}
    task = kind(head=head, **(settings | {"image_size": 32, "fit": "squash"} | changes))
    task.head.prepare(task.backbone.info, labels)
    return task.eval()


def bundle_of(tasks, folder, **said):
    one = next(iter(tasks.values()))
    heads = {name: {"task": task.kind, "labels": task.labels} for name, task in tasks.items()}
    several = "" not in tasks
    contract = Contract(
        task="multi_head" if several else one.kind,
        labels=tuple(tasks) if several else one.labels,
        preprocess=one.preprocess.to_dict(),
        backbone="vit",
        license=None,
        versions={},
        heads=heads if several else None,
        **said,
    )
    folder.mkdir()
    onnx_graphs.write_preprocess(folder / "preprocess.onnx", contract, one.preprocess, 20)
    onnx_graphs.write_model(folder / "model.onnx", contract, tasks, 20)
    write_manifest(folder, contract)
    return contract


JUDGING = {"crop": CropSpec().to_dict(), "decision": Decision().to_dict()}
CASES = {
    "animals": lambda: ({"": make()}, {}),
    "boxes": lambda: ({"": make(DetrHead(num_queries=5), kind=DetectionTask)}, {}),
    "deepfake": lambda: (
        {"": make(DeepfakeHead(bank_size=4), ("real", "fake"), DeepfakeTask)},
        {"rules": JUDGING},
    ),
    "both": lambda: (
        {"kind": make(), "parts": make(MLPHead(8), ("leg", "wing"), multilabel=True)},
        {},
    ),
}


SLOW = ("boxes",)  # its graph takes long to export
each_case = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in CASES]
)


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """Made when first asked for: by the name of the case."""
    made = {}

    def get(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            tasks, said = CASES[name]()
            contract = bundle_of(tasks, folder / "bundle", **said)
            where = write_triton(
                folder / "bundle",
                folder / "repository",
                name,
                max_batch=6,
                task=next(iter(tasks.values())),
            )
            made[name] = Repository(where, folder / "bundle", contract)
        return made[name]

    return get


def fits(dims, shape):
    """Whether a shape is one that the dimensions of a configuration allow."""
    return len(dims) == len(shape) and all(d in (-1, s) for d, s in zip(dims, shape, strict=True))


def agree(one, other):
    """As Triton compares what two models say of a tensor between them."""
    return len(one) == len(other) and all(
        -1 in pair or pair[0] == pair[1] for pair in zip(one, other, strict=True)
    )


def whole(config, port):
    return [-1, *port.dims] if config.max_batch_size else list(port.dims)


def run(repository, name, inputs):
    """One model's answer, whose inputs and outputs are as its configuration says."""
    config = repository.config(name)
    for port in config.input:
        values = inputs[port.name]
        assert values.dtype == TYPES[DataType.Name(port.data_type)]
        assert fits(whole(config, port), values.shape)
    session = repository.session(name)
    outputs = session.run(None, {port.name: inputs[port.name] for port in config.input})
    found = {}
    for port, values in zip(config.output, outputs, strict=True):
        assert values.dtype == TYPES[DataType.Name(port.data_type)]
        inner = port.reshape.shape if port.HasField("reshape") else port.dims
        assert fits([-1, *inner] if config.max_batch_size else list(inner), values.shape)
        # Triton gives its clients the shape of `dims`.
        found[port.name] = values.reshape(-1, *port.dims) if config.max_batch_size else values
    return found


@each_case
def test_an_ensemble_answers_as_the_graphs_do(repositories, name):
    repository = repositories(name)
    ensemble = repository.config(name)
    image = np.random.default_rng(0).integers(0, 256, (45, 31, 3), dtype=np.uint8)
    tensors, said = {"image": image}, {}
    assert [(port.name, list(port.dims)) for port in ensemble.input] == [("image", [-1, -1, 3])]
    for step in ensemble.ensemble_scheduling.step:
        config = repository.config(step.model_name)
        assert step.model_version == -1
        for port in config.input:
            tensor = step.input_map[port.name]
            if tensor in said:
                assert said[tensor][0] == port.data_type
                assert agree(said[tensor][1], whole(config, port))
        given = {port.name: tensors[step.input_map[port.name]] for port in config.input}
        found = run(repository, step.model_name, given)
        for port in config.output:
            said[step.output_map[port.name]] = (port.data_type, whole(config, port))
            tensors[step.output_map[port.name]] = found[port.name]
    for port in ensemble.output:
        assert said[port.name][0] == port.data_type
        assert agree(said[port.name][1], port.dims)
        assert fits(port.dims, tensors[port.name].shape)
    # What the bundle answers, asked by hand.
    prepared = onnxruntime.InferenceSession(
        str(repository.bundle / "preprocess.onnx"), providers=CPU
    )
    inputs, outputs = repository.contract.ports()
    row = dict(zip(inputs, prepared.run(None, {"image": image}), strict=True))
    model = onnxruntime.InferenceSession(str(repository.bundle / "model.onnx"), providers=CPU)
    assert [port.name for port in ensemble.output] == list(outputs)
    for output, expected in zip(outputs, model.run(None, row), strict=True):
        np.testing.assert_array_equal(tensors[output].reshape(expected.shape), expected)


@each_case
def test_the_model_batches_and_nothing_else_does(repositories, name):
    repository = repositories(name)
    first, second, both = (
        repository.config(n) for n in (f"{name}_preprocess", f"{name}_model", name)
    )
    assert (first.max_batch_size, second.max_batch_size, both.max_batch_size) == (0, 6, 0)
    assert [c.name for c in (first, second, both)] == [f"{name}_preprocess", f"{name}_model", name]
    assert [c.backend or c.platform for c in (first, second, both)] == [
        *("onnxruntime", "onnxruntime", "ensemble"),
    ]
    assert list(second.dynamic_batching.preferred_batch_size) == [3, 6]
    assert second.dynamic_batching.max_queue_delay_microseconds == 2000
    assert not first.HasField("dynamic_batching")
    assert [group.kind for group in first.instance_group] == [ModelInstanceGroup.KIND_CPU]
    assert [group.kind for group in second.instance_group] == [ModelInstanceGroup.KIND_AUTO]
    assert first.parameters["intra_op_thread_count"].string_value == "1"
    assert not both.instance_group
    # Rows of several requests, joined.
    rows = repository.session(f"{name}_preprocess").run(
        None, {"image": np.zeros((9, 8, 3), np.uint8)}
    )
    inputs = dict(zip(repository.contract.ports()[0], rows, strict=True))
    joined = {port: np.concatenate([values] * 6) for port, values in inputs.items()}
    assert {len(values) for values in run(repository, f"{name}_model", joined).values()} == {6}


@each_case
def test_dims_and_types_are_those_of_the_graphs(repositories, name):
    repository = repositories(name)
    for part in (f"{name}_preprocess", f"{name}_model"):
        config, session = repository.config(part), repository.session(part)
        for ports, there in (
            (config.input, session.get_inputs()),
            (config.output, session.get_outputs()),
        ):
            assert [port.name for port in ports] == [port.name for port in there]
            for port, one in zip(ports, there, strict=True):
                shape = [side if isinstance(side, int) else -1 for side in one.shape]
                inner = port.reshape.shape if port.HasField("reshape") else port.dims
                assert list(inner) == (shape[1:] if config.max_batch_size else shape)
                kind = {"TYPE_UINT8": "uint8", "TYPE_INT64": "int64", "TYPE_FP32": "float"}
                assert one.type == f"tensor({kind[DataType.Name(port.data_type)]})"
                assert port.dims


def test_one_number_an_image_has_a_dimension(repositories):
    config = repositories("deepfake").config("deepfake_model")
    ports = {port.name: port for port in config.output}
    assert list(ports["logits"].dims) == [1]
    assert ports["logits"].HasField("reshape")
    assert not ports["heatmaps"].HasField("reshape")
    ensemble = {
        port.name: list(port.dims) for port in repositories("deepfake").config("deepfake").output
    }
    assert ensemble == {"logits": [1, 1], "heatmaps": [1, 2, 2], "distances": [1, 1]}


def test_labels_have_their_files(repositories):
    for name, files in {
        "animals": {"scores": "labels.txt"},
        "both": {"kind.scores": "kind_labels.txt", "parts.scores": "parts_labels.txt"},
        "deepfake": {},
    }.items():
        repository = repositories(name)
        for part in (f"{name}_model", name):
            output = repository.config(part).output
            assert {p.name: p.label_filename for p in output if p.label_filename} == files
            there = {path.name for path in (repository.folder / part).glob("*.txt")}
            assert there == set(files.values())
    text = (repositories("animals").folder / "animals" / "labels.txt").read_text(encoding="utf-8")
    assert text == "ant\nbee and wasp\nKäfer\n"


def test_what_is_left_to_the_client_of_a_deepfake_model(repositories, tmp_path, caplog):
    repository = repositories("deepfake")
    text = (repository.folder / "deepfake" / "config.pbtxt").read_text()
    assert text.startswith("# One crop a request")
    assert "Left to the client: finding the faces" in text
    with caplog.at_level(logging.WARNING):
        write_triton(repository.bundle, tmp_path, "other", task=DeepfakeTask)
    assert (
        "finding faces, the mean over frames and the verdict are left to the client" in caplog.text
    )
    whole_image = (repositories("animals").folder / "animals" / "config.pbtxt").read_text()
    assert whole_image.startswith("# One image a request")


def test_the_folder_holds_three_models_and_no_draft(repositories):
    repository = repositories("animals")
    names = {
        path.relative_to(repository.folder).as_posix() for path in repository.folder.rglob("*")
    }
    assert names == {
        *("animals", "animals/1", "animals/1/.keep", "animals/config.pbtxt", "animals/labels.txt"),
        *("animals_model", "animals_model/1", "animals_model/1/model.onnx"),
        *("animals_model/config.pbtxt", "animals_model/labels.txt"),
        *("animals_preprocess", "animals_preprocess/1", "animals_preprocess/1/model.onnx"),
        "animals_preprocess/config.pbtxt",
    }


@pytest.fixture
def precisions(repositories, tmp_path):
    """A bundle whose graph stands in for other precisions, of which one has its weights beside it."""
    source = repositories("animals")
    folder = tmp_path / "precise"
    folder.mkdir()
    for name in ("preprocess.onnx", "model.onnx"):
        (folder / name).write_bytes((source.bundle / name).read_bytes())
    (folder / "model.int8.onnx").write_bytes((source.bundle / "model.onnx").read_bytes())
    onnx.save(
        onnx.load(source.bundle / "model.onnx"),
        folder / "model.fp16.onnx",
        save_as_external_data=True,
        location="model.fp16.onnx.data",
        size_threshold=1024,
    )
    write_manifest(folder, source.contract)
    return folder


def test_weights_beside_a_graph_go_along(precisions, repositories, tmp_path):
    write_triton(precisions, tmp_path / "r", "half", precision="fp16")
    version = tmp_path / "r" / "half_model" / "1"
    assert {p.name for p in version.iterdir()} == {"model.onnx", "model.fp16.onnx.data"}
    repository = Repository(tmp_path / "r", precisions, repositories("animals").contract)
    pixels = np.zeros((2, 32, 32, 3), np.uint8)
    found = run(repository, "half_model", {"pixels": pixels})["scores"]
    expected = repositories("animals").session("animals_model").run(None, {"pixels": pixels})[0]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_tensorrt_needs_only_its_marks_removed(precisions, tmp_path):
    write_triton(precisions, tmp_path / "r", "half", precision="fp16")
    text = (tmp_path / "r" / "half_model" / "config.pbtxt").read_text()
    assert not text_format.Parse(text, ModelConfig()).HasField("optimization")
    comment, marked = text.split("remove the marks in front of these lines:\n")
    config = text_format.Parse(comment + "\n" + re.sub("(?m)^# ", "", marked), ModelConfig())
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "tensorrt"
    assert accelerator.parameters["precision_mode"] == "FP16"


def test_8_bits_are_for_the_cpu(precisions, tmp_path):
    write_triton(precisions, tmp_path / "r", "small", precision="int8", max_batch=1)
    text = (tmp_path / "r" / "small_model" / "config.pbtxt").read_text()
    config = text_format.Parse(text, ModelConfig())
    assert [group.kind for group in config.instance_group] == [ModelInstanceGroup.KIND_CPU]
    assert list(config.dynamic_batching.preferred_batch_size) == [1]
    assert "tensorrt" not in text


def test_what_cannot_be_written(repositories, tmp_path):
    bundle = repositories("animals").bundle
    with pytest.raises(TritonError, match=r"no graph of the precision 'fp16'. Choices: fp32. Exp"):
        write_triton(bundle, tmp_path / "r", "a", precision="fp16")
    with pytest.raises(TritonError, match=r"cannot be called .a/b. in Triton\. Give letters"):
        write_triton(bundle, tmp_path / "r", "a/b")
    with pytest.raises(TritonError, match=r"max_batch is 0. Give 1 or more images"):
        write_triton(bundle, tmp_path / "r", "a", max_batch=0)
    assert not (tmp_path / "r").exists()
    write_triton(bundle, tmp_path / "r", "a")
    with pytest.raises(TritonError, match="a_preprocess exists, and may be served"):
        write_triton(bundle, tmp_path / "r", "a")


def test_a_damaged_bundle_is_not_shipped(precisions, tmp_path):
    damaged = precisions / "model.onnx"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"model\.onnx"):
        write_triton(precisions, tmp_path / "r", "a")
    assert not (tmp_path / "r").exists()
