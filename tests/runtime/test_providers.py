import ctypes
import importlib
import importlib.metadata
import logging
import types

import pytest
from vfm_runtime import load
from vfm_runtime.bundle import providers
from vfm_runtime.bundle.providers import choose_device, has_cuda_device
from vfm_runtime.errors import ProviderError
from vfm_runtime.ort import import_onnxruntime

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"

no_gpu = pytest.mark.skipif(has_cuda_device(), reason="this machine has an NVIDIA GPU")


@pytest.fixture
def installed(monkeypatch):
    """Set which distributions importlib.metadata finds."""

    def set_names(*names):
        def distribution(name):
            if name not in names:
                raise importlib.metadata.PackageNotFoundError(name)

        monkeypatch.setattr(importlib.metadata, "distribution", distribution)

    return set_names


def pretend_driver(monkeypatch, *, init=0, count=1, missing=False):
    def set_count(pointer):
        pointer._obj.value = count
        return 0

    def open_library(name):
        if missing:
            raise OSError(name)
        return types.SimpleNamespace(cuInit=lambda flags: init, cuDeviceGetCount=set_count)

    monkeypatch.setattr(ctypes, "CDLL", open_library)


@pytest.mark.parametrize(
    ("driver", "expected"),
    [({}, True), ({"missing": True}, False), ({"init": 100}, False), ({"count": 0}, False)],
)
def test_driver_probe(monkeypatch, driver, expected):
    pretend_driver(monkeypatch, **driver)
    assert has_cuda_device() is expected


def test_both_distributions_are_refused(installed):
    installed("onnxruntime", "onnxruntime-gpu")
    with pytest.raises(ProviderError, match="overwrite each other's files") as caught:
        import_onnxruntime()
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in str(caught.value)


@pytest.mark.parametrize("name", ["onnxruntime", "onnxruntime-gpu"])
def test_either_distribution_is_taken(installed, name):
    installed(name)
    assert import_onnxruntime().InferenceSession


@pytest.mark.parametrize(
    ("names", "cause"), [((), "is not installed"), (("onnxruntime",), "cannot be imported")]
)
def test_missing_runtime_says_what_to_install(installed, monkeypatch, names, cause):
    def fail(name):
        raise ImportError(f"No module named '{name}'")

    installed(*names)
    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(ProviderError, match=f"ONNX Runtime {cause}") as caught:
        import_onnxruntime()
    assert "pip install 'vfm-runtime[cpu]'" in str(caught.value)
    assert "pip install 'vfm-runtime[gpu]'" in str(caught.value)


@pytest.fixture
def with_providers(monkeypatch):
    """Pretend that ONNX Runtime was built with these."""

    def set_providers(*names):
        fake = types.SimpleNamespace(__version__="9.9", get_available_providers=lambda: list(names))
        monkeypatch.setattr(providers, "import_onnxruntime", lambda: fake)

    return set_providers


def test_choose_cuda_where_it_may_load(monkeypatch, with_providers):
    pretend_driver(monkeypatch)
    with_providers(CUDA, CPU)
    assert [choose_device("auto"), choose_device("cuda"), choose_device("cpu")] == [
        "cuda",
        "cuda",
        "cpu",
    ]


def test_no_driver(monkeypatch, with_providers, caplog):
    pretend_driver(monkeypatch, missing=True)
    with_providers(CUDA, CPU)
    caplog.set_level(logging.INFO)
    assert choose_device("auto") == "cpu"
    assert "Running on the CPU: there is no NVIDIA driver" in caplog.text
    with pytest.raises(ProviderError, match=r"no NVIDIA driver .* Or use device='cpu'"):
        choose_device("cuda")


def test_build_without_cuda(monkeypatch, with_providers):
    pretend_driver(monkeypatch)
    with_providers(CPU)
    assert choose_device("auto") == "cpu"
    with pytest.raises(ProviderError, match=r"\(9.9\) is built without CUDA. Run: pip uninstall"):
        choose_device("cuda")


@no_gpu
def test_cuda_that_does_not_load_is_not_hidden(monkeypatch, bundle, caplog, capsys):
    # The driver is pretended: ONNX Runtime itself then falls back to the CPU without raising.
    monkeypatch.setattr(providers, "has_cuda_device", lambda: True)
    if CUDA not in import_onnxruntime().get_available_providers():
        pytest.skip("onnxruntime-gpu is not installed")
    with pytest.raises(ProviderError, match=r"CUDA did not load: .*pip install 'onnxruntime-gpu"):
        load(bundle, device="cuda")
    assert load(bundle, device="auto").device == "cpu"
    assert "Running on the CPU: this machine has a GPU, but CUDA did not load" in caplog.text
    assert capsys.readouterr().out == ""


@no_gpu
def test_auto_is_quiet_without_a_gpu(bundle, capfd):
    model = load(bundle)
    model.predict([b""], errors="return")
    assert model.device == "cpu"
    assert capfd.readouterr() == ("", "")


@pytest.mark.gpu
def test_cuda_gives_the_answers_of_the_cpu(bundle, model):
    from tests.runtime import toy

    on_gpu = load(bundle, device="cuda")
    assert on_gpu.device == "cuda"
    photos = toy.photos()
    for one, other in zip(on_gpu.predict(photos), model.predict(photos), strict=True):
        assert abs(one.scores - other.scores).max() < 1e-4


def test_no_tensorrt(monkeypatch, with_providers):
    pretend_driver(monkeypatch)
    with_providers(CUDA, CPU)
    with pytest.raises(ProviderError, match=r"TensorRT was asked for, but .* without TensorRT"):
        choose_device("tensorrt")
    with_providers("TensorrtExecutionProvider", CUDA, CPU)
    assert choose_device("tensorrt") == "tensorrt"


@no_gpu
def test_tensorrt_that_does_not_load_is_not_hidden(monkeypatch, bundle):
    monkeypatch.setattr(providers, "has_cuda_device", lambda: True)
    if "TensorrtExecutionProvider" not in import_onnxruntime().get_available_providers():
        pytest.skip("onnxruntime-gpu is not installed")
    with pytest.raises(
        ProviderError, match=r"TensorRT was asked for; .* needs its CUDA, cuDNN and"
    ):
        load(bundle, device="tensorrt")


def test_engines_of_tensorrt_are_kept_by_the_weights(tmp_path):
    def find_cache(folder, weights, large=None):
        path = tmp_path / folder / "model.onnx"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(weights)
        if large is not None:
            path.with_name("model.onnx.data").write_bytes(large)
        settings = providers._get_settings("TensorrtExecutionProvider", "fp32", path)
        return settings["trt_engine_cache_path"]

    caches = [
        find_cache("a", b"one"),
        find_cache("b", b"two"),
        find_cache("c", b"one", b"more"),
        find_cache("d", b"one", b"others"),
    ]
    assert len(set(caches)) == 4
    assert find_cache("e", b"one") == caches[0]
