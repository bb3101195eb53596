"""How the next token is chosen from logits (pure but for its own random numbers)."""

import numpy as np
import numpy.typing as npt

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.messages import Generation

_SEED_MASK = 2**64 - 1  # numpy takes no negative seed


class Sampler:
    """Chooses the tokens of one generation: repetition penalty, temperature, the `top_k` likeliest, then `top_p`."""

    def __init__(self, generation: Generation, prompt: npt.NDArray[np.int32], *, vocab_size: int) -> None:
        self._greedy = not generation.temperature or generation.top_k == 1
        self._temperature = generation.temperature
        self._top_k = generation.top_k if generation.top_k < vocab_size else 0
        self._top_p = generation.top_p
        self._penalty = generation.repetition_penalty
        self._seen = np.zeros(vocab_size, np.bool_)
        self._seen[prompt] = True
        seed = None if generation.seed is None else generation.seed & _SEED_MASK
        self._random = np.random.default_rng(seed)

    def choose(self, logits: npt.NDArray[np.float32], allowed: npt.NDArray[np.bool_] | None = None) -> int:
        """Return the next token: one of those `allowed`, where given. Both arrays have the vocabulary's shape.

        Raises EdgeAgentError MODEL_ERROR for logits that are no numbers and settings that no token can be chosen by.
        """
        if min(self._top_k, self._temperature) < 0:
            raise EdgeAgentError(Code.MODEL_ERROR, "top_k and temperature must be 0 or greater")
        if not np.isfinite(logits).all():
            raise EdgeAgentError(Code.MODEL_ERROR, "the model computes no numbers; use another build or device")
        scores = logits.astype(np.float64)
        if self._penalty != 1.0:
            scores = np.where(self._seen, np.where(scores < 0, scores * self._penalty, scores / self._penalty), scores)
        if allowed is not None:
            scores = np.where(allowed, scores, -np.inf)
        token = int(scores.argmax()) if self._greedy else self._draw(scores)
        self._seen[token] = True
        return token

    def _draw(self, scores: npt.NDArray[np.float64]) -> int:
        if self._top_k:
            kept = np.argpartition(scores, -self._top_k)[-self._top_k :]
            kept.sort()
        else:
            kept = np.arange(len(scores))
        with np.errstate(over="ignore"):  # the coldest leave the likeliest alone
            chances = np.exp((scores[kept] - scores[kept].max()) / self._temperature)
        chances /= chances.sum()
        if self._top_p < 1.0:
            order = np.argsort(-chances, kind="stable")
            before = np.cumsum(chances[order]) - chances[order]
            chances[order[1:][before[1:] >= self._top_p]] = 0.0  # the likeliest stays in any case
            chances /= chances.sum()
        return int(self._random.choice(kept, p=chances))
