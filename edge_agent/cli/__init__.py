"""The command line: one file per verb."""

from edge_agent.cli.app import app

__all__ = ["app"]
