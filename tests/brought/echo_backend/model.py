"""The model itself; see LoadedModel for what it promises."""

from edge_agent.engine.messages import Finished, FinishReason, ModelLimits, Progress, Text, TokenCounts


class EchoModel:
    library = "echo 1.0"
    device = "cpu"

    def __init__(self, spec):
        self.limits = ModelLimits(spec.context_tokens, spec.parallel)
        self._words = {}

    def start(self, generation):
        self._words[generation.job_id] = generation.turns[-1].text.split()[: generation.max_tokens]

    def step(self):
        for job_id in list(self._words):
            words = self._words[job_id]
            yield Progress(job_id, 0, len(words), 1.0)
            for word in words:
                yield Text(job_id, f"{word} ", 1)
            yield self._finished(job_id, FinishReason.STOP)

    def cancel(self, job_id):
        if job_id in self._words:
            yield self._finished(job_id, FinishReason.CANCELED)

    def close(self):
        self._words.clear()

    def _finished(self, job_id, reason):
        tokens = len(self._words.pop(job_id))
        return Finished(job_id, reason, TokenCounts(tokens, tokens), 1.0, 1.0)
