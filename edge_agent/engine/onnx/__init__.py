"""Builds for onnxruntime-genai, run by onnxruntime itself."""
