"""What measures: a model on this machine, its settings, and a library's own loop to compare an engine with."""
