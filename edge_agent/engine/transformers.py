"""Models in Hugging Face's own format on the processor, by torch: unquantised, slow, what the others are held against.

Only files of the folder are read, and no code in it is run.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from transformers import AutoModelForCausalLM, DynamicCache

from edge_agent.engine.backend import ModelSpec
from edge_agent.engine.hf_prompt import HfPrompts, end_ids, read_config
from edge_agent.engine.lane_guide import Guides
from edge_agent.engine.lane_model import LaneModel
from edge_agent.engine.lane_parts import Logits
from edge_agent.engine.messages import Limits
from edge_agent.engine.picture import Features
from edge_agent.engine.prefill import LONGROPE_TOKENS
from edge_agent.engine.words import Vocabulary
from edge_agent.errors import Code, EdgeAgentError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_ALLOCATION = ("allocate memory", "out of memory", "bad_alloc")


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
    try:
        with library():
            model = AutoModelForCausalLM.from_pretrained(
                spec.path, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=dtype
            ).eval()
    except (EdgeAgentError, OSError, ValueError, KeyError, TypeError) as error:
        code = error.code if isinstance(error, EdgeAgentError) else Code.MODEL_ERROR
        raise EdgeAgentError(code, f"{spec.path} cannot be loaded: {error}") from error
    longrope = "longrope" in str(config.get("rope_scaling") or config.get("rope_parameters"))
    limits = Limits(min(spec.context_tokens, _context_tokens(config, longrope=longrope)), spec.parallel)
    ends = end_ids(spec.path, config)
    return LaneModel(
        decoder=TorchDecoder(model, lanes=limits.parallel, vocab_size=config["vocab_size"], longrope=longrope),
        encoder=None,
        prompts=HfPrompts(spec.path),
        vocabulary=Vocabulary.read(spec.path),
        guides=Guides.read(spec.path, vocab_size=config["vocab_size"], end_ids=ends),
        end_ids=frozenset(ends),
        limits=limits,
        library_name=f"transformers {transformers.__version__}",
        device=spec.device,
        now_s=now_s,
    )


def _context_tokens(config: dict[str, Any], *, longrope: bool) -> int:
    """Return the context that can be used: all, but where longrope changes its factors elsewhere than we expect."""
    most: int = config["max_position_embeddings"]
    original = config.get("original_max_position_embeddings", most)
    return min(most, original) if longrope and original != LONGROPE_TOKENS - 1 else most


class TorchDecoder:
    """The model and a cache for each lane, computed one after another; see lane_parts.Decoder."""

    copies = True

    def __init__(self, model: Any, *, lanes: int, vocab_size: int, longrope: bool) -> None:
        self.vocab_size = vocab_size
        self.longrope = longrope
        self._model = model
        self._caches: list[Any] = [DynamicCache() for _ in range(lanes)]

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
            layers = self._caches[source].layers
            self._caches[target] = DynamicCache(
                [(each.keys[..., :tokens, :].clone(), each.values[..., :tokens, :].clone()) for each in layers]
            )

    def _run(self, lane: int, row: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.float32]:
        cache = self._caches[lane]
        surplus = cache.get_seq_length() - (length - len(row))
        with library(), torch.inference_mode():
            if surplus:
                cache.crop(-surplus)
            said = self._model(torch.from_numpy(row)[None], cache=cache, use_cache=True, logits_to_keep=1)
            logits: npt.NDArray[np.float32] = said.logits[0, -1, : self.vocab_size].float().numpy()
            return logits


@contextmanager
def library() -> Iterator[None]:
    """Turn the library's errors into ours: torch knows RuntimeError, and says so when memory ran out."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = next(iter(str(error).splitlines()), "memory ran out")
        if isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in _ALLOCATION):
            raise EdgeAgentError(
                Code.OUT_OF_MEMORY, f"memory ran out ({text}); lower max_tokens or shorten the prompt"
            ) from error
        raise EdgeAgentError(Code.MODEL_ERROR, f"transformers said: {text}") from error
