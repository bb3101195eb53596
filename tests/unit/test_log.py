"""Where log events go."""

import subprocess
import sys


def test_events_go_to_what_stderr_is_when_they_happen():
    """A logger that was used while stderr was another file goes on when that one is closed."""
    program = (
        "import io, sys\n"
        "from edge_agent import log\n"
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
