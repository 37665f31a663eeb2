import json

import numpy as np
import pytest
from vfm_runtime.server.errors import ApiError
from vfm_runtime.server.tensors import TensorMetadata, read_question, write_outputs

from tests.runtime import toy
from tests.runtime.server import toy_finder

SHAPE = [1, toy.SIDE, toy.SIDE, 3]
COUNT = toy.SIDE * toy.SIDE * 3
PIXELS = np.random.default_rng(5).integers(0, 256, (2, toy.SIDE, toy.SIDE, 3), np.uint8)
LENGTH = "Inference-Header-Content-Length"
PORT = "'pixels', UINT8 of shape [N, 16, 16, 3]"


def entry(**changes):
    made = {"name": "pixels", "shape": SHAPE, "datatype": "UINT8", "data": [0] * COUNT, **changes}
    return {name: value for name, value in made.items() if value is not None}


def ask(client, body, headers=None, model="toy"):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client.post(f"/v2/models/{model}/infer", content=content, headers=headers)


def binary(request, tail):
    head = json.dumps(request).encode()
    return head + tail, {LENGTH: str(len(head))}


def binary_entry(rows=2, size=None):
    size = rows * COUNT if size is None else size
    parameters = {"binary_data_size": size}
    return entry(shape=[rows, *SHAPE[1:]], data=None, parameters=parameters)


def test_server(client):
    answer = client.get("/v2").json()
    assert answer["name"] == "vfm-runtime"
    assert answer["extensions"] == ["binary_tensor_data"]


def test_health(client):
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.head("/v2/health/ready").status_code == 200


def test_models(client):
    listed = {entry["name"]: entry for entry in client.get("/v2/models").json()["models"]}
    assert set(listed) == {"toy", "fake", "finder", "several"}
    assert listed["toy"] == {
        "name": "toy",
        "versions": ["1"],
        "default": "1",
        "task": "classification",
        "labels": list(toy.LABELS),
        "thresholds": None,
        "heads": {},
        "draws": False,
        "learns": False,
        "learns_boxes": False,
        "groups": None,
        "precision": "fp32",
        "device": "cpu",
        "ready": True,
    }
    assert set(listed["several"]["heads"]) == set(listed["several"]["labels"])
    assert set(next(iter(listed["several"]["heads"].values()))) == {"task", "labels", "thresholds"}


@pytest.mark.parametrize("path", ["/v2/models/toy", "/v2/models/toy/versions/1"])
def test_metadata(client, path):
    assert client.get(path).json() == {
        "name": "toy",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [-1, 16, 16, 3]}],
        "outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1, 3]}],
    }
    ready = client.get(f"{path}/ready").json()
    assert ready == {"name": "toy", "version": "1", "ready": True}


def test_metadata_of_several_heads(client):
    outputs = client.get("/v2/models/several").json()["outputs"]
    names = ["scene.scores", "things.boxes", "things.labels", "things.scores"]
    assert [port["name"] for port in outputs] == names


def finder_inputs(pixel_rows=1, geometry=(0, 0, 100, 50, 100, 50)):
    pixels = entry(shape=[pixel_rows, *SHAPE[1:]], data=[0] * (COUNT * pixel_rows))
    return [
        {"name": "geometry", "shape": [1, 6], "datatype": "FP32", "data": list(geometry)},
        pixels,
    ]


def test_a_detector_takes_geometry_too(client, refused):
    """In any order, and whole numbers for real ones."""
    answer = ask(client, {"inputs": finder_inputs()}, model="finder")
    boxes, labels, scores = answer.json()["outputs"]
    assert (boxes["name"], boxes["datatype"], boxes["shape"]) == ("boxes", "FP32", [1, 3, 4])
    assert boxes["data"][:4] == pytest.approx([10, 10, 50, 30])
    assert (labels["datatype"], labels["data"]) == ("INT64", list(toy_finder.CLASSES))
    assert scores["data"] == pytest.approx(toy_finder.SCORES)
    both = f"The model takes: {PORT}; 'geometry', FP32 of shape [N, 6]."
    text = refused(ask(client, {"inputs": [entry()]}, model="finder"), 400, "bad_request")
    assert text == f"The inputs are ['pixels']. {both}"
    text = refused(ask(client, {"inputs": finder_inputs(2)}, model="finder"), 400, "bad_request")
    assert text.startswith("The inputs have different numbers of rows: 'geometry' [1, 6], 'pixels'")


