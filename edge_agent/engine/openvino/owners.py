"""Whose beginnings are whose in openvino-genai's cache, which knows tokens by their ids alone.

A graph looks ids up in a table, and there a negative one counts from the end, by the operator's definition (Gather-8):
`id - vocabulary` is the same token under another name. What is computed is the same to the last bit, but the cache
takes it for something else. An owner's number, written in binary, says which of a prompt's first tokens go by their
other name. So prompts of two owners differ before the end of the cache's first block, and with it in all that follow.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino_genai as genai
from openvino import Tensor

from edge_agent.engine.messages import Generation

PLAIN = 0
"""The number of nobody: all tokens go by their own names."""
OWNERS_MOST = 1024
"""So many are known by name; who was away longest gets a new number, and finds nothing of before."""
_DIGITS = 32
"""Of a number, one for each of a prompt's first tokens."""


class Owners:
    """The owners' numbers, none of which is ever given twice. `named`: whether tokens have other names.

    Where they have none they go by their own, and so they do under a `repetition_penalty`, for which the library looks
    a prompt's tokens up by these. Only one owner's prompts can: the first's who needs it.
    """

    def __init__(self, *, named: bool) -> None:
        self._named = named
        self._plain: str | None = None
        self._numbers: OrderedDict[str, int] = OrderedDict()
        self._given = PLAIN

    def admits(self, generation: Generation) -> bool:
        """Return whether a generation can be told apart from all that were admitted before; it counts as one then."""
        if not generation.owner or self._other_names(generation):
            return True
        self._plain = self._plain or generation.owner
        return self._plain == generation.owner

    def number(self, generation: Generation) -> int:
        """Return the number of a generation's owner, PLAIN for those whose tokens go by their own names."""
        owner = generation.owner
        if not owner or not self._other_names(generation):
            return PLAIN
        if owner not in self._numbers:
            self._given += 1
            self._numbers[owner] = self._given
            if len(self._numbers) > OWNERS_MOST:
                self._numbers.popitem(last=False)
        self._numbers.move_to_end(owner)
        return self._numbers[owner]

    def _other_names(self, generation: Generation) -> bool:
        return self._named and generation.repetition_penalty == 1.0


def named(tokens: Sequence[int], number: int, vocab_size: int) -> npt.NDArray[np.int64]:
    """Return tokens as an owner's, shape [1, tokens]."""
    ids = np.array([tokens], np.int64)
    digits = number >> np.arange(min(_DIGITS, ids.size)) & 1
    ids[0, : digits.size] -= digits * vocab_size
    return ids


def alike(pipeline: Any, vocab_size: int) -> bool:
    """Return whether a model takes tokens by their other names for the same, to the last bit of a probability.

    Nothing else may run. When the library fails instead, the pipeline is of no use any more.
    """
    tokens = range(0, vocab_size, -(-vocab_size // _DIGITS))

    def heard(number: int) -> tuple[list[int], list[float]]:
        config = genai.GenerationConfig(max_new_tokens=1, do_sample=False, logprobs=1)
        handle = pipeline.add_request(PLAIN, Tensor(named(tokens, number, vocab_size)), config)
        while pipeline.has_non_finished_requests():
            pipeline.step()
        (output,) = handle.read_all()
        return output.generated_ids, output.generated_log_probs

    try:
        return heard(PLAIN) == heard(2**_DIGITS - 1)
    except RuntimeError:
        return False
