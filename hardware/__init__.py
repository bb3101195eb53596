"""What this machine is, read from its files; on its own: `python -m hardware`."""
