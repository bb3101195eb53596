"""Text models through onnxruntime-genai: one generator per generation, advanced in turn."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import onnxruntime_genai as og

from edge_agent.engine.backend import ModelSpec
from edge_agent.engine.messages import (
    Event,
    Failed,
    Finished,
    FinishReason,
    Generation,
    JobId,
    Limits,
    Progress,
    Text,
    Usage,
)
from edge_agent.engine.prefill import LONGROPE_TOKENS, PIECE_TOKENS_MIN, piece_tokens
from edge_agent.engine.prompt import SpecialTokens, messages_json
from edge_agent.engine.stops import StopStrings
from edge_agent.errors import Code, EdgeAgentError

_LONGROPE_TYPE = "phi3"
"""The `type` in genai_config.json for which the library computes a sequence anew at LONGROPE_TOKENS."""
_FRESH_SEED = -1
"""The library's value for a seed of its own choice."""
_SEED_MASK = 2**31 - 1  # the library takes a signed 32-bit number, and draws a fresh seed for negative ones
_ALLOCATION = ("bad_alloc", "allocate memory", "out of memory")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Ids of a model: there are `size`, and those in `end_ids` end a turn."""

    size: int
    end_ids: frozenset[int]


@dataclass(slots=True, kw_only=True)
class _Sequence:
    """One generation under way. `generator` holds its keys and values; it is made when its turn comes.

    `prompt` is an int32 array of token ids, shape [prompt_tokens]; `position` of them are computed.
    """

    generation: Generation
    prompt: Any
    max_tokens: int
    stops: StopStrings
    stream: Any
    generator: Any = None
    position: int = 0
    completion_tokens: int = 0
    begun_s: float | None = None
    prefilled_s: float | None = None

    @property
    def job_id(self) -> JobId:
        return self.generation.job_id

    @property
    def prefilled(self) -> bool:
        return self.position == len(self.prompt)

    @property
    def tokens(self) -> int:
        return len(self.prompt) + self.completion_tokens

    def take(self, token: int, end_ids: frozenset[int]) -> tuple[str, FinishReason | None]:
        """Count a token; return the text that is certain with it, and the reason when it was the last."""
        self.completion_tokens += 1
        if token in end_ids:
            return self.stops.rest(), FinishReason.STOP
        text = self.stops.feed(self.stream.decode(token))
        if self.stops.met:
            return text, FinishReason.STOP
        if self.completion_tokens == self.max_tokens:
            return text + self.stops.rest(), FinishReason.LENGTH
        return text, None

    def finished(self, reason: FinishReason, now_s: float) -> Finished:
        begun_s = now_s if self.begun_s is None else self.begun_s
        prefilled_s = now_s if self.prefilled_s is None else self.prefilled_s
        return Finished(
            self.job_id,
            reason,
            Usage(prompt_tokens=len(self.prompt), completion_tokens=self.completion_tokens),
            prompt_ms=(prefilled_s - begun_s) * 1000,
            generate_ms=(now_s - prefilled_s) * 1000,
        )


class OnnxModel:
    """A text model in memory; see LoadedModel for what it promises."""

    def __init__(
        self,
        *,
        model: Any,
        tokenizer: Any,
        special_tokens: SpecialTokens,
        vocabulary: Vocabulary,
        limits: Limits,
        now_s: Callable[[], float],
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._special_tokens = special_tokens
        self._vocabulary = vocabulary
        self._now_s = now_s
        self._sequences: dict[JobId, _Sequence] = {}
        self._tokens_per_s: float | None = None
        self._longrope = model.type == _LONGROPE_TYPE
        self.limits = limits
        self.library = f"onnxruntime-genai {og.__version__}"
        self.device = str(model.device_type).lower()

    def start(self, generation: Generation) -> None:
        """Count the prompt's tokens. Raises EdgeAgentError: PROMPT_TOO_LONG with the counts, BAD_REQUEST for a role."""
        messages = messages_json(generation.turns, self._special_tokens)
        with _library():
            prompt = self._tokenizer.encode(self._tokenizer.apply_chat_template(messages, add_generation_prompt=True))
            stream = self._tokenizer.create_stream()
        room = self.limits.context_tokens - len(prompt)
        if room < 1:
            raise EdgeAgentError(
                Code.PROMPT_TOO_LONG,
                f"messages: the prompt has {len(prompt)} tokens and at most {self.limits.context_tokens - 1} fit, "
                "which leaves room for one token of answer; shorten it",
            )
        self._sequences[generation.job_id] = _Sequence(
            generation=generation,
            prompt=prompt,
            max_tokens=min(generation.max_tokens, room),
            stops=StopStrings(generation.stop),
            stream=stream,
        )

    def step(self) -> Iterator[Event]:
        """Advance every decoding generation by a token, then compute one piece of the oldest unfinished prompt."""
        for sequence in [each for each in self._sequences.values() if each.prefilled]:
            yield from self._advance(sequence, self._decode)
        unfilled = next((each for each in self._sequences.values() if not each.prefilled), None)
        if unfilled is not None:
            yield from self._advance(unfilled, self._prefill)

    def cancel(self, job_id: JobId) -> Iterator[Event]:
        """Stop a generation and free its memory."""
        sequence = self._sequences.get(job_id)
        if sequence is None:
            return
        if held := sequence.stops.rest():
            yield Text(job_id, held, 0)
        yield self._finish(sequence, FinishReason.CANCELED)

    def close(self) -> None:
        """Free the generations, then the model they stand on."""
        self._sequences.clear()
        self._tokenizer = None
        self._model = None

    def _advance(self, sequence: _Sequence, move: Callable[[_Sequence], Iterator[Event]]) -> Iterator[Event]:
        """Make a move; an error in it ends this generation and no other."""
        try:
            yield from move(sequence)
        except EdgeAgentError as error:
            self._free(sequence)
            yield Failed(sequence.job_id, error.code, error.message)

    def _prefill(self, sequence: _Sequence) -> Iterator[Event]:
        total = len(sequence.prompt)
        if sequence.begun_s is None:
            yield Progress(sequence.job_id, unprocessed_tokens=total)
            sequence.begun_s = self._now_s()
            with _library():
                sequence.generator = self._generator(sequence)
        piece = piece_tokens(
            position=sequence.position,
            prompt_tokens=total,
            tokens_per_s=self._tokens_per_s,
            longrope=self._longrope,
            alone=not any(each.prefilled for each in self._sequences.values()),
        )
        began_s = self._now_s()
        with _library():
            sequence.generator.append_tokens(sequence.prompt[sequence.position : sequence.position + piece])
        ended_s = self._now_s()
        sequence.position += piece
        if sequence.prefilled:
            sequence.prefilled_s = ended_s
        if piece >= PIECE_TOKENS_MIN and ended_s > began_s:  # a short rest tells little of the speed
            self._tokens_per_s = piece / (ended_s - began_s)
        yield Progress(sequence.job_id, total - sequence.position, piece, (ended_s - began_s) * 1000)

    def _decode(self, sequence: _Sequence) -> Iterator[Event]:
        # Here the library computes everything anew, see LONGROPE_TOKENS: say so before it falls silent.
        again = sequence.tokens if self._longrope and sequence.tokens == LONGROPE_TOKENS else 0
        if again:
            yield Progress(sequence.job_id, unprocessed_tokens=again)
        began_s = self._now_s()
        with _library():
            sequence.generator.generate_next_token()
            token = int(sequence.generator.get_next_tokens()[0])
            text, reason = sequence.take(token, self._vocabulary.end_ids)
        if again:
            yield Progress(sequence.job_id, 0, again, (self._now_s() - began_s) * 1000)
        yield Text(sequence.job_id, text, 1)
        if reason is not None:
            yield self._finish(sequence, reason)

    def _generator(self, sequence: _Sequence) -> Any:
        params = og.GeneratorParams(self._model)
        params.set_search_options(
            max_length=len(sequence.prompt) + sequence.max_tokens,  # keys and values are allocated for all of it
            **search_options(sequence.generation, vocab_size=self._vocabulary.size),
        )
        return og.Generator(self._model, params)

    def _finish(self, sequence: _Sequence, reason: FinishReason) -> Finished:
        self._free(sequence)
        return sequence.finished(reason, self._now_s())

    def _free(self, sequence: _Sequence) -> None:
        del self._sequences[sequence.job_id]
        sequence.generator = None


