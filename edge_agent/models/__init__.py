"""Which model runs and what it needs."""
