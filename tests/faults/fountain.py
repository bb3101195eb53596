"""A backend without a model that says more than a model could: in every lane a long piece of text 25 times a second."""

import threading

from edge_agent.engine.messages import Finished, FinishReason, ModelLimits, Progress, Text, TokenCounts

PIECE = "spray " * 2_000
"""12 kB, as thousands of tokens a second would fill the 50 ms between two chunks with."""
PERIOD_S = 0.04
PARALLEL = 16


class Fountain:
    """Answers every prompt with `max_tokens` pieces."""

    library = "fountain 1"
    device = "cpu"

    def __init__(self, spec):
        self.limits = ModelLimits(spec.context_tokens, min(spec.parallel, PARALLEL))
        self._left = {}
        self._asked = {}
        self._pause = threading.Event()

    def start(self, generation):
        self._left[generation.job_id] = self._asked[generation.job_id] = generation.max_tokens

    def step(self):
        if self._left:
            self._pause.wait(PERIOD_S)
        for job_id in list(self._left):
            if self._left[job_id] == self._asked[job_id]:
                yield Progress(job_id, 0, 1, 1.0)
            self._left[job_id] -= 1
            yield Text(job_id, PIECE, 1)
            if not self._left[job_id]:
                yield self._end(job_id, FinishReason.LENGTH)

    def cancel(self, job_id):
        return [self._end(job_id, FinishReason.CANCELED)] if job_id in self._left else []

    def close(self):
        pass

    def _end(self, job_id, reason):
        said = self._asked.pop(job_id) - self._left.pop(job_id)
        return Finished(job_id, reason, TokenCounts(1, said), 1.0, 1.0)


def load(spec):
    return Fountain(spec)
