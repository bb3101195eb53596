"""Text models on Intel's NPUs, by openvino-genai's plain pipeline: one answer at a time, in shapes fixed at the load.

The pipeline of continuous batching knows no NPU. This one computes a prompt in one call and keeps nothing for the next.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import openvino_genai as genai

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.backend import ModelSpec
from edge_agent.engine.guides.burden import StepTimes
from edge_agent.engine.guides.guide import TOO_SLOW
from edge_agent.engine.messages import (
    Event,
    FinishReason,
    ModelLimits,
    Progress,
    Text,
)
from edge_agent.engine.openvino.load import DEFAULTS, read_numbers
from edge_agent.engine.openvino.pipeline_model import PipelineModel, library
from edge_agent.engine.openvino.prompt import Reader
from edge_agent.engine.openvino.pull import pulled
from edge_agent.engine.openvino.sequence import OpenvinoSequence, sampling
from edge_agent.engine.openvino.vocabulary import tokenizer
from edge_agent.engine.text.detokenizer import Vocabulary
from edge_agent.engine.text.prompt import PromptMaker

SHAPE_TOKENS = 64
"""Prompts are padded to multiples of this: the library's align_to in utils.cpp."""
RESPONSE_TOKENS = 128
"""The least room for an answer, as the library's default. It is room beyond that of the longest prompt, so that the
whole context may be prompt; an answer to a short prompt may take what the prompt leaves."""


def properties(spec: ModelSpec, context_tokens: int) -> Mapping[str, Any]:
    """Return what the library is told, by device.

    On the processor, where this is tried without an NPU, the same pipeline runs in shapes that are not fixed.
    """
    if spec.device == "npu":  # docs.openvino.ai, "OpenVINO GenAI on NPU"
        prompt_tokens = -(-context_tokens // SHAPE_TOKENS) * SHAPE_TOKENS
        return {"MAX_PROMPT_LEN": prompt_tokens, "MIN_RESPONSE_LEN": RESPONSE_TOKENS, **spec.options}
    plain = {"INFERENCE_NUM_THREADS": spec.threads, "ATTENTION_BACKEND": "SDPA"}
    return {**plain, **DEFAULTS["cpu"], **spec.options}


def load(spec: ModelSpec, *, now_s: Callable[[], float] = time.perf_counter) -> "NpuModel":
    """Load a model folder. Raises EdgeAgentError: MODEL_ERROR when it cannot be loaded, OUT_OF_MEMORY."""
    vocab_size, context_tokens = read_numbers(spec.path)
    limits = ModelLimits(context_tokens=min(spec.context_tokens, context_tokens), parallel=1)
    maker, vocabulary = PromptMaker.read(spec.path), Vocabulary.read(spec.path)
    try:
        with library():
            pipeline = genai.LLMPipeline(
                str(spec.path),
                tokenizer(spec.path, vocabulary),
                spec.device.upper(),
                **properties(spec, limits.context_tokens),
            )
    except EdgeAgentError as error:
        raise EdgeAgentError(error.code, f"{spec.path} cannot be loaded: {error.message}") from error
    return NpuModel(
        pipeline=pipeline,
        maker=maker,
        vocabulary=vocabulary,
        vocab_size=vocab_size,
        limits=limits,
        device=spec.device,
        now_s=now_s,
    )


class NpuModel(PipelineModel):
    """A text model in memory; see LoadedModel for what it promises. What comes while another is answered waits.

    A cancel is heard between tokens: at once after the prompt, not in it.
    """

    def __init__(
        self,
        *,
        pipeline: Any,
        maker: PromptMaker,
        vocabulary: Vocabulary,
        vocab_size: int,
        limits: ModelLimits,
        device: str,
        now_s: Callable[[], float],
    ) -> None:
        super().__init__(
            pipeline=pipeline,
            reader=Reader(maker, vocab_size),
            vocabulary=vocabulary,
            vocab_size=vocab_size,
            limits=limits,
            device=device,
            now_s=now_s,
        )
        own = pipeline.get_generation_config()
        self._end_ids = frozenset({own.eos_token_id, *own.stop_token_ids})

    def step(self) -> Iterator[Event]:
        """Compute the prompt of the oldest, or a token of its answer."""
        sequence = next(iter(self._sequences.values()), None)
        if sequence is not None:
            yield from self._advance(sequence, self._compute)

    def _compute(self, sequence: OpenvinoSequence) -> Iterator[Event]:
        if not sequence.prefilled:
            yield from self._prefill(sequence)
            return
        began_s, began_cpu_s = self._now_s(), time.process_time()
        token = next(sequence.handle, None)
        took = StepTimes(self._now_s() - began_s, time.process_time() - began_cpu_s)
        if self._burden.heavy(took, texts=1, guided=sequence.guide is not None):
            raise EdgeAgentError(Code.BAD_REQUEST, TOO_SLOW)
        yield from self._say(sequence, token)

    def _prefill(self, sequence: OpenvinoSequence) -> Iterator[Event]:
        """Compute a prompt in one call, having said so before; its first token comes with it."""
        total = sequence.unfilled_tokens
        yield Progress(sequence.job_id, total)
        sequence.begun_s = self._now_s()
        config = genai.GenerationConfig(**sampling(sequence.generation), max_new_tokens=sequence.max_tokens)
        config.structured_output_config = sequence.guide
        sequence.handle = pulled(partial(self._pipeline.generate, sequence.prompt.tensor(total), config))
        token = next(sequence.handle, None)
        sequence.prefilled_s = self._now_s()
        yield Progress(sequence.job_id, 0, total, (sequence.prefilled_s - sequence.begun_s) * 1000)
        yield from self._say(sequence, token)

    def _say(self, sequence: OpenvinoSequence, token: int | None) -> Iterator[Event]:
        """Tell of a token; of None when the library ended the answer by itself, for want of room."""
        if token is None:
            yield Text(sequence.job_id, sequence.words.rest(), 0)
            yield self._finish(sequence, FinishReason.LENGTH)
            return
        text, reason = sequence.take(token, self._end(sequence, token))
        yield Text(sequence.job_id, text, 1)
        if reason is not None:
            yield self._finish(sequence, reason)

    def _end(self, sequence: OpenvinoSequence, token: int) -> Any:
        """Return whether a token is the last, in the library's terms; it says so only when asked for another."""
        if token in self._end_ids:
            return genai.GenerationFinishReason.STOP
        full = len(sequence.answer) + 1 == sequence.max_tokens
        return genai.GenerationFinishReason.LENGTH if full else genai.GenerationFinishReason.NONE

    def _give_back(self, sequence: OpenvinoSequence) -> None:
        if sequence.handle is not None:
            sequence.handle.close()
            sequence.handle = None
