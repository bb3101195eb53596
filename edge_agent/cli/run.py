"""`edge-agent run`: the daemon."""

import sys

from edge_agent.agent.daemon import main as daemon
from edge_agent.cli.options import Config


def run(config: Config = None) -> None:
    """Run the agent until SIGTERM, SIGHUP or Ctrl-C."""
    sys.exit(daemon(config))
