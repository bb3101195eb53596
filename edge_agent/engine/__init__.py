"""Engines: one child process per loaded model, and the parent's end of it."""
