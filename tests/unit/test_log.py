"""Where log events go."""

import subprocess
import sys


def test_events_go_to_what_stderr_is_when_they_happen():
    """A logger that was used while stderr was another file goes on when that one is closed."""
    program = (
        "import io, sys\n"
        "from edge_agent.base import log\n"
        "logger, real, sys.stderr = log.get_logger(), sys.stderr, io.StringIO()\n"
        "log.configure(format='json', level='info')\n"
        "logger.info('first.event')\n"
        "sys.stderr.close()\n"
        "sys.stderr = real\n"
        "logger.info('second.event')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "second.event" in done.stderr
    assert "first.event" not in done.stderr


def test_a_program_that_uses_us_prints_nothing_of_ours():
    """Not a word on its standard output, nor on the other, until it says that it wants our log."""
    program = (
        "from edge_agent.mqtt.access import Access\n"
        "from edge_agent.client.client import EdgeClient\n"
        "from edge_agent.base import log\n"
        "log.get_logger().error('early.event', reason='none')\n"
        "with EdgeClient(Access('127.0.0.1', 9, client_id='me')) as client:\n"
        "    client.wait_connected(0.1)\n"
        "log.configure(format='json', level='info')\n"
        "log.get_logger().warning('late.event')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert "early.event" not in done.stderr
    assert "late.event" in done.stderr


def test_a_line_that_cannot_be_written_ends_nothing():
    """Whatever standard error is then: closed, gone, a full disk, or nothing at all."""
    program = (
        "import io, sys\n"
        "from edge_agent.base import log\n"
        "log.configure(format='json', level='info')\n"
        "sys.stderr.close()\n"
        "for each in (sys.stderr, None, open('/dev/full', 'w', buffering=1)):\n"
        "    sys.stderr = each\n"
        "    log.get_logger().info('some.event')\n"
        "sys.stderr = io.StringIO()\n"
        "log.get_logger().info('last.event')\n"
        "print('last.event' in sys.stderr.getvalue())\n"
        "import os; sys.stdout.flush(); os._exit(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_a_program_that_has_no_log_of_ours_hears_nothing_and_is_not_hurt():
    """Whatever way an event is logged: one with a level by number ended the connection of EdgeClient."""
    program = "from edge_agent.base.log import get_logger as of; of().info('a', b=1); of().log(20, 'a', b=1)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
