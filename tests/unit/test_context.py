"""How long a text may be, by what exporters of the last years wrote."""

import json

import pytest

from edge_agent.engine.context import ContextBound, bound, original_tokens, window_tokens
from edge_agent.engine.facts import read_config
from edge_agent.engine.hf.facts import mlx_context, transformers_context
from edge_agent.engine.openvino.facts import openvino_context
from edge_agent.models.load import Placed, prepare
from edge_agent.models.memory import read_build
from edge_agent.settings.load import ServeSection
from hardware.probe import probe
from tests.machines import build

MINI = {"max_position_embeddings": 131_072, "original_max_position_embeddings": 4096, "sliding_window": 262_144}
FACTORS = {"short_factor": [1.0, 1.03], "long_factor": [1.08, 1.23]}
LLAMA = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192, "rope_theta": 5e5}
LONGROPES = {
    "su, as first published": MINI | {"rope_scaling": {"type": "su", **FACTORS}},
    "longrope, transformers 4": MINI | {"rope_scaling": {"type": "longrope", **FACTORS}},
    "rope_type": MINI | {"rope_scaling": {"rope_type": "longrope", **FACTORS}, "rope_parameters": None},
    "rope_parameters, transformers 5": {
        "max_position_embeddings": 131_072,
        "rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 4096, **FACTORS},
    },
    "rope_parameters, length outside": MINI | {"rope_parameters": {"rope_type": "longrope", **FACTORS}},
    "rope_parameters of each kind of layer": MINI
    | {
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "longrope", **FACTORS},
        }
    },
}
PLAIN = {
    "none": {"max_position_embeddings": 8192, "rope_scaling": None},
    "absent": {"max_position_embeddings": 8192},
    "default, transformers 5": {"max_position_embeddings": 8192, "rope_parameters": {"rope_type": "default"}},
    "another scaling": {"max_position_embeddings": 131_072, "rope_parameters": LLAMA},
    "a length that nothing uses": {"max_position_embeddings": 8192, "original_max_position_embeddings": 4096},
}


@pytest.mark.parametrize("config", LONGROPES.values(), ids=LONGROPES)
def test_longrope_bounds_engines_that_do_not_follow_it(config):
    assert original_tokens(config) == 4096
    assert transformers_context(config) == ContextBound(131_072)
    for engine in (openvino_context, mlx_context):
        found = engine(config)
        assert found.tokens == 4096
        assert "longrope" in found.why


@pytest.mark.parametrize("config", PLAIN.values(), ids=PLAIN)
def test_no_other_rope_does(config):
    assert original_tokens(config) is None
    for engine in (openvino_context, mlx_context, transformers_context):
        assert engine(config) == ContextBound(config["max_position_embeddings"])


def test_longrope_that_changes_elsewhere_than_lanes_expect_is_kept_below():
    config = LONGROPES["longrope, transformers 4"] | {"original_max_position_embeddings": 8192}
    assert transformers_context(config).tokens == 8192


def test_longrope_without_its_length_never_changes():
    """As transformers has it: the original context is then all of it."""
    config = {"max_position_embeddings": 4096, "rope_scaling": {"type": "longrope", **FACTORS}}
    assert original_tokens(config) == 4096
    assert openvino_context(config) == ContextBound(4096)


@pytest.mark.parametrize(
    ("told", "seen"),
    [
        ({"sliding_window": 2047}, 2047),  # Phi-3-mini-4k, Phi-3-medium-4k
        ({"sliding_window": 4096}, None),
        ({"sliding_window": None}, None),
        ({}, None),
        ({"sliding_window": 2047, "use_sliding_window": False}, None),  # Qwen
        ({"sliding_window": 2047, "use_sliding_window": True, "max_window_layers": 2}, 2047),
        ({"sliding_window": 512, "layer_types": ["sliding_attention", "full_attention"]}, 512),
        ({"sliding_window": 512, "layer_types": ["full_attention", "full_attention"]}, None),
    ],
)
def test_a_window_bounds_engines_that_see_the_whole_text(told, seen):
    config = {"max_position_embeddings": 4096} | told
    assert window_tokens(config) == seen
    assert bound(config, longrope=False, window=True) == ContextBound(4096)
    assert bound(config, longrope=False, window=False).tokens == (seen or 4096)
    assert bool(bound(config, longrope=False, window=False).why) == (seen is not None)


