"""Synthetic models as openvino-genai sees them, and that they are the models onnxruntime-genai sees."""

import json
import platform
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge_agent.cli.synth import synth
from edge_agent.synth import TINY, TINY_VISION, build_demo, build_text

pytestmark = pytest.mark.engine

FLOATS = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
MOST = 48

QUESTIONS = [
    "Hello",
    "What can you do?",
    "Turn on the fan.",
    "Status: temperature 85 C, pump off. Is the temperature too high?",
]

ODD_TEXTS = [
    "",
    " ",
    "\n",
    "the pump is on and the fan is off.",
    "  two spaces before,  between and after  ",
    "a\nb\r\nc\t\n",
    "0123456789012345678901234567890123456789",
    "😀 emoji 👨‍👩‍👧",
    "你好。世界",
    "e\u0301 é ß \u200b\ufeff\u2028 مرحبا",
    "\x01\x02\x1b[0m\x7f",
    "▁ %$#@!~`",
    "a" * 300,
    "word30 a word30 <0xGG>",
]

CONTROLLED_TEXTS = [
    "<|user|>\nHello<|end|>\n<|assistant|>\n",
    "<|user|>\n  Hello <|end|><|end|> <|user|>x",
    "x<|assistant|>  y",
    "A<|image|> \n b<|placeholder1|>\tc",
    "<s>a</s>  b<unk>",
    "<|en<|end|>d|>",
]


@pytest.fixture(scope="module")
def onnx():
    import onnxruntime_genai

    return onnxruntime_genai


@pytest.fixture(scope="module")
def twins(openvino_genai, onnx, tmp_path_factory):
    """The same random weights for both libraries, activations in float32."""
    folder = tmp_path_factory.mktemp("twins")
    return tuple(build_text(folder / name, backend=name, int8_activations=False) for name in ("onnx", "openvino"))


def words(count: int, *, first: int = 0) -> list[int]:
    """A prompt of letters and filler words, none of them a control, in an irregular order."""
    return [1, *(260 + (n * n * 7 + n * 3 + first) % 180 for n in range(count))]


def onnx_answer(onnx: Any, folder: Path, prompt: list[int], *, most: int = MOST) -> list[int]:
    model = onnx.Model(str(folder))
    params = onnx.GeneratorParams(model)
    params.set_search_options(max_length=len(prompt) + most, do_sample=False)
    generator = onnx.Generator(model, params)
    generator.append_tokens(prompt)
    ids: list[int] = []
    while not generator.is_done():
        generator.generate_next_token()
        ids.append(int(generator.get_next_tokens()[0]))
    return ids


class Loaded:
    """A model in the pipeline that batches, whole prompts at a time."""

    def __init__(self, library: Any, folder: Path) -> None:
        import openvino

        self.library, self.openvino = library, openvino
        scheduler = library.SchedulerConfig()
        scheduler.cache_size = 1
        scheduler.max_num_batched_tokens = TINY.context_tokens
        self.pipeline = library.ContinuousBatchingPipeline(str(folder), scheduler, "CPU", FLOATS)

    def answers(self, *prompts: list[int], most: int = MOST) -> list[list[int]]:
        tensors = [self.openvino.Tensor([prompt]) for prompt in prompts]
        results = self.pipeline.generate(tensors, [greedy(self.library, most=most)] * len(prompts))
        return [list(result.m_generation_ids[0]) for result in results]


def greedy(library: Any, *, most: int = MOST) -> Any:
    config = library.GenerationConfig()
    config.max_new_tokens, config.do_sample = most, False
    return config


def test_a_folder_holds_the_published_file_names(tiny_openvino):
    """Whoever looks for a build by its files finds this one."""
    models = ("openvino_model", "openvino_tokenizer", "openvino_detokenizer")
    assert {path.name for path in tiny_openvino.iterdir()} == {
        *(f"{name}{ending}" for name in models for ending in (".xml", ".bin")),
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
    }


