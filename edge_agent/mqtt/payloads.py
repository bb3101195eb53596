"""Where the payloads were in 0.1.0; a program imports them from `edge_agent.client`."""

import warnings

from edge_agent.protocol.payloads import Chunk, Result, Status

__all__ = ["Chunk", "Result", "Status"]

warnings.warn("edge_agent.mqtt.payloads has moved to edge_agent.client", DeprecationWarning, stacklevel=2)
