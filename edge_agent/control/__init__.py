"""The operator's way to a running agent: a socket in its state folder, and what can be asked through it."""
