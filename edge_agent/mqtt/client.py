"""Where EdgeClient was in 0.1.0; a program imports it from `edge_agent.client`."""

import warnings

from edge_agent.client import EdgeClient

__all__ = ["EdgeClient"]

warnings.warn("edge_agent.mqtt.client has moved to edge_agent.client", DeprecationWarning, stacklevel=2)
