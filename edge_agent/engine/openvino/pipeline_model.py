"""What both of openvino-genai's pipelines have in common here: reading prompts, compiling guides, freeing."""

from collections.abc import Callable
from functools import partial
from typing import Any

import openvino_genai as genai

from edge_agent.engine import foreign
from edge_agent.engine.answering import AnsweringModel
from edge_agent.engine.guides.burden import Burden
from edge_agent.engine.messages import Generation, ModelLimits
from edge_agent.engine.openvino.guide import GuideTrial
from edge_agent.engine.openvino.owners import PLAIN
from edge_agent.engine.openvino.prompt import Reader
from edge_agent.engine.openvino.sequence import OpenvinoSequence
from edge_agent.engine.text.detokenizer import Vocabulary, Words
from edge_agent.engine.text.prompt import answer_room

library = partial(foreign.library, "openvino-genai", last_line=True)  # it says first where it was raised


class PipelineModel(AnsweringModel[OpenvinoSequence]):
    """A model in one of the library's pipelines; None takes their places once it is closed."""

    def __init__(
        self,
        *,
        pipeline: Any,
        reader: Reader,
        vocabulary: Vocabulary,
        vocab_size: int,
        limits: ModelLimits,
        device: str,
        now_s: Callable[[], float],
    ) -> None:
        name = f"openvino-genai {genai.__version__.partition('-')[0]}"
        super().__init__(limits=limits, library=name, device=device, now_s=now_s)
        self._pipeline = pipeline
        self._trial: Any = GuideTrial(pipeline.get_tokenizer(), vocab_size)
        self._reader: Any = reader
        self._vocabulary = vocabulary
        self._burden = Burden()

    def close(self) -> None:
        """Free the generations, then the model they stand on."""
        for sequence in list(self._sequences.values()):
            self._free(sequence)
        self._pipeline = self._reader = self._trial = None

    def _counted(self, generation: Generation) -> OpenvinoSequence:
        with library():
            prompt = self._reader.read(generation, self._owner(generation))
        room = answer_room(len(prompt.tokens), self.limits.context_tokens)
        return OpenvinoSequence(
            generation=generation,
            prompt=prompt,
            max_tokens=min(generation.max_tokens, room),
            words=Words(self._vocabulary, stop=generation.stop, exact=generation.guide is not None),
            guide=generation.guide and self._trial.compiled(generation.guide),
        )

    def _owner(self, generation: Generation) -> int:  # noqa: ARG002 - for who keeps prompts
        """Return the number by which the prompts of an owner are told apart."""
        return PLAIN
