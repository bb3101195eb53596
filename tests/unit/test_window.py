"""The window into a running agent: whom it tells, and what is left of it."""

import socket
import stat
import threading

import pytest

from edge_agent.errors import EdgeAgentError
from edge_agent.health.window import NAME, AgentState, Window, look

STATE = AgentState(agent="edge-01", version="0.1.0", pid=7, health="ready", connected=True)


def opened(folder):
    window = Window(folder, state=lambda: STATE)
    window.start()
    return window


def test_everybody_is_told_and_nobody_after_it_is_closed(tmp_path):
    folder = tmp_path / ("long" * 30)  # a socket's own address could not be so long
    folder.mkdir()
    window = opened(folder)
    assert [look(folder) for _ in range(3)] == [STATE] * 3
    assert stat.S_IMODE((folder / NAME).stat().st_mode) == 0o600
    window.stop()
    assert look(folder) is None
    assert list(folder.iterdir()) == []


def test_what_a_killed_agent_left_is_no_agent_and_no_obstacle(tmp_path):
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / NAME))
    assert look(tmp_path) is None
    window = opened(tmp_path)
    assert look(tmp_path) == STATE
    window.stop()


def test_a_visitor_who_hangs_up_harms_nobody(tmp_path):
    window = opened(tmp_path)
    for _ in range(3):
        with socket.socket(socket.AF_UNIX) as rude:
            rude.connect(str(tmp_path / NAME))
    assert look(tmp_path) == STATE
    window.stop()


def test_an_answer_that_is_none_is_said(tmp_path):
    with socket.create_server(str(tmp_path / NAME), family=socket.AF_UNIX) as other:

        def hang_up():
            other.accept()[0].close()

        rude = threading.Thread(target=hang_up)
        rude.start()
        with pytest.raises(EdgeAgentError, match="did not answer"):
            look(tmp_path)
        rude.join()
