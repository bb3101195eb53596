"""All generations of one model, computed together by openvino-genai's pipeline of continuous batching."""

import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import openvino_genai as genai
from openvino import Tensor

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.batching.prefill import (
    PIECE_TOKENS_MAX,
    PIECE_TOKENS_MIN,
    even_tokens,
    piece_tokens,
    shared_tokens,
)
from edge_agent.engine.batching.turns import Turns
from edge_agent.engine.contained import BrokenError
from edge_agent.engine.guides.burden import StepTimes
from edge_agent.engine.guides.guide import TOO_SLOW
from edge_agent.engine.messages import (
    Event,
    Generation,
    JobId,
    ModelLimits,
    Progress,
    Text,
)
from edge_agent.engine.openvino.owners import Owners
from edge_agent.engine.openvino.pipeline_model import PipelineModel, library
from edge_agent.engine.openvino.prompt import CountedPrompt, Reader
from edge_agent.engine.openvino.sequence import OpenvinoSequence, sampling
from edge_agent.engine.text.detokenizer import Vocabulary

_FASTER_MOST = 2.0
"""What a piece may add to the speed assumed for the next: tokens found in the cache unnoticed make it look faster."""


@dataclass(frozen=True, slots=True)
class KeyValueCache:
    """The keys and values of all sequences: so many blocks of so many tokens."""

    blocks: int
    block_tokens: int


@dataclass(frozen=True, slots=True)
class PromptPiece:
    """So many tokens of a sequence's prompt that are computed in the next call."""

    sequence: OpenvinoSequence
    tokens: int


