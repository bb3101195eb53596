"""The backends under contract, and beside each the bare library's own loop to compare with."""

import importlib
import importlib.util
import itertools
import json
import os
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from pictures import Gallery

from edge_agent.engine import backend
from edge_agent.engine.backend import ModelSpec
from edge_agent.engine.llamacpp.gguf import gguf_file
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
        return parts(self._tokenizer.decode, tokens)

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


class BareTransformers:
    """transformers' own `generate`."""

    def __init__(self, folder):
        import transformers

        self._tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
        self._model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32")

    def encode(self, turns):
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        return self._tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]

    def texts(self, turns, max_tokens, **options):
        """Return the text of each token generated; of a character of several tokens with the last."""
        return parts(self._tokenizer.decode, self._answer(self.encode(turns), max_tokens, **options))

    def _answer(self, prompt, max_tokens, repetition_penalty=1.0):
        import torch

        asked = {"max_new_tokens": max_tokens, "do_sample": False, "repetition_penalty": repetition_penalty}
        said = self._model.generate(torch.tensor([prompt]), **asked)[0, len(prompt) :].tolist()
        ends = self._model.generation_config.eos_token_id
        return said[:-1] if said and said[-1] in ends else said


class BareMlx(BareTransformers):
    """mlx-lm's own `generate_step`, with the short factors of longrope that it does not use by itself."""

    def __init__(self, folder):
        import mlx_lm
        from mlx_lm.utils import load

        self._tokenizer = importlib.import_module("transformers").PreTrainedTokenizerFast.from_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        config["rope_scaling"]["long_factor"] = config["rope_scaling"]["short_factor"]
        self._model, self._own = load(str(folder), model_config=config)
        self._lm = mlx_lm

    def _answer(self, prompt, max_tokens, repetition_penalty=None):
        import mlx.core as mx
        from mlx_lm.generate import generate_step
        from mlx_lm.sample_utils import make_logits_processors

        extra = make_logits_processors(repetition_penalty=repetition_penalty, repetition_context_size=100_000)
        said = []
        for token, _ in generate_step(mx.array(prompt), self._model, max_tokens=max_tokens, logits_processors=extra):
            if token in self._own.eos_token_ids:
                break
            said.append(token)
        return said


