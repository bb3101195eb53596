"""Loads models for openvino-genai: what the library is told, and how much of a model's context is used."""

import json
import os
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import openvino_genai as genai

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.backend import LoadedModel, ModelSpec
from edge_agent.engine.messages import ModelLimits
from edge_agent.engine.openvino.facts import openvino_context
from edge_agent.engine.openvino.first import OpenvinoFirst
from edge_agent.engine.openvino.guide import GuideTrial
from edge_agent.engine.openvino.model import KeyValueCache, OpenvinoModel
from edge_agent.engine.openvino.owners import Owners, alike
from edge_agent.engine.openvino.pipeline_model import library
from edge_agent.engine.openvino.prompt import Reader
from edge_agent.engine.openvino.vision import Eyes
from edge_agent.engine.openvino.vocabulary import tokenizer
from edge_agent.engine.openvino.whole import OpenvinoWhole
from edge_agent.engine.text.detokenizer import Vocabulary
from edge_agent.engine.text.prompt import PromptMaker
from edge_agent.images.phi_tiling import Grid

DEFAULTS: Mapping[str, Mapping[str, str]] = {
    "cpu": {
        # bfloat16, the library's choice where the processor has it, turned a small model into gibberish.
        "INFERENCE_PRECISION_HINT": "f32",
        # A quarter of f32. Scales per token: with scales per channel, the library's choice, a token's keys are
        # rounded anew as its block fills, and a text depends on who else was computed in the same step.
        "KV_CACHE_PRECISION": "u8",
        "KEY_CACHE_QUANT_MODE": "BY_TOKEN",
    },
    "gpu": {},
}
"""Settings of the library where the ModelSpec's options say nothing, by device."""
TEXT_GRAPH, DECODER = "openvino_model.xml", "openvino_language_model.xml"
"""The decoder's file: of a text model, and of a model that sees."""
_DYNAMIC_QUANTIZATION = "DYNAMIC_QUANTIZATION_GROUP_SIZE"
_RT_INFO_BYTES = 65_536
"""The model's own remarks stand at the end of its file."""
BLOCK_TOKENS: Mapping[str, int] = {"cpu": 32, "gpu": 16}
"""Tokens whose keys and values the library keeps together, by device: constants of its kv_cache_manager.hpp."""


def load(spec: ModelSpec, *, now_s: Callable[[], float] = time.perf_counter) -> LoadedModel:
    """Load the folder of a text model or of Phi-3.5-vision.

    Raises EdgeAgentError: MODEL_ERROR when the folder cannot be loaded, OUT_OF_MEMORY, UNSUPPORTED for a device.
    """
    if spec.device not in DEFAULTS:
        raise EdgeAgentError(
            Code.UNSUPPORTED,
            f"openvino runs on {' and '.join(DEFAULTS)} here, not on {spec.device}; choose one of them",
        )
    folder = _Folder(spec, now_s)
    try:
        with library():
            return folder.loaded()
    except EdgeAgentError as error:
        raise EdgeAgentError(error.code, f"{spec.path} cannot be loaded: {error.message}") from error


