"""Loads GGUF files with llama.cpp: its kernels and its memory of keys and values; the rest is LaneModel's."""

import ctypes
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.backend import ModelSpec
from edge_agent.engine.batching.lane_guide import Guides
from edge_agent.engine.batching.lane_model import LaneModel
from edge_agent.engine.batching.lane_parts import Logits
from edge_agent.engine.batching.picture import Features
from edge_agent.engine.batching.prefill import PIECE_TOKENS_MAX, PIECE_TOKENS_MIN
from edge_agent.engine.contained import BrokenError
from edge_agent.engine.llamacpp.file import GgufFile
from edge_agent.engine.llamacpp.gguf import gguf_file
from edge_agent.engine.llamacpp.library import Batch, library, library_name
from edge_agent.engine.messages import ModelLimits

CACHE_TYPES: Mapping[str, int] = {"f32": 0, "f16": 1}
"""In which numbers keys and values may be kept, as the option `cache_type` says: ggml's numbers of them.

Its smaller ones ask for fused attention, see LlamacppDecoder.
"""


def load(spec: ModelSpec, *, now_s: Callable[[], float] = time.perf_counter) -> LaneModel:
    """Load a GGUF file, or the one in a folder. Its option `cache_type` is f16 unless told otherwise.

    Raises EdgeAgentError: MODEL_ERROR when it cannot be loaded, OUT_OF_MEMORY, UNSUPPORTED for a device, an option or
    what the file holds.
    """
    cache_type = CACHE_TYPES.get(spec.options.get("cache_type", "f16"))
    if spec.device != "cpu" or cache_type is None or spec.options.keys() - {"cache_type"}:
        raise EdgeAgentError(
            Code.UNSUPPORTED,
            f"llamacpp runs on cpu here, with cache_type {' or '.join(CACHE_TYPES)} and no other option; choose that",
        )
    file = GgufFile(library(), gguf_file(spec.path))
    limits = ModelLimits(min(spec.context_tokens, file.context_tokens), spec.parallel)
    return LaneModel(
        decoder=LlamacppDecoder(file, limits, threads=spec.threads, cache_type=cache_type),
        encoder=None,
        prompts=file.prompts(),
        vocabulary=file.vocabulary,
        guides=Guides(file.guide_tokens(), vocab_size=file.vocab_size),
        end_ids=file.end_ids,
        limits=limits,
        library_name=library_name(),
        device=spec.device,
        now_s=now_s,
    )


class LlamacppDecoder:
    """The model, and a place of its own for each lane's keys and values; see lane_parts.Decoder.

    The library could keep all sequences in one place, where a beginning is shared and not copied, and could fuse
    attention. In both, sums are made in an order that depends on where a sequence lies and on who is computed beside
    it, and in texts of random weights that showed (2026.10).

    Raises EdgeAgentError OUT_OF_MEMORY, MODEL_ERROR.
    """

    copies = True
    longrope = False

    def __init__(self, file: GgufFile, limits: ModelLimits, *, threads: int, cache_type: int) -> None:
        self.vocab_size = file.vocab_size
        self._file = file  # its model goes after the context
        self._call = file.library.functions
        batch_tokens = max(PIECE_TOKENS_MAX + PIECE_TOKENS_MIN, limits.parallel)
        params = self._call.llama_context_default_params()
        params.n_ctx = limits.parallel * limits.context_tokens
        params.n_batch = params.n_ubatch = batch_tokens
        params.n_seq_max = params.n_outputs_max = limits.parallel
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = cache_type
        params.flash_attn_type = 0
        with file.library.telling("no room for the context"):
            self._context = file.library.held(self._call.llama_init_from_model(file.model, params))
        weakref.finalize(self, self._call.llama_free, self._context)
        self._memory = self._call.llama_get_memory(self._context)
        self._lanes = np.zeros(batch_tokens, np.int32)
        self._lane_pointers = self._lanes.ctypes.data + self._lanes.itemsize * np.arange(batch_tokens, dtype=np.uintp)
        self._ones = np.ones(batch_tokens, np.int32)

    def run(
        self, lanes: range, tokens: npt.NDArray[np.int64], lengths: Sequence[int], features: Sequence[Features]
    ) -> Logits:
        """Compute tokens of each lane in one call; there are no features.

        Raises BrokenError when the library fails: what the lanes hold is not known then.
        """
        assert not features  # noqa: S101 - no prompt has images
        new = tokens.shape[1]
        begins = np.array(lengths, np.int32)[:, None] - new
        for lane, (begin,) in zip(lanes, begins, strict=True):
            self._cut(lane, begin)
        ids, positions = tokens.astype(np.int32), begins + np.arange(new, dtype=np.int32)
        self._lanes[: ids.size] = np.repeat(lanes, new)
        chosen_by = np.zeros(ids.shape, np.int8)
        chosen_by[:, -1] = 1
        places = (positions, self._ones, self._lane_pointers, chosen_by)
        batch = Batch(ids.size, ids.ctypes.data, None, *(each.ctypes.data for each in places))
        if failure := self._call.llama_decode(self._context, batch):
            raise BrokenError(f"llama.cpp could not compute {ids.size} tokens (llama_decode gave {failure})")
        rows = (self._call.llama_get_logits_ith(self._context, (row + 1) * new - 1) for row in range(len(lanes)))
        return np.stack([np.ctypeslib.as_array(row, (self.vocab_size,)) for row in rows])

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Give one lane the beginning of another."""
        state = (ctypes.c_uint8 * self._call.llama_state_seq_get_size(self._context, source))()
        held = self._call.llama_state_seq_get_data(self._context, state, len(state), source)
        if not self._call.llama_state_seq_set_data(self._context, state, held, target):
            raise BrokenError(f"llama.cpp could not copy {tokens} tokens from one sequence to another")
        self._cut(target, tokens)

    def _cut(self, lane: int, tokens: int) -> None:
        """Forget all of a lane but the first so many tokens."""
        self._call.llama_memory_seq_rm(self._memory, lane, tokens, -1)


def guides(path: Path) -> Guides:
    """Return what compiles guides for a file's model, without its weights. Raises EdgeAgentError."""
    words = GgufFile(library(), gguf_file(path), words_only=True)
    return Guides(words.guide_tokens(), vocab_size=words.vocab_size)