class BareLlamacpp:
    """llama.cpp's own server: the prompt in one batch, no cache of beginnings, no neighbours."""

    def __init__(self, folder):
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(gguf_file(folder))
        params.n_ctx, params.n_parallel = 4096, 1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.verbosity = -1
        self._server = xllamacpp.Server(params)
        self.address = self._server.listening_address

    def encode(self, turns):
        # Without the white space for which Phi-3.5's tokenizer has no token there.
        prompt = "".join(
            f"<|{turn.role}|>{'' if turn.role == 'assistant' else chr(10)}{turn.text}<|end|>\n" for turn in turns
        )
        return self.asked("tokenize", content=f"{prompt}<|assistant|>", parse_special=True)["tokens"]

    def texts(self, turns, max_tokens, repetition_penalty=1.0):
        """Return the text of each token generated; of a character of several tokens with the last."""
        answer = self.asked(
            "completion",
            prompt=self.encode(turns),
            n_predict=max_tokens,
            temperature=0,
            cache_prompt=False,
            repeat_penalty=repetition_penalty,
            repeat_last_n=4096,
            stream=True,
        )
        texts = [piece["content"] for piece in answer if not piece["stop"]]
        return [text.removeprefix(" ") if number == 0 else text for number, text in enumerate(texts)]

    def asked(self, path, **body):
        request = urllib.request.Request(f"{self.address}/{path}", json.dumps(body).encode())
        with urllib.request.urlopen(request) as answer:
            text = answer.read().decode()
        if "stream" not in body:
            return json.loads(text)
        return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: {")]


def parts(decode, tokens):
    """Return the text that each token adds to the whole; of a character of several tokens with the last."""
    whole = decode(tokens)
    ends = [shared(whole, decode(tokens[:i])) for i in range(len(tokens))]
    return [whole[begin:end] for begin, end in zip(ends, [*ends[1:], len(whole)], strict=True)]


def shared(one, other):
    """Return how many characters both begin with."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


@dataclass(frozen=True)
class Subject:
    """A backend under contract, on the processor.

    `module` is its library and `extra` what brings it; with `in_ci` its absence there is a failure. `folders` is the
    kind of folder it loads; `model` and `tiny` are how the same weights are asked of it and of tests. `exact` are
    options under which nothing but the weights is quantised.
    """

    backend: str
    module: str
    extra: str
    bare: type
    folders: str
    context_tokens: int
    device: str = "cpu"
    most_parallel: int = 16
    sees: bool = False
    in_ci: bool = True
    options: Mapping[str, str] = field(default_factory=dict)
    exact: Mapping[str, str] = field(default_factory=dict)

    @property
    def missing(self):
        """Why it cannot be tried here; None when it can."""
        if importlib.util.find_spec(self.module):
            return None
        return f"{self.module} is not installed; install it with: pip install -e '.[{self.extra}]'"

    def load(self, folder, *, context_tokens, parallel, options=None, apart=False, **told):
        """Load a folder."""
        asked = {**self.options, **(options or {})}
        spec = ModelSpec(folder, self.backend, context_tokens, parallel, threads=1, options=asked, apart=apart)
        return backend.find(self.backend, self.device)(spec, **told)


F32 = {"KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
SUBJECTS = {
    "onnx": Subject("onnx", "onnxruntime_genai", "cpu", BareOnnx, "onnx", 8192, sees=True),
    # openvino-genai is kept to the original context, see facts.openvino_context.
    "openvino": Subject("openvino", "openvino_genai", "openvino", BareOpenvino, "openvino", 4096, sees=True, exact=F32),
    # The backend for NPUs, on the processor: what the library is told of the device is the only difference.
    "openvino_npu": Subject(
        "openvino",
        "openvino_genai",
        "openvino",
        BareOpenvinoPlain,
        "openvino",
        4096,
        device="npu",
        most_parallel=1,
        options={"KV_CACHE_PRECISION": "f32"},
        exact=F32,
    ),
    # Kept to the original context, see llamacpp_file.GgufFile.
    "llamacpp": Subject(
        "llamacpp", "xllamacpp", "llamacpp", BareLlamacpp, "llamacpp", 4096, exact={"cache_type": "f32"}
    ),
    "transformers": Subject(
        "transformers", "torch", "transformers", BareTransformers, "transformers", 8192, in_ci=False
    ),
    # Kept to the original context too, see mlx.MlxDecoder.
    "mlx": Subject("mlx", "mlx_lm", "mlx", BareMlx, "transformers", 4096, in_ci=False),
}
"""By the name in the tests' ids."""


def require(subject):
    """Skip a test whose library is not here; in CI that is a failure for those that are installed there."""
    if subject.missing is not None:
        lacking = pytest.fail if subject.in_ci and os.environ.get("CI") == "true" else pytest.skip
        lacking(subject.missing)


@pytest.fixture(scope="session", params=[pytest.param(name, marks=pytest.mark.engine) for name in SUBJECTS])
def subject(request) -> Any:
    """Every backend there is."""
    require(SUBJECTS[request.param])
    return SUBJECTS[request.param]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """Return a folder of a kind with random weights whose next token depends on distant context; made once."""
    from edge_agent.synth import build_text

    made = {}

    def folder(kind):
        if kind not in made:
            made[kind] = build_text(tmp_path_factory.mktemp(f"tiny-{kind}") / "model", backend=kind)
        return made[kind]

    return folder


@pytest.fixture(scope="session")
def folder(subject, tiny_folder):
    """The tiny model as this backend's library wants it."""
    return tiny_folder(subject.folders)


@pytest.fixture(scope="session")
def beyond_original_context(subject):
    """For tests of what happens where longrope changes its factors."""
    if subject.context_tokens <= 4096:
        pytest.skip("this backend does not go beyond the original context")


@pytest.fixture(scope="session")
def side_by_side(subject):
    """For tests of generations that run together, and of prompts in pieces."""
    if subject.most_parallel == 1:
        pytest.skip("this backend answers one after the other, and computes each prompt in one call")


@pytest.fixture(scope="session")
def load(subject):
    """Load a folder with this backend; closed at the end of the session."""
    models = []

    def load(folder, *, context_tokens=8192, parallel=4, apart=False, **options):
        models.append(
            subject.load(folder, context_tokens=context_tokens, parallel=parallel, options=options, apart=apart)
        )
        return models[-1]

    yield load
    for model in models:
        model.close()


@pytest.fixture(scope="session")
def model(load, folder):
    """The tiny model, used by one test after the other."""
    return load(folder)


@pytest.fixture(scope="session")
def bare(subject, folder):
    """The bare library with the same weights."""
    return subject.bare(folder)


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
def sees(subject):
    """For tests with images."""
    if not subject.sees:
        pytest.skip("this backend sees no images")


@pytest.fixture(scope="session")
def seeing_folder(sees, subject, tmp_path_factory):
    """The tiny model with eyes: random weights whose next token depends on every image."""
    from edge_agent.synth import TINY_VISION, build_text

    return build_text(tmp_path_factory.mktemp("vision") / "tiny", backend=subject.folders, shape=TINY_VISION)


@pytest.fixture(scope="session")
def seeing(load, seeing_folder):
    """The tiny model with eyes, used by one test after the other."""
    return load(seeing_folder)


@pytest.fixture(scope="session")
def demo_seeing(sees, load, subject, tmp_path_factory):
    """The trained demo model, which knows colours and shapes."""
    from edge_agent.synth import build_demo

    return load(build_demo(tmp_path_factory.mktemp("vision") / "demo", backend=subject.folders, vision=True))


@pytest.fixture
def load_slow(subject):
    """Load a folder on a device where whatever takes a moment takes a second."""
    models = []

    def load(folder):
        seconds = itertools.count()
        models.append(subject.load(folder, context_tokens=4096, parallel=2, now_s=lambda: float(next(seconds))))
        return models[-1]

    yield load
    for model in models:
        model.close()
