"""Models in Hugging Face's own format on the processor, by torch: unquantised, slow, what the others are held against.

Only files of the folder are read, and no code in it is run.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from transformers import AutoModelForCausalLM, DynamicCache

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine import foreign
from edge_agent.engine.backend import ModelSpec
from edge_agent.engine.batching.lane_model import LaneModel
from edge_agent.engine.batching.lane_parts import Logits
from edge_agent.engine.context import original_tokens
from edge_agent.engine.hf.config import read_config
from edge_agent.engine.hf.facts import transformers_context
from edge_agent.engine.hf.lane_by_lane import LaneByLane, lane_model, loading
from edge_agent.engine.messages import ModelLimits

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
library = partial(foreign.library, "transformers")


def load(spec: ModelSpec, *, now_s: Callable[[], float] = time.perf_counter) -> LaneModel:
    """Load a model folder. Its option `dtype` is float32 unless told otherwise.

    Raises EdgeAgentError: MODEL_ERROR when the folder cannot be loaded, OUT_OF_MEMORY, UNSUPPORTED for a device.
    """
    dtype = _DTYPES.get(spec.options.get("dtype", "float32"))
    if spec.device != "cpu" or dtype is None:
        raise EdgeAgentError(
            Code.UNSUPPORTED, f"transformers runs on cpu in {', '.join(_DTYPES)}; choose that, or another backend"
        )
    config = read_config(spec.path)
    if "quantization" in config:
        raise EdgeAgentError(
            Code.UNSUPPORTED, f"{spec.path} is quantised for mlx; set the backend of its [[models.serve]] table to mlx"
        )
    torch.set_num_threads(spec.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with loading(spec.path), library():
        model = AutoModelForCausalLM.from_pretrained(
            spec.path, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=dtype
        ).eval()
    longrope = original_tokens(config) is not None
    limits = ModelLimits(min(spec.context_tokens, transformers_context(config).tokens), spec.parallel)
    return lane_model(
        spec,
        config,
        decoder=TorchDecoder(model, lanes=limits.parallel, vocab_size=config["vocab_size"], longrope=longrope),
        limits=limits,
        library_name=f"transformers {transformers.__version__}",
        now_s=now_s,
    )


class TorchDecoder(LaneByLane):
    """The model and a cache for each lane."""

    def __init__(self, model: Any, *, lanes: int, vocab_size: int, longrope: bool) -> None:
        self.vocab_size = vocab_size
        self.longrope = longrope
        self._model = model
        self._caches: list[Any] = [DynamicCache() for _ in range(lanes)]

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Give one lane the beginning of another."""
        with library():
            layers = self._caches[source].layers
            self._caches[target] = DynamicCache(
                [(each.keys[..., :tokens, :].clone(), each.values[..., :tokens, :].clone()) for each in layers]
            )

    def run_lane(self, lane: int, tokens: npt.NDArray[np.int64], length: int) -> Logits:
        """Compute tokens of a lane."""
        cache = self._caches[lane]
        surplus = cache.get_seq_length() - (length - len(tokens))
        with library(), torch.inference_mode():
            if surplus:
                cache.crop(-surplus)
            said = self._model(torch.from_numpy(tokens)[None], cache=cache, use_cache=True, logits_to_keep=1)
            logits: Logits = said.logits[0, -1, : self.vocab_size].float().numpy()
            return logits
