"""What crosses the socket."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.base.errors import Code
from edge_agent.engine.messages import (
    FRAME_BYTES_MAX,
    Canary,
    Cancel,
    Close,
    Failed,
    Finished,
    FinishReason,
    FrameReader,
    Generation,
    Guide,
    GuideKind,
    Image,
    JobId,
    Load,
    LoadFailed,
    ModelLimits,
    Progress,
    Ready,
    Start,
    Text,
    TokenCounts,
    Trying,
    Turn,
    decode,
    encode,
)

JOB = JobId("7.1")
MESSAGES = [
    Load("/models/phi", "onnx", 4096, 2, 4),
    Load("/models/phi", "onnx", 4096, 2, 4, canary=Canary("Capital?", ("Paris", "paris"), after_long=True)),
    Trying(12),
    Start(Generation(JOB, (Turn("user", "Gr\u00fc\u00dfe"),), 16, seed=7, stop=("\n\n", "END"))),
    Start(Generation(JOB, (), 16, guide=Guide(GuideKind.REGEX, "a", "line-3"), owner="line-3")),
    Start(Generation(JOB, (Turn("user", "What is it?", (Image("/spool/a", "00" * 32, 640, 480, 4),)),), 16)),
    Cancel(JOB),
    Close(),
    Ready(ModelLimits(4096, 2), 12.5, "onnxruntime-genai 0.18.0", "cpu"),
    LoadFailed(Code.MODEL_MISSING, "no"),
    Progress(JOB, 100, 32, 4.5),
    Text(JOB, "\u4e16", 3),
    Finished(JOB, FinishReason.STOP, TokenCounts(3, 4), 1.5, 2.5),
    Failed(JOB, Code.MODEL_ERROR, "no"),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_arrives_as_it_was_sent(message):
    """Also its nested parts are types again."""
    (body,) = FrameReader().feed(encode(message))
    assert decode(body) == message


@given(size=st.integers(1, 40))
def test_frames_are_found_however_the_stream_is_cut(size):
    """A socket keeps no borders."""
    stream = b"".join(map(encode, MESSAGES))
    reader = FrameReader()
    bodies = [body for i in range(0, len(stream), size) for body in reader.feed(stream[i : i + size])]
    assert list(map(decode, bodies)) == MESSAGES


def test_a_frame_over_the_limit_is_refused():
    """A broken peer cannot make us hold gigabytes."""
    with pytest.raises(ValueError, match="limit"):
        FrameReader().feed((FRAME_BYTES_MAX + 1).to_bytes(4, "big"))
