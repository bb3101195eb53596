"""A server elsewhere in the place of a model here: answers are streamed, many at once on one thread."""

import asyncio
import base64
import hmac
import json
import random
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import aclosing, suppress
from dataclasses import dataclass

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.answering import AnsweringModel, RunningSequence
from edge_agent.engine.backend import ModelSpec
from edge_agent.engine.contained import contained
from edge_agent.engine.messages import (
    Event,
    FinishReason,
    Generation,
    Image,
    JobId,
    ModelLimits,
    Progress,
    Text,
    TokenCounts,
)
from edge_agent.engine.openai.server import LIBRARY, AwakeLoop, Server
from edge_agent.engine.openai.wire import DIALECTS, AnswerPiece, request
from edge_agent.engine.text.prompt import ROLES, images_of
from edge_agent.engine.text.stops import StopStrings
from edge_agent.settings.upstream import UpstreamSection

WAIT_S = 0.05
"""How long a step waits for the network: as late a new job or a cancel is heard."""
ALIVE_S = 10.0
"""How often the parent hears of an answer that does not come; it takes us for hung after three times that."""
BACKOFF_S = 1.0
"""The pause before the second try, doubled before each further one, and up to half as much again by chance."""
_PASSING = frozenset({Code.QUEUE_FULL, Code.ENGINE_DIED})


def load(
    spec: ModelSpec,
    *,
    now_s: Callable[[], float] = time.perf_counter,
    chance: Callable[[], float] = random.random,
    backoff_s: float = BACKOFF_S,
) -> "OpenaiModel":
    """Return a model that asks the server which the spec's options name. Nothing is sent before a job comes.

    Raises EdgeAgentError MODEL_ERROR when the key or the certificates cannot be read.
    """
    upstream = UpstreamSection.model_validate(dict(spec.options))
    limits = ModelLimits(spec.context_tokens, spec.parallel, upstream.images)
    return OpenaiModel(
        upstream, Server(upstream), limits=limits, device=spec.device, now_s=now_s, chance=chance, backoff_s=backoff_s
    )


@dataclass(slots=True, kw_only=True)
class _Asked(RunningSequence):
    """A generation under way.

    `tokens` are the pieces that came, until the server tells how many tokens they were; `told_s` is when the parent
    was last told of it. `own`: whether what the server found of the prompt can be nobody's but the owner's.
    """

    body: bytes
    words: StopStrings
    own: bool
    told_s: float = 0.0
    tokens: int = 0
    usage: TokenCounts | None = None
    reason: FinishReason | None = None
    task: "asyncio.Task[None] | None" = None

    @property
    def counts(self) -> TokenCounts:
        """What the server says, and what came so far."""
        told = self.usage or TokenCounts(0, 0)
        return TokenCounts(told.prompt_tokens, self.tokens, told.cached_tokens if self.own else 0)


