"""The backends under contract, and beside each the bare library's own loop to compare with."""

import itertools
import json

import pytest
from pictures import Gallery

from edge_agent.engine import backend
from edge_agent.engine.backend import ModelSpec
from edge_agent.engine.messages import JobId


class BareOnnx:
    """onnxruntime-genai as its examples use it: the prompt in one call, no pieces, no neighbours."""

    def __init__(self, folder):
        import onnxruntime_genai as og

        self._og = og
        self._model = og.Model(str(folder))
        self._tokenizer = og.Tokenizer(self._model)

    def encode(self, turns):
        messages = json.dumps([{"role": turn.role, "content": turn.text} for turn in turns])
        return self._tokenizer.encode(self._tokenizer.apply_chat_template(messages, add_generation_prompt=True))

    def texts(self, turns, max_tokens, **options):
        """Return the text of each token generated, the end of the turn not among them.

        Without the space that the first begins with: this library's loop shows it, though its readers expect none.
        """
        prompt = self.encode(turns)
        params = self._og.GeneratorParams(self._model)
        params.set_search_options(max_length=len(prompt) + max_tokens, **({"do_sample": False} | options))
        generator = self._og.Generator(self._model, params)
        generator.append_tokens(prompt)
        stream = self._tokenizer.create_stream()
        ends = {int(token) for token in self._tokenizer.eos_token_ids}
        texts = []
        while not generator.is_done():
            generator.generate_next_token()
            token = int(generator.get_next_tokens()[0])
            if token not in ends:
                texts.append(stream.decode(token))
        return [text.removeprefix(" ") if number == 0 else text for number, text in enumerate(texts)]


class BareOpenvino:
    """openvino-genai as its examples use it: one prompt in one piece, no cache of beginnings, no neighbours."""

    def __init__(self, folder):
        import openvino_genai as genai

        self._genai = genai
        self._pipeline = self._loaded(folder)
        self._tokenizer = self._pipeline.get_tokenizer()

    def _loaded(self, folder):
        scheduler = self._genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        scheduler.max_num_batched_tokens = 8192
        properties = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "u8", "KEY_CACHE_QUANT_MODE": "BY_TOKEN"}
        return self._genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", properties)

    def _encode(self, turns):
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        prompt = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        return self._tokenizer.encode(prompt, add_special_tokens=False).input_ids

    def encode(self, turns):
        return self._encode(turns).data[0].tolist()

    def texts(self, turns, max_tokens, **options):
        """Return the text of each token generated; of a character of several tokens with the last."""
        config = self._genai.GenerationConfig(max_new_tokens=max_tokens, **({"do_sample": False} | options))
        tokens = self._answer(self._encode(turns), config)
        whole = self._tokenizer.decode(tokens)
        ends = [shared(whole, self._tokenizer.decode(tokens[:i])) for i in range(len(tokens))]
        return [whole[begin:end] for begin, end in zip(ends, [*ends[1:], len(whole)], strict=True)]

    def _answer(self, prompt, config):
        (result,) = self._pipeline.generate([prompt], [config])
        return result.m_generation_ids[0]


class BareOpenvinoPlain(BareOpenvino):
    """Its plain pipeline, which is the one that runs on an NPU, without anybody pulling at it."""

    def _loaded(self, folder):
        properties = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
        return self._genai.LLMPipeline(str(folder), "CPU", ATTENTION_BACKEND="SDPA", **properties)

    def _answer(self, prompt, config):
        return self._pipeline.generate(prompt, config).tokens[0]


