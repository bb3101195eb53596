"""Loads models with onnxruntime.

onnxruntime-genai gives the tokenizer and the folder's format. Its own loops are not used: its Generator computes one
sequence at a time, or a batch that nobody joins; its Engine batches four on the processor, takes nobody in before all
of them have ended, computes their prompts in one call, and keeps nothing for the next (seen with 0.18). For builds that
see images there is the Generator alone, and it cuts every image into as many tiles as there may be.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import onnxruntime_genai as og

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.backend import ModelSpec
from edge_agent.engine.batching.lane_guide import Guides
from edge_agent.engine.batching.lane_model import LaneModel
from edge_agent.engine.batching.prefill import LONGROPE_TOKENS
from edge_agent.engine.messages import ModelLimits
from edge_agent.engine.onnx.decoder import OnnxDecoder, open_session
from edge_agent.engine.onnx.layout import GraphFile, Layout
from edge_agent.engine.onnx.plugins import PLUGINS, memory
from edge_agent.engine.onnx.vision import Embedding, OnnxEncoder
from edge_agent.engine.text.detokenizer import Vocabulary
from edge_agent.engine.text.prompt import PromptMaker

IMAGES_PER_PROMPT = 16
"""More than the model was shown at once; the context ends before."""


def load(spec: ModelSpec, *, now_s: Callable[[], float] = time.perf_counter) -> LaneModel:
    """Load a model folder.

    Raises EdgeAgentError: MODEL_ERROR when the folder cannot be loaded, OUT_OF_MEMORY, UNSUPPORTED for a device.
    """
    og.disable_telemetry_events()  # an edge agent phones nobody; the environment said so before the import already
    layout = Layout.read(spec.path)
    context_tokens = min(spec.context_tokens, layout.context.tokens)
    parallel = spec.parallel if spec.device not in PLUGINS or PLUGINS[spec.device].divisible else 1
    limits = ModelLimits(context_tokens, parallel, 0 if layout.encoder is None else IMAGES_PER_PROMPT)
    try:
        decoder = _decoder(spec, layout, limits)
        encoder = None if layout.encoder is None else _encoder(spec, layout.encoder, context_tokens)
        prompts = PromptMaker.read(spec.path, images_most=limits.images_per_prompt)
    except EdgeAgentError as error:
        if error.code is Code.UNSUPPORTED:
            raise
        raise EdgeAgentError(error.code, f"{spec.path} cannot be loaded: {error.message}") from error
    return LaneModel(
        decoder=decoder,
        encoder=encoder,
        prompts=prompts,
        vocabulary=Vocabulary.read(spec.path),
        guides=Guides.read(spec.path, vocab_size=layout.vocab_size, end_ids=layout.end_ids),
        end_ids=frozenset(layout.end_ids),
        limits=limits,
        library_name=f"onnxruntime-genai {og.__version__}",
        device=spec.device,
        now_s=now_s,
    )


def _encoder(spec: ModelSpec, part: GraphFile, context_tokens: int) -> OnnxEncoder:
    # A text that outgrows the original context needs its images' features once more: those may be kept.
    return OnnxEncoder(_session(spec, part.filename), part.names, kept_tokens=min(context_tokens, LONGROPE_TOKENS))


def _decoder(spec: ModelSpec, layout: Layout, limits: ModelLimits) -> OnnxDecoder:
    embed = None
    if layout.embedding is not None:
        # One thread: it looks up rows of a table, and idle threads of its own would be in the way of the others.
        session = _session(replace(spec, threads=1), layout.embedding.filename)
        embed = Embedding(session, layout.embedding.names, hidden_size=layout.hidden_size).embed
    return OnnxDecoder(
        _session(spec, layout.filename),
        layout,
        memory=memory(spec.device),
        lanes=limits.parallel,
        context_tokens=limits.context_tokens,
        embed=embed,
    )


def _session(spec: ModelSpec, filename: str) -> Any:
    return open_session(spec.path / filename, device=spec.device, threads=spec.threads, options=spec.options)
