"""What lies on disk after a build."""

import json
import sys
import tracemalloc
from collections import Counter
from dataclasses import replace

import onnx
import pytest

from edge_agent.synth import FULL_VISION, TINY, TINY_VISION, RandomWeights, build_demo, build_text
from edge_agent.synth.folder import whole

MODEL = "phi-3.5-mini-instruct-cpu-int4-awq-block-128-acc-level-4.onnx"
VISION_MODELS = [f"phi-3.5-v-instruct-{part}.onnx" for part in ("text", "embedding", "vision")]


def test_a_folder_holds_the_published_file_names(tmp_path):
    """Whoever looks for a build by its files finds this one."""
    out = build_text(tmp_path / "model")
    assert {path.name for path in out.iterdir()} == {
        MODEL,
        f"{MODEL}.data",
        "genai_config.json",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
    }


def test_a_vision_folder_holds_the_published_file_names(tmp_path):
    """Three graphs instead of one, and how images are read."""
    text, vision = (build_text(tmp_path / str(n), shape=shape) for n, shape in enumerate((TINY, TINY_VISION)))
    names = {path.name for path in vision.iterdir()} - {path.name for path in text.iterdir()}
    assert names == {*VISION_MODELS, *(f"{name}.data" for name in VISION_MODELS), "processor_config.json"}
    config = json.loads((vision / "genai_config.json").read_text())["model"]
    assert [config[part]["filename"] for part in ("decoder", "embedding", "vision")] == VISION_MODELS
    assert config["type"] == "phi3v"


def test_the_encoder_of_the_published_size_has_the_published_operators(tmp_path):
    """Of its 445 MB most is in int4, attention's own matrices are not; here with two of its layers."""
    shape = replace(TINY, vision=replace(FULL_VISION.vision, layers=2))
    out = build_text(tmp_path / "model", shape=shape)
    graph = onnx.load(out / VISION_MODELS[2], load_external_data=False).graph
    operators = Counter(node.op_type for node in graph.node)
    assert (operators["Attention"], operators["QuickGelu"], operators["MatMulNBits"]) == (2, 2, 2 * 3 + 2)


@pytest.mark.parametrize("shape", [TINY, TINY_VISION])
def test_the_same_seed_gives_the_same_bytes(tmp_path, shape):
    """And another seed other weights."""
    one, same, other = (build_text(tmp_path / str(n), shape=shape, seed=seed) for n, seed in enumerate((1, 1, 2)))
    for path in one.iterdir():
        assert path.read_bytes() == (same / path.name).read_bytes()
    assert all(path.read_bytes() != (other / path.name).read_bytes() for path in one.glob("*.data"))


def test_genai_config_tells_the_shape(tmp_path):
    """Sizes and ids follow the shape; the last control ids are those of the vocabulary."""
    model = json.loads((build_text(tmp_path / "model") / "genai_config.json").read_text())["model"]
    assert model["context_length"] == TINY.context_tokens
    assert model["decoder"]["num_hidden_layers"] == TINY.layers
    assert model["eos_token_id"] == [455, 449, 448]
    assert model["decoder"]["filename"] == MODEL


def test_every_name_in_the_graph_is_made_by_something(tmp_path):
    """Inputs of operators are inputs of the graph, weights or outputs of others."""
    graph = onnx.load(build_text(tmp_path / "model") / MODEL).graph
    made = {output for node in graph.node for output in node.output} | {tensor.name for tensor in graph.initializer}
    made |= {entry.name for entry in graph.input} | {""}
    assert {source for node in graph.node for source in node.input} <= made
    assert {entry.name for entry in graph.output} <= made
    assert sum(node.op_type == "GroupQueryAttention" for node in graph.node) == TINY.layers


def test_weights_lie_on_pages_of_the_external_file(tmp_path):
    """So that a runtime can map them; the last one ends with the file."""
    out = build_text(tmp_path / "model")
    graph = onnx.load(out / MODEL, load_external_data=False).graph
    places = [
        {entry.key: entry.value for entry in tensor.external_data}
        for tensor in graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
    ]
    assert {place["location"] for place in places} == {f"{MODEL}.data"}
    assert not any(int(place["offset"]) % 4096 for place in places)
    ends_bytes = [int(place["offset"]) + int(place["length"]) for place in places]
    assert max(ends_bytes) == (out / f"{MODEL}.data").stat().st_size


def test_progress_is_told_layer_by_layer(tmp_path):
    """Done and total."""
    told = []
    build_text(tmp_path / "model", progress=lambda *layers: told.append(layers))
    assert told == [(1, 2), (2, 2)]


class BrokenWeights(RandomWeights):
    def int4(self, name, shape, *, block_size):
        if "layers.1" in name:
            raise KeyboardInterrupt
        return super().int4(name, shape, block_size=block_size)


def test_an_interrupted_build_leaves_nothing(tmp_path):
    """Neither the folder nor a part of it."""
    with pytest.raises(KeyboardInterrupt):
        build_text(tmp_path / "model", weights=BrokenWeights(0))
    assert not list(tmp_path.iterdir())


def test_a_folder_in_the_making_has_another_name(tmp_path):
    """So a killed build leaves nothing that looks whole."""
    with whole(tmp_path / "model") as folder:
        assert folder.name.endswith(".partial")
        assert not (tmp_path / "model").exists()
    assert (tmp_path / "model").is_dir()


@pytest.mark.parametrize("build", [build_text, build_demo])
def test_what_lies_there_already_is_not_overwritten(tmp_path, build):
    """An empty folder may be filled, any other is refused."""
    (tmp_path / "empty").mkdir()
    build(tmp_path / "empty")
    with pytest.raises(FileExistsError, match="choose another"):
        build(tmp_path / "empty")


def test_a_block_size_the_kernel_does_not_know_is_refused(tmp_path):
    """Before the runtime would, with a clearer message."""
    with pytest.raises(ValueError, match="block_size"):
        build_text(tmp_path / "model", block_size=48)


@pytest.mark.parametrize(
    ("library", "backend", "extra"), [("onnx", "onnx", "synth"), ("openvino", "openvino", "openvino")]
)
@pytest.mark.parametrize("build", ["build_text", "build_demo"])
def test_without_its_library_a_build_names_the_install_line(tmp_path, monkeypatch, library, backend, extra, build):
    """The extra is named for an installed agent and for a checkout; nothing is left behind."""
    for name in [name for name in sys.modules if name.startswith("edge_agent.synth")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    import edge_agent.synth

    with pytest.raises(ImportError, match=rf"pip install '\.\[{extra}\]'"):
        getattr(edge_agent.synth, build)(tmp_path / "model", backend=backend)
    assert not list(tmp_path.iterdir())


def test_a_model_is_never_whole_in_memory(tmp_path):
    """Layers go to disk one by one, so a build takes a fraction of the model's size."""
    shape = replace(
        TINY,
        hidden_size=512,
        mlp_size=2048,
        layers=12,
        heads=32,
        kv_heads=32,
        context_tokens=64,
        original_context_tokens=64,
    )
    tracemalloc.start()
    try:
        out = build_text(tmp_path / "model", shape=shape)
        _now_bytes, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < (out / f"{MODEL}.data").stat().st_size / 3
