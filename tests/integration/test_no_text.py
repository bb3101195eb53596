"""What is no text ends a command with a sentence and status 2, however it is given; nobody sees a traceback."""

import os
import subprocess
import sys

import pytest

from edge_agent.__main__ import unreadable
from edge_agent.cli.app import VERBS

BROKEN = [b"\xff", b"caf\xe9", b"\xed\xa0\x80", b"\xc3", b"a\xf8\x88\x80\x80\x80"]


def run(*arguments, stdin=b"", **environ):
    return subprocess.run(
        [sys.executable, "-m", "edge_agent", *arguments],
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
        env={os.fsencode(name): os.fsencode(value) for name, value in (os.environ | environ).items()},
    )


def ended_with_a_sentence(done, word):
    assert done.returncode == 2, done
    assert b"Traceback" not in done.stderr
    assert word in done.stderr


@pytest.mark.parametrize("broken", BROKEN)
def test_every_argument_of_every_verb_is_looked_at_first(broken):
    given = os.fsdecode(broken)
    for verb in VERBS:
        for arguments in ([verb, given], [verb, "--config", given], [verb, f"--config={given}"]):
            assert "not valid UTF-8" in (unreadable(arguments, {}) or "")
    assert "EDGE_AGENT_MQTT__HOST" in (unreadable([], {"EDGE_AGENT_MQTT__HOST": given}) or "")
    assert unreadable(["submit", "Ist die Tür offen? 日本"], {"HOME": given}) is None


def test_arguments_variables_and_standard_input_that_are_no_text_end_a_command_in_words():
    ended_with_a_sentence(run(b"submit", BROKEN[0], b"--agent", b"edge-01"), b"argument 2 is not valid UTF-8")
    ended_with_a_sentence(run("doctor", EDGE_AGENT_MQTT__HOST=os.fsdecode(b"\xff")), b"EDGE_AGENT_MQTT__HOST")
    for broken in BROKEN:
        done = run("submit", "-", "--agent", "edge-01", "--port", "1", stdin=b"text " + broken)
        ended_with_a_sentence(done, b"not valid UTF-8")


@pytest.mark.parametrize("option", ["--name", "--username"])
def test_submit_refuses_its_own_wrong_name_at_once(option):
    """Without looking for the broker."""
    for name in ("Line 3", "line.3", "zürich", "UPPER"):
        done = run("submit", "Hello", "--agent", "edge-01", "--port", "1", option, name)
        assert done.returncode == 2
        assert b"letter or digit first" in b" ".join(done.stderr.replace("│".encode(), b"").split())
