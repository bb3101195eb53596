"""Loads text models with onnxruntime.

onnxruntime-genai gives the tokenizer and the folder's format. Its own loops are not used: its Generator computes one
sequence at a time, or a batch that nobody joins; its Engine batches four on the processor, takes nobody in before all
of them have ended, computes their prompts in one call, and keeps nothing for the next (seen with 0.18).
"""

import time
from collections.abc import Callable

import onnxruntime_genai as og

from edge_agent.engine.backend import ModelSpec
from edge_agent.engine.messages import Limits
from edge_agent.engine.onnx_decoder import Decoder, Layout, library, open_session
from edge_agent.engine.onnx_guide import Guides
from edge_agent.engine.onnx_model import OnnxModel
from edge_agent.engine.prompt import SpecialTokens
from edge_agent.engine.words import Vocabulary
from edge_agent.errors import Code, EdgeAgentError


def load(spec: ModelSpec, *, now_s: Callable[[], float] = time.perf_counter) -> OnnxModel:
    """Load a model folder.

    Raises EdgeAgentError: MODEL_ERROR when the folder cannot be loaded, OUT_OF_MEMORY, UNSUPPORTED for a device.
    """
    og.disable_telemetry_events()  # an edge agent phones nobody; the environment said so before the import already
    special_tokens = SpecialTokens.read(spec.path)
    layout = Layout.read(spec.path)
    limits = Limits(context_tokens=min(spec.context_tokens, layout.context_tokens), parallel=spec.parallel)
    try:
        session = open_session(
            spec.path / layout.filename, device=spec.device, threads=spec.threads, options=spec.options
        )
        decoder = Decoder(
            session, layout, device=spec.device, lanes=limits.parallel, context_tokens=limits.context_tokens
        )
        with library():
            tokenizer = og.Tokenizer(str(spec.path))
            end_ids = [int(token) for token in tokenizer.eos_token_ids]
    except EdgeAgentError as error:
        if error.code is Code.UNSUPPORTED:
            raise
        raise EdgeAgentError(error.code, f"{spec.path} cannot be loaded: {error.message}") from error
    return OnnxModel(
        decoder=decoder,
        tokenizer=tokenizer,
        special_tokens=special_tokens,
        vocabulary=Vocabulary.read(spec.path),
        guides=Guides(spec.path, vocab_size=layout.vocab_size, end_ids=end_ids),
        end_ids=frozenset(end_ids),
        limits=limits,
        library_name=f"onnxruntime-genai {og.__version__}",
        device=spec.device,
        now_s=now_s,
    )