@pytest.mark.parametrize("value", [1e39, 10**400, "1", None])
def test_geometry_that_is_no_number(client, refused, value):
    given = finder_inputs(geometry=(value, 0.5, 1, 1, 1, 1))
    text = refused(ask(client, {"inputs": given}, model="finder"), 400, "bad_request")
    assert text.startswith("Input 'geometry' has ")


def test_outputs_that_json_cannot_hold():
    outputs = {"scores": np.array([[np.nan]], "float32")}
    specs = [TensorMetadata(name="scores", datatype="FP32", shape=[-1, 1])]
    with pytest.raises(ApiError, match="Output 'scores' has values that are not finite"):
        write_outputs(outputs, {"scores": False}, specs)
    _, tail = write_outputs(outputs, {"scores": True}, specs)
    assert tail == [outputs["scores"].tobytes()]


def test_unknown_model_and_version(client, refused):
    for path in ("/v2/models/dog", "/v2/models/dog/ready"):
        text = refused(client.get(path), 404, "unknown_model")
        assert text.startswith("There is no model 'dog'. Models: toy, fake, finder, several.")
    text = refused(ask(client, b"", model="dog"), 404, "unknown_model")
    assert "There is no model 'dog'" in text
    text = refused(client.get("/v2/models/toy/versions/7"), 404, "unknown_model")
    assert text == "The model 'toy' has no version '7'. Versions: 1."


