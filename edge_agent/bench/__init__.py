"""What measures: a model on this machine, and its settings."""
