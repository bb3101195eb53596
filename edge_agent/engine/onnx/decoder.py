"""A decoder graph in onnxruntime and the keys and values of its lanes.

The published builds follow one convention (onnxruntime-genai's model builder, `genai_config.json`): token ids and an
attention mask go in, logits come out, and GroupQueryAttention reads and writes keys and values in place. Sequences of
different lengths may be rows of one call, one new token each; several new tokens go alone, for the operator refuses
other rows beside them ("batch_size must be 1 when sequence_length > 1 and past context is given", onnxruntime 1.32).
"""

import math
import mmap
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as native

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine import foreign
from edge_agent.engine.batching.lane_parts import Logits
from edge_agent.engine.batching.picture import Features
from edge_agent.engine.onnx.layout import Layout
from edge_agent.engine.onnx.plugins import PLUGINS, hardware

Embed = Callable[[npt.NDArray[np.int64], Sequence[Features]], Features]
"""Returns what ids [lanes, new] stand for, shape [lanes, new, hidden size]; features where they are below 0."""

library = partial(
    foreign.library,
    "onnxruntime",
    (
        *foreign.ERRORS,
        *(error for error in vars(native).values() if isinstance(error, type) and issubclass(error, Exception)),
    ),
)
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
TYPES: Mapping[str, "np.dtype[Any]"] = {"tensor(float)": np.dtype(np.float32), "tensor(float16)": np.dtype(np.float16)}


@dataclass(frozen=True, slots=True)
class _Buffer:
    """Keys or values of a layer, shape [lanes, heads, context, head size]: an array, or the library's on a device."""

    past: str
    present: str
    memory: Any