class _Folder:
    """What a folder says of itself, and the models that are opened with it. Raises EdgeAgentError as `load` does."""

    def __init__(self, spec: ModelSpec, now_s: Callable[[], float]) -> None:
        self._spec = spec
        self._now_s = now_s
        self._vocabulary = Vocabulary.read(spec.path)
        self._vocab_size, context_tokens = read_numbers(spec.path)
        self._sees = sees = (spec.path / DECODER).is_file()
        context_tokens = min(spec.context_tokens, context_tokens)
        images_per_prompt = context_tokens // Grid(1, 1).tokens if sees else 0
        self._limits = ModelLimits(context_tokens, spec.parallel, images_per_prompt)
        block_tokens = BLOCK_TOKENS[spec.device]
        self._cache = KeyValueCache(-(-context_tokens // block_tokens) * spec.parallel, block_tokens)
        self._told = properties(spec, graph=DECODER if sees else TEXT_GRAPH)
        self._eyes: Eyes | None = None
        self._maker = PromptMaker.read(spec.path, images_most=images_per_prompt)

    def loaded(self) -> LoadedModel:
        """Return the model. Owners are told apart where tokens have other names, see owners.py."""
        named, pipeline = not self._sees, self._opened(OpenvinoModel)
        if self._sees:
            kept_tokens = self._limits.context_tokens
            self._eyes = Eyes(self._spec.path, device=self._device, properties=self._told, kept_tokens=kept_tokens)
        elif self._spec.apart and not alike(pipeline, self._vocab_size):
            del pipeline  # there is no room for two
            named, pipeline = False, self._opened(OpenvinoModel)
        first = self._model(OpenvinoModel, pipeline, Owners(named=named))
        return OpenvinoFirst(first, self._whole) if self._spec.apart else first

    @property
    def _device(self) -> str:
        return self._spec.device.upper()

    def _whole(self) -> OpenvinoModel:
        with library():
            return self._model(OpenvinoWhole, self._opened(OpenvinoWhole), Owners(named=False))

    def _opened(self, kind: type[OpenvinoModel]) -> Any:
        words = tokenizer(self._spec.path, self._vocabulary)
        scheduler = _scheduler(self._limits, self._cache, kind)
        # The library hands it on to the models that see, which do not know it (2026.4).
        sampler = {} if self._sees else {"sampler_num_threads": self._spec.threads}
        told = self._told | sampler
        return genai.ContinuousBatchingPipeline(self._spec.path, words, scheduler, self._device, **told)

    def _model(self, kind: type[OpenvinoModel], pipeline: Any, owners: Owners) -> OpenvinoModel:
        return kind(
            pipeline=pipeline,
            reader=Reader(self._maker, self._vocab_size, self._eyes),
            vocabulary=self._vocabulary,
            vocab_size=self._vocab_size,
            limits=self._limits,
            cache=self._cache,
            owners=owners,
            device=self._spec.device,
            now_s=self._now_s,
        )


def properties(spec: ModelSpec, *, graph: str) -> dict[str, Any]:
    """Return the library's settings for a model: ours, then what the file of its graph calls for, the ModelSpec's."""
    found: dict[str, Any] = dict(DEFAULTS[spec.device])
    if spec.device == "cpu":
        found["INFERENCE_NUM_THREADS"] = spec.threads
        if group_size := _group_size(spec.path / graph):
            found[_DYNAMIC_QUANTIZATION] = group_size
    return {**found, **spec.options}


def _group_size(graph: Path) -> str | None:
    """Return how many weights share a scale, when a model's file says so and nothing of its activations.

    Activations that share scales in the same groups made decoding up to 1.5 times as fast as the library's own
    choice; other sizes were slower.
    """
    with suppress(OSError), graph.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _RT_INFO_BYTES))
        written = file.read().decode(errors="replace")
        found = re.search(r'<group_size value="([1-9]\d*)"', written)
        return found[1] if found and _DYNAMIC_QUANTIZATION not in written else None
    return None


def read_numbers(folder: Path) -> tuple[int, int]:
    """Return the size of a model's vocabulary and its context in tokens, as far as it is used here.

    Raises EdgeAgentError MODEL_ERROR when its config.json cannot be read.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return int(config["vocab_size"]), openvino_context(config).tokens
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EdgeAgentError(
            Code.MODEL_ERROR, f"config.json in {folder} cannot be read ({error!r}); fetch the model again"
        ) from error


def _scheduler(limits: ModelLimits, cache: KeyValueCache, kind: type[OpenvinoModel]) -> Any:
    """Return the library's settings: room for every sequence at its longest, and of a prompt as much as one call has.

    Where it keeps what it computed, it never cuts prompts on its own.
    """
    scheduler = genai.SchedulerConfig()
    scheduler.num_kv_blocks = cache.blocks
    scheduler.max_num_batched_tokens = kind.call_tokens + limits.parallel  # and a token of every other sequence
    scheduler.max_num_seqs = limits.parallel
    scheduler.dynamic_split_fuse = True  # prompts and tokens in one step
    scheduler.enable_prefix_caching = kind.keeps
    return scheduler


def guides(folder: Path) -> GuideTrial:
    """Return what compiles guides for a folder's model, without loading that. Raises EdgeAgentError, RuntimeError."""
    return GuideTrial(tokenizer(folder, Vocabulary.read(folder)), read_numbers(folder)[0])
