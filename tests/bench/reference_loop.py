"""The libraries' own loops, as programs of a dozen lines would have them, to compare an engine with.

Each runs in a process of its own, as engines do. Telemetry of the libraries is off.
"""

import importlib
import json
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

from edge_agent.engine.backend import ModelSpec, find
from edge_agent.engine.llamacpp.gguf import gguf_file

ANSWER_S = 600.0
PLAIN_OPENVINO = {"INFERENCE_PRECISION_HINT": "f32"}
"""As the engine computes: bfloat16, the library's own choice on some processors, is not always sense."""


@dataclass(frozen=True, slots=True)
class BareSpell:
    """One answer: tokens, and seconds from the prompt's text to the last piece of the answer's."""

    tokens: int
    seconds: float
    first_token_s: float
    prefill_per_s: float
    decode_per_s: float | None


Loop = Callable[[str, int], BareSpell]


class Bare:
    """A bare loop in its process, which has answered once: the first answer is slower, and engines gave theirs."""

    def __init__(self, spec: ModelSpec) -> None:
        context = multiprocessing.get_context("spawn")
        self._line, theirs = context.Pipe()
        self._process = context.Process(target=_answer, args=(spec, theirs), name="bare", daemon=True)
        begun_s = time.monotonic()
        self._process.start()
        theirs.close()
        self.ask("Hello", 4)
        self.ready_s = time.monotonic() - begun_s

    def ask(self, prompt: str, max_tokens: int) -> BareSpell:
        """Have a prompt answered greedily."""
        self._line.send((prompt, max_tokens))
        if not self._line.poll(ANSWER_S):
            raise TimeoutError(f"the bare loop said nothing for {ANSWER_S:.0f} s")
        return self._line.recv()

    def close(self) -> None:
        self._line.send(None)
        self._process.join(10)


def _answer(spec: ModelSpec, line: Connection) -> None:
    find(spec.backend)  # turns telemetry off, and says best that the library is not there
    loop = LOOPS[spec.backend](spec)
    while (asked := line.recv()) is not None:
        line.send(loop(*asked))


def _onnx(spec: ModelSpec) -> Loop:
    og = importlib.import_module("onnxruntime_genai")
    config = og.Config(str(spec.path))
    session = {"intra_op_num_threads": spec.threads}
    if spec.device == "cpu":
        session |= spec.options
    else:
        config.clear_providers()
        config.append_provider(spec.device)
        for name, value in spec.options.items():
            config.set_provider_option(spec.device, name, value)
    config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
    model = og.Model(config)
    tokenizer = og.Tokenizer(model)

    def loop(prompt: str, max_tokens: int) -> BareSpell:
        begun_s = time.perf_counter()
        chat = json.dumps([{"role": "user", "content": prompt}])
        ids = tokenizer.encode(tokenizer.apply_chat_template(chat, add_generation_prompt=True))
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(max_length=len(ids) + max_tokens, do_sample=False)
        generator, stream = og.Generator(model, parameters), tokenizer.create_stream()
        appended_s = time.perf_counter()
        generator.append_tokens(ids)
        filled_s = first_s = last_s = time.perf_counter()
        tokens = 0
        while not generator.is_done():
            generator.generate_next_token()
            stream.decode(int(generator.get_next_tokens()[0]))
            tokens += 1
            last_s = time.perf_counter()
            first_s = last_s if tokens == 1 else first_s
        return BareSpell(
            tokens=tokens,
            seconds=last_s - begun_s,
            first_token_s=first_s - begun_s,
            prefill_per_s=len(ids) / (filled_s - appended_s),
            decode_per_s=(tokens - 1) / (last_s - first_s) if last_s > first_s else None,
        )

    return loop


def _openvino(spec: ModelSpec) -> Loop:
    genai = importlib.import_module("openvino_genai")
    told = {}
    if spec.device == "cpu":
        told = {"INFERENCE_NUM_THREADS": spec.threads, **PLAIN_OPENVINO}
    elif spec.device == "npu":  # it is compiled for a longest prompt, and takes no longer one
        told = importlib.import_module("edge_agent.engine.openvino.npu").properties(spec, spec.context_tokens)
    sees = (spec.path / "openvino_language_model.xml").is_file()
    kind = genai.VLMPipeline if sees else genai.LLMPipeline
    pipeline = kind(str(spec.path), spec.device.upper(), **{**told, **spec.options})

    def loop(prompt: str, max_tokens: int) -> BareSpell:
        begun_s = time.perf_counter()
        # a list, for only then figures come with the text; from what sees they always do
        asked = prompt if sees else [prompt]
        figures = pipeline.generate(asked, max_new_tokens=max_tokens, do_sample=False).perf_metrics
        seconds = time.perf_counter() - begun_s
        tokens = int(figures.get_num_generated_tokens())
        first_s = figures.get_ttft().mean / 1000
        return BareSpell(
            tokens=tokens,
            seconds=seconds,
            first_token_s=first_s,
            prefill_per_s=figures.get_num_input_tokens() / first_s,
            decode_per_s=1000 / figures.get_tpot().mean if tokens > 1 else None,
        )

    return loop


def _llamacpp(spec: ModelSpec) -> Loop:
    """The server that is llama.cpp's own, asked without a network between."""
    llama = importlib.import_module("xllamacpp")
    params = llama.CommonParams()
    params.model.path = str(gguf_file(spec.path))
    params.n_ctx, params.n_parallel, params.verbosity = spec.context_tokens, 1, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = spec.threads
    server = llama.Server(params)

    def loop(prompt: str, max_tokens: int) -> BareSpell:
        begun_s = time.perf_counter()
        asked = {"max_tokens": max_tokens, "temperature": 0, "cache_prompt": False}
        answer = server.handle_chat_completions({"messages": [{"role": "user", "content": prompt}], **asked})
        seconds = time.perf_counter() - begun_s
        if "timings" not in answer:
            raise RuntimeError("llama.cpp's server did not answer")
        figures = answer["timings"]
        return BareSpell(
            tokens=figures["predicted_n"],
            seconds=seconds,
            first_token_s=figures["prompt_ms"] / 1000,
            prefill_per_s=figures["prompt_per_second"],
            decode_per_s=figures["predicted_per_second"] if figures["predicted_n"] > 1 else None,
        )

    return loop


LOOPS: dict[str, Callable[[ModelSpec], Loop]] = {"onnx": _onnx, "openvino": _openvino, "llamacpp": _llamacpp}