def test_a_vision_folder_holds_the_published_file_names(tiny_openvino, tiny_openvino_vision):
    """Three models beside the decoder, and how images are read."""
    parts = ("language", "text_embeddings", "vision_embeddings", "vision_projection")
    text, vision = ({path.name for path in folder.iterdir()} for folder in (tiny_openvino, tiny_openvino_vision))
    models = {f"openvino_{part}_model{ending}" for part in parts for ending in (".xml", ".bin")}
    assert vision - text == {*models, "preprocessor_config.json"}
    config = json.loads((tiny_openvino_vision / "config.json").read_text())
    assert config["model_type"] == "phi3_v"
    assert (len(config["sub_GN"][0][0][0]), len(config["glb_GN"][0][0])) == (4096, 4096)


@pytest.mark.parametrize("colour", ["red", "green", "blue"])
def test_the_demo_tells_colours(openvino_genai, demo_openvino_vision, colour):
    """The library's own pipeline, with its own way to cut an image."""
    import numpy as np
    from openvino import Tensor

    image = np.full((300, 300, 3), 255, np.uint8)
    image[60:240, 60:240] = {"red": (220, 30, 30), "green": (30, 160, 50), "blue": (40, 70, 220)}[colour]
    pipeline = openvino_genai.VLMPipeline(str(demo_openvino_vision), "CPU", **FLOATS)
    (answer,) = pipeline.generate(
        "What is shown in this image?", images=[Tensor(image)], generation_config=greedy(openvino_genai)
    ).texts
    assert answer.strip() == f"The image shows a {colour} square."


def test_the_encoder_of_the_published_size_runs_with_the_fast_kernels(openvino_genai, tmp_path):
    """CLIP with two of its layers: weights stay eight bits wide, attention is one subgraph."""
    import openvino

    from edge_agent.synth.vision import CLIP

    folder = build_text(
        tmp_path / "model", backend="openvino", shape=replace(TINY_VISION, vision=replace(CLIP, layers=2))
    )
    compiled = openvino.Core().compile_model(folder / "openvino_vision_embeddings_model.xml", "CPU", FLOATS)
    assert compiled.output(0).partial_shape.to_string() == "[?,576,1024]"
    kernels: Counter[tuple[str, str]] = Counter()
    for operator in compiled.get_runtime_model().get_ops():
        facts = {key: str(value.astype(str)) for key, value in operator.get_rt_info().items()}
        kernels[facts["layerType"], facts["runtimePrecision"]] += 1
    assert kernels["FullyConnected", "i8"] == 4 * 2
    assert kernels["Subgraph", "f32"] == 2
    assert not any(kind in {"MatMul", "Softmax"} for kind, _precision in kernels)


def test_the_configs_tell_the_shape(tiny_openvino):
    """Sizes and ids follow the shape; any of three tokens ends an answer."""
    config, generation, tokenizer = (
        json.loads((tiny_openvino / name).read_text())
        for name in ("config.json", "generation_config.json", "tokenizer_config.json")
    )
    assert config["model_type"] == "phi3"
    assert config["max_position_embeddings"] == TINY.context_tokens
    assert generation["eos_token_id"] == [455, 449, 448]
    assert "<|assistant|>" in tokenizer["chat_template"]


@pytest.mark.parametrize("shape", [TINY, TINY_VISION])
def test_the_same_seed_gives_the_same_model(openvino_genai, tmp_path, shape):
    """And another seed other weights in the same graph."""
    one, same, other = (
        build_text(tmp_path / str(n), seed=seed, shape=shape, backend="openvino") for n, seed in enumerate((1, 1, 2))
    )
    for path in one.glob("openvino_*model.*"):
        assert path.read_bytes() == (same / path.name).read_bytes()
        assert path.suffix == ".xml" or path.read_bytes() != (other / path.name).read_bytes()


@pytest.mark.parametrize("length", [8, 60, 500, 4096, 4200])
def test_both_libraries_give_the_same_greedy_answer(openvino_genai, onnx, twins, tmp_path, length):
    """Token by token, also with longrope's long factors; other weights give another answer."""
    for_onnx, for_openvino = twins
    prompt = words(length)
    answer = onnx_answer(onnx, for_onnx, prompt)
    assert len(answer) == MOST
    assert len(set(answer)) > MOST / 4
    assert Loaded(openvino_genai, for_openvino).answers(prompt) == [answer]
    other = build_text(tmp_path / "other", backend="openvino", int8_activations=False, seed=1)
    assert Loaded(openvino_genai, other).answers(prompt) != [answer]


