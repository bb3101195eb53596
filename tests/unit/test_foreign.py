"""What the libraries that compute say, turned into errors of ours."""

import pytest

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.foreign import library


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("std::bad_alloc"),
        RuntimeError("[malloc] Unable to allocate 412316860416 bytes."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:1]\nDefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA out of memory. Tried more"),
    ],
    ids=repr,
)
def test_what_may_succeed_with_more_memory_is_told_apart(error):
    with pytest.raises(EdgeAgentError, match="memory ran out") as raised, library("mlx"):
        raise error
    assert raised.value.code is Code.OUT_OF_MEMORY
    assert raised.value.__cause__ is error


@pytest.mark.parametrize(("last_line", "said"), [(False, "mlx said: first"), (True, "mlx said: last")])
def test_one_line_of_the_rest_is_told_with_the_librarys_name(last_line, said):
    with pytest.raises(EdgeAgentError) as raised, library("mlx", last_line=last_line):
        raise RuntimeError("\nfirst\nAllocatesNothing\nlast\n\n")
    assert (raised.value.code, raised.value.message) == (Code.MODEL_ERROR, said)


def test_an_error_of_ours_passes():
    """A mistake in this project crashes; it is not taken for the library's."""
    with pytest.raises(ZeroDivisionError), library("mlx"):
        raise ZeroDivisionError
