"""Builds for openvino-genai, on processors, GPUs and NPUs."""