def test_short_factors_reach_to_the_last_token_of_the_original_context(openvino_genai, onnx, twins):
    """The next one has the long ones; there onnxruntime-genai begins anew and openvino-genai goes on."""
    for_onnx, for_openvino = twins
    prompt = words(TINY.original_context_tokens - 1)
    answer = onnx_answer(onnx, for_onnx, prompt)
    (other,) = Loaded(openvino_genai, for_openvino).answers(prompt)
    assert other[0] == answer[0]
    assert other != answer


def test_key_heads_may_be_fewer_than_query_heads(openvino_genai, onnx, tmp_path):
    """Both libraries share them alike."""
    options = {"shape": replace(TINY, kv_heads=2), "int8_activations": False}
    for_onnx, for_openvino = (build_text(tmp_path / name, backend=name, **options) for name in ("onnx", "openvino"))
    assert Loaded(openvino_genai, for_openvino).answers(words(60)) == [onnx_answer(onnx, for_onnx, words(60))]


def test_the_plain_pipeline_takes_padded_prompts(openvino_genai, onnx, twins):
    """Prompts of different lengths, padded on the left, are answered as each alone."""
    import numpy as np
    from openvino import Tensor

    for_onnx, for_openvino = twins
    short, long = words(8), words(30, first=5)
    padding = len(long) - len(short)
    ids = np.array([[448] * padding + short, long])
    mask = np.array([[0] * padding + [1] * len(short), [1] * len(long)])
    pipeline = openvino_genai.LLMPipeline(str(for_openvino), "CPU", ATTENTION_BACKEND="SDPA", **FLOATS)
    result = pipeline.generate(openvino_genai.TokenizedInputs(Tensor(ids), Tensor(mask)), greedy(openvino_genai))
    assert [list(tokens) for tokens in result.tokens] == [onnx_answer(onnx, for_onnx, each) for each in (short, long)]


def test_sequences_share_a_batch_below_the_original_context_only(openvino_genai, twins):
    """The longest sequence of a step chooses longrope's factors for all, as in a model that optimum-intel exported."""
    model = Loaded(openvino_genai, twins[1])
    alone = model.answers(words(60))
    assert model.answers(words(60), words(700, first=9))[:1] == alone
    assert model.answers(words(60), words(4500, first=1))[:1] != alone


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors have other kernels")
@pytest.mark.parametrize("block_size", [32, 128])
def test_openvino_runs_it_with_its_fast_kernels(openvino_genai, tmp_path, block_size):
    """Weights stay four bits wide; norm, rotary embedding and attention with its cache are one operator each."""
    import openvino

    folder = build_text(tmp_path / "model", backend="openvino", block_size=block_size)
    compiled = openvino.Core().compile_model(folder / "openvino_model.xml", "CPU", FLOATS)
    kernels: Counter[tuple[str, str]] = Counter()
    for operator in compiled.get_runtime_model().get_ops():
        facts = {key: str(value.astype(str)) for key, value in operator.get_rt_info().items()}
        kernels[facts["layerType"], facts["runtimePrecision"]] += 1
    assert kernels["FullyConnected", "u4"] == 4 * TINY.layers + 1
    assert kernels["RoPE", "f32"] == 2 * TINY.layers
    assert kernels["RMS", "f32"] == 2 * TINY.layers + 1
    assert kernels["ScaledDotProductAttention", "f32"] == TINY.layers
    assert not any(kind == "MatMul" for kind, _precision in kernels)


@pytest.mark.parametrize("text", ODD_TEXTS + CONTROLLED_TEXTS)
def test_both_libraries_cut_a_text_into_the_same_tokens(openvino_genai, onnx, twins, text):
    """A text without control tokens comes back as it was; openvino-genai puts <s> before it, unless told not to."""
    tokenizer = openvino_genai.Tokenizer(str(twins[1]))
    expected = [int(token) for token in onnx.Tokenizer(onnx.Model(str(twins[0]))).encode(text)]
    ids = tokenizer.encode(text, add_special_tokens=False).input_ids.data.tolist()[0]
    assert ids == expected
    assert tokenizer.encode(text).input_ids.data.tolist()[0] == [1, *expected]
    if text in ODD_TEXTS:
        assert tokenizer.decode(ids) == text.replace("▁", " ")