@pytest.mark.parametrize("nested", [False, True])
def test_infer_in_json(client, nested):
    data = PIXELS.tolist() if nested else PIXELS.ravel().tolist()
    answer = ask(client, {"id": "a 1", "inputs": [entry(shape=[2, *SHAPE[1:]], data=data)]})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["model_name"], body["model_version"], body["id"]) == ("toy", "1", "a 1")
    (output,) = body["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("scores", "FP32", [2, 3])
    expected = toy.expected_scores(PIXELS)
    np.testing.assert_allclose(np.reshape(output["data"], (2, 3)), expected, atol=1e-5)


def test_infer_in_bytes(client):
    outputs = [{"name": "scores", "parameters": {"binary_data": True}}]
    request = {"inputs": [binary_entry()], "outputs": outputs}
    answer = ask(client, *binary(request, PIXELS.tobytes()))
    assert answer.status_code == 200, answer.text
    length = int(answer.headers[LENGTH])
    body = json.loads(answer.content[:length])
    assert "id" not in body
    assert body["outputs"][0]["parameters"] == {"binary_data_size": 24}
    scores = np.frombuffer(answer.content[length:], "<f4").reshape(2, 3)
    np.testing.assert_allclose(scores, toy.expected_scores(PIXELS), atol=1e-5)


def test_all_outputs_in_bytes_and_one_in_json(client):
    request = {"inputs": [binary_entry(1)], "parameters": {"binary_data_output": True}}
    answer = ask(client, *binary(request, PIXELS[:1].tobytes()), model="fake")
    length = int(answer.headers[LENGTH])
    outputs = json.loads(answer.content[:length])["outputs"]
    assert [output["name"] for output in outputs] == ["logits", "heatmaps", "distances"]
    sizes = [output["parameters"]["binary_data_size"] for output in outputs]
    assert sizes == [4, 64, 4]
    assert len(answer.content) == length + sum(sizes)
    request["outputs"] = [
        {"name": "distances", "parameters": {"binary_data": False}},
        {"name": "logits"},
    ]
    answer = ask(client, *binary(request, PIXELS[:1].tobytes()), model="fake")
    length = int(answer.headers[LENGTH])
    first, second = json.loads(answer.content[:length])["outputs"]
    assert "data" in first
    assert "data" not in second


def test_more_rows_than_a_batch(client):
    pixels = np.repeat(PIXELS[:1], 100, axis=0)
    request = {"inputs": [binary_entry(100)]}
    answer = ask(client, *binary(request, pixels.tobytes()))
    assert answer.json()["outputs"][0]["shape"] == [100, 3]


def test_a_version_in_the_path(client):
    content = json.dumps({"inputs": [entry()]}).encode()
    answer = client.post("/v2/models/toy/versions/1/infer", content=content)
    assert answer.json()["model_version"] == "1"


BAD_INPUTS = [
    (entry(name="image"), f"The inputs are ['image']. The model takes: {PORT}."),
    (entry(name=["pixels"]), "'inputs.0.name' is ['pixels']: Input should be a valid string"),
    (entry(datatype="FP32"), f"Input 'pixels' has the datatype 'FP32'. Expected: {PORT}."),
    (entry(datatype=None), "Field required. GET /openapi.json describes requests."),
    (entry(shape=[1, 16, 16]), f"Input 'pixels' has the shape [1, 16, 16]. Expected: {PORT}"),
    (entry(shape=[0, 16, 16, 3]), "'inputs.0.shape.0' is 0: Input should be greater than or equal"),
    (entry(shape=[True, 16, 16, 3]), "'inputs.0.shape.0' is True: Input should be a valid integer"),
    (entry(shape="1"), "'inputs.0.shape' is '1': Input should be a valid list"),
    (
        entry(shape=[2, 16, 16, 3]),
        "its shape is [2, 16, 16, 3], so give that, or a flat list of 1536",
    ),
    (entry(data=[0] * (COUNT - 1)), "Input 'pixels' has data of shape [767]"),
    (entry(data=None), "Input 'pixels' has data None; expected a list of numbers"),
    (entry(data="AAAA"), "'inputs.0.data' is 'AAAA': Input should be a valid list"),
    (entry(data=[[0] * COUNT, [0]]), "Input 'pixels' has lists of different lengths"),
    (entry(data=[256] + [0] * (COUNT - 1)), "values from 0 to 256; UINT8 goes from 0 to 255"),
    (entry(data=[-1] + [0] * (COUNT - 1)), "values from -1 to 0"),
    (entry(data=[10**400] + [0] * (COUNT - 1)), "Input 'pixels' has values from 0 to 1000"),
    (entry(data=[0.5] + [0] * (COUNT - 1)), "Input 'pixels' has data other than whole numbers."),
    (entry(data=[True] + [0] * (COUNT - 1)), "Input 'pixels' has data other than whole numbers."),
    (entry(data=["x" * 10**6] + [0] * 10**6), "Input 'pixels' has data other than whole numbers."),
    (entry(data=[[0], 0]), "Input 'pixels' has data other than whole numbers."),
    (entry(shared=1), "'inputs.0.shared' is 1: Extra inputs are not permitted."),
    (entry(parameters={"binary_data_size": 768}), "has both data and binary_data_size"),
    (
        entry(parameters={"shared_memory_region": "a"}),
        "Value error, ['shared_memory_region'] is not offered.",
    ),
    (entry(parameters=[]), "'inputs.0.parameters' is []: Input should be a valid dictionary"),
]


@pytest.mark.parametrize(("given", "text"), BAD_INPUTS, ids=[text for _, text in BAD_INPUTS])
def test_bad_input(client, refused, given, text):
    assert text in refused(ask(client, {"inputs": [given]}), 400, "bad_request")


BAD_REQUESTS = [
    (b"{", "The body is not valid JSON"),
    (b"\xff", "The body is not valid JSON"),
    (b'{"a":' * 100_000, "The body is not valid JSON (nested too deeply)"),
    (b'{"inputs": [{"name": 1, "name": 1}]}', "holds the same key twice"),
    (b'{"inputs": [{"data": NaN}]}', "NaN is not JSON"),
    ({}, "'inputs' is {}: Field required."),
    ({"inputs": {}}, "'inputs' is {}: Input should be a valid list"),
    ({"inputs": []}, f"The inputs are []. The model takes: {PORT}."),
    ({"inputs": [entry(), entry()]}, "The inputs are ['pixels', 'pixels']."),
    ({"inputs": [entry()], "id": 1}, "'id' is 1: Input should be a valid string"),
    (
        {"inputs": [entry()], "input": 1},
        "'input' is 1: Extra inputs are not permitted. GET /openapi.json",
    ),
    ({"inputs": [entry()], "outputs": [{"name": "x"}]}, "The output 'x' is unknown or asked for"),
    ({"inputs": [entry()], "outputs": [{}]}, "'outputs.0.name' is {}: Field required."),
    ({"inputs": [entry()], "outputs": 1}, "'outputs' is 1: Input should be a valid list"),
    (
        {"inputs": [entry()], "outputs": [{"name": "scores"}, {"name": "scores"}]},
        "The output 'scores' is unknown or asked for twice. Outputs: scores.",
    ),
    (
        {
            "inputs": [entry()],
            "outputs": [{"name": "scores", "parameters": {"classification": 3}}],
        },
        "Value error, ['classification'] is not offered.",
    ),
    (
        {"inputs": [entry()], "parameters": {"binary_data_output": 1}},
        "'parameters.binary_data_output' is 1: Input should be a valid boolean.",
    ),
    (
        {"inputs": [entry()], "parameters": {"group": "a"}},
        "tensors come without rules, so a group changes nothing here: leave it out, or POST",
    ),
]


def test_a_group_in_the_address_is_refused(client, refused):
    answer = client.post("/v2/models/toy/infer?group=a", json={"inputs": [entry()]})
    text = refused(answer, 422, "invalid")
    assert text.startswith("The address has a group, but tensors come without rules")


@pytest.mark.parametrize(("given", "text"), BAD_REQUESTS, ids=[text for _, text in BAD_REQUESTS])
def test_bad_request(client, refused, given, text):
    assert text in refused(ask(client, given), 400, "bad_request")


def test_a_body_that_is_no_object(client, refused):
    text = refused(ask(client, b"[]"), 422, "invalid")
    assert text == "The body is a JSON list, not an object."


def test_bad_bytes(client, refused):
    def text_of(request, tail, headers=None):
        body, made = binary(request, tail)
        return refused(ask(client, body, headers or made), 400, "bad_request")

    good = {"inputs": [binary_entry(1)]}
    assert "needs 768 bytes behind the JSON, and 767 are left" in text_of(good, bytes(767))
    assert "769 bytes follow the JSON" in text_of(good, bytes(769))
    wrong = {"inputs": [binary_entry(1, size=767)]}
    text = text_of(wrong, bytes(767))
    assert "binary_data_size 767; its shape [1, 16, 16, 3] takes 768 bytes" in text
    text = text_of({"inputs": [binary_entry(1, size="768")]}, bytes(768))
    assert "binary_data_size' is '768': Input should be a valid integer" in text
    text = text_of(good, bytes(768), {LENGTH: "999999"})
    assert text.startswith("Inference-Header-Content-Length is 999999, but the body has ")
    for length in ("-1", "x", "1e3", "9" * 30):
        text = text_of(good, bytes(768), {LENGTH: length})
        assert text.startswith(f"Inference-Header-Content-Length is '{length}'. Give the bytes")


MANY = {str(index): 0 for index in range(1000)}


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"inputs": [1] * 1000}, "'inputs.0' is 1"),
        ({"inputs": [entry()] * 65}, "List should have at most 64 items"),
        ({"inputs": [entry(shape=[0] * 1000)]}, "'inputs.0.shape.0' is 0"),
        (MANY, "'request' is .*1000 keys are more than 64"),
        ({"inputs": [MANY]}, "'inputs.0' is .*1000 keys are more than 64"),
        ({"inputs": [], "parameters": MANY}, "'parameters' is .*1000 keys are more than 64"),
        ({"inputs": [], "outputs": [{}] * 1000}, "'outputs.0.name'"),
        ({"inputs": [entry(shape=[10**4000, 8, 8, 3])]}, "'inputs.0.shape.0' is 1000"),
        ({"inputs": [], "k" * 1000: 1}, f"'{'k' * 80}' is 1: Extra inputs"),
    ],
)
def test_only_the_first_of_many_faults_is_described(given, text):
    with pytest.raises(ApiError, match=text) as caught:
        read_question(json.dumps(given).encode(), memoryview(b""), [], [])
    assert caught.value.__cause__.error_count() == 1
    assert len(caught.value.detail) < 400


def test_null_asks_for_all_outputs():
    question = read_question(b'{"inputs": [], "outputs": null}', memoryview(b""), [], [])
    assert question.outputs == {}
