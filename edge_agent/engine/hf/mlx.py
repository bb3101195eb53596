"""Models by mlx-lm, quantised or not: on Apple's processors and GPUs, and on any other by its builds for Linux.

Only files of the folder are read, and no code in it is run.
"""

import time
from collections.abc import Callable, Mapping
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
from edge_agent.engine.hf.config import read_config
from edge_agent.engine.hf.facts import mlx_context
from edge_agent.engine.hf.lane_by_lane import LaneByLane, lane_model, loading
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
        model, _ = load_model(spec.path, model_config=_rope(config))
    limits = ModelLimits(min(spec.context_tokens, mlx_context(config).tokens), spec.parallel)
    _use_short_factors(model, config)
    return lane_model(
        spec,
        config,
        decoder=MlxDecoder(model, lanes=limits.parallel, vocab_size=config["vocab_size"]),
        limits=limits,
        library_name=f"mlx-lm {mlx_lm.__version__}",
        now_s=now_s,
    )


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what transformers 5 writes as `rope_parameters` in the spelling that the library reads."""
    told = config.get("rope_parameters")
    if not told:
        return {}
    kind = told.get("rope_type", "default")
    scaling = {} if kind == "default" else {"rope_scaling": {"type": kind, **told}}
    return scaling | {key: told[key] for key in ("rope_theta", "partial_rotary_factor") if key in told}


def _use_short_factors(model: Any, config: Mapping[str, Any]) -> None:
    """Turn a model with longrope by its short factors, which suit up to its original context.

    The library turns every sequence by those for long ones (SuScaledRoPE in mlx-lm 0.32).
    """
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    for rope in model.modules():
        if isinstance(rope, SuScaledRoPE):
            ratio = mx.array(scaling["short_factor"]) / mx.array(scaling["long_factor"])
            rope._freqs = rope._freqs * ratio  # noqa: SLF001 - there is no other way in


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
