"""Damaged files of every kind: each gives what it holds, or the error that says what is wrong with it."""

import copy
import faulthandler
import io
import json
import shutil
import time
from functools import partial

import numpy as np
import pytest
import vfm_runtime
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image
from skimage import data
from starlette.testclient import TestClient
from vfm_runtime.bundle.contract import Contract, parse_json
from vfm_runtime.bundle.golden import replay
from vfm_runtime.drift.monitor import DriftMonitor
from vfm_runtime.drift.reference import DriftReference
from vfm_runtime.errors import BundleError, ContractError, ProviderError
from vfm_runtime.media.image import ImageError, open_image
from vfm_runtime.media.video import VideoError, VideoLimits, read_video
from vfm_runtime.server.app import create_app
from vfm_runtime.server.errors import ApiError
from vfm_runtime.server.settings import Settings
from vfm_runtime.server.uploads import check_pixels, open_picture

from tests.runtime import toy, toy_deepfake, videos
from tests.runtime.server import toy_finder
from tests.runtime.server.test_uploads import unpack

pytestmark = pytest.mark.slow

LONGEST_S = 120.0
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")
CONTAINERS = {"mp4": "libx264", "matroska": "libx264", "avi": "mpeg4", "mpegts": "mpeg2video"}
RULES = {"temperature": 1.5, "thresholds": [0.1, 0.2, 0.3], "max_distance": 2.0, "reference": True}
REFERENCE = {
    "num_images": 100,
    "histograms": {"score": {"edges": [0.4, 0.6], "shares": [0.25, 0.25, 0.5]}},
    "labels": {"labels": [0.5, 0.25, 0.25]},
}
# Numbers at which headers go wrong, and what Python, floats or arrays cannot hold.
SIZES = (0, 1, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1)
HUGE = (2**31, 2**63, 10**400, -(10**400), 1e308, -1.0)


def outcome(errors, function, *args):
    """What a function gives, or the error that it may raise; any other fails the test."""
    try:
        return function(*args)
    except errors as error:
        assert str(error)  # noqa: PT017
        return error


