"""What the library is told, and what its errors become."""

import json
from types import SimpleNamespace

import pytest

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.backend import ModelSpec

pytestmark = pytest.mark.engine


@pytest.fixture
def decoder():
    """The module that speaks to onnxruntime."""
    from edge_agent.engine.onnx import decoder as onnx_decoder

    return onnx_decoder


class Session:
    """What onnxruntime was asked to open."""

    def __init__(self, path, settings, *, providers):
        self.settings = settings
        self.asked = providers

    def get_providers(self):
        return [name for name, _ in self.asked]


@pytest.fixture
def opened(decoder, monkeypatch):
    """Every provider is there, and sessions only note what they are told."""
    monkeypatch.setattr(decoder.ort, "InferenceSession", Session)
    monkeypatch.setattr(
        decoder.ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError("std::bad_alloc"), Code.OUT_OF_MEMORY),
        (RuntimeError("Failed to allocate memory for requested buffer of size 412316860416"), Code.OUT_OF_MEMORY),
        (MemoryError(), Code.OUT_OF_MEMORY),
        (RuntimeError("Non-zero status code returned\nand a trace"), Code.MODEL_ERROR),
        (RuntimeError(), Code.MODEL_ERROR),
    ],
    ids=repr,
)
def test_the_librarys_errors_get_a_code(decoder, error, code):
    """What may succeed with more memory is told from what never will."""
    with pytest.raises(EdgeAgentError) as raised, decoder.library():
        raise error
    assert raised.value.code is code
    assert "\n" not in raised.value.message


def test_the_librarys_own_exceptions_are_known(decoder, tmp_path):
    """They have no class in common with one another."""
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    for path in (tmp_path / "model.onnx", tmp_path / "none.onnx"):
        with pytest.raises(EdgeAgentError, match="onnxruntime said") as raised:
            decoder.open_session(path, device="cpu", threads=1, options={})
        assert raised.value.code is Code.MODEL_ERROR


def test_an_error_of_ours_is_not_disguised(decoder):
    """A mistake in this project crashes; it is not taken for the model's."""
    with pytest.raises(ZeroDivisionError), decoder.library():
        raise ZeroDivisionError


def test_settings_for_the_processor_are_session_entries(decoder, opened):
    session = decoder.open_session(
        "model.onnx", device="cpu", threads=3, options={"session.intra_op.allow_spinning": "0"}
    )
    assert session.asked == [("CPUExecutionProvider", {})]
    assert session.settings.intra_op_num_threads == 3
    assert session.settings.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_settings_for_a_device_are_its_providers(decoder, opened):
    session = decoder.open_session("model.onnx", device="cuda", threads=3, options={"cudnn_conv_algo_search": "X"})
    assert session.asked == [("CUDAExecutionProvider", {"cudnn_conv_algo_search": "X"})]


def test_a_device_that_the_library_cannot_use_is_refused_with_the_install_line(
    decoder, opened, monkeypatch, tiny_model
):
    """It would fall back to the processor without a word: when it was built without, and when the driver fails."""
    from edge_agent.engine.onnx import load as onnx

    spec = ModelSpec(tiny_model, "onnx", 512, 1, 1, device="cuda")
    monkeypatch.setattr(Session, "get_providers", lambda _: ["CPUExecutionProvider"])
    for offered in (["CUDAExecutionProvider"], []):
        monkeypatch.setattr(decoder.ort, "get_available_providers", lambda offered=offered: offered)
        with pytest.raises(EdgeAgentError, match=r"pip install 'edge-slm-agent\[cuda\]'") as raised:
            onnx.load(spec)
        assert raised.value.code is Code.UNSUPPORTED
        monkeypatch.delattr(decoder.ort, "InferenceSession", raising=False)  # without the provider nothing is loaded


def test_an_unknown_device_is_refused(decoder, tiny_model):
    from edge_agent.engine.onnx import load as onnx

    with pytest.raises(EdgeAgentError, match=r"cpu, cuda, gpu, npu, qnn, trt-rtx, webgpu, not on tpu") as raised:
        onnx.load(ModelSpec(tiny_model, "onnx", 512, 1, 1, device="tpu"))
    assert raised.value.code is Code.UNSUPPORTED


class Package:
    """A plugin's package, as onnxruntime's "Plugin EP packaging" wants it."""

    def __init__(self, name):
        self.get_ep_name = lambda: name
        self.get_library_path = lambda: f"/lib/{name}.so"


class Hardware:
    """What the library says that a provider can use; seen of the QNN package: it names the processor too."""

    def __init__(self, ep_name, kind):
        self.ep_name = ep_name
        self.device = SimpleNamespace(type=SimpleNamespace(name=kind), vendor="maker")


@pytest.fixture
def plugged(decoder, opened, monkeypatch):
    """Installed plugins: registered ones are noted, `found` is what they find."""
    from edge_agent.engine.onnx import plugins

    plugins._registered.cache_clear()
    noted = SimpleNamespace(registered=[], found=[], appended=[])
    packages = {each.module: Package(f"{each.module}_provider") for each in plugins.PLUGINS.values()}
    monkeypatch.setattr(plugins.importlib, "import_module", packages.__getitem__)
    monkeypatch.setattr(plugins.ort, "get_ep_devices", lambda: noted.found)
    monkeypatch.setattr(plugins.ort, "register_execution_provider_library", lambda *each: noted.registered.append(each))
    monkeypatch.setattr(
        decoder.ort.SessionOptions, "add_provider_for_devices", lambda _, *told: noted.appended.append(told)
    )
    monkeypatch.setattr(decoder.ort, "InferenceSession", lambda path, settings: (path, settings))
    yield noted
    plugins._registered.cache_clear()