def shared(one, other):
    """Return how many characters both begin with."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


VISION = ("onnx", "openvino")
"""The backends that see images."""
NPU = "openvino_npu"
"""The backend for NPUs, on the processor: what the library is told of the device is the only difference."""
NAMES = (*backend.names(), NPU)
BARE = {"onnx": BareOnnx, "openvino": BareOpenvino, NPU: BareOpenvinoPlain}
FOLDERS = {"onnx": "tiny_model", "openvino": "tiny_openvino", NPU: "tiny_openvino"}
CONTEXT_TOKENS = {"onnx": 8192, "openvino": 4096, NPU: 4096}
MOST_PARALLEL = {NPU: 1}
PLAIN_CACHE = {NPU: {"KV_CACHE_PRECISION": "f32"}}
"""Of the 8192 of the tiny model. openvino-genai is kept to the original context, see openvino.known_context_tokens."""


@pytest.fixture(scope="session", params=[pytest.param(name, marks=pytest.mark.engine) for name in NAMES])
def backend_name(request):
    """Every backend there is."""
    if request.param != "onnx":
        request.getfixturevalue("openvino_genai")  # skips without it
    return request.param


@pytest.fixture(scope="session")
def folder(backend_name, request):
    """Random weights whose next token depends on distant context, as this backend's library wants them."""
    return request.getfixturevalue(FOLDERS[backend_name])


@pytest.fixture(scope="session")
def context_tokens(backend_name):
    """The context that this backend uses of the tiny model's."""
    return CONTEXT_TOKENS[backend_name]


@pytest.fixture(scope="session")
def beyond_original_context(context_tokens):
    """For tests of what happens where longrope changes its factors."""
    if context_tokens <= 4096:
        pytest.skip("this backend does not go beyond the original context")


@pytest.fixture(scope="session")
def folder_kind(backend_name):
    """The library whose folders this backend loads."""
    return backend_name.removesuffix("_npu")


@pytest.fixture(scope="session")
def most_parallel(backend_name):
    """The sequences that this backend takes at once at most."""
    return MOST_PARALLEL.get(backend_name, 16)


@pytest.fixture(scope="session")
def side_by_side(most_parallel):
    """For tests of generations that run together, and of prompts in pieces."""
    if most_parallel == 1:
        pytest.skip("this backend answers one after the other, and computes each prompt in one call")


def load_of(name):
    """Return a backend's load function."""
    return backend.find("openvino", "npu") if name == NPU else backend.find(name)


@pytest.fixture(scope="session")
def load(backend_name):
    """Load a folder with this backend; closed at the end of the session."""
    models = []

    def load(folder, *, context_tokens=8192, parallel=4, **options):
        options = PLAIN_CACHE.get(backend_name, {}) | options
        spec = ModelSpec(folder, backend_name, context_tokens, parallel, threads=1, options=options)
        models.append(load_of(backend_name)(spec))
        return models[-1]

    yield load
    for model in models:
        model.close()


@pytest.fixture(scope="session")
def model(load, folder):
    """The tiny model, used by one test after the other."""
    return load(folder)


@pytest.fixture(scope="session")
def bare(backend_name, folder):
    """The bare library with the same weights."""
    return BARE[backend_name](folder)


@pytest.fixture(scope="session")
def job_id():
    """Names of jobs, never the same twice."""
    numbers = iter(range(1, 100_000))
    return lambda: JobId(f"{next(numbers)}.1")


@pytest.fixture(scope="session")
def gallery(tmp_path_factory):
    """Where the tests' images are."""
    return Gallery(tmp_path_factory.mktemp("gallery"))


@pytest.fixture(scope="session")
def sees(backend_name):
    """For tests with images."""
    if backend_name not in VISION:
        pytest.skip("this backend sees no images")


@pytest.fixture(scope="session")
def seeing(sees, load, backend_name, tmp_path_factory):
    """The tiny model with eyes: random weights whose next token depends on every image."""
    from edge_agent.synth import TINY_VISION, build_text

    return load(build_text(tmp_path_factory.mktemp("vision") / "tiny", backend=backend_name, shape=TINY_VISION))


@pytest.fixture(scope="session")
def demo_seeing(sees, load, backend_name, tmp_path_factory):
    """The trained demo model, which knows colours and shapes."""
    from edge_agent.synth import build_demo

    return load(build_demo(tmp_path_factory.mktemp("vision") / "demo", backend=backend_name, vision=True))


@pytest.fixture
def load_slow(backend_name):
    """Load a folder on a device where whatever takes a moment takes a second."""
    models = []

    def load(folder):
        seconds = itertools.count()
        spec = ModelSpec(folder, backend_name, 4096, 2, threads=1)
        models.append(load_of(backend_name)(spec, now_s=lambda: float(next(seconds))))
        return models[-1]

    yield load
    for model in models:
        model.close()
