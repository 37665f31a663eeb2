"""OpenVINO by a plugin that is pretended: what is asked of it, and what is said where it cannot be had."""

import importlib
import json
import types

import pytest
from vfm_runtime import load
from vfm_runtime.bundle import openvino, providers
from vfm_runtime.bundle.precision import choose_precision
from vfm_runtime.bundle.providers import choose_device, open_session
from vfm_runtime.errors import ProviderError

CPU = "OrtHardwareDeviceType.CPU"


class Runtime:
    """As much of ONNX Runtime as a plugin needs."""

    __version__ = "9.9"
    OrtHardwareDeviceType = types.SimpleNamespace(CPU=CPU)

    def __init__(self, *, devices=(CPU,), loads=True, where=openvino.NAME):
        self.devices, self.loads, self.where = devices, loads, where
        self.registered = []
        self.asked = []

    def register_execution_provider_library(self, name, path):
        if not self.loads:
            raise RuntimeError("undefined symbol: x\nmore")
        self.registered.append(path)

    def get_ep_devices(self):
        device = types.SimpleNamespace
        own = [device(ep_name=openvino.NAME, device=device(type=kind)) for kind in self.devices]
        return [device(ep_name="CPUExecutionProvider", device=device(type=CPU)), *own]

    def get_available_providers(self):
        return ["CPUExecutionProvider"]

    def SessionOptions(self):  # noqa: N802 - as there
        asked = self.asked
        return types.SimpleNamespace(
            add_provider_for_devices=lambda devices, settings: asked.append((devices, settings))
        )

    def InferenceSession(self, path, options):  # noqa: N802 - as there
        return types.SimpleNamespace(get_providers=lambda: [self.where])


@pytest.fixture
def pretend(monkeypatch):
    real = importlib.import_module

    def set_runtime(runtime, plugin=True):
        def import_module(name, *more):
            if name == "onnxruntime":
                return runtime
            if name == "onnxruntime_ep_openvino":
                if not plugin:
                    raise ImportError(name)
                return types.SimpleNamespace(get_library_path=lambda: "plugin.so")
            return real(name, *more)

        openvino.find_obstacle.cache_clear()
        monkeypatch.setattr(importlib, "import_module", import_module)
        monkeypatch.setattr(providers, "import_onnxruntime", lambda: runtime)
        monkeypatch.setattr(providers, "has_cuda_device", lambda: False)
        return runtime

    yield set_runtime
    openvino.find_obstacle.cache_clear()


@pytest.mark.parametrize(
    ("runtime", "plugin", "text"),
    [
        (Runtime(), False, "the plugin is not installed: pip install onnxruntime-ep-openvino."),
        (Runtime(loads=False), True, r"does not load \(undefined symbol: x\); install one made"),
        (Runtime(devices=()), True, "finds no processor that it drives"),
        (Runtime(devices=("GPU",)), True, "finds no processor that it drives"),
        (
            types.SimpleNamespace(__version__="1.20"),
            True,
            r"ONNX Runtime 1.20 loads no plugins; upgrade it to 1\.23",
        ),
    ],
)
def test_where_it_cannot_be_had(pretend, runtime, plugin, text):
    pretend(runtime, plugin)
    with pytest.raises(ProviderError, match=f"OpenVINO was asked for, but .*{text}"):
        choose_device("openvino")


def test_it_is_taken_where_it_works(pretend):
    runtime = pretend(Runtime())
    assert choose_device("auto") == "openvino"
    assert choose_device("cpu") == "cpu"
    assert runtime.registered == ["plugin.so"]
    assert choose_precision("auto", "auto", ["fp32"]) == ("openvino", "fp32")
    # What was measured for 8 bits holds of ONNX Runtime's own kernels.
    assert choose_precision("auto", "auto", ["fp32", "int8"]) == ("cpu", "int8")
    assert choose_precision("openvino", "auto", ["fp32", "int8"]) == ("openvino", "fp32")
    assert choose_precision("auto", "bf16", ["fp32"]) == ("openvino", "bf16")


def test_16_bits_do_not_run_there(pretend):
    pretend(Runtime())
    with pytest.raises(
        ValueError, match="fp16 does not run on 'openvino'; it runs on cpu and cuda"
    ):
        choose_precision("openvino", "fp16", ["fp32", "fp16"])
    assert choose_precision("auto", "fp16", ["fp32", "fp16"]) == ("cpu", "fp16")


@pytest.mark.parametrize(("precision", "hint"), [("fp32", "f32"), ("bf16", "bf16")])
def test_the_precision_is_asked_for(pretend, tmp_path, precision, hint):
    runtime = pretend(Runtime())
    options = {"precision": precision, "num_threads": 2}
    session = open_session(tmp_path / "model.onnx", "openvino", **options)
    assert providers.get_device(session) == "openvino"
    ((_, settings),) = runtime.asked
    expected = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": "2"}
    assert json.loads(settings["load_config"]) == {"CPU": expected}


def test_a_session_that_ends_up_elsewhere_is_no_secret(pretend, tmp_path):
    pretend(Runtime(where="CPUExecutionProvider"))
    with pytest.raises(ProviderError, match="OpenVINO did not load the model: the session runs on"):
        open_session(tmp_path / "model.onnx", "openvino")


def test_here(bundle):
    """Whatever this machine has: the answer is that of the device that is named."""
    openvino.find_obstacle.cache_clear()
    if (cause := openvino.find_obstacle()) is not None:
        with pytest.raises(ProviderError) as caught:
            load(bundle, device="openvino")
        assert cause in str(caught.value)
        return
    model = load(bundle, device="openvino")
    assert model.device == "openvino"
