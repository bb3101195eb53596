"""The bare library's own loop, as a program of a dozen lines would have it, to compare an engine with.

The loop runs in a process of its own: `python -m edge_agent.bench.reference_loop --fd N --parent PID`. Over the
socket N go lines of JSON: what to load, `{"ready"}`, then a prompt and what became of it, in turns; the end of the
file ends it.
"""

import argparse
import importlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from edge_agent.base.errors import BackendMissingError, Code, EdgeAgentError
from edge_agent.engine.backend import ModelSpec, find
from edge_agent.engine.child import settle
from edge_agent.engine.hosting.plan import CLOSE_S, LOAD_S
from edge_agent.engine.llamacpp.gguf import gguf_file
from edge_agent.engine.model_folder import check

LINE_BYTES_MAX = 2**22
PLAIN_OPENVINO = {"INFERENCE_PRECISION_HINT": "f32"}
"""As the engine computes: bfloat16, the library's own choice on some processors, is not always sense."""


@dataclass(frozen=True, slots=True)
class BareSpell:
    """One answer: tokens, and seconds from the prompt's text to the last piece of the answer's."""

    tokens: int
    seconds: float
    first_token_s: float
    prefill_per_s: float | None
    decode_per_s: float | None


Loop = Callable[[str, int], BareSpell]


class Bare:
    """A context with a bare loop that is loaded and has answered once. Raises EdgeAgentError as OneShotEngine does."""

    def __init__(self, spec: ModelSpec, *, now_s: Callable[[], float] = time.perf_counter) -> None:
        self._spec = spec
        self._now_s = now_s
        self._child: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._lines: BinaryIO | None = None
        self.ready_s = 0.0

    def __enter__(self) -> Self:
        begun_s = self._now_s()
        try:
            ours, theirs = socket.socketpair()
            ours.settimeout(LOAD_S)
            self._socket, self._lines = ours, ours.makefile("rb")
            with theirs:
                self._child = subprocess.Popen(
                    [
                        *(sys.executable, "-m", "edge_agent.bench.reference_loop"),
                        *("--fd", str(theirs.fileno()), "--parent", str(os.getpid())),
                    ],
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.DEVNULL,
                    stdout=sys.stderr.fileno(),
                )
            spec = {**asdict(self._spec), "path": str(self._spec.path), "options": dict(self._spec.options)}
            self._talk(spec)
        except BaseException:
            self._end(0.0)
            raise
        self.ready_s = self._now_s() - begun_s
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _where: TracebackType | None
    ) -> None:
        self._end(CLOSE_S if kind is None else 0.0)

    def ask(self, prompt: str, *, max_tokens: int) -> BareSpell:
        """Have a prompt answered greedily."""
        return BareSpell(**self._talk({"prompt": prompt, "max_tokens": max_tokens}))

    def _talk(self, message: Mapping[str, Any]) -> dict[str, Any]:
        assert self._socket is not None  # noqa: S101 - made on entering
        assert self._lines is not None  # noqa: S101
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
            line = self._lines.readline(LINE_BYTES_MAX)
        except TimeoutError:
            raise EdgeAgentError(Code.ENGINE_DIED, f"the bare loop said nothing for {LOAD_S:.0f} s") from None
        except ConnectionError:
            line = b""
        if not line:
            raise EdgeAgentError(Code.ENGINE_DIED, "the bare loop ended by itself; see what it wrote above")
        answer: dict[str, Any] = json.loads(line)
        if "fault" in answer:
            raise EdgeAgentError(Code.MODEL_ERROR, f"the bare library said: {answer['fault']}")
        return answer

    def _end(self, patience_s: float) -> None:
        for end in (self._lines, self._socket):  # the child reads the end of the file when both are closed
            if end is not None:
                end.close()
        if self._child is not None:
            try:
                self._child.wait(patience_s)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()


# The child


def main(arguments: Sequence[str] | None = None) -> int:
    """Load what the first line says, answer the others; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m edge_agent.bench.reference_loop", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="number of the inherited socket")
    parser.add_argument("--parent", type=int, required=True, help="process id of the parent")
    options = parser.parse_args(arguments)
    settle(options.parent)
    with socket.socket(fileno=options.fd) as connection, connection.makefile("rwb") as lines:

        def say(message: Mapping[str, Any]) -> None:
            lines.write(json.dumps(message).encode() + b"\n")
            lines.flush()

        asked = json.loads(lines.readline(LINE_BYTES_MAX))
        spec = ModelSpec(**asked | {"path": Path(asked["path"])})
        try:
            find(spec.backend)  # turns telemetry off, and says best that the library is not there
            check(spec.path)
            loop = _LOOPS[spec.backend](spec)
            loop("Hello", 4)  # the first answer is slower; an engine has given its own when it is ready
            say({"ready": True})
            while line := lines.readline(LINE_BYTES_MAX):
                asked = json.loads(line)
                say(asdict(loop(asked["prompt"], asked["max_tokens"])))
        except (RuntimeError, ValueError, EdgeAgentError, BackendMissingError) as error:
            say({"fault": str(error)})
            return 1
        except ConnectionError:  # the parent has gone
            return 0
    return 0


def _onnx(spec: ModelSpec) -> Loop:
    og = importlib.import_module("onnxruntime_genai")
    config = og.Config(str(spec.path))
    session: dict[str, Any] = {"intra_op_num_threads": spec.threads}
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
    told: dict[str, Any] = {}
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


_LOOPS: Mapping[str, Callable[[ModelSpec], Loop]] = {"onnx": _onnx, "openvino": _openvino, "llamacpp": _llamacpp}


if __name__ == "__main__":
    sys.exit(main())
