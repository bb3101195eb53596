"""Models as their makers build them, served by our engines and held against transformers: `make builders`."""
