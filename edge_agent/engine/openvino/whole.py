"""A model in openvino-genai that keeps nothing of a prompt for the next."""

import sys
from collections.abc import Sequence

from edge_agent.engine.messages import Generation
from edge_agent.engine.openvino.model import OpenvinoModel, PromptPiece
from edge_agent.engine.openvino.owners import PLAIN
from edge_agent.engine.openvino.prompt import CountedPrompt
from edge_agent.engine.openvino.sequence import OpenvinoSequence


class OpenvinoWhole(OpenvinoModel):
    """For owners whose prompts cannot be told apart: nobody finds anything.

    Each prompt is given to the library whole, which cuts it into calls that are all as long, and gives every
    generation a token first. Who was begun is computed to the end before the next.
    """

    keeps = False
    call_tokens = 256  # as long do streams stall, and a cancel is not heard: the library is told once and for all

    def admits(self, generation: Generation) -> bool:  # noqa: ARG002 - as its base
        """Whatever is asked: there is nothing to find."""
        return True

    def _owner(self, generation: Generation) -> int:  # noqa: ARG002 - as its base
        return PLAIN

    def _order(self, unfilled: Sequence[OpenvinoSequence]) -> Sequence[OpenvinoSequence]:
        begun = [each for each in unfilled if each.handle is not None]
        return begun or super()._order(unfilled)[:1]

    def _request_piece(self, sequence: OpenvinoSequence, *, alone: bool) -> PromptPiece:  # noqa: ARG002 - as its base
        if sequence.handle is None:
            self._request_whole(sequence)
        generating = sum(each.prefilled for each in self._sequences.values())
        piece = PromptPiece(
            sequence, min(sequence.unfilled_tokens, self.call_tokens + self.limits.parallel - generating)
        )
        if piece.tokens == sequence.unfilled_tokens:
            sequence.prompt.forget()
        return piece

    def _cached_tokens(self, prompt: CountedPrompt, *, idle: bool) -> int:  # noqa: ARG002 - as its base
        return 0

    def _free_tokens(self) -> int:
        """Of a prompt that is begun everything stays."""
        return sys.maxsize
