"""Guides for openvino-genai: tried before the model sees them."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import openvino as ov
import openvino_genai as genai
from openvino import opset6, opset13
from openvino.op.util import Variable, VariableInfo

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.guides import guide as bounds
from edge_agent.engine.guides.grammar import rewritten
from edge_agent.engine.guides.json_grammar import translated
from edge_agent.engine.guides.schema import SchemaError
from edge_agent.engine.messages import Guide, GuideKind

_REASON_CHARACTERS = 200
_STDERR = 2
_MERE_REMARK = b"clamping to 127"
"""What the library warns of without leaving anything out: how it writes a class of characters that is negated."""
_LEFT_OUT = (
    "response_format: has what openvino-genai leaves out, such as a $ref to elsewhere, a length beside a pattern, an "
    "escape that it does not know, or ^ and $ within an expression; write it otherwise"
)
_WALK_TOKENS = 4096
"""More than anybody follows."""


class GuideTrial:
    """Compiles guides where a mistake in one harms nobody.

    The library compiles a guide in the step that first computes its prompt, and an error there leaves the whole
    batch beyond repair (seen with 2026.4: "cannot be called when we are already in scheduling phase"). So each is
    given first to a pipeline of its own, on a model that computes nothing. Both share the tokenizer, which keeps
    what was compiled: the second time costs nothing.
    """

    keeps = True

    def __init__(self, tokenizer: Any, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._pipeline: Any = None
        self._left_out: set[Guide] = set()

    def follow(self, guide: Guide, go_on: Callable[[], bool]) -> None:
        """Compile a guide and choose tokens by it at random; calls `go_on` after each step, until that says no.

        Raises what `compiled` does.
        """
        structured = self.compiled(guide)
        if not go_on():
            return
        chance = genai.GenerationConfig(
            max_new_tokens=_WALK_TOKENS, do_sample=True, rng_seed=1, structured_output_config=structured
        )
        try:
            self._pipeline.generate(_one_token(), chance, _Steps(go_on))
        except RuntimeError as error:
            raise EdgeAgentError(Code.BAD_REQUEST, f"response_format: {_reason(error)}; mend it") from error

    def compiled(self, guide: Guide) -> Any:
        """Return the library's configuration for a guide.

        Raises EdgeAgentError: BAD_REQUEST with the library's reason when it cannot be compiled, UNSUPPORTED when it
        would leave out a part, and as `guide.check` does.
        """
        bounds.check(guide)
        structured = _asked(guide)
        if self._pipeline is None:
            self._pipeline = _silent_pipeline(self._tokenizer, self._vocab_size)
        config = genai.GenerationConfig(max_new_tokens=1, structured_output_config=structured)
        try:
            with _overheard() as said:
                self._pipeline.generate(_one_token(), config)
                if _warned(said):
                    self._left_out.add(guide)  # the next time it is kept, and nothing is said
        except RuntimeError as error:
            raise EdgeAgentError(Code.BAD_REQUEST, f"response_format: {_reason(error)}; mend it") from error
        if guide in self._left_out:
            raise EdgeAgentError(Code.UNSUPPORTED, _LEFT_OUT)
        return structured


class _Steps(genai.StreamerBase):  # type: ignore[misc]  # of a library without types
    """Tells of each token, and passes on whether there shall be another."""

    def __init__(self, go_on: Callable[[], bool]) -> None:
        super().__init__()
        self._go_on = go_on

    def write(self, _token: Any) -> Any:
        return genai.StreamingStatus.RUNNING if self._go_on() else genai.StreamingStatus.STOP

    def end(self) -> None:
        """Nothing is held back."""


@contextlib.contextmanager
def _overheard() -> Iterator[BinaryIO]:
    """Yield what the library prints meanwhile: it holds what the requester sent, which must not stand in the log."""
    with os.fdopen(os.memfd_create("said"), "w+b") as said:
        stderr = os.dup(_STDERR)
        os.dup2(said.fileno(), _STDERR)
        try:
            yield said
        finally:
            os.dup2(stderr, _STDERR)
            os.close(stderr)


def _warned(said: BinaryIO) -> bool:
    """Return whether the library printed that it leaves something out."""
    said.seek(0)
    return any(b"Warning" in line and _MERE_REMARK not in line for line in said)


def _asked(guide: Guide) -> Any:
    """Return what the library is told: of a JSON Schema our own grammar, for its own leaves parts out."""
    # The library keeps what it compiled by the text of it: with whose it is in a remark, each owner has their own.
    whose = f"\n# {hashlib.sha256(guide.owner.encode()).hexdigest()}" if guide.owner else ""
    if guide.kind is GuideKind.REGEX:
        return genai.StructuredOutputConfig(regex=guide.text)
    if guide.kind is GuideKind.GRAMMAR:  # it would take any number of digits for a shorter number
        return genai.StructuredOutputConfig(grammar=rewritten(guide.text, "\\u{:04x}".format) + whose)
    try:
        return genai.StructuredOutputConfig(grammar=translated(bounds.asked_schema(guide.text)) + whose)
    except SchemaError as error:
        raise EdgeAgentError(Code.UNSUPPORTED, f"response_format: {error}") from error


def _reason(error: RuntimeError) -> str:
    """Return what the library says of a guide, without the paths of its sources and without the guide itself."""
    last = next((line for line in reversed(str(error).splitlines()) if line.strip()), "it cannot be compiled")
    said = last.rpartition(".cc:")[2].partition(": ")[2] or last  # ".../regex_converter.cc:75: the reason"
    for guide_follows in ('"', "'", "`", " in {", " field ", " near: ", " The JSON string", ", but got "):
        said = said.partition(guide_follows)[0]
    return said.strip().rstrip(":;.[(")[:_REASON_CHARACTERS]


def _one_token() -> Any:
    one = ov.Tensor(np.ones((1, 1), np.int64))
    return genai.TokenizedInputs(one, one)


def _silent_pipeline(tokenizer: Any, vocab_size: int) -> Any:
    """Return a pipeline over the tokenizer whose model takes no time: all its logits are equal."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.xml")
        ov.save_model(_silent_model(vocab_size), path)
        weights = np.fromfile(path.with_suffix(".bin"), np.uint8)
        # SDPA: the plain pipeline, which starts afresh with each call. It wants an end of its own beside the guide's.
        return genai.LLMPipeline(
            path.read_text(encoding="utf-8"), ov.Tensor(weights), tokenizer, "CPU", ATTENTION_BACKEND="SDPA"
        )