class OpenaiModel(AnsweringModel[_Asked]):
    """A model elsewhere; see LoadedModel for what it promises.

    Tokens are counted by the server. While an answer comes each piece counts as one, and the last text makes up the
    difference; where a server tells no usage it is left at that, and the prompt counts 0.
    """

    def __init__(
        self,
        upstream: UpstreamSection,
        server: Server,
        *,
        limits: ModelLimits,
        device: str,
        now_s: Callable[[], float],
        chance: Callable[[], float],
        backoff_s: float,
    ) -> None:
        super().__init__(limits=limits, library=LIBRARY, device=device, now_s=now_s)
        self._upstream = upstream
        self._server = server
        self._chance = chance
        self._backoff_s = backoff_s
        self._secret = secrets.token_bytes()
        self._events: deque[Event] = deque()
        self._arrived = asyncio.Event()
        self._loop = AwakeLoop()

    def start(self, generation: Generation) -> None:
        """Begin to ask; the server counts the tokens.

        Raises EdgeAgentError: UNSUPPORTED for what the server has no word for, BAD_REQUEST for a role, IMAGE_MISSING,
        INTERNAL.
        """
        super().start(generation)
        asked = self._sequences[generation.job_id]
        self._tell(asked, Progress(generation.job_id, 0))
        asked.task = self._loop.create_task(self._answer(asked))

    def _counted(self, generation: Generation) -> _Asked:
        if any(turn.role not in ROLES for turn in generation.turns):
            raise EdgeAgentError(Code.BAD_REQUEST, f"messages: role must be one of {', '.join(ROLES)}")
        if not generation.template:
            raise EdgeAgentError(Code.UNSUPPORTED, "template: the upstream has its own for every text; leave it out")
        images_of(generation.turns, most=self.limits.images_per_prompt)
        upstream = self._upstream
        body = request(
            generation,
            model=upstream.model,
            server=upstream.server,
            data_url=_data_url,
            secret=self._secret_of(generation.owner),
        )
        return _Asked(
            generation=generation,
            body=json.dumps(body, ensure_ascii=False).encode(),
            words=StopStrings(generation.stop),
            begun_s=self._now_s(),
            own=not generation.owner or DIALECTS[upstream.server].apart is not None,
        )

    def step(self) -> Iterator[Event]:
        """Give what came, waiting a moment for it."""
        if self._sequences:
            self._loop.run_until_complete(self._wait())
        for asked in self._sequences.values():
            if self._now_s() - asked.told_s >= ALIVE_S:
                self._tell(asked, Progress(asked.job_id, 0))
        yield from self._take_events()

    def cancel(self, job_id: JobId) -> Iterator[Event]:
        """Close the connection of a generation."""
        yield from self._take_events()
        yield from super().cancel(job_id)

    def close(self) -> None:
        """Close every connection."""
        for asked in list(self._sequences.values()):
            self._free(asked)
        self._loop.run_until_complete(self._server.close())
        self._loop.close()

    # One answer

    async def _answer(self, asked: _Asked) -> None:
        """Ask until there is an answer or none is to be expected, and tell how it ended, whatever goes wrong."""
        try:
            with contained():
                await self._ask_in_time(asked)
                self._end(asked)
        except EdgeAgentError as error:
            self._tell(asked, self._fail(asked, error))

    async def _ask_in_time(self, asked: _Asked) -> None:
        upstream = self._upstream
        try:
            async with asyncio.timeout(upstream.first_token_s) as timer:
                await self._ask_again(asked, timer)
        except TimeoutError as error:
            more, within_s = ("", upstream.first_token_s) if asked.prefilled_s is None else (" more", upstream.token_s)
            said = f"{upstream.host} said nothing{more} for {within_s:g} s"
            raise EdgeAgentError(Code.ENGINE_DIED, said) from error

    async def _ask_again(self, asked: _Asked, timer: asyncio.Timeout) -> None:
        """Ask, and again while nothing was said and the fault may pass. Raises EdgeAgentError, TimeoutError."""
        for tried in range(self._upstream.retries + 1):
            try:
                await self._ask(asked, timer)
            except EdgeAgentError as error:
                pause_s = error.retry_after_s or self._backoff_s * 2**tried * (1 + self._chance() / 2)
                left_s = (timer.when() or 0.0) - self._loop.time()
                hopeless = tried == self._upstream.retries or pause_s >= left_s
                if asked.prefilled_s is not None or error.code not in _PASSING or hopeless:
                    raise
                await asyncio.sleep(pause_s)
            else:
                return

    async def _ask(self, asked: _Asked, timer: asyncio.Timeout) -> None:
        async with aclosing(self._server.ask(asked.body)) as pieces:
            async for piece in pieces:
                if self._take(asked, piece, timer):
                    return
        if asked.reason is None:  # some servers end with that, and without a last word
            raise EdgeAgentError(Code.ENGINE_DIED, f"{self._upstream.host} broke off its answer")

    def _take(self, asked: _Asked, piece: AnswerPiece, timer: asyncio.Timeout) -> bool:
        """Take a piece of an answer; return whether nothing more is wanted."""
        asked.usage = piece.usage or asked.usage
        asked.reason = piece.reason or asked.reason
        if piece.alive and (piece.text or asked.prefilled_s is not None):
            timer.reschedule(self._loop.time() + self._upstream.token_s)
        if piece.text:
            if asked.tokens == asked.generation.max_tokens:  # it does not heed its bound
                asked.reason = FinishReason.LENGTH
                return True
            asked.tokens += 1
            self._tell(asked, Text(asked.job_id, asked.words.feed(self._begun(asked, piece.text)), 1))
            if asked.words.met:
                asked.reason = FinishReason.STOP
                return True
        return piece.done

    def _begun(self, asked: _Asked, text: str) -> str:
        """Note the first text, which begins without the space of its first word unless a guide asks for it."""
        if asked.prefilled_s is not None:
            return text
        asked.prefilled_s = self._now_s()
        return text if asked.generation.guide else text.removeprefix(" ")

    # What the parent hears

    async def _wait(self) -> None:
        if not self._events:
            self._arrived.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), WAIT_S)

    def _secret_of(self, owner: str) -> str:
        """Return what stands for an owner at the server, where nobody learns the name from it; empty for nobody."""
        return hmac.new(self._secret, owner.encode(), "sha256").hexdigest() if owner else ""

    def _tell(self, asked: _Asked, event: Event) -> None:
        asked.told_s = self._now_s()
        self._events.append(event)
        self._arrived.set()

    def _take_events(self) -> Iterator[Event]:
        while self._events:
            yield self._events.popleft()

    def _end(self, asked: _Asked) -> None:
        more = 0 if asked.usage is None else max(0, asked.usage.completion_tokens - asked.tokens)
        rest = asked.words.rest()
        asked.tokens += more
        if rest or more:
            self._tell(asked, Text(asked.job_id, rest, more))
        self._tell(asked, self._finish(asked, asked.reason or FinishReason.STOP))

    def _give_back(self, asked: _Asked) -> None:
        """End a generation's task, and with it its connection, unless the task itself has come to an end."""
        task = asked.task
        if task is not None and not task.done() and task is not asyncio.current_task(self._loop):
            task.cancel()
            with suppress(asyncio.CancelledError):
                self._loop.run_until_complete(task)


def _data_url(image: Image) -> str:
    from edge_agent.engine.batching.preprocess import jpeg  # noqa: PLC0415 - Pillow and numpy cost memory, and few jobs have images

    return f"data:image/jpeg;base64,{base64.b64encode(jpeg(image)).decode()}"
