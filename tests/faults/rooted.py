"""`rooted.py ROOT … CONFIG`: the daemon on another machine, whose proc and sys lie below ROOT."""

import sys
from pathlib import Path

from edge_agent.agent.lifecycle import Agent
from edge_agent.base import log
from edge_agent.settings.load import load

log.configure(format="json", level="info")
sys.exit(Agent(load(Path(sys.argv[-1])), root=Path(sys.argv[1])).run())
