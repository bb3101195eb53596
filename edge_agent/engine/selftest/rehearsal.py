"""A loaded model tried before anybody may ask it: what canary.py says, through the contract alone."""

import itertools
import time
from collections.abc import Callable

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.backend import LoadedModel
from edge_agent.engine.messages import Canary, Failed, Finished, Generation, JobId, Progress, Text, Trying, Turn
from edge_agent.engine.selftest.canary import (
    ANSWER_TOKENS,
    CHARACTERS_PER_TOKEN,
    Heard,
    NextQuestion,
    Purpose,
    beginning,
    follow,
    long_prompt,
)

SHRINK = 0.8
"""A prompt that is too long is tried with this share of its length."""
ROOM = 0.9
"""Of the longest prompt that is taken: the answer needs room too."""
_NEXT = "take another build or device, or set models.trial to false"


class Rehearsal:
    """Asks one model. `tell` hears of every sign of life but those of warming up, which may take long."""

    def __init__(
        self,
        model: LoadedModel,
        canary: Canary,
        *,
        tell: Callable[[Trying], None],
        now_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._model = model
        self._canary = canary
        self._tell = tell
        self._now_s = now_s
        self._numbers = itertools.count(1)
        self._template = True

    def run(self, device: str) -> str:
        """Return what the first answer began with. Raises EdgeAgentError MODEL_ERROR when the model may not serve."""
        heard: list[Heard] = []
        while isinstance(step := follow(self._canary, heard, device=device), NextQuestion):
            heard.append(self._ask(step))
        if not step.sound:
            raise EdgeAgentError(Code.MODEL_ERROR, f"its trial failed: {step.reason}; {_NEXT}")
        return heard[0].beginning

    def _ask(self, ask: NextQuestion) -> Heard:
        prompt = self._canary.prompt if ask.part is not Purpose.LONG else self._longest(ask.characters)
        began_s = self._now_s()
        pieces: list[tuple[str, int]] = []
        try:
            generation = self._start(prompt)
        except EdgeAgentError as error:
            return Heard(ask.part, fault=error.message)
        while True:
            for event in self._model.step():
                match event:
                    case Progress(_, unprocessed) if ask.part is not Purpose.FIRST:
                        self._tell(Trying(unprocessed))
                    case Text(_, text, tokens):
                        pieces.append((text, tokens))
                        self._tell(Trying(0))
                    case Failed(_, _, message):
                        return Heard(ask.part, fault=message)
                    case Finished(generation.job_id, _, usage, prompt_ms):
                        return Heard(
                            ask.part,
                            text="".join(text for text, _ in pieces),
                            beginning=beginning(pieces),
                            tokens=usage.completion_tokens,
                            prompt_tokens=usage.prompt_tokens,
                            prompt_s=prompt_ms / 1000,
                            took_s=self._now_s() - began_s,
                        )

    def _start(self, prompt: str) -> Generation:
        """Begin to ask; a model that has no template is asked to go on."""
        number, turns = JobId(f"trial.{next(self._numbers)}"), (Turn("user", prompt),)
        generation = Generation(number, turns, ANSWER_TOKENS, template=self._template)
        try:
            self._model.start(generation)
        except EdgeAgentError as error:
            if error.code is not Code.UNSUPPORTED or not self._template:
                raise
            self._template = False
            return self._start(prompt)
        return generation

    def _longest(self, characters: int | None) -> str:
        """Return the question after as much text as the model takes, and no more than so many characters."""
        length = self._model.limits.context_tokens * CHARACTERS_PER_TOKEN
        length = min(length, characters or length)
        while length > len(self._canary.prompt) and not self._takes(long_prompt(self._canary, length)):
            length = int(length * SHRINK)
        return long_prompt(self._canary, int(length * ROOM))

    def _takes(self, prompt: str) -> bool:
        """Return whether a prompt is short enough; nothing is computed for that."""
        try:
            generation = self._start(prompt)
        except EdgeAgentError as error:
            if error.code is not Code.PROMPT_TOO_LONG:
                raise
            return False
        for _ in self._model.cancel(generation.job_id):
            pass
        return True
