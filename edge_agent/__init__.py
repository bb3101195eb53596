"""A daemon that runs a small language model on an edge device and takes its jobs from MQTT."""

__version__ = "0.1.0"