class OpenvinoModel(PipelineModel):
    """A model in memory; see LoadedModel for what it promises.

    The library could cut prompts itself, but not at the borders of its cache's blocks: it enters a block as complete
    when the first of its tokens is scheduled, so that a prompt cancelled between two pieces leaves one behind that
    was never computed, and the next prompt with that beginning is answered from it (seen with 2026.4). So each piece
    is a request of its own that ends with a block, and the next finds its keys and values in the cache. For the same
    reason a prompt waits for what it shares with another that is being computed, and finds it there; otherwise the
    rests of several are computed in one call, which reads the weights once. All that among one owner's, see Owners.

    A model that sees is given what its decoder reads in place of token ids. Its images are encoded here, one tile per
    step. The library finds blocks in its cache by up to ten numbers of each token, bit by bit, and all tokens before:
    another image is another prompt from the tile on that differs.

    `keeps` tells whether the library shall keep what it computed; `call_tokens` are those of prompts in one call at
    most, the largest piece with its short rest.
    """

    keeps = True
    call_tokens = PIECE_TOKENS_MAX + PIECE_TOKENS_MIN

    def __init__(
        self,
        *,
        pipeline: Any,
        reader: Reader,
        vocabulary: Vocabulary,
        vocab_size: int,
        limits: ModelLimits,
        cache: KeyValueCache,
        owners: Owners,
        device: str,
        now_s: Callable[[], float],
    ) -> None:
        super().__init__(
            pipeline=pipeline,
            reader=reader,
            vocabulary=vocabulary,
            vocab_size=vocab_size,
            limits=limits,
            device=device,
            now_s=now_s,
        )
        self._cache = cache
        self._turns = Turns()
        self._owners = owners
        self._requests = 0
        self._written_tokens = 0
        self._tokens_per_s: float | None = None

    @property
    def busy(self) -> bool:
        """Whether generations are under way."""
        return bool(self._sequences)

    def admits(self, generation: Generation) -> bool:
        """Return whether a generation finds nothing of other owners here; see Owners."""
        return self._owners.admits(generation)

    def step(self) -> Iterator[Event]:
        """Request a piece of the prompt whose turn it is and the rests that may join it, then compute all at once.

        Every generation gets a token in the same call. Of a prompt with images a tile comes first, each in a step of
        its own. Raises BrokenError when the library fails while it computes: that leaves all of them undone.
        """
        generating = [each for each in self._sequences.values() if each.prefilled]
        pieces: list[PromptPiece] = []
        for sequence in self._order([each for each in self._sequences.values() if not each.prefilled]):
            if pieces and not self._may_join(sequence, pieces, alone=not generating):
                continue
            looks = sequence.prompt.unseen
            yield from self._advance(sequence, partial(self._prefill, pieces=pieces, alone=not generating))
            if looks:
                break
        if not pieces and not generating:
            return
        began_s, began_cpu_s = self._now_s(), time.process_time()
        self._written_tokens += len(generating) + sum(piece.tokens + self._cache.block_tokens for piece in pieces)
        self._compute()
        took = StepTimes(self._now_s() - began_s, time.process_time() - began_cpu_s)
        yield from self._pieced(pieces, took.wall_s)
        for sequence in generating:
            yield from self._advance(sequence, self._read)
        guided = any(each.guide is not None for each in generating)
        if not pieces and self._burden.heavy(took, texts=len(generating), guided=guided):
            yield from self._relieve()
        self._settle()

    def cancel(self, job_id: JobId) -> Iterator[Event]:
        """Stop a generation and give back its memory."""
        yield from super().cancel(job_id)
        self._settle()

    def close(self) -> None:
        """Free the generations, then the model they stand on."""
        for sequence in list(self._sequences.values()):
            self._free(sequence)
        if self._pipeline is not None:
            self._settle()
        super().close()

    def _compute(self) -> None:
        """Let the library compute what was requested. Raises BrokenError: it cannot be asked again after a failure."""
        try:
            self._pipeline.step()
        except Exception as error:
            raise BrokenError("openvino-genai failed while it computed") from error

    def _relieve(self) -> Iterator[Event]:
        """End the guided generation that holds up all; of several nobody knows which, so each is tried again alone."""
        guided = [each for each in self._sequences.values() if each.prefilled and each.guide is not None]
        error = EdgeAgentError(Code.BAD_REQUEST, TOO_SLOW)
        if len(guided) > 1:
            error = EdgeAgentError(Code.NO_FIT, "response_format: beside others it takes too long to follow; retry")
        for sequence in guided:
            yield self._fail(sequence, error)

    def _prefill(self, sequence: OpenvinoSequence, *, pieces: list[PromptPiece], alone: bool) -> Iterator[Event]:
        """Look at a tile of a prompt, or request its next piece, which joins those of the next call."""
        if sequence.prompt.unseen:
            yield self._announce(sequence)
            with library():
                sequence.prompt.see()
            return
        if sequence.cached_tokens is None:
            idle = alone and not pieces
            sequence.position = sequence.cached_tokens = self._cached_tokens(sequence.prompt, idle=idle)
            yield self._announce(sequence)
        elif self._written_tokens > sequence.kept_until:
            sequence.position = 0  # what is still there is found at once
            yield self._announce(sequence)
        pieces.append(self._request_piece(sequence, alone=alone))

    def _owner(self, generation: Generation) -> int:
        """Return the number by which the prompts of an owner are told apart."""
        return self._owners.number(generation)

    def _order(self, unfilled: Sequence[OpenvinoSequence]) -> Sequence[OpenvinoSequence]:
        """Return the prompts of which a piece may be computed now, in the order of their turns."""
        return self._turns.order(unfilled)

    def _announce(self, sequence: OpenvinoSequence) -> Progress:
        """Tell how much of a prompt is to be computed."""
        sequence.begun_s = self._now_s() if sequence.begun_s is None else sequence.begun_s
        return Progress(sequence.job_id, sequence.unfilled_tokens)

    def _may_join(self, sequence: OpenvinoSequence, pieces: Sequence[PromptPiece], *, alone: bool) -> bool:
        """Return whether the rest of a prompt may be computed in the same call as these pieces.

        Together they should take no longer than one piece; and what it shares with one of them must be there already,
        or it would be computed twice.
        """
        if sequence.prompt.unseen:
            return False
        tokens, size = sequence.prompt.tokens, self._cache.block_tokens
        others = [each for each in (piece.sequence for piece in pieces) if each.prompt.owner == sequence.prompt.owner]
        if any(shared_tokens(tokens, other.prompt.tokens) // size * size > other.position for other in others):
            return False
        position = sequence.position or self._cached_tokens(sequence.prompt, idle=False)
        together = sum(piece.tokens for piece in pieces) + len(tokens) - position
        return together < even_tokens(tokens_per_s=self._tokens_per_s, alone=alone) + PIECE_TOKENS_MIN

    def _request_piece(self, sequence: OpenvinoSequence, *, alone: bool) -> PromptPiece:
        """Ask for the next piece of a prompt, to the end of a block or its own."""
        total = len(sequence.prompt.tokens)
        end = sequence.position + piece_tokens(
            position=sequence.position,
            prompt_tokens=total,
            tokens_per_s=self._tokens_per_s,
            longrope=False,  # no context goes beyond it, see facts.openvino_context
            alone=alone,
        )
        if end < total:
            end = end // self._cache.block_tokens * self._cache.block_tokens
            sequence.handle = self._request(sequence.prompt.tensor(end), genai.GenerationConfig(max_new_tokens=1))
        else:
            self._request_whole(sequence)
            sequence.prompt.forget()
        return PromptPiece(sequence, end - sequence.position)

    def _request_whole(self, sequence: OpenvinoSequence) -> None:
        """Ask for the answer to a prompt."""
        config = genai.GenerationConfig(**sampling(sequence.generation), max_new_tokens=sequence.max_tokens)
        config.structured_output_config = sequence.guide
        sequence.handle = self._request(sequence.prompt.tensor(len(sequence.prompt.tokens)), config)

    def _pieced(self, pieces: Sequence[PromptPiece], took_s: float) -> Iterator[Event]:
        """Tell of the pieces that were computed, and of first tokens; each gets its share of the time."""
        tokens = sum(piece.tokens for piece in pieces)
        if tokens >= PIECE_TOKENS_MIN and took_s > 0:  # a short rest tells little of the speed
            self._tokens_per_s = min(tokens / took_s, _FASTER_MOST * (self._tokens_per_s or tokens / took_s))
        for piece in pieces:
            sequence = piece.sequence
            sequence.position += piece.tokens
            sequence.kept_until = self._written_tokens + self._free_tokens()
            left = sequence.unfilled_tokens
            if not left:
                sequence.prefilled_s = self._now_s()
            yield Progress(sequence.job_id, left, piece.tokens, took_s * 1000 * piece.tokens / tokens)
            if not left:
                yield from self._advance(sequence, self._read)

    def _read(self, sequence: OpenvinoSequence) -> Iterator[Event]:
        """Tell of the tokens that a step gave. No memory for one is told by a status, not by an error."""
        if sequence.handle.get_status() == genai.GenerationStatus.IGNORED:
            yield self._fail(
                sequence, EdgeAgentError(Code.OUT_OF_MEMORY, "the cache of keys and values is full; retry")
            )
            return
        if not sequence.handle.can_read():  # reading would wait for ever
            return
        (output,) = sequence.handle.read().values()
        for token in output.generated_ids:
            text, reason = sequence.take(token, output.finish_reason)
            yield Text(sequence.job_id, text, 1)
            if reason is not None:
                yield self._finish(sequence, reason)
                return

    def _free_tokens(self) -> int:
        """Return how many tokens may be written before those of a prompt that waits for its turn give way.

        The library overwrites what was used longest ago of all that nobody uses.
        """
        size = self._cache.block_tokens
        used = sum(-(-len(each.computed) // size) for each in self._sequences.values())
        return (self._cache.blocks - used) * size

    def _request(self, prompt: Tensor, config: Any) -> Any:
        """Hand a prompt to the library; ids that end a turn it takes from the model's own configuration."""
        self._requests += 1
        with library():
            return self._pipeline.add_request(self._requests, prompt, config)

    def _cached_tokens(self, prompt: CountedPrompt, *, idle: bool) -> int:
        """Return how many tokens of a prompt need not be computed: at least so many, and all when nothing else runs.

        The library tells only how many blocks are in use. Alone, that shows what a prompt finds; the last block may
        be filled in part, by as many tokens as the shortest beginning has that finds as many blocks. Beside others
        the beginning shared with one of them that has the same owner is sure.
        """
        tokens, size = prompt.tokens, self._cache.block_tokens
        most = len(tokens) - 1  # the last token is always computed
        if not idle:
            own = [each.computed for each in self._sequences.values() if each.prompt.owner == prompt.owner]
            shared = max(shared_tokens(tokens, each) for each in own)
            return min(shared // size * size, most)
        blocks = self._found_blocks(prompt, len(tokens))
        if not blocks:
            return 0
        lengths = range((blocks - 1) * size + 1, min(blocks * size, len(tokens)))
        shortest = bisect_left(lengths, blocks, key=lambda length: self._found_blocks(prompt, length))
        return min((blocks - 1) * size + 1 + shortest, most)

    def _found_blocks(self, prompt: CountedPrompt, end: int) -> int:
        """Return how many blocks of the cache a prompt's beginning finds, nothing else being under way.

        Computes nothing.
        """
        self._request(prompt.tensor(end), genai.GenerationConfig(max_new_tokens=1)).cancel()
        self._compute()
        used_percent: float = self._pipeline.get_metrics().cache_usage
        return round(used_percent * self._cache.blocks / 100)

    def _give_back(self, sequence: OpenvinoSequence) -> None:
        if sequence.handle is not None:
            sequence.handle.cancel()  # its blocks come back with the next step
            sequence.handle = None

    def _settle(self) -> None:
        """Let the library take back the blocks of what was stopped, when no step follows that would."""
        if not self._sequences and self._pipeline.has_non_finished_requests():
            self._compute()
