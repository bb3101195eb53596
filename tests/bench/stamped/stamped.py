"""The onnx backend, its text replaced by when it was produced.

In nanoseconds of CLOCK_MONOTONIC, which is one clock for all processes of a machine.
"""

import dataclasses
import time

from edge_agent.engine.messages import Text
from edge_agent.engine.onnx import load as onnx


class Stamped:
    """A loaded model that computes as ever and says only when it did."""

    def __init__(self, model):
        self._model = model

    def __getattr__(self, name):
        return getattr(self._model, name)

    def step(self):
        """Yield the model's events as they happen; each text becomes the moment it is there, and a space."""
        for event in self._model.step():
            yield dataclasses.replace(event, text=f"{time.monotonic_ns()} ") if isinstance(event, Text) else event


def load(spec):
    """Load the real thing."""
    return Stamped(onnx.load(spec))
