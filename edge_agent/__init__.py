"""A daemon that runs a small language model on an edge device and takes its jobs from MQTT."""

from datetime import UTC, datetime

__version__ = "0.1.0"
RELEASED = datetime(2026, 11, 24, tzinfo=UTC)
"""This version is not older: a clock that shows an earlier time is wrong."""
