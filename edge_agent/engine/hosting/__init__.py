"""The agent's end of its engines: which run, in which process, and what becomes of one that fails."""
