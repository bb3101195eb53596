"""What the library is told, and what its errors become."""

import pytest

from edge_agent.engine.messages import Generation, JobId
from edge_agent.errors import Code, EdgeAgentError

pytestmark = pytest.mark.engine


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError("std::bad_alloc"), Code.OUT_OF_MEMORY),
        (RuntimeError("Failed to allocate memory for requested buffer of size 412316860416"), Code.OUT_OF_MEMORY),
        (MemoryError(), Code.OUT_OF_MEMORY),
        (RuntimeError("top_k must be 0 or greater\nand a trace"), Code.MODEL_ERROR),
        (RuntimeError(), Code.MODEL_ERROR),
    ],
    ids=repr,
)
def test_the_librarys_errors_get_a_code(error, code):
    """What may succeed with more memory is told from what never will."""
    from edge_agent.engine.onnx import _library

    with pytest.raises(EdgeAgentError) as raised, _library():
        raise error
    assert raised.value.code is code
    assert "\n" not in raised.value.message


def test_an_error_of_ours_is_not_disguised():
    """A mistake in this project crashes; it is not taken for the model's."""
    from edge_agent.engine.onnx import _library

    with pytest.raises(ZeroDivisionError), _library():
        raise ZeroDivisionError


def test_temperature_zero_does_not_sample():
    """Greedy by name, not by dividing by nearly nothing; other choices do not matter then."""
    from edge_agent.engine.onnx import search_options

    generation = Generation(JobId("1.1"), (), 8, temperature=0.0, top_k=40, top_p=0.5, seed=7, repetition_penalty=1.1)
    assert search_options(generation, vocab_size=512) == {
        "do_sample": False,
        "top_k": 1,
        "repetition_penalty": 1.1,
    }
