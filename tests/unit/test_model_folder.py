"""Folders of somebody else's: what would have a library run or read what is not the model's."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.backend import ModelSpec, find
from edge_agent.engine.model_folder import CONFIG_BYTES_MAX, check

USUAL = {
    "model": {
        "type": "phi3",
        "decoder": {
            "filename": "model.onnx",
            "session_options": {
                "log_id": "onnxruntime-genai",
                "provider_options": [{"qnn": {"backend_path": "libQnnHtp.so", "enable_htp_fp16_precision": "1"}}],
            },
        },
        "vision": {"filename": "vision/model.onnx", "config_filename": "processor_config.json"},
    },
    "search": {"past_present_share_buffer": True},
}
PUBLISHED = {"auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}, "_attn_implementation": "eager"}


def refusal(folder, body, name="genai_config.json"):
    """Return the sentence about a folder with this file."""
    (folder / name).write_bytes(body if isinstance(body, bytes) else json.dumps(body).encode())
    with pytest.raises(EdgeAgentError) as refused:
        check(folder)
    assert refused.value.code is Code.MODEL_ERROR
    return refused.value.message


def test_what_is_usual_is_let_through(tmp_path):
    """Also a folder without these files, one that is not there, and a single file: their loader speaks of them."""
    check(tmp_path)
    check(tmp_path / "none")
    (tmp_path / "genai_config.json").write_text(json.dumps(USUAL))
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    check(tmp_path)
    check(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("genai_config.json", {"custom_ops_library": "evil.so"}),
        ("genai_config.json", {"Custom-Ops_Library": ""}),
        ("genai_config.json", {"custom_ops_library": ["evil.so"]}),
        ("genai_config.json", {"enable_profiling": "trace"}),
        ("genai_config.json", {"session.optimized_model_filepath": "/etc/cron.d/x"}),
        ("genai_config.json", {"provider_options": [{"OpenVINO": {"load_config": "../x.json"}}]}),
        ("genai_config.json", {"provider_options": [{"qnn": {"backend_path": "./evil.so"}}]}),
        ("genai_config.json", {"provider_options": [{"x": {"trt_extra_plugin_lib_paths": "C:\\evil.dll"}}]}),
        ("config.json", {"model_file": "evil.py"}),
        ("config.json", {"_attn_implementation": "somebody/kernel"}),
        ("config.json", {"attn_implementation": {"text": "somebody/kernel:run"}}),
    ],
)
@pytest.mark.parametrize("hidden", ["plain", "first of two", "second of two", "escaped"])
def test_what_runs_or_reads_something_else_is_refused_by_file_and_key(tmp_path, name, options, hidden):
    """At any depth, also where a key comes twice, which libraries read in one way and some readers in another."""
    table = json.dumps(options)
    match hidden:
        case "first of two":
            table += ', "session_options": {}'
        case "second of two":
            table = '{}, "session_options": ' + table
        case "escaped":
            key = next(iter(options))
            table = table.replace(key, "".join(f"\\u{ord(letter):04x}" for letter in key), 1)
    body = f'{{"model": {{"decoder": {{"pipeline": [{{"part": {{"session_options": {table}}}}}]}}}}}}'
    said = refusal(tmp_path, body.encode(), name)
    assert said.startswith(f"{name} in {tmp_path} ")
    assert next(iter(options)) in said


@pytest.mark.parametrize(
    "filename", ["/etc/passwd", "../model.onnx", "a/../../b", "..\\b", "C:\\b", "\\\\host\\b", "a\0b"]
)
@pytest.mark.parametrize("key", ["filename", "config_filename", "adapter_filename"])
def test_a_file_outside_of_the_folder_is_refused(tmp_path, key, filename):
    assert "outside of the folder" in refusal(tmp_path, {"model": {"vision": {key: filename}}})


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b'{"a": 1} {"session_options": {}}', b"{'a': 1}", b'{"\\c": 1}', b'{"a": "\xff"}', b"[" * 100_000],
)
def test_what_cannot_be_read_with_certainty_is_refused(tmp_path, body):
    """A library may read it in its own way."""
    assert "is not valid JSON" in refusal(tmp_path, body)
    assert f"is over {CONFIG_BYTES_MAX} bytes" in refusal(tmp_path, b" " * (CONFIG_BYTES_MAX + 1))


KEYS = st.sampled_from(["model", "decoder", "session_options", "provider_options", "x", "pipeline", ""])


def nested(inside):
    return st.one_of(st.lists(inside, max_size=3), st.dictionaries(KEYS, inside, max_size=3))


@given(
    around=st.recursive(st.one_of(st.integers(), st.text("ab", max_size=3)), nested, max_leaves=6),
    depth=st.lists(st.one_of(KEYS, st.none()), max_size=9),
)
def test_the_key_is_found_wherever_it_stands(tmp_path_factory, around, depth):
    folder = tmp_path_factory.mktemp("model")
    document = {"custom_ops_library": "evil.so"}
    for key in depth:
        document = [around, document] if key is None else {"a": around, key: document}
    assert "custom_ops_library" in refusal(folder, document)


@pytest.mark.engine
@pytest.mark.parametrize("backend", ["onnx", "openvino", "llamacpp"])
def test_no_loader_sees_such_a_folder(tmp_path, backend):
    """Before anything of the folder is read."""
    (tmp_path / "genai_config.json").write_text('{"model": {"custom_ops_library": "evil.so"}}')
    spec = ModelSpec(tmp_path, backend, 64, 1, 1)
    with pytest.raises(EdgeAgentError, match="names a program to run"):
        find(backend)(spec)