def load(spec: ModelSpec, *, now_s: Callable[[], float] = time.perf_counter) -> OnnxModel:
    """Load a model folder.

    Raises EdgeAgentError: MODEL_ERROR when the folder cannot be loaded, OUT_OF_MEMORY.
    """
    og.disable_telemetry_events()  # an edge agent phones nobody; the environment said so before the import already
    special_tokens = SpecialTokens.read(spec.path)
    threads = {"model": {"decoder": {"session_options": {"intra_op_num_threads": spec.threads}}}}
    try:
        settings = json.loads((spec.path / "genai_config.json").read_text(encoding="utf-8"))["model"]
        context_tokens, vocab_size = int(settings["context_length"]), int(settings["vocab_size"])
        with _library():
            config = og.Config(str(spec.path))
            config.overlay(json.dumps(threads))
            model = og.Model(config)
            tokenizer = og.Tokenizer(model)
            end_ids = frozenset(int(token) for token in tokenizer.eos_token_ids)
    except EdgeAgentError as error:
        raise EdgeAgentError(error.code, f"{spec.path} cannot be loaded: {error.message}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EdgeAgentError(
            Code.MODEL_ERROR, f"genai_config.json in {spec.path} cannot be read ({error!r}); fetch the model again"
        ) from error
    return OnnxModel(
        model=model,
        tokenizer=tokenizer,
        special_tokens=special_tokens,
        vocabulary=Vocabulary(vocab_size, end_ids),
        limits=Limits(context_tokens=min(spec.context_tokens, context_tokens), parallel=spec.parallel),
        now_s=now_s,
    )


def search_options(generation: Generation, *, vocab_size: int) -> dict[str, Any]:
    """Return the library's names for how the next token is chosen.

    Its `top_k` 0 is no limit, as ours; it refuses one over the vocabulary, which means the same.
    """
    if not generation.temperature:
        return {"do_sample": False, "top_k": 1, "repetition_penalty": generation.repetition_penalty}
    return {
        "do_sample": True,
        "temperature": generation.temperature,
        "top_p": generation.top_p,
        "top_k": min(generation.top_k, vocab_size),
        "repetition_penalty": generation.repetition_penalty,
        "random_seed": _FRESH_SEED if generation.seed is None else generation.seed & _SEED_MASK,
    }


@contextmanager
def _library() -> Iterator[None]:
    """Turn the library's errors into ours: it knows only RuntimeError, and MemoryError for C++'s bad_alloc."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = next(iter(str(error).splitlines()), "memory ran out")
        if isinstance(error, MemoryError) or any(sign in text.lower() for sign in _ALLOCATION):
            raise EdgeAgentError(
                Code.OUT_OF_MEMORY, f"memory ran out ({text}); lower max_tokens or shorten the prompt"
            ) from error
        raise EdgeAgentError(Code.MODEL_ERROR, f"onnxruntime-genai said: {text}") from error