@pytest.mark.parametrize(
    ("device", "module", "kind"),
    [
        ("gpu", "onnxruntime_ep_openvino", "GPU"),
        ("npu", "onnxruntime_ep_openvino", "NPU"),
        ("qnn", "onnxruntime_qnn", "NPU"),
        ("trt-rtx", "onnxruntime_ep_nv_tensorrt_rtx", "GPU"),
        ("webgpu", "onnxruntime_ep_webgpu", "GPU"),
    ],
)
def test_a_plugin_is_registered_once_and_appended_with_its_settings(decoder, plugged, device, module, kind):
    """For the device's own kind of hardware: some plugins offer the processor too."""
    name = f"{module}_provider"
    plugged.found = [Hardware("another", kind), Hardware(name, "CPU"), right := Hardware(name, kind)]
    for _ in range(2):
        decoder.open_session("model.onnx", device=device, threads=3, options={"x": "1"})
    assert plugged.registered == [(name, f"/lib/{name}.so")]
    assert plugged.appended == [([right], {"x": "1"})] * 2


def test_a_plugin_that_finds_nothing_says_so(decoder, plugged):
    """The library would compute on the processor instead."""
    plugged.found = [Hardware("onnxruntime_qnn_provider", "CPU")]
    with pytest.raises(EdgeAgentError, match="onnxruntime-qnn finds no qnn here") as raised:
        decoder.open_session("model.onnx", device="qnn", threads=3, options={})
    assert raised.value.code is Code.UNSUPPORTED


def test_webgpu_runs_on_the_processor_where_it_is_offered(decoder, plugged):
    """Its package does so when the environment allows a software adapter, and then only."""
    plugged.found = [Hardware("another", "CPU"), right := Hardware("onnxruntime_ep_webgpu_provider", "CPU")]
    decoder.open_session("model.onnx", device="webgpu", threads=3, options={})
    assert plugged.appended == [([right], {})]


def test_a_plugin_that_does_not_load_says_why(decoder, plugged, monkeypatch):
    """As TensorRT-RTX without NVIDIA's driver, seen with its package."""

    def broken(*_):
        raise decoder.native.Fail("error: libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(decoder.ort, "register_execution_provider_library", broken)
    with pytest.raises(EdgeAgentError, match=r"libcuda\.so\.1.*install the driver of trt-rtx") as raised:
        decoder.open_session("model.onnx", device="trt-rtx", threads=3, options={})
    assert raised.value.code is Code.UNSUPPORTED


def test_a_plugin_that_is_not_installed_brings_its_install_line(decoder):
    """Asked of this very environment."""
    with pytest.raises(EdgeAgentError, match="pip install onnxruntime-ep-webgpu") as raised:
        decoder.open_session("model.onnx", device="webgpu", threads=3, options={})
    assert raised.value.code is Code.UNSUPPORTED


def test_where_memory_has_no_addresses_one_answer_runs_at_a_time(plugged, tiny_model, monkeypatch):
    """Lanes of one buffer could not be told apart."""
    from edge_agent.engine.onnx import load as onnx

    noted = {}
    monkeypatch.setattr(onnx, "OnnxDecoder", lambda *_, **told: noted.update(told) or SimpleNamespace(**DECODER))
    plugged.found = [Hardware("onnxruntime_ep_webgpu_provider", "GPU"), Hardware("onnxruntime_qnn_provider", "NPU")]
    assert onnx.load(ModelSpec(tiny_model, "onnx", 512, 4, 1, device="webgpu")).limits.parallel == 1
    assert (noted["memory"], noted["lanes"]) == ("webgpu", 1)
    assert onnx.load(ModelSpec(tiny_model, "onnx", 512, 4, 1, device="qnn")).limits.parallel == 4
    assert (noted["memory"], noted["lanes"]) == ("cpu", 4)


DECODER = {"vocab_size": 512, "longrope": True, "copies": False}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda config: config["model"].pop("vocab_size"), "fetch the model again"),
        (lambda config: config["model"]["decoder"].pop("head_size"), "fetch the model again"),
        (lambda config: config["search"].update(past_present_share_buffer=False), "choose one that does not"),
        (lambda config: config["model"]["decoder"]["outputs"].update(logits="scores"), "choose another build"),
    ],
    ids=["no vocabulary", "no head size", "copied cache", "other names"],
)
def test_a_folder_that_cannot_be_served_is_refused(tiny_model, tmp_path, change, match):
    from edge_agent.engine.onnx import load as onnx

    for file in tiny_model.iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = json.loads((tmp_path / "genai_config.json").read_text("utf-8"))
    change(config)
    (tmp_path / "genai_config.json").unlink()
    (tmp_path / "genai_config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(EdgeAgentError, match=match) as raised:
        onnx.load(ModelSpec(tmp_path, "onnx", 512, 1, 1))
    assert raised.value.code is Code.MODEL_ERROR
