"""Several answers of one model at once, where the library leaves keys, values and sampling to us."""