def _silent_model(vocab_size: int) -> Any:
    """Return a model with the inputs, the output and the kept past that the library asks of a decoder."""

    def parameter(name: str, kind: Any, dimensions: int) -> Any:
        node = opset13.parameter(ov.PartialShape([-1] * dimensions), kind, name=name)
        node.output(0).set_names({name})
        return node

    def ints(*values: int) -> Any:
        return opset13.constant(np.array(values, np.int64))

    tokens, mask, positions = (
        parameter(name, ov.Type.i64, 2) for name in ("input_ids", "attention_mask", "position_ids")
    )
    beams = parameter("beam_idx", ov.Type.i32, 1)
    zeros = opset13.multiply(opset13.convert(tokens, "f32"), opset13.constant(np.float32(0)))
    logits = opset13.broadcast(
        opset13.unsqueeze(zeros, ints(2)), opset13.concat([opset13.shape_of(tokens), ints(vocab_size)], 0)
    )
    info = VariableInfo()
    info.data_shape, info.data_type, info.variable_id = ov.PartialShape([-1, 1, -1, 1]), ov.Type.f32, "past"
    past = Variable(info)
    batch = opset13.gather(opset13.shape_of(tokens), ints(0), ints(0))
    nothing = opset13.broadcast(opset13.constant(np.float32(0)), opset13.concat([batch, ints(1, 0, 1)], 0))
    before = opset13.gather(opset6.read_value(nothing, past), beams, ints(0))
    now = opset13.reshape(zeros, ints(0, 1, -1, 1), special_zero=True)
    kept = opset6.assign(opset13.concat([before, now], 2), past)
    result = opset13.result(logits)
    result.output(0).set_names({"logits"})
    return ov.Model([result], [kept], [tokens, mask, positions, beams], "silent")
