"""Models by mlx-lm, quantised or not: on Apple's processors and GPUs, and on any other by its builds for Linux.

Only files of the folder are read, and no code in it is run.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import numpy.typing as npt
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.models.rope_utils import SuScaledRoPE
from mlx_lm.utils import load_model

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine import foreign
from edge_agent.engine.backend import ModelSpec
from edge_agent.engine.batching.lane_model import LaneModel
from edge_agent.engine.batching.lane_parts import Logits
from edge_agent.engine.hf.lane_by_lane import LaneByLane, lane_model, loading
from edge_agent.engine.hf.prompt import read_config
from edge_agent.engine.messages import ModelLimits

_DEVICES = {"cpu": mx.cpu, "gpu": mx.gpu}
library = partial(foreign.library, "mlx")


def load(spec: ModelSpec, *, now_s: Callable[[], float] = time.perf_counter) -> LaneModel:
    """Load a model folder.

    Raises EdgeAgentError: MODEL_ERROR when the folder cannot be loaded, OUT_OF_MEMORY, UNSUPPORTED for a device.
    """
    device = _DEVICES.get(spec.device)
    if device is None or not mx.is_available(device):
        raise EdgeAgentError(Code.UNSUPPORTED, f"this mlx cannot use {spec.device}; set the device to cpu")
    mx.set_default_device(device)
    config = read_config(spec.path)
    with loading(spec.path), library():
        model, _ = load_model(spec.path)
    limits = ModelLimits(min(spec.context_tokens, _context_tokens(model, config)), spec.parallel)
    return lane_model(
        spec,
        config,
        decoder=MlxDecoder(model, lanes=limits.parallel, vocab_size=config["vocab_size"]),
        limits=limits,
        library_name=f"mlx-lm {mlx_lm.__version__}",
        now_s=now_s,
    )


def _context_tokens(model: Any, config: dict[str, Any]) -> int:
    """Return the context that can be used, having mended longrope for it.

    The library turns every sequence by the factors for long ones (SuScaledRoPE in mlx-lm 0.32), which is not what the
    model was trained with. So a model with longrope is kept to its original context and given the short factors.
    """
    most: int = config["max_position_embeddings"]
    scaled = [each for each in model.modules() if isinstance(each, SuScaledRoPE)]
    if not scaled:
        return most
    scaling = config["rope_scaling"]
    for rope in scaled:
        ratio = mx.array(scaling["short_factor"]) / mx.array(scaling["long_factor"])
        rope._freqs = rope._freqs * ratio  # noqa: SLF001 - there is no other way in
    return min(most, int(scaled[0].original_max_position_embeddings))


class MlxDecoder(LaneByLane):
    """The model and a cache for each lane."""

    longrope = False

    def __init__(self, model: Any, *, lanes: int, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._model = model
        self._caches: list[Any] = [make_prompt_cache(model) for _ in range(lanes)]

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Give one lane the beginning of another."""
        with library():
            for theirs, ours in zip(self._caches[source], self._caches[target], strict=True):
                ours.state = (theirs.keys[..., :tokens, :], theirs.values[..., :tokens, :], tokens)

    def run_lane(self, lane: int, tokens: npt.NDArray[np.int64], length: int) -> Logits:
        """Compute tokens of a lane."""
        cache = self._caches[lane]
        with library():
            for layer in cache:
                layer.trim(layer.offset - (length - len(tokens)))
            logits = self._model(mx.array(tokens)[None], cache=cache)[0, -1, : self.vocab_size]
            return np.array(logits.astype(mx.float32))
