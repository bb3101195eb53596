"""Text on its way out: numbered, coalesced, never lost between two sends."""

import json

import pytest
from fakes import FakeLink, Time, accept, claim

from edge_agent.protocol.encode import Speech
from edge_agent.protocol.topics import Topics
from edge_agent.serving.chunks import INTERVAL_S, ChunkStream


@pytest.fixture
def machine():
    return Time()


@pytest.fixture
def link():
    return FakeLink()


@pytest.fixture
def open_stream(tmp_path, machine, link):
    def opened(**fields):
        with machine.queue(tmp_path) as queue:
            accept(queue, **fields)
            job = claim(queue)
        return ChunkStream(
            job, speech=Speech(Topics("edge/v1", "edge-01")), send=link.publish, now_s=lambda: machine.boottime_s
        )

    return opened


def sent(link):
    return [
        (chunk["seq"], chunk["text"], chunk["tokens"]) for chunk in map(json.loads, (p.payload for p in link.published))
    ]


def test_first_text_goes_at_once_and_more_at_its_time(open_stream, link, machine):
    """What comes within 50 ms of a chunk waits for that mark, which `write` returns; then it goes together."""
    stream = open_stream()
    assert stream.write("The", 1) is None
    machine.pass_s(0.01)
    assert stream.write(" pump", 1) == pytest.approx(machine.boottime_s - 0.01 + INTERVAL_S)
    stream.write(" is", 1)
    assert sent(link) == [(0, "The", 1)]
    stream.flush()
    assert sent(link) == [(0, "The", 1), (1, " pump is", 2)]
    assert stream.end() == 1


def test_text_after_a_pause_goes_at_once(open_stream, link, machine):
    stream = open_stream()
    stream.write("The", 1)
    machine.pass_s(INTERVAL_S)
    assert stream.write(" pump", 1) is None
    assert [seq for seq, _, _ in sent(link)] == [0, 1]


def test_a_flush_without_text_says_nothing(open_stream, link):
    """The end returns the number of the last chunk, -1 when there was none."""
    stream = open_stream()
    stream.flush()
    assert stream.end() == -1
    stream.write("The", 1)
    stream.flush()
    assert stream.end() == stream.end() == 0
    assert len(link.published) == 1


def test_the_token_that_ended_an_answer_is_counted_too(open_stream, link):
    """It has no text; the chunks' tokens are the answer's all the same."""
    stream = open_stream()
    stream.write("on", 1)
    assert stream.write("", 1) is not None
    stream.flush()
    assert sent(link) == [(0, "on", 1)]
    assert stream.end() == 1
    assert sent(link) == [(0, "on", 1), (1, "", 1)]


def test_tokens_without_text_stand_behind_the_next_text(open_stream, link, machine):
    """A token that ends no character yet is counted with the text it leads to."""
    stream = open_stream()
    stream.write("", 1)
    machine.pass_s(INTERVAL_S)
    stream.write("ü", 1)
    assert sent(link) == [(0, "ü", 2)]


def test_a_job_that_wants_no_stream_gets_no_chunks(open_stream, link):
    stream = open_stream(stream=False)
    assert stream.write("The", 1) is None
    assert stream.end() == -1
    assert link.published == []


def test_a_dropped_chunk_leaves_a_gap_in_the_numbers(open_stream, link, machine, monkeypatch):
    """A reader must be able to see that text is missing."""
    stream = open_stream()
    monkeypatch.setattr(stream, "_send", lambda _publication: None)
    stream.write("The", 1)
    monkeypatch.setattr(stream, "_send", link.publish)
    machine.pass_s(INTERVAL_S)
    stream.write(" pump", 1)
    assert sent(link) == [(1, " pump", 1)]
