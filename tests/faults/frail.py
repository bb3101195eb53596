"""The real backend on the processor; on any other device it fails in the way that the model folder's name says.

`refuse` and `nonsense` show while the model is loaded and tried, `plausible` in no trial that does not know the
processor's words, the others in the first job that comes. While a file `well` lies beside the folder nothing fails. A
prompt `kill` is deadly on every device.
"""

from dataclasses import replace

import numpy as np
from poison import eat, hang, kill

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.messages import Text
from edge_agent.engine.onnx.load import load as load_real

AT_TOKEN = {"first": 1, "later": 50, "hang": 50, "nan": 50, "eat": 50}
DEADLY = "kill"
WORDS = {"nonsense": "the ", "plausible": "quite "}


def crash():
    raise RuntimeError("the driver has lost the device")


class FrailModel:
    """A loaded model with a fault; its trial, which nobody else's jobs are called like, goes well."""

    def __init__(self, model, fault, device):
        self._model, self._fault, self._tokens = model, fault, {}
        self._deadly = set()
        self.limits, self.library, self.device = model.limits, model.library, device
        self.cancel, self.close = model.cancel, model.close
        self._acts = {"first": crash, "later": kill, "hang": hang, "nan": self._spoil, "eat": eat}

    def start(self, generation):
        if generation.turns[-1].text == DEADLY:
            self._deadly.add(generation.job_id)
        self._model.start(generation)

    def step(self):
        for event in self._model.step():
            if not isinstance(event, Text):
                yield event
                continue
            if event.job_id in self._deadly:
                kill()
            yield Text(event.job_id, WORDS.get(self._fault, event.text), event.tokens)
            count = self._tokens[event.job_id] = self._tokens.get(event.job_id, 0) + 1
            if count == AT_TOKEN.get(self._fault) and not event.job_id.startswith("trial"):
                self._acts[self._fault]()

    def _spoil(self):
        """From now on the device computes no numbers; who notices is the real sampler."""
        decoder = self._model._decoder
        compute = decoder.run
        decoder.run = lambda *given: compute(*given) * np.float32(np.nan)


def load(spec):
    fault = spec.path.name
    well = spec.device == "cpu" or spec.path.with_name(f"{fault}.well").exists()
    if fault == "refuse" and not well:
        raise EdgeAgentError(Code.MODEL_ERROR, "the driver refuses the model")
    return FrailModel(load_real(replace(spec, device="cpu")), "" if well else fault, spec.device)