class OnnxDecoder:
    """The graph, and `lanes` sequences of up to `context_tokens` tokens whose keys and values it holds.

    See lane_parts.Decoder for what it promises. `memory` is where they lie, in the library's word.
    """

    def __init__(
        self,
        session: Any,
        layout: Layout,
        *,
        memory: str,
        lanes: int,
        context_tokens: int,
        embed: Embed | None = None,
    ) -> None:
        self._layout = layout
        self.vocab_size = layout.vocab_size
        self.longrope = layout.longrope
        self._embed = embed
        self._session = session
        self._memory = memory
        self._shape = (lanes, layout.kv_heads, context_tokens, layout.head_size)
        types = {each.name: each.type for each in (*session.get_inputs(), *session.get_outputs())}
        try:
            self._logits_type = TYPES[types[layout.names["logits"]]]
            self._kv_type = TYPES[types[layout.names["past_key_names"] % 0]]
        except (KeyError, TypeError) as error:
            raise EdgeAgentError(
                Code.MODEL_ERROR, f"the graph's names or types are not known here ({error}); choose another build"
            ) from error
        self._positions = "position_ids" in types
        self._buffers = [
            _Buffer(past % layer, present % layer, self._allocate())
            for layer in range(layout.layers)
            for past, present in (
                (layout.names["past_key_names"], layout.names["present_key_names"]),
                (layout.names["past_value_names"], layout.names["present_value_names"]),
            )
        ]
        self._binding = session.io_binding()
        self._bound: range | None = None

    @property
    def copies(self) -> bool:
        """Whether keys and values can be copied from lane to lane."""
        return self._memory == "cpu"

    def run(
        self,
        lanes: range,
        tokens: npt.NDArray[np.int64],
        lengths: Sequence[int],
        features: Sequence[Features],
    ) -> Logits:
        """Compute tokens, shape [lanes, new]; return the logits of the last of each, shape [lanes, vocabulary].

        `lengths` are those of the sequences with the new tokens; `features` are of those tokens that are below 0.
        Raises EdgeAgentError OUT_OF_MEMORY, MODEL_ERROR.
        """
        new = tokens.shape[1]
        ends = np.array(lengths, np.int64)[:, None]
        names = self._layout.names
        with library():
            logits = np.empty((*tokens.shape, self.vocab_size), self._logits_type)
            mask = (np.arange(ends.max()) < ends).astype(np.int64)
            inputs: dict[str, npt.NDArray[Any]] = {names["attention_mask"]: mask}
            if self._embed is None:
                inputs[names["input_ids"]] = tokens
            else:
                inputs[names["inputs_embeds"]] = self._embed(tokens, features)
            if self._positions:
                inputs[names["position_ids"]] = ends - new + np.arange(new)
            self._bind(lanes)
            for name, array in inputs.items():  # the library does not promise to keep them alive
                self._binding.bind_cpu_input(name, array)
            self._binding.bind_output(names["logits"], "cpu", 0, self._logits_type, logits.shape, logits.ctypes.data)
            self._session.run_with_iobinding(self._binding)
            return logits[:, -1].astype(np.float32)

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Give one lane the first so many tokens of another; both are on the processor."""
        for buffer in self._buffers:
            buffer.memory[target, :, :tokens] = buffer.memory[source, :, :tokens]

    def _allocate(self) -> Any:
        with library():
            if self._memory == "cpu":
                return _small_pages(self._shape, self._kv_type)
            return ort.OrtValue.ortvalue_from_shape_and_type(list(self._shape), self._kv_type, self._memory, 0)

    def _bind(self, lanes: range) -> None:
        """Let the graph see these lanes only: neighbours in memory, as rows of one batch."""
        if lanes == self._bound:
            return
        shape = (len(lanes), *self._shape[1:])
        offset = lanes.start * math.prod(self._shape[1:]) * self._kv_type.itemsize
        for buffer in self._buffers:
            start = buffer.memory.ctypes.data if self._memory == "cpu" else buffer.memory.data_ptr()
            place = (self._memory, 0, self._kv_type, shape, start + offset)
            self._binding.bind_input(buffer.past, *place)
            self._binding.bind_output(buffer.present, *place)
        self._bound = lanes


def open_session(path: Path, *, device: str, threads: int, options: Mapping[str, str]) -> Any:
    """Open a graph. `options` are session entries on the processor (`session.…`), else the device's provider options.

    Raises EdgeAgentError: UNSUPPORTED with the install line when the library cannot use the device, MODEL_ERROR,
    OUT_OF_MEMORY.
    """
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.enable_mem_pattern = False  # it would keep a plan for every length of a sequence
    settings.log_severity_level = 3  # errors; they come back as exceptions too
    if device in PLUGINS:
        plugged = hardware(device)
        with library():
            settings.add_provider_for_devices([plugged], dict(options))
            return ort.InferenceSession(str(path), settings)
    provider = _PROVIDERS.get(device)
    if provider is None:
        there = ", ".join((*_PROVIDERS, *PLUGINS))
        raise EdgeAgentError(Code.UNSUPPORTED, f"onnx runs on {there}, not on {device}; choose one of them")
    missing = EdgeAgentError(
        Code.UNSUPPORTED,
        f"this onnxruntime cannot use {device}; install it in place of the other with: "
        f"pip install 'edge-slm-agent[{device}]', and the device's driver",
    )
    if provider not in ort.get_available_providers():
        raise missing
    with library():
        if device == "cpu":
            for key, value in options.items():
                settings.add_session_config_entry(key, value)
        session = ort.InferenceSession(
            str(path), settings, providers=[(provider, dict(options) if device != "cpu" else {})]
        )
    if session.get_providers()[0] != provider:
        raise missing  # the library falls back to the processor without a word
    return session


def _small_pages(shape: tuple[int, ...], kind: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return zeros that take memory only where they are written, in small pages.

    In huge ones, which numpy asks for, a short sequence would take nearly as much as the longest: each head's tokens
    lie apart. Raises MemoryError.
    """
    try:
        memory = mmap.mmap(-1, math.prod(shape) * kind.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(str(error)) from error
    with suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, kind).reshape(shape)
