"""A backend without a model that takes its time: a token every METRONOME_S seconds in each lane."""

import os
import threading

from edge_agent.engine.messages import Finished, FinishReason, ModelLimits, Progress, Text, TokenCounts

PERIOD_S = float(os.environ.get("METRONOME_S", "0.05"))
IMAGES = int(os.environ.get("METRONOME_IMAGES", "0"))


class Metronome:
    """Answers every prompt with `max_tokens` words."""

    library = "metronome 1"
    device = "cpu"

    def __init__(self, spec):
        self.limits = ModelLimits(spec.context_tokens, spec.parallel, IMAGES)
        self._left, self._asked, self._begun = {}, {}, set()
        self._pause = threading.Event()

    def start(self, generation):
        self._left[generation.job_id] = self._asked[generation.job_id] = generation.max_tokens

    def step(self):
        if self._left:
            self._pause.wait(PERIOD_S)
        for job_id in list(self._left):
            if job_id not in self._begun:
                self._begun.add(job_id)
                yield Progress(job_id, 0, 1, 1.0)
            self._left[job_id] -= 1
            yield Text(job_id, "tick ", 1)
            if not self._left[job_id]:
                yield self._end(job_id, FinishReason.LENGTH)

    def cancel(self, job_id):
        return [self._end(job_id, FinishReason.CANCELED)] if job_id in self._left else []

    def close(self):
        pass

    def _end(self, job_id, reason):
        self._begun.discard(job_id)
        said = self._asked.pop(job_id) - self._left.pop(job_id)
        return Finished(job_id, reason, TokenCounts(1, said), 1.0, 1000 * PERIOD_S * said)


def load(spec):
    return Metronome(spec)
