"""A job's way through the engines: made ready, claimed, attempted, ended."""