def test_the_smallest_bound_counts_with_its_reason():
    config = LONGROPES["longrope, transformers 4"] | {"sliding_window": 2047}
    assert "2047" in bound(config, longrope=False, window=False).why
    assert "4096" in bound(config | {"sliding_window": 8000}, longrope=False, window=False).why


def test_heads_need_not_make_up_the_width(tmp_path):
    """Qwen3's are wider."""
    numbers = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3, "hidden_size": 256}
    config = numbers | {"max_position_embeddings": 4096}

    def values(**more):
        (tmp_path / "config.json").write_text(json.dumps(config | more))
        return read_config(tmp_path, "mlx", weights=".safetensors", context=mlx_context).kv_values_per_token

    assert values() == 2 * 3 * 2 * 64
    assert values(head_dim=128) == 2 * 3 * 2 * 128


def attention(onnx, *windows):
    """A graph of attentions: of a window each, None for a node without the attribute."""
    helper = onnx.helper
    nodes = [
        helper.make_node(
            "GroupQueryAttention",
            ["q"],
            ["o"],
            domain="com.microsoft",
            num_heads=4,
            kv_num_heads=2,
            **({} if window is None else {"local_window_size": window}),
        )
        for window in windows
    ]
    graph = helper.make_graph(nodes, "decoder", [], [])
    return helper.make_model(graph).SerializeToString()


@pytest.mark.parametrize(
    ("window", "nodes", "tokens"),
    [
        (2047, (-1, -1), 2047),  # onnxruntime-genai 0.18
        (2047, (2047, 2047), 4096),
        (2047, (None, None), 2047),
        (2047, (2047, -1), 2047),
        (2047, (2047, None), 2047),
        (2047, (1023, 1023), 2047),
        (2047, (), 2047),
        (100, (100,), 4096),
        (128, (128,), 4096),
        (16_384, (-1,), 4096),  # longer than the context
        (None, (-1,), 4096),
        (-1, (-1,), 4096),
    ],
)
def test_where_graph_and_configuration_disagree_the_smaller_bound_counts(tmp_path, window, nodes, tokens):
    onnx = pytest.importorskip("onnx")
    model = {
        "type": "phi3",
        "context_length": 4096,
        "decoder": {
            "filename": "model.onnx",
            "num_hidden_layers": 2,
            "num_key_value_heads": 2,
            "head_size": 64,
            "num_attention_heads": 4,
        },
    }
    if window is not None:
        model["decoder"]["sliding_window"] = {"window_size": window, "layers": []}
    (tmp_path / "genai_config.json").write_text(json.dumps({"model": model}))
    (tmp_path / "model.onnx").write_bytes(attention(onnx, *nodes))
    found = read_build(tmp_path, "onnx").context
    assert found.tokens == tokens
    assert bool(found.why) == (tokens < 4096)


def test_what_is_loaded_has_no_more_context_than_its_build_computes_right(tmp_path):
    """Nor is memory kept for it."""
    numbers = {"num_attention_heads": 4, "num_hidden_layers": 3, "hidden_size": 256}
    (tmp_path / "config.json").write_text(json.dumps(LONGROPES["rope_parameters, transformers 5"] | numbers))
    serve = ServeSection(name="phi", path=tmp_path, context_tokens=16_384)
    machine = probe(build("raspberry-pi-5", tmp_path / "machine"))
    spec, _ = prepare(Placed(tmp_path, "openvino"), serve, machine)
    assert spec.context_tokens == 4096
