"""What others wrote, on an operator's terminal: it is read, never obeyed."""

import sys

import pytest
import typer

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.cli import follow, orders
from edge_agent.cli.app import VERBS, app
from edge_agent.cli.jobs import _print_text
from edge_agent.cli.words import readable
from edge_agent.control.messages import Reply
from edge_agent.jobs.job import Failure
from edge_agent.protocol.order_payloads import OrderResult, OrderStatus
from edge_agent.protocol.payloads import Chunk, Result, Status

EVIL = "\x1b]0;mine\x07red\x9b31m \u202eback"
"""Sets a window's title and a colour, rings, and turns the direction of writing."""
TAMED = "?]0;mine?red?31m ?back"


class Handle:
    """A job whose end is told already."""

    agent, pool, unheard, throttled, status = "edge-01", None, False, False, None

    def __init__(self, *updates):
        self._updates = updates

    def updates(self, timeout_s=None):
        yield from self._updates

    def result(self, timeout_s=None):
        return self._updates[-1]


def told(text, **fields):
    known = {"agent": "edge-01", "job_id": "j", "attempt": 1, "agent_version": "1", "metadata": {}}
    return Result(state="succeeded", text=text, model="m", **known, **fields)


def test_what_moves_a_cursor_is_shown_as_a_question_mark_and_lines_stay():
    assert readable(EVIL) == TAMED
    assert readable("a\tb\r\nc") == "a\tb\nc"
    harmless = "नि\u200cचय 👩\u200d🔧 grün 的"
    assert readable(harmless) == harmless


@pytest.mark.parametrize("terminal", [True, False])
def test_an_answer_is_tamed_on_a_terminal_and_whole_in_a_file(capsys, monkeypatch, terminal):
    chunk = Chunk(agent="edge-01", job_id="j", attempt=1, seq=0, text=EVIL[:6], tokens=1)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    assert follow.follow(Handle(chunk, told(EVIL)), json=False)
    assert capsys.readouterr().out == (TAMED if terminal else EVIL) + "\n"


def test_no_sentence_of_an_agent_is_obeyed(capsys):
    failure = Failure(code=Code.INTERNAL, message=EVIL, retryable=False)
    status = Status(agent=f"[/x]{EVIL}", job_id="j", state="queued", state_seq=1, queue_position=2)
    follow.follow(Handle(status, told("", error=failure)), json=False)
    order = {"agent": "edge-01", "op_id": "o", "op": "load", "model": "m"}
    reports = (
        OrderStatus(**order, state="running", reason=EVIL),
        OrderResult(**order, state="failed", error=failure),
    )
    with pytest.raises(typer.Exit):
        orders.follow(iter(reports), "m", json=False)
    said = capsys.readouterr().err
    assert said.count(TAMED) == 4
    assert "\x1b]" not in said
    assert "\x9b" not in said


def test_prompts_and_answers_of_others_are_shown_and_not_obeyed(capsys):
    request = {"job_id": "j", "messages": [{"role": "user", "content": f"one\n{EVIL}"}]}
    _print_text(Reply(request=request, result=told(f"two\n{EVIL}")))
    said = capsys.readouterr().out
    assert said.count(f"\n{TAMED}") == 2
    assert "\x1b]" not in said


def test_an_order_nobody_answers_says_so_before_it_is_given_up(capsys):
    class Silent:
        def updates(self, timeout_s=None):
            if timeout_s is not None:
                raise TimeoutError
            raise EdgeAgentError(Code.EXPIRED, "edge-02 did not answer within 300 s")
            yield

    with pytest.raises(EdgeAgentError, match="did not answer"):
        list(orders.elsewhere(Silent(), "edge-02"))
    assert "no word from edge-02 yet" in capsys.readouterr().err


def test_every_help_ends_its_lines_where_the_terminal_does():
    """A paragraph's source lines would break it twice."""
    verbs = typer.main.get_command(app)
    for verb in VERBS:
        found = verbs.get_command(None, verb)
        for command in (found, *getattr(found, "commands", {}).values()):
            assert all("\n" not in part for part in command.help.split("\n\n")), (verb, command.name)
