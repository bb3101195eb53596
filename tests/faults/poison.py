"""The real backend, but some prompts kill, hang or fatten the engine: `kill@start`, `hang@prefill`, `eat@decode` …"""

import os
import re
import signal
import threading

from edge_agent.engine.messages import Progress, Text
from edge_agent.engine.onnx.load import load as load_real

PROMPT = re.compile(r"(kill|hang|eat)@(start|prefill|decode)\Z")
EATEN_BYTES = 256 * 2**20
"""More than the reservation that a test gives its engine; bounded, for the machine's sake."""


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def hang():
    """Say nothing any more; the daemon kills us."""
    threading.Event().wait()


def eat():
    """Take memory that no file backs, and keep it."""
    eaten = b"\1" * EATEN_BYTES
    hang()
    del eaten


FAULTS = {"kill": kill, "hang": hang, "eat": eat}
STAGES = {Progress: "prefill", Text: "decode"}


class PoisonedModel:
    """A loaded model that some prompts are bad for."""

    def __init__(self, model):
        self._model = model
        self._faults = {}
        self.limits, self.library, self.device = model.limits, model.library, model.device
        self.cancel, self.close = model.cancel, model.close

    def start(self, generation):
        if match := PROMPT.match(generation.turns[-1].text):
            fault, stage = match.groups()
            if stage == "start":
                FAULTS[fault]()
            self._faults[generation.job_id, stage] = FAULTS[fault]
        self._model.start(generation)

    def step(self):
        for event in self._model.step():
            yield event
            fault = self._faults.get((event.job_id, STAGES.get(type(event))))
            if fault:
                fault()


def load(spec):
    return PoisonedModel(load_real(spec))
