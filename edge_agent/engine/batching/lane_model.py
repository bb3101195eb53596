"""A model whose keys and values we hold: all that generate in one call per token, prompts in pieces in between."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.answering import AnsweringModel
from edge_agent.engine.batching.lane_guide import Guides
from edge_agent.engine.batching.lane_parts import Decoder, Encoder, Prompt
from edge_agent.engine.batching.lane_sequence import LaneSequence
from edge_agent.engine.batching.lanes import Lanes
from edge_agent.engine.batching.prefill import LONGROPE_TOKENS, PIECE_TOKENS_MIN, piece_tokens
from edge_agent.engine.batching.sampling import Sampler
from edge_agent.engine.batching.turns import Turns
from edge_agent.engine.messages import (
    Event,
    Failed,
    Generation,
    ModelLimits,
    Progress,
    Text,
)
from edge_agent.engine.text.detokenizer import Vocabulary, Words
from edge_agent.engine.text.prompt import PromptMaker, answer_room


class LaneModel(AnsweringModel[LaneSequence]):
    """A model in memory; see LoadedModel for what it promises."""

    def __init__(
        self,
        *,
        decoder: Decoder,
        encoder: Encoder | None,
        prompts: PromptMaker,
        vocabulary: Vocabulary,
        guides: Guides,
        end_ids: frozenset[int],
        limits: ModelLimits,
        library_name: str,
        device: str,
        now_s: Callable[[], float],
    ) -> None:
        super().__init__(limits=limits, library=library_name, device=device, now_s=now_s)
        self._decoder = decoder
        self._encoder = encoder
        self._prompts = prompts
        self._vocabulary = vocabulary
        self._guides = guides
        self._end_ids = end_ids
        self._vocab_size = decoder.vocab_size
        self._longrope = decoder.longrope
        self._lanes = Lanes(limits.parallel, longrope=self._longrope, copies=decoder.copies)
        self._turns = Turns()
        self._tokens_per_s: float | None = None

    def _counted(self, generation: Generation) -> LaneSequence:
        prompt = Prompt.of(generation, self._prompts)
        room = answer_room(len(prompt.tokens), self.limits.context_tokens)
        return LaneSequence(
            generation=generation,
            tokens=prompt.tokens,
            prompt_tokens=len(prompt.tokens),
            pictures=prompt.pictures,
            max_tokens=min(generation.max_tokens, room),
            words=Words(self._vocabulary, stop=generation.stop, exact=generation.guide is not None),
            sampler=Sampler(generation, prompt.words, vocab_size=self._vocab_size),
            constraint=None if generation.guide is None else self._guides.constraint(generation.guide),
        )

    def step(self) -> Iterator[Event]:
        """Advance every decoding generation by a token, then compute one piece of an unfinished prompt."""
        generating = self._generating()
        yield from self._decode([each for each in generating if each.logits is None])
        for sequence in generating:
            if sequence.logits is not None:
                yield from self._advance(sequence, self._say)
        unfilled = [each for each in self._sequences.values() if not each.generating]
        if unfilled:
            yield from self._advance(self._next(unfilled), self._prefill)

    def close(self) -> None:
        """Free the model, which holds the most."""
        self._sequences.clear()
        del self._decoder, self._encoder, self._prompts

    def _generating(self) -> list[LaneSequence]:
        """Return those whose next step is a token; who reaches LONGROPE_TOKENS must compute the whole again before."""
        generating = [each for each in self._sequences.values() if each.generating]
        for sequence in generating:
            if self._longrope and sequence.logits is None and len(sequence.tokens) == LONGROPE_TOKENS:
                sequence.lane.begin_long()
        return [each for each in generating if each.generating]

    def _next(self, unfilled: Sequence[LaneSequence]) -> LaneSequence:
        """Return whose turn it is; what it shares with another that its owner has begun is computed there first."""
        first = self._turns.order(unfilled)[0]
        if first.begun_s is not None:
            return first
        begun = (each for each in unfilled if each.begun_s is not None)
        return next((each for each in begun if self._serves(each, first)), first)

    def _serves(self, sequence: LaneSequence, other: LaneSequence) -> bool:
        """Return whether the next that is computed of a sequence are tokens that another needs too."""
        done = len(sequence.lane.tokens)
        looks = sequence.unseen(done, len(sequence.tokens)) is not None
        alike = sequence.generation.owner == other.generation.owner
        return alike and not looks and self._lanes.common(sequence.tokens, other.tokens) > done

    def _decode(self, sequences: Iterable[LaneSequence]) -> Iterator[Event]:
        """Compute the last token of each, those in neighbouring lanes together."""
        by_lane = {each.lane.number: each for each in sequences}
        for batch in self._lanes.batches(by_lane):
            lanes = self._lanes.all[batch.start : batch.stop]
            tokens = [by_lane[lane.number].tokens[-1] if lane.number in by_lane else 0 for lane in lanes]
            # What an idle lane computes lands behind the tokens it holds, where the next one is written anyway.
            lengths = [len(lane.tokens) + 1 for lane in lanes]
            computed = [by_lane[lane.number] for lane in lanes if lane.number in by_lane]
            try:
                logits = self._decoder.run(batch, np.array(tokens)[:, None], lengths, [])
            except EdgeAgentError as error:
                yield from [self._fail(each, error) for each in computed]
                continue
            for sequence in computed:
                sequence.lane.tokens.append(sequence.tokens[-1])
                sequence.logits = logits[sequence.lane.number - batch.start]

    def _say(self, sequence: LaneSequence) -> Iterator[Event]:
        """Choose a token."""
        token = sequence.choose()
        text, reason = sequence.take(token, self._end_ids)
        yield Text(sequence.job_id, text, 1)
        if reason is not None:
            yield self._finish(sequence, reason)

    def _prefill(self, sequence: LaneSequence) -> Iterator[Event]:
        """Compute a piece of what is unprocessed, having said so before the first."""
        if sequence.begun_s is None:
            yield from self._begin(sequence)
        elif not sequence.lane.tokens:
            yield Progress(sequence.job_id, sequence.unprocessed_tokens)
        lane = sequence.lane
        position, total = len(lane.tokens), len(sequence.tokens)
        piece = piece_tokens(
            position=position,
            prompt_tokens=total,
            tokens_per_s=self._tokens_per_s,
            longrope=self._longrope,
            alone=not any(each.generating for each in self._sequences.values()),
        )
        end = position + piece
        if self._encoder is not None and (unseen := sequence.unseen(position, end)) is not None:
            self._encoder.look(unseen)
            yield Progress(sequence.job_id, sequence.unprocessed_tokens)
            return
        tokens = sequence.tokens[position:end]
        ids = np.array([[max(token, -1) for token in tokens]])
        began_s = self._now_s()
        logits = self._decoder.run(range(lane.number, lane.number + 1), ids, [end], sequence.features(position, end))
        ended_s = self._now_s()
        lane.tokens += tokens
        sequence.forget(end)
        if end == total:
            sequence.logits = logits[0]
            if sequence.prefilled_s is None:
                sequence.prefilled_s = ended_s
        if piece >= PIECE_TOKENS_MIN and ended_s > began_s:  # a short rest tells little of the speed
            self._tokens_per_s = piece / (ended_s - began_s)
        yield Progress(sequence.job_id, sequence.unprocessed_tokens, piece, (ended_s - began_s) * 1000)

    def _begin(self, sequence: LaneSequence) -> Iterator[Event]:
        """Find a lane, with as much of the prompt in it as any lane of its owner holds."""
        place = self._lanes.take(sequence.tokens, sequence.generation.owner)
        sequence.lane = place.lane
        sequence.cached_tokens = place.kept
        yield Progress(sequence.job_id, sequence.unprocessed_tokens)
        sequence.begun_s = self._now_s()
        if place.copy_from is not None:
            self._decoder.copy(place.copy_from.number, place.lane.number, place.kept)

    def _fail(self, sequence: LaneSequence, error: EdgeAgentError) -> Failed:
        if error.code is Code.INTERNAL:
            sequence.lane.tokens = []  # what it holds is not known
        return super()._fail(sequence, error)

    def _give_back(self, sequence: LaneSequence) -> None:
        if sequence.lane.taken:
            self._lanes.free(sequence.lane)