def few(number):
    """The settings of a test of so many examples, the same ones every time."""
    return settings(
        max_examples=number,
        derandomize=True,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(autouse=True)
def _no_hang():
    """Ends the whole run where C code does not return."""
    faulthandler.dump_traceback_later(300, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@st.composite
def damaged(draw, wholes):
    """One of several files, changed in a few places: often near its start, where headers are."""
    content = bytearray(draw(st.sampled_from(wholes)))
    for _ in range(draw(st.integers(1, 5))):
        near = draw(st.sampled_from((64, 512, len(content))))
        at = draw(st.integers(0, max(0, min(near, len(content)) - 1)))
        length = draw(st.integers(1, 64))
        match draw(st.sampled_from(("byte", "number", "cut", "drop", "repeat", "noise"))):
            case "byte":
                content[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case "number":
                order = draw(st.sampled_from(("big", "little")))
                content[at : at + 4] = draw(st.sampled_from(SIZES)).to_bytes(4, order)
            case "cut":
                del content[at + 1 :]
            case "drop":
                del content[at : at + length]
            case "repeat":
                content[at:at] = content[at : at + length] * draw(st.integers(1, 50))
            case "noise":
                content[at : at + length] = draw(st.binary(max_size=64))
    return bytes(content)


def values(max_leaves=6):
    """Whatever JSON can hold, and numbers beyond what a float can."""
    leaves = (
        st.none()
        | st.booleans()
        | st.integers(-3, 300)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.sampled_from(HUGE)
        | st.text(max_size=5)
    )
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
        max_leaves=max_leaves,
    )


def places(value, path=()):
    """The paths of all values within a value."""
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


@st.composite
def changed(draw, wholes):
    """A JSON value, changed in a few places: replaced, deleted, retyped, renamed, nested."""
    holder = [copy.deepcopy(draw(st.sampled_from(wholes)))]
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from([path for path in places(holder) if path]))
        inside = holder
        for key in path[:-1]:
            inside = inside[key]
        old = inside[path[-1]]
        match draw(st.sampled_from(("replace", "delete", "retype", "rename", "nest", "twice"))):
            case "delete" if len(path) > 1:
                del inside[path[-1]]
            case "rename" if isinstance(inside, dict):
                inside[draw(st.text(max_size=5))] = inside.pop(path[-1])
            case "retype":
                inside[path[-1]] = draw(st.sampled_from((str(old), [old], {"a": old}, bool(old))))
            case "nest":
                for _ in range(draw(st.sampled_from((1, 20, 200)))):
                    old = [old]
                inside[path[-1]] = old
            case "twice" if isinstance(old, list):
                inside[path[-1]] = old + old
            case _:
                inside[path[-1]] = draw(values())
    return holder[0]


def encoded(form, **options):
    file = io.BytesIO()
    Image.fromarray(data.astronaut()[40:72, 180:228]).save(file, form, **options)
    return file.getvalue()


WHOLE = [encoded(form) for form in FORMATS] + [
    encoded("JPEG", progressive=True, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0"),
    encoded("TIFF", compression="tiff_lzw"),
    encoded("WEBP", lossless=True),
    encoded("PNG", pnginfo=None, icc_profile=b"x" * 200),
]


@pytest.mark.filterwarnings("ignore")
@few(1500)
@given(damaged(WHOLE) | st.binary(max_size=300))
def test_images(content):
    start = time.monotonic()
    found = outcome(ApiError, check_pixels, content, 4_000_000)
    if not isinstance(found, ApiError):
        found = outcome(ImageError, open_picture, content)
    if isinstance(found, ApiError):
        assert found.status_code in (400, 413)
    elif not isinstance(found, ImageError):
        assert found.dtype == np.uint8
        assert found.shape[2:] == (3,)
    assert time.monotonic() - start < LONGEST_S


@pytest.mark.filterwarnings("ignore")
@few(200)
@given(damaged(WHOLE) | st.binary(max_size=300))
def test_images_without_the_limit_of_a_server(content):
    found = outcome(ImageError, open_image, content)
    assert isinstance(found, ImageError) or found.size


@pytest.fixture(scope="module")
def clips():
    pictures = videos.PICTURES[:12]
    forms = [videos.write(pictures, form, codec) for form, codec in CONTAINERS.items()]
    return [*forms, videos.write(pictures, rotation=90, sound=True)]


def test_videos(clips):
    limits = VideoLimits(max_seconds=60, max_pixels=10**6, decode_seconds=10)

    @few(500)
    @given(damaged(clips))
    def check(content):
        start = time.monotonic()
        clip = outcome(VideoError, read_video, content, 4, limits)
        if not isinstance(clip, VideoError):
            assert 1 <= len(clip.frames) <= 4
            assert clip.duration <= 60
        assert time.monotonic() - start < LONGEST_S

    check()


CONTRACTS = [
    toy.CONTRACT,
    {**toy.CONTRACT, "rules": RULES},
    toy_deepfake.contract(),
    toy_finder.contract(heads=True),
]


@few(500)
@given(changed(CONTRACTS))
def test_contracts(given_values):
    contract = outcome(ContractError, Contract.from_dict, given_values)
    if isinstance(contract, Contract):
        assert Contract.from_json(contract.to_json()) == contract
        assert contract.ports()


@few(300)
@given(changed(CONTRACTS).map(json.dumps).map(str.encode).flatmap(lambda text: damaged([text])))
def test_texts_of_contracts(content):
    contract = outcome(ContractError, Contract.from_json, content.decode("utf-8", "replace"))
    if isinstance(contract, Contract):
        assert Contract.from_json(contract.to_json()) == contract


@pytest.mark.parametrize("key", ["preprocess", "rules", "labels", "versions", "heads", "task"])
def test_contracts_that_are_nested_deeply(key):
    """Up to and beyond what Python's own parser takes, which is more than its writer does."""
    for depth in range(2, 1010, 4):
        deep = "[" * depth + "]" * depth
        task = "several" if key == "heads" else "classification"
        text = json.dumps({**toy.CONTRACT, "task": task, key: "HERE"})
        deep = f'{{"size": [16, 16], "deep": {deep}}}' if key == "preprocess" else deep
        contract = outcome(ContractError, Contract.from_json, text.replace('"HERE"', deep))
        assert isinstance(contract, ContractError) or contract.to_json()


def test_manifests(own_bundle):
    path = own_bundle / "vfm.json"
    whole = json.loads(path.read_text())

    @few(150)
    @given(changed([whole]))
    def check(manifest):
        path.write_text(json.dumps(manifest))
        errors = (BundleError, ContractError, ProviderError)
        model = outcome(errors, partial(vfm_runtime.load, device="cpu", num_threads=1), own_bundle)
        assert isinstance(model, errors) or model.predict(toy.photos()[0]).label

    check()


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize("kind", ["toy", "deepfake"])
def test_golden_answers(kind, bundle, tmp_path):
    folder = tmp_path / "golden bundle"
    if kind == "toy":
        shutil.copytree(bundle, folder)
    else:
        toy_deepfake.build(folder)
    model = vfm_runtime.load(folder, device="cpu", num_threads=1)
    path = folder / "golden" / "golden.json"
    whole = json.loads(path.read_text())

    @few(300)
    @given(changed([whole]))
    def check(golden):
        path.write_text(json.dumps(golden))
        results = outcome((BundleError, ImageError), replay, model)
        assert isinstance(results, Exception) or all(str(result) for result in results)

    check()


def test_references(tmp_path):
    path = tmp_path / "reference.json"
    outputs = {"scores": np.random.default_rng(0).random((120, 3), np.float32)}

    @few(300)
    @given(changed([REFERENCE]))
    def check(reference):
        path.write_text(json.dumps(reference))
        report = outcome(ValueError, watched)
        if not isinstance(report, ValueError):
            assert np.isfinite([figure.psi for figure in report.figures]).all()

    def watched():
        monitor = DriftMonitor(DriftReference.load(tmp_path), window=50)
        monitor.add(outputs)
        return monitor.report()

    check()


FORM = (
    b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n'
    b"Content-Type: image/png\r\n\r\nabc\r\n--x--\r\n"
)
TYPE = b"multipart/form-data; boundary=x; charset=utf-8"


@few(300)
@given(damaged([FORM]), damaged([TYPE]) | st.just(TYPE))
def test_forms(body, kind):
    found = outcome(ApiError, lambda: unpack(body, kind.decode("latin-1")))
    assert 400 <= found.status_code < 500 if isinstance(found, ApiError) else found.data


def infer_requests():
    pixels = np.random.default_rng(5).integers(0, 256, (2, toy.SIDE, toy.SIDE, 3), np.uint8)
    entry = {"name": "pixels", "shape": list(pixels.shape), "datatype": "UINT8"}
    plain = {"id": "a", "inputs": [{**entry, "data": pixels.tolist()}]}
    sized = {**entry, "parameters": {"binary_data_size": pixels.nbytes}}
    outputs = [{"name": "scores", "parameters": {"binary_data": True}}]
    return [(plain, b""), ({"inputs": [sized], "outputs": outputs}, pixels.tobytes())]


@pytest.fixture(scope="module")
def infer_client(bundle):
    made = Settings(bundles=(str(bundle),), device="cpu", num_threads=1, reload_every=0)
    with TestClient(
        create_app(made), base_url="http://127.0.0.1", raise_server_exceptions=False
    ) as client:
        yield client


@pytest.mark.parametrize("number", [0, 1], ids=["json", "binary"])
def test_tensors(infer_client, number):
    whole, tail = infer_requests()[number]

    @few(150)
    @given(changed([whole]), st.sampled_from((0, 0, 0, -1, 1, 100)), st.integers(-2, 2))
    def check(request, off, more):
        head = json.dumps(request).encode()
        body = head + (tail + bytes(2))[: len(tail) + min(more, 0)] + bytes(max(more, 0))
        headers = {"Inference-Header-Content-Length": str(len(head) + off)} if number else {}
        answer = infer_client.post("/v2/models/bundle/infer", content=body, headers=headers)
        if answer.status_code != 200:
            assert 400 <= answer.status_code < 500, answer.text
            assert answer.json()["error"]
            return
        given_pixels = parse_json(head)["inputs"][0].get("data")
        pixels = np.frombuffer(tail, np.uint8) if number else np.array(given_pixels)
        expected = toy.expected_scores(pixels.reshape(-1, toy.SIDE, toy.SIDE, 3))
        np.testing.assert_allclose(scores_of(answer), expected, atol=1e-5)

    check()


def scores_of(answer):
    length = answer.headers.get("Inference-Header-Content-Length")
    if length is None:
        return np.reshape(answer.json()["outputs"][0]["data"], (-1, 3))
    return np.frombuffer(answer.content[int(length) :], "<f4").reshape(-1, 3)
