"""An engine child on its own, apart from the daemon: started, asked, watched by the clock, ended."""

import itertools
import queue as stdlib_queue
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.backend import ModelSpec
from edge_agent.engine.hosting.plan import CLOSE_S, LOAD_S
from edge_agent.engine.hosting.process import EngineProcess
from edge_agent.engine.messages import (
    Event,
    Failed,
    Finished,
    Generation,
    JobId,
    LoadFailed,
    Ready,
    Start,
    Text,
    Turn,
)

SILENCE_S = 300.0
"""An engine that says nothing for so long while it has work is hung: pieces of a prompt take seconds."""


@dataclass(frozen=True, slots=True)
class Spell:
    """One answer by the clock of who asked: seconds since the asking of all that was asked with it.

    `first_s` and `last_s`: the first and last token; None when there was none. `first_tokens` came with the first.
    """

    text: tuple[tuple[str, int], ...]
    prompt_tokens: int
    cached_tokens: int
    tokens: int
    prompt_ms: float
    generate_ms: float
    begun_s: float
    ended_s: float
    first_s: float | None
    last_s: float | None
    first_tokens: int

    @property
    def decode_per_s(self) -> float | None:
        """Tokens per second after the first; None when there were too few to tell.

        A burst that is read at once says nothing of the time between its tokens, so the engine's own clock is a lower
        bound; whether that one counts the first token is the backend's affair.
        """
        later = self.tokens - self.first_tokens
        if self.first_s is None or self.last_s is None or later < 1:
            return None
        took_s = max(self.last_s - self.first_s, self.generate_ms / 1000 * later / self.tokens)
        return later / took_s if took_s > 0 else None

    @property
    def prefill_per_s(self) -> float | None:
        """Prompt tokens computed per second; None when there were none, or in no time."""
        computed = self.prompt_tokens - self.cached_tokens
        return computed / self.prompt_ms * 1000 if computed > 0 and self.prompt_ms > 0 else None

    @property
    def first_token_s(self) -> float | None:
        """From the asking to the first token."""
        return None if self.first_s is None else self.first_s - self.begun_s


@dataclass(slots=True)
class _OpenAnswer:
    """An answer under way."""

    begun_s: float
    text: list[tuple[str, int]] = field(default_factory=list)
    first_s: float | None = None
    last_s: float | None = None
    first_tokens: int = 0

    def take(self, text: str, tokens: int, at_s: float) -> None:
        self.text.append((text, tokens))
        if tokens:
            self.last_s = at_s
            if self.first_s is None:
                self.first_s, self.first_tokens = at_s, tokens

    def ended(self, end: Finished, at_s: float) -> Spell:
        return Spell(
            text=tuple(self.text),
            prompt_tokens=end.usage.prompt_tokens,
            cached_tokens=end.usage.cached_tokens,
            tokens=end.usage.completion_tokens,
            prompt_ms=end.prompt_ms,
            generate_ms=end.generate_ms,
            begun_s=self.begun_s,
            ended_s=at_s,
            first_s=self.first_s,
            last_s=self.last_s,
            first_tokens=self.first_tokens,
        )


class OneShotEngine:
    """A context with a ready engine; afterwards its process is gone, however the context ended.

    Entering raises EdgeAgentError when the model cannot be loaded, or the engine dies or hangs over it.
    """

    def __init__(self, spec: ModelSpec, *, now_s: Callable[[], float] = time.perf_counter) -> None:
        self._spec = spec
        self._now_s = now_s
        self._heard: stdlib_queue.SimpleQueue[tuple[float, Event | Ready | LoadFailed | None]] = (
            stdlib_queue.SimpleQueue()
        )
        self._numbers = itertools.count(1)
        self._process: EngineProcess | None = None
        self.ready_s = 0.0
        """From the start of the process to its being ready."""

    def __enter__(self) -> Self:
        begun_s = self._now_s()
        try:
            self._process = EngineProcess(
                self._spec,
                tell=lambda _engine, message: self._heard.put((self._now_s(), message)),
                gone=lambda _engine: self._heard.put((self._now_s(), None)),
            )
            self._process.listen()
            at_s, message = self._hear(LOAD_S)
            self.ready = _ready(message)
        except BaseException:
            self._kill()
            raise
        self.ready_s = at_s - begun_s
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _where: TracebackType | None
    ) -> None:
        if kind is None and self._process is not None:
            self._process.close(CLOSE_S)
        else:
            self._kill()

    def ask(self, prompts: Sequence[str], *, max_tokens: int) -> list[Spell]:
        """Have all prompts answered greedily, as many at once as the engine takes; return the answers in order.

        Raises EdgeAgentError when one fails, or the engine dies or hangs.
        """
        assert self._process is not None  # noqa: S101 - asked inside the context
        asked_s = self._now_s()
        generations = [self._generation(prompt, max_tokens) for prompt in prompts]
        waiting = deque(generations)
        under_way: dict[JobId, _OpenAnswer] = {}
        spells: dict[JobId, Spell] = {}
        while len(spells) < len(generations):
            while waiting and len(under_way) < self.ready.limits.parallel:
                generation = waiting.popleft()
                under_way[generation.job_id] = _OpenAnswer(asked_s)
                self._process.start(Start(generation))
            at_s, message = self._hear(SILENCE_S)
            match message:
                case Text(job_id, text, tokens):
                    under_way[job_id].take(text, tokens, at_s)
                case Finished(job_id):
                    spells[job_id] = under_way.pop(job_id).ended(message, at_s)
                case Failed(_, code, why):
                    raise EdgeAgentError(code, why)
                case _:  # progress
                    pass
        return [spells[generation.job_id] for generation in generations]

    def _generation(self, prompt: str, max_tokens: int) -> Generation:
        return Generation(JobId(f"{next(self._numbers)}.1"), (Turn("user", prompt),), max_tokens)

    def _hear(self, patience_s: float) -> tuple[float, Event | Ready | LoadFailed]:
        try:
            at_s, message = self._heard.get(timeout=patience_s)
        except stdlib_queue.Empty:
            raise EdgeAgentError(Code.ENGINE_DIED, f"the engine said nothing for {patience_s:.0f} s") from None
        if message is None:
            assert self._process is not None  # noqa: S101 - it was heard
            raise EdgeAgentError(
                Code.ENGINE_DIED, f"the engine ended by itself ({self._process.exit_reason()}); see what it wrote above"
            )
        return at_s, message

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()


def _ready(message: Event | Ready | LoadFailed) -> Ready:
    match message:
        case Ready():
            return message
        case LoadFailed(code, why):
            raise EdgeAgentError(code, why)
        case _:
            raise TypeError(f"{type(message).__name__} came before Ready")