def test_a_text_that_spells_a_byte_is_taken_for_it(openvino_genai, twins):
    """openvino-tokenizers looks bytes up by these names, whoever converts the tokenizer."""
    tokenizer = openvino_genai.Tokenizer(str(twins[1]))
    assert tokenizer.encode("x<0x41>", add_special_tokens=False).input_ids.data.tolist()[0][-1] == 3 + 0x41


def test_the_chat_template_is_the_models_own(openvino_genai, tiny_openvino):
    """openvino-genai finds it in the folder."""
    tokenizer = openvino_genai.Tokenizer(str(tiny_openvino))
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], add_generation_prompt=True)
    assert prompt == "<|user|>\nHello<|end|>\n<|assistant|>\n"


def test_a_scripted_model_says_its_words_and_stops(openvino_genai, tmp_path):
    """Whatever was asked; a character may need several tokens."""
    folder = build_text(tmp_path / "model", backend="openvino", say="the ü 世")
    pipeline = openvino_genai.LLMPipeline(str(folder), "CPU")
    for question in ("Hello", "the pump is on"):
        assert pipeline.generate(f"<|user|>\n{question}<|end|>\n<|assistant|>\n", greedy(openvino_genai)) == "the ü 世"
    last = [token + 3 for token in "世".encode()]
    tokenizer = pipeline.get_tokenizer()
    assert [tokenizer.decode(last[:count]) for count in (1, 2, 3)] == ["�", "�", "世"]


def test_the_demo_answers_alike_in_both_libraries(openvino_genai, onnx, demo_model, demo_openvino):
    """It greets, reads a status and turns an order into JSON."""
    tokenizer = onnx.Tokenizer(onnx.Model(str(demo_model)))
    prompts = [tokenizer.encode(f"<|user|>\n{question}<|end|>\n<|assistant|>\n").tolist() for question in QUESTIONS]
    answers = Loaded(openvino_genai, demo_openvino).answers(*prompts)
    assert answers == [onnx_answer(onnx, demo_model, prompt) for prompt in prompts]
    assert tokenizer.decode(answers[0]).strip().startswith("Hello, I am a tiny edge agent.")
    assert all(answer[-1] == 711 for answer in answers)


def test_blocks_that_do_not_fill_a_matrix_are_refused(openvino_genai, tmp_path):
    """The matrix is named, and nothing is left behind."""
    with pytest.raises(ValueError, match=r"down_proj.*192 columns.*block_size"):
        build_text(tmp_path / "model", backend="openvino", shape=replace(TINY, mlp_size=192), block_size=128)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_while_openvino_writes_is_told(openvino_genai, tmp_path, monkeypatch):
    """As what it is, not as a RuntimeError of a stream; nothing is left behind."""

    def full(*_: object) -> None:
        raise RuntimeError("basic_ios::clear: iostream error")

    monkeypatch.setattr("openvino.serialize", full)
    with pytest.raises(OSError, match="disk full"):
        build_text(tmp_path / "model", backend="openvino")
    assert not list(tmp_path.iterdir())


def test_a_model_is_never_whole_in_memory(openvino_genai, tmp_path):
    """Layers go to disk one by one, so a build takes a fraction of the model's size."""
    build_demo(tmp_path / "warm", backend="openvino")  # what imports allocate is none of the model's
    shape = replace(TINY, hidden_size=512, mlp_size=2048, layers=12, heads=32, kv_heads=32)
    shape = replace(shape, short_factors=(), long_factors=())
    tracemalloc.start()
    try:
        out = build_text(tmp_path / "model", backend="openvino", shape=shape)
        _now_bytes, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < (out / "openvino_model.bin").stat().st_size / 3


def test_the_command_writes_it(openvino_genai, tmp_path):
    """`edge-agent synth OUT --backend openvino`."""
    import typer
    from typer.testing import CliRunner

    app = typer.Typer()
    app.command()(synth)
    result = CliRunner().invoke(app, [str(tmp_path / "model"), "--backend", "openvino", "--say", "ok"])
    assert result.exit_code == 0, result.output
    assert "openvino_model.bin" in result.output
