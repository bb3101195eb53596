"""Models by mlx-lm, quantised or not: on Apple's processors and GPUs, and on any other by its builds for Linux.

Only files of the folder are read, and no code in it is run.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import numpy.typing as npt
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.models.rope_utils import SuScaledRoPE
from mlx_lm.utils import load_model

from edge_agent.engine.backend import ModelSpec
from edge_agent.engine.hf_prompt import HfPrompts, end_ids, read_config
from edge_agent.engine.lane_guide import Guides
from edge_agent.engine.lane_model import LaneModel
from edge_agent.engine.lane_parts import Logits
from edge_agent.engine.messages import Limits
from edge_agent.engine.picture import Features
from edge_agent.engine.words import Vocabulary
from edge_agent.errors import Code, EdgeAgentError

_DEVICES = {"cpu": mx.cpu, "gpu": mx.gpu}
_ALLOCATION = ("allocate", "out of memory", "bad_alloc")


def load(spec: ModelSpec, *, now_s: Callable[[], float] = time.perf_counter) -> LaneModel:
    """Load a model folder.

    Raises EdgeAgentError: MODEL_ERROR when the folder cannot be loaded, OUT_OF_MEMORY, UNSUPPORTED for a device.
    """
    device = _DEVICES.get(spec.device)
    if device is None or not mx.is_available(device):
        raise EdgeAgentError(Code.UNSUPPORTED, f"this mlx cannot use {spec.device}; set the device to cpu")
    mx.set_default_device(device)
    config = read_config(spec.path)
    try:
        with library():
            model, _ = load_model(spec.path)
    except (EdgeAgentError, OSError, ValueError, KeyError, TypeError) as error:
        code = error.code if isinstance(error, EdgeAgentError) else Code.MODEL_ERROR
        raise EdgeAgentError(code, f"{spec.path} cannot be loaded: {error}") from error
    limits = Limits(min(spec.context_tokens, _context_tokens(model, config)), spec.parallel)
    ends = end_ids(spec.path, config)
    return LaneModel(
        decoder=MlxDecoder(model, lanes=limits.parallel, vocab_size=config["vocab_size"]),
        encoder=None,
        prompts=HfPrompts(spec.path),
        vocabulary=Vocabulary.read(spec.path),
        guides=Guides.read(spec.path, vocab_size=config["vocab_size"], end_ids=ends),
        end_ids=frozenset(ends),
        limits=limits,
        library_name=f"mlx-lm {mlx_lm.__version__}",
        device=spec.device,
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


class MlxDecoder:
    """The model and a cache for each lane, computed one after another; see lane_parts.Decoder."""

    copies = True
    longrope = False

    def __init__(self, model: Any, *, lanes: int, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._model = model
        self._caches: list[Any] = [make_prompt_cache(model) for _ in range(lanes)]

    def run(
        self, lanes: range, tokens: npt.NDArray[np.int64], lengths: Sequence[int], features: Sequence[Features]
    ) -> Logits:
        """Compute tokens of each lane; there are no features."""
        assert not features  # noqa: S101 - no prompt has images
        return np.stack(
            [self._run(lane, row, length) for lane, row, length in zip(lanes, tokens, lengths, strict=True)]
        )

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Give one lane the beginning of another."""
        with library():
            for theirs, ours in zip(self._caches[source], self._caches[target], strict=True):
                ours.state = (theirs.keys[..., :tokens, :], theirs.values[..., :tokens, :], tokens)

    def _run(self, lane: int, row: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.float32]:
        cache = self._caches[lane]
        with library():
            for layer in cache:
                layer.trim(layer.offset - (length - len(row)))
            logits = self._model(mx.array(row)[None], cache=cache)[0, -1, : self.vocab_size]
            return np.array(logits.astype(mx.float32))


@contextmanager
def library() -> Iterator[None]:
    """Turn the library's errors into ours."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = next(iter(str(error).splitlines()), "memory ran out")
        if isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in _ALLOCATION):
            raise EdgeAgentError(
                Code.OUT_OF_MEMORY, f"memory ran out ({text}); lower max_tokens or shorten the prompt"
            ) from error
        raise EdgeAgentError(Code.MODEL_ERROR, f"mlx said: {text}") from error
